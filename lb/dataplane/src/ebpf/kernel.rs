//! What the maps hold, and new endpoints that do not listen yet.
//!
//! A task runs before it listens, and whoever is sent to it then is refused: the kernel asks no second endpoint. So an
//! endpoint that joins others gets connections when it has taken one of this process, or has not said for its time to
//! start that it does not listen. While all that are ready start, those go on that had the connections before.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::{Connection, Frontend, Place, TCP};
use mesonet_lb_plan::{Candidate, KernelTable, MapWrite, ServicePolicy};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::maps::Maps;

/// For how long an endpoint is asked that does not answer at all: as long as the proxy gives it.
const START_TIME: Duration = Duration::from_secs(10);

/// How often it is asked, as a part of the time since it was asked first: many that start have other things to do.
const ASK_PART: u32 = 10;
const ASK_INTERVAL: Duration = Duration::from_millis(20);
const ASK_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// How long it may take to answer.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// How many are asked at a time.
const ASKED_MAX: usize = 64;

/// The maps with what is known of them. Whoever changes the table makes the writes before others come to it.
#[derive(Debug)]
pub(super) struct Kernel {
    maps: Arc<Maps>,
    pub(super) table: KernelTable,
    starting: BTreeMap<Frontend, Starting>,
}

/// A virtual address with endpoints that do not listen yet.
#[derive(Debug)]
struct Starting {
    candidates: BTreeSet<Candidate>,
    policy: ServicePolicy,
    places: BTreeSet<Place>,
    /// Those that drain and had connections when they began to. Others may have ended already.
    stand_ins: BTreeSet<Place>,
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
        let mut kernel =
            Kernel { maps: Arc::new(maps), table: KernelTable::default(), starting: BTreeMap::new() };
        let used = open.iter().map(|each| each.origin.counter).max();
        kernel.table.skip_counters(used.map_or(0, |counter| counter.wrapping_add(1)));
        kernel.read_again()?;
        let kernel = Arc::new(Mutex::new(kernel));
        Ok(Self { kernel, asked: Arc::new(Semaphore::new(ASKED_MAX)) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an endpoint connections as soon as it takes one. Must be called within a runtime.
    pub(super) fn ask(&self, frontend: Frontend, place: Place) {
        let (kernel, asked) = (Arc::downgrade(&self.kernel), self.asked.clone());
        tokio::spawn(admit_when_listening(kernel, asked, frontend, place));
    }
}

impl Kernel {
    /// Makes an address lead to endpoints. Returns the writes that do it, and the endpoints that are to be asked whether
    /// they have started.
    pub(super) fn put(
        &mut self,
        frontend: Frontend,
        candidates: BTreeSet<Candidate>,
        policy: ServicePolicy,
    ) -> (Vec<MapWrite>, BTreeSet<Place>) {
        if !self.table.contains(&frontend) {
            // Where nobody was, nobody can do their work meanwhile.
            return (self.table.put(frontend, &candidates, policy), BTreeSet::new());
        }
        let served: BTreeSet<Place> = self.table.ready(&frontend).collect();
        let before = self.starting.remove(&frontend).map(|starting| starting.places).unwrap_or_default();
        let (ready, draining): (BTreeSet<&Candidate>, BTreeSet<&Candidate>) =
            candidates.iter().partition(|each| each.weight.is_some());
        let ready: BTreeSet<Place> = ready.into_iter().map(|each| each.place).collect();
        let draining = draining.into_iter().map(|each| each.place);
        let stand_ins = draining.filter(|place| served.contains(place)).collect();
        let is_joined = frontend.protocol == u32::from(TCP) && !served.is_empty();
        let is_new = |place: &&Place| is_joined && !served.contains(place) && !before.contains(place);
        let new: BTreeSet<Place> = ready.iter().filter(is_new).copied().collect();
        let places = before.intersection(&ready).chain(&new).copied().collect();
        let starting = Starting { candidates, policy, places, stand_ins };
        let writes = self.table.put(frontend, &starting.effective(), policy);
        if !starting.places.is_empty() {
            self.starting.insert(frontend, starting);
        }
        (writes, new)
    }

    /// The counters of those that drain and get connections nevertheless, because no other has started.
    pub(super) fn stand_ins(&self) -> BTreeSet<u32> {
        let waiting = self.starting.iter().filter(|(_, starting)| !starting.is_served());
        let of = |(frontend, starting): (&Frontend, &Starting)| -> Vec<u32> {
            starting.stand_ins.iter().filter_map(|place| self.table.counter(frontend, place)).collect()
        };
        waiting.flat_map(of).collect()
    }

    /// Ends an address. Returns the writes that do it.
    pub(super) fn remove(&mut self, frontend: &Frontend) -> Vec<MapWrite> {
        self.starting.remove(frontend);
        self.table.remove(frontend)
    }

    /// An endpoint that has started gets connections from now on. Whether to ask it again.
    fn hear(&mut self, frontend: Frontend, place: &Place, has_started: bool) -> bool {
        let is_starting = |starting: &Starting| starting.places.contains(place);
        if !self.starting.get(&frontend).is_some_and(is_starting) {
            return false;
        }
        if has_started {
            self.admit(frontend, place);
        }
        !has_started
    }

    fn admit(&mut self, frontend: Frontend, place: &Place) {
        let Some(mut starting) = self.starting.remove(&frontend) else { return };
        starting.places.remove(place);
        let writes = self.table.put(frontend, &starting.effective(), starting.policy);
        if !starting.places.is_empty() {
            self.starting.insert(frontend, starting);
        }
        if let Err(error) = self.change(|_, writer| writer.write(writes)) {
            tracing::warn!(%error, "Cannot give connections to an endpoint that has started");
        }
    }

    /// Changes the table and makes the writes that follow from it. If one fails, the maps are asked what they hold.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self, &mut Writer<'_, '_>)) -> io::Result<()> {
        let maps = self.maps.clone();
        let written = thread::scope(|scope| {
            let mut writer = Writer { maps: &maps, scope, latest: Vec::new(), earlier: None };
            change(self, &mut writer);
            writer.finish()
        });
        if written.is_err()
            && let Err(error) = self.read_again()
        {
            tracing::warn!(%error, "Cannot read the maps of the eBPF programs");
        }
        written
    }

    fn read_again(&mut self) -> io::Result<()> {
        let (mut table, garbage) = self.maps.read()?;
        table.skip_counters(self.table.next_counter());
        self.table = table;
        self.maps.write(&garbage)
    }
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

impl Starting {
    /// Who gets connections: those that are ready and have started; if there are none, those that stand in for them; if
    /// there are none, those that start.
    fn effective(&self) -> BTreeSet<Candidate> {
        let is_served = self.is_served();
        if !is_served && (self.places.is_empty() || self.stand_ins.is_empty()) {
            return self.candidates.clone();
        }
        let weight = |each: &Candidate| match each.weight {
            Some(_) if self.places.contains(&each.place) => None,
            None if !is_served && self.stand_ins.contains(&each.place) => Some(1),
            weight => weight,
        };
        self.candidates.iter().map(|each| Candidate { weight: weight(each), ..*each }).collect()
    }

    fn is_served(&self) -> bool {
        self.candidates.iter().any(|each| each.weight.is_some() && !self.places.contains(&each.place))
    }
}

async fn admit_when_listening(
    kernel: Weak<Mutex<Kernel>>,
    asked: Arc<Semaphore>,
    frontend: Frontend,
    place: Place,
) {
    let begun = Instant::now();
    let mut silent_since = begun;
    loop {
        let Ok(permit) = asked.acquire().await else { return };
        let connecting = TcpStream::connect(SocketAddr::from(place));
        let answer = tokio::time::timeout(ANSWER_TIME, connecting).await;
        drop(permit);
        let has_started = match answer {
            Ok(Ok(_)) => true,
            // It says itself that it does not listen.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                silent_since = Instant::now();
                false
            }
            // On a busy machine a single answer may come too late.
            _ => silent_since.elapsed() >= START_TIME,
        };
        let Some(kernel) = kernel.upgrade() else { return };
        if !kernel.lock().unwrap_or_else(PoisonError::into_inner).hear(frontend, &place, has_started) {
            return;
        }
        let pause = (begun.elapsed() / ASK_PART).clamp(ASK_INTERVAL, ASK_INTERVAL_MAX);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_start_wait_while_others_can_do_their_work() {
        let place = |number: u8| Place::from(SocketAddr::from(([10, 0, 0, number], 80)));
        let check = |candidates: &[(u8, Option<u32>)],
                     starting: &[u8],
                     stand_ins: &[u8],
                     expected: &[(u8, Option<u32>)]| {
            let all = |list: &[(u8, Option<u32>)]| -> BTreeSet<Candidate> {
                list.iter()
                    .map(|(number, weight)| Candidate { place: place(*number), weight: *weight })
                    .collect()
            };
            let places = |numbers: &[u8]| numbers.iter().map(|number| place(*number)).collect();
            let starting = Starting {
                candidates: all(candidates),
                policy: ServicePolicy::default(),
                places: places(starting),
                stand_ins: places(stand_ins),
            };
            assert_eq!(starting.effective(), all(expected));
        };
        check(&[(1, Some(3)), (2, None)], &[], &[], &[(1, Some(3)), (2, None)]);
        check(&[(1, Some(3)), (2, Some(4))], &[2], &[], &[(1, Some(3)), (2, None)]);
        check(&[(1, Some(3)), (2, Some(4)), (3, None)], &[2], &[3], &[(1, Some(3)), (2, None), (3, None)]);
        check(&[(1, None), (2, Some(4))], &[2], &[1], &[(1, Some(1)), (2, None)]);
        // One that drains for longer may have ended.
        check(&[(1, None), (2, Some(4)), (3, None)], &[2], &[3], &[(1, None), (2, None), (3, Some(1))]);
        check(&[(1, None), (2, Some(4))], &[2], &[], &[(1, None), (2, Some(4))]);
        check(&[(1, Some(3)), (2, Some(4))], &[1, 2], &[], &[(1, Some(3)), (2, Some(4))]);
    }
}
