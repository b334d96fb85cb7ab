//! Which new endpoints listen: asked on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use mesonet_ebpf_abi::{Frontend, Place, TCP};
use mesonet_lb_plan::{Deviation, PacketCandidate, PacketSpec, Shares, Starting};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::listening::{ASKED_MAX, listens};

/// An endpoint of a virtual address.
type Newcomer = (Frontend, Place);

/// Virtual addresses with endpoints that do not listen yet.
#[derive(Debug)]
pub(super) struct Starts {
    by_address: BTreeMap<Frontend, Starting>,
    /// Nothing was in the maps, and the first services are not in effect. Their endpoints count as started: most are, and on
    /// every node that starts, all endpoints of the cluster would be asked.
    is_fresh: bool,
    /// To the thread that asks. There are no more than endpoints.
    orders: mpsc::UnboundedSender<Newcomer>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Who is to be asked, and has not answered.
    asked: Mutex<BTreeSet<Newcomer>>,
    /// Who has answered, and was not taken.
    answered: Mutex<BTreeSet<Newcomer>>,
    /// That there is somebody.
    news: watch::Sender<()>,
}

impl Starts {
    /// Whether the maps are empty.
    pub(super) fn start(is_fresh: bool) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (orders, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            answered: Mutex::default(),
            news: watch::Sender::new(()),
        });
        let asking = ask_all(received, shared.clone());
        thread::Builder::new().name("packet-starts".to_owned()).spawn(move || runtime.block_on(asking))?;
        Ok(Self { by_address: BTreeMap::new(), is_fresh, orders, shared })
    }

    /// The first services are in effect.
    pub(super) fn end_first(&mut self) {
        self.is_fresh = false;
    }

    /// Changes when there is something to take.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.shared.news.subscribe()
    }

    /// The addresses with endpoints that listen since a moment ago. They are to be put into effect again.
    pub(super) fn take(&mut self) -> BTreeSet<Frontend> {
        let answered = std::mem::take(&mut *lock(&self.shared.answered));
        let mut changed = BTreeSet::new();
        for (frontend, place) in answered {
            if self.by_address.get_mut(&frontend).is_some_and(|starting| starting.has_started(place)) {
                changed.insert(frontend);
            }
        }
        changed
    }

    /// What an address should lead to for now, where these endpoints have got flows so far.
    pub(super) fn follow(
        &mut self,
        frontend: Frontend,
        spec: &PacketSpec,
        served: &BTreeSet<Place>,
    ) -> PacketSpec {
        if self.is_fresh || frontend.protocol != u32::from(TCP) {
            return spec.clone();
        }
        let wanted: Shares = spec.usable(&frontend).map(|each| (each.place, each.weight)).collect();
        let mut starting = self.by_address.remove(&frontend).unwrap_or_default();
        let new = starting.follow(&wanted, served);
        lock(&self.shared.asked).extend(new.iter().map(|place| (frontend, *place)));
        for place in new {
            // The thread is there for as long as this.
            let _ = self.orders.send((frontend, place));
        }
        let effective = starting.effective(&wanted);
        self.forget_others(frontend, &wanted);
        if !starting.is_over() {
            self.by_address.insert(frontend, starting);
        }
        let weight = |each: &PacketCandidate| effective.get(&each.place).copied().unwrap_or(each.weight);
        let candidates = spec.candidates.iter().map(|each| PacketCandidate { weight: weight(each), ..*each });
        PacketSpec { candidates: candidates.collect(), ..spec.clone() }
    }

    /// The endpoints of an address that take part otherwise than their weights say, where these get new flows.
    pub(super) fn deviations(
        &self,
        frontend: &Frontend,
        takes: impl Fn(&Place) -> bool,
    ) -> BTreeMap<Place, Deviation> {
        self.by_address.get(frontend).map(|starting| starting.deviations(takes)).unwrap_or_default()
    }

    /// An address is virtual no more.
    pub(super) fn forget(&mut self, frontend: &Frontend) {
        if self.by_address.remove(frontend).is_some() {
            self.forget_others(*frontend, &Shares::new());
        }
    }

    fn forget_others(&self, frontend: Frontend, wanted: &Shares) {
        let is_wanted = |place: &Place| wanted.get(place).is_some_and(Option::is_some);
        lock(&self.shared.asked).retain(|(of, place)| *of != frontend || is_wanted(place));
    }
}

fn lock(newcomers: &Mutex<BTreeSet<Newcomer>>) -> MutexGuard<'_, BTreeSet<Newcomer>> {
    newcomers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks whoever it is told, until nobody can tell it any more.
async fn ask_all(mut orders: mpsc::UnboundedReceiver<Newcomer>, shared: Arc<Shared>) {
    let asked = Arc::new(Semaphore::new(ASKED_MAX));
    while let Some(newcomer) = orders.recv().await {
        let (shared, asked) = (shared.clone(), asked.clone());
        tokio::spawn(async move {
            let is_wanted = || lock(&shared.asked).contains(&newcomer);
            if listens(SocketAddr::from(newcomer.1), &asked, is_wanted).await {
                lock(&shared.asked).remove(&newcomer);
                lock(&shared.answered).insert(newcomer);
                shared.news.send_replace(());
            }
        });
    }
}
