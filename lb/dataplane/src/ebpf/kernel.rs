//! What the maps hold, and new endpoints that do not listen yet.
//!
//! A task runs before it listens, and whoever is sent to it then is refused: the kernel asks no second endpoint. So an
//! endpoint that joins others gets connections when it has taken one of this process, or has had its time to start.
//! While all that are ready start, those that drain go on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::{Frontend, Place, TCP};
use mesonet_lb_plan::{Candidate, KernelTable, MapWrite, ServicePolicy};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::maps::Maps;

/// How long an endpoint may take to listen: as long as the proxy gives it.
const START_TIME: Duration = Duration::from_secs(10);

/// How often it is asked, and how long it may take to answer.
const ASK_INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// How many are asked at a time.
const ASKED_MAX: usize = 64;

/// The maps with what is known of them.
#[derive(Debug)]
pub(super) struct Kernel {
    maps: Maps,
    pub(super) table: KernelTable,
    starting: BTreeMap<Frontend, Starting>,
}

/// A virtual address with endpoints that do not listen yet.
#[derive(Debug)]
struct Starting {
    candidates: BTreeSet<Candidate>,
    policy: ServicePolicy,
    places: BTreeSet<Place>,
}

/// Shared with those that ask.
#[derive(Debug, Clone)]
pub(super) struct SharedKernel {
    kernel: Arc<Mutex<Kernel>>,
    asked: Arc<Semaphore>,
}

impl SharedKernel {
    /// What the maps hold, without what belongs to nothing.
    pub(super) fn new(maps: Maps) -> io::Result<Self> {
        let mut kernel = Kernel { maps, table: KernelTable::default(), starting: BTreeMap::new() };
        kernel.read_again()?;
        let kernel = Arc::new(Mutex::new(kernel));
        Ok(Self { kernel, asked: Arc::new(Semaphore::new(ASKED_MAX)) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an address lead to endpoints. Returns the writes that do it. Must be called within a runtime.
    pub(super) fn put(
        &self,
        frontend: Frontend,
        candidates: BTreeSet<Candidate>,
        policy: ServicePolicy,
    ) -> Vec<MapWrite> {
        let (writes, new) = self.lock().put(frontend, candidates, policy);
        for place in new {
            let (kernel, asked) = (Arc::downgrade(&self.kernel), self.asked.clone());
            tokio::spawn(admit_when_listening(kernel, asked, frontend, place));
        }
        writes
    }
}

impl Kernel {
    fn put(
        &mut self,
        frontend: Frontend,
        candidates: BTreeSet<Candidate>,
        policy: ServicePolicy,
    ) -> (Vec<MapWrite>, BTreeSet<Place>) {
        let known: BTreeSet<Place> = self.table.counters(&frontend).map(|(place, _)| place).collect();
        let before = self.starting.remove(&frontend).map(|starting| starting.places).unwrap_or_default();
        let ready: BTreeSet<Place> =
            candidates.iter().filter(|each| each.weight.is_some()).map(|each| each.place).collect();
        // Where nobody was, nobody can do their work meanwhile.
        let is_joined = frontend.protocol == u32::from(TCP) && !known.is_empty();
        let new: BTreeSet<Place> =
            ready.iter().filter(|place| is_joined && !known.contains(place)).copied().collect();
        let places = before.intersection(&ready).chain(&new).copied().collect();
        let starting = Starting { candidates, policy, places };
        let writes = self.table.put(frontend, &starting.effective(), policy);
        if !starting.places.is_empty() {
            self.starting.insert(frontend, starting);
        }
        (writes, new)
    }

    /// Ends an address. Returns the writes that do it.
    pub(super) fn remove(&mut self, frontend: &Frontend) -> Vec<MapWrite> {
        self.starting.remove(frontend);
        self.table.remove(frontend)
    }

    /// An endpoint gets connections from now on.
    fn admit(&mut self, frontend: Frontend, place: &Place) {
        let Some(mut starting) = self.starting.remove(&frontend) else { return };
        starting.places.remove(place);
        let writes = self.table.put(frontend, &starting.effective(), starting.policy);
        if !starting.places.is_empty() {
            self.starting.insert(frontend, starting);
        }
        if let Err(error) = self.write(&writes) {
            tracing::warn!(%error, "Cannot give connections to an endpoint that has started");
        }
    }

    /// Makes writes. If that fails, the maps are asked what they hold.
    pub(super) fn write(&mut self, writes: &[MapWrite]) -> io::Result<()> {
        let written = self.maps.write(writes);
        if written.is_err()
            && let Err(error) = self.read_again()
        {
            tracing::warn!(%error, "Cannot read the maps of the eBPF programs");
        }
        written
    }

    fn read_again(&mut self) -> io::Result<()> {
        let (table, garbage) = self.maps.read()?;
        self.table = table;
        self.maps.write(&garbage)
    }
}

impl Starting {
    /// Who gets connections: those that are ready and have started; if there are none, those that drain; if there are
    /// none, those that start.
    fn effective(&self) -> BTreeSet<Candidate> {
        let is_starting = |each: &Candidate| self.places.contains(&each.place);
        let has_started = |each: &Candidate| each.weight.is_some() && !is_starting(each);
        if self.places.is_empty()
            || !self.candidates.iter().any(|each| has_started(each) || each.weight.is_none())
        {
            return self.candidates.clone();
        }
        let is_served = self.candidates.iter().any(has_started);
        let weight = |each: &Candidate| match each.weight {
            Some(_) if is_starting(each) => None,
            None if !is_served => Some(1),
            weight => weight,
        };
        self.candidates.iter().map(|each| Candidate { weight: weight(each), ..*each }).collect()
    }
}

async fn admit_when_listening(
    kernel: Weak<Mutex<Kernel>>,
    asked: Arc<Semaphore>,
    frontend: Frontend,
    place: Place,
) {
    let deadline = Instant::now() + START_TIME;
    while Instant::now() < deadline {
        let Ok(_permit) = asked.acquire().await else { return };
        let connecting = TcpStream::connect(SocketAddr::from(place));
        if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_TIME, connecting).await {
            break;
        }
        tokio::time::sleep(ASK_INTERVAL).await;
        if kernel.strong_count() == 0 {
            return;
        }
    }
    if let Some(kernel) = kernel.upgrade() {
        kernel.lock().unwrap_or_else(PoisonError::into_inner).admit(frontend, &place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_start_wait_while_others_can_do_their_work() {
        let place = |number: u8| Place::from(SocketAddr::from(([10, 0, 0, number], 80)));
        let check = |candidates: &[(u8, Option<u32>)], starting: &[u8], expected: &[(u8, Option<u32>)]| {
            let all = |list: &[(u8, Option<u32>)]| -> BTreeSet<Candidate> {
                list.iter()
                    .map(|(number, weight)| Candidate { place: place(*number), weight: *weight })
                    .collect()
            };
            let places = starting.iter().map(|number| place(*number)).collect();
            let starting = Starting { candidates: all(candidates), policy: ServicePolicy::default(), places };
            assert_eq!(starting.effective(), all(expected));
        };
        check(&[(1, Some(3)), (2, None)], &[], &[(1, Some(3)), (2, None)]);
        check(&[(1, Some(3)), (2, Some(4))], &[2], &[(1, Some(3)), (2, None)]);
        check(&[(1, Some(3)), (2, Some(4)), (3, None)], &[2], &[(1, Some(3)), (2, None), (3, None)]);
        check(&[(1, None), (2, Some(4))], &[2], &[(1, Some(1)), (2, None)]);
        check(&[(1, Some(3)), (2, Some(4))], &[1, 2], &[(1, Some(3)), (2, Some(4))]);
    }
}
