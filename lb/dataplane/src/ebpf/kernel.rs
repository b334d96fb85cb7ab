//! What the maps hold, and new endpoints that do not listen yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Scope, ScopedJoinHandle};

use mesonet_ebpf_abi::{Connection, Frontend, Place, TCP};
use mesonet_lb_plan::{Candidate, Deviation, KernelTable, MapWrite, NoRoom, ServicePolicy, Shares, Starting};
use tokio::sync::Semaphore;

use super::maps::Maps;
use crate::listening::{ASKED_MAX, listens};

/// The maps with what is known of them. Whoever changes the table makes the writes before others come to it.
#[derive(Debug)]
pub(super) struct Kernel {
    maps: Arc<Maps>,
    pub(super) table: KernelTable,
    wishes: BTreeMap<Frontend, Wish>,
    /// Virtual addresses that do not lead where they should, because something could not be written, and why.
    unwritten: Unwritten,
    /// The maps may hold something else than the table says.
    is_unknown: bool,
    /// Nothing is in the maps, and the first view is not in effect. Its endpoints count as started: most are, and on every node
    /// that starts, all endpoints of the cluster would be asked.
    is_fresh: bool,
}

/// Virtual addresses that do not lead where they should, and why.
pub(super) type Unwritten = BTreeMap<Frontend, String>;

/// What a virtual address should lead to that has endpoints which do not listen yet.
#[derive(Debug)]
struct Wish {
    shares: Shares,
    policy: ServicePolicy,
    starting: Starting,
}

/// Shared with those that ask.
#[derive(Debug, Clone)]
pub(super) struct SharedKernel {
    kernel: Arc<Mutex<Kernel>>,
    asked: Arc<Semaphore>,
}

impl SharedKernel {
    /// What the maps hold, without what belongs to nothing. New endpoints are counted under numbers that none of the open
    /// connections has.
    pub(super) fn new(maps: Maps, open: &[Connection]) -> io::Result<Self> {
        let mut kernel = Kernel {
            maps: Arc::new(maps),
            table: KernelTable::default(),
            wishes: BTreeMap::new(),
            unwritten: Unwritten::new(),
            is_unknown: false,
            is_fresh: false,
        };
        let used = open.iter().map(|each| each.origin.counter).max();
        kernel.table.skip_counters(used.map_or(0, |counter| counter.wrapping_add(1)));
        kernel.read_again()?;
        kernel.is_fresh = kernel.table.frontends().next().is_none();
        let kernel = Arc::new(Mutex::new(kernel));
        Ok(Self { kernel, asked: Arc::new(Semaphore::new(ASKED_MAX)) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an endpoint connections as soon as it takes one. Must be called within a runtime.
    pub(super) fn ask(&self, frontend: Frontend, place: Place) {
        let (kernel, asked) = (Arc::downgrade(&self.kernel), self.asked.clone());
        tokio::spawn(async move {
            let is_starting =
                || with(&kernel, |kernel| kernel.is_starting(&frontend, &place)).unwrap_or(false);
            if listens(place.into(), &asked, is_starting).await {
                with(&kernel, |kernel| kernel.admit(frontend, place));
            }
        });
    }
}

impl Kernel {
    /// Makes an address lead to endpoints. Returns the writes that do it, if there is room, and the endpoints that are to
    /// be asked whether they have started.
    pub(super) fn put(
        &mut self,
        frontend: Frontend,
        candidates: BTreeSet<Candidate>,
        policy: ServicePolicy,
    ) -> (Result<Vec<MapWrite>, NoRoom>, BTreeSet<Place>) {
        if self.is_fresh || frontend.protocol != u32::from(TCP) {
            return (self.table.put(frontend, &candidates, policy), BTreeSet::new());
        }
        let shares: Shares = candidates.iter().map(|each| (each.place, each.weight)).collect();
        let served = self.table.ready(&frontend).collect();
        let mut starting = self.wishes.remove(&frontend).map(|wish| wish.starting).unwrap_or_default();
        let new = starting.follow(&shares, &served);
        if starting.is_over() {
            return (self.table.put(frontend, &candidates, policy), new);
        }
        let wish = Wish { shares, policy, starting };
        let writes = self.table.put(frontend, &wish.candidates(), policy);
        self.wishes.insert(frontend, wish);
        (writes, new)
    }

    /// The first view is in effect.
    pub(super) fn end_first(&mut self) {
        self.is_fresh = false;
    }

    /// The counters of those that drain and get connections nevertheless, because no other has started.
    pub(super) fn stand_ins(&self) -> BTreeSet<u32> {
        let of = |(frontend, wish): (&Frontend, &Wish)| -> Vec<u32> {
            let effective = wish.starting.effective(&wish.shares);
            let drains = |place: &Place| wish.shares.get(place).is_some_and(Option::is_none);
            let stand_ins = effective.iter().filter(|(place, share)| share.is_some() && drains(place));
            stand_ins.filter_map(|(place, _)| self.table.counter(frontend, place)).collect()
        };
        self.wishes.iter().flat_map(of).collect()
    }

    /// The endpoints of an address that take part otherwise than their weights say.
    pub(super) fn deviations(&self, frontend: &Frontend) -> BTreeMap<Place, Deviation> {
        let Some(wish) = self.wishes.get(frontend) else { return BTreeMap::new() };
        let ready: BTreeSet<Place> = self.table.ready(frontend).collect();
        wish.starting.deviations(|place| ready.contains(place))
    }

    /// Ends an address. Returns the writes that do it.
    pub(super) fn remove(&mut self, frontend: &Frontend) -> Vec<MapWrite> {
        self.wishes.remove(frontend);
        self.table.remove(frontend)
    }

    fn is_starting(&self, frontend: &Frontend, place: &Place) -> bool {
        self.wishes.get(frontend).is_some_and(|wish| wish.starting.contains(place))
    }

    /// An endpoint that has started gets connections from now on.
    fn admit(&mut self, frontend: Frontend, place: Place) {
        let Some(mut wish) = self.wishes.remove(&frontend) else { return };
        wish.starting.has_started(place);
        match self.admit_now(frontend, &wish) {
            Ok(()) => {
                let served = self.table.ready(&frontend).collect();
                // Nobody is new who is to be asked.
                wish.starting.follow(&wish.shares, &served);
            }
            Err(reason) => drop(self.unwritten.insert(frontend, reason)),
        }
        if !wish.starting.is_over() {
            self.wishes.insert(frontend, wish);
        }
    }

    fn admit_now(&mut self, frontend: Frontend, wish: &Wish) -> Result<(), String> {
        self.table.release();
        let put = self.table.put(frontend, &wish.candidates(), wish.policy);
        let writes = put.map_err(|no_room| failure(&frontend, &no_room))?;
        let written = self.change(|_, writer| writer.write(writes));
        self.know();
        written.map_err(|error| failure(&frontend, &error))
    }

    /// The addresses that do not lead where they should. The caller tries again.
    pub(super) fn take_unwritten(&mut self) -> Unwritten {
        std::mem::take(&mut self.unwritten)
    }

    /// These do not lead where they should.
    pub(super) fn set_unwritten(&mut self, frontends: Unwritten) {
        self.unwritten = frontends;
    }

    pub(super) fn unwritten(&self) -> &Unwritten {
        &self.unwritten
    }

    /// Changes the table and makes the writes that follow from it. If one fails, the table is to be [known](Self::know)
    /// before anything else is done to the addresses that were changed.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self, &mut Writer<'_, '_>)) -> io::Result<()> {
        let maps = self.maps.clone();
        self.table.release();
        let written = thread::scope(|scope| {
            let mut writer = Writer { maps: &maps, scope, latest: Vec::new(), earlier: None };
            change(self, &mut writer);
            writer.finish()
        });
        self.is_unknown |= written.is_err();
        written
    }

    /// Asks the maps what they hold, if a write has failed. Returns whether the table says it.
    pub(super) fn know(&mut self) -> bool {
        if self.is_unknown {
            match self.read_again() {
                Ok(()) => self.is_unknown = false,
                Err(error) => tracing::warn!(%error, "Cannot read the maps of the eBPF programs"),
            }
        }
        !self.is_unknown
    }

    fn read_again(&mut self) -> io::Result<()> {
        let (mut table, garbage) = self.maps.read()?;
        table.skip_counters(self.table.next_counter());
        self.table = table;
        self.maps.write(&garbage)
    }
}

/// Why an address does not lead where it should.
pub(super) fn failure(frontend: &Frontend, error: &dyn std::error::Error) -> String {
    format!("cannot balance {} in the kernel: {error}", SocketAddr::from(frontend.place))
}

/// Makes writes while the next ones are found.
pub(super) struct Writer<'scope, 'env> {
    maps: &'scope Maps,
    scope: &'scope Scope<'scope, 'env>,
    /// What is given last is written by the thread that gave it, if nothing follows.
    latest: Vec<MapWrite>,
    earlier: Option<ScopedJoinHandle<'scope, io::Result<()>>>,
}

impl Writer<'_, '_> {
    /// Makes writes for virtual addresses, after those given before.
    pub(super) fn write(&mut self, writes: Vec<MapWrite>) {
        let writes = std::mem::replace(&mut self.latest, writes);
        if writes.is_empty() {
            return;
        }
        let (maps, earlier) = (self.maps, self.earlier.take());
        self.earlier = Some(self.scope.spawn(move || {
            wait(earlier)?;
            maps.write(&writes)
        }));
    }

    fn finish(self) -> io::Result<()> {
        wait(self.earlier)?;
        self.maps.write(&self.latest)
    }
}

fn wait(writing: Option<ScopedJoinHandle<'_, io::Result<()>>>) -> io::Result<()> {
    let joined = writing.map_or(Ok(Ok(())), ScopedJoinHandle::join);
    joined.unwrap_or_else(|_| Err(io::Error::other("BUG: a thread has failed")))
}

impl Wish {
    /// Who gets connections for now, and who does not.
    fn candidates(&self) -> BTreeSet<Candidate> {
        let shares = self.starting.effective(&self.shares);
        shares.into_iter().map(|(place, weight)| Candidate { place, weight }).collect()
    }
}

/// Looks at what the maps hold; `None` if nobody has them any more.
fn with<T>(kernel: &Weak<Mutex<Kernel>>, look: impl FnOnce(&mut Kernel) -> T) -> Option<T> {
    Some(look(&mut kernel.upgrade()?.lock().unwrap_or_else(PoisonError::into_inner)))
}
