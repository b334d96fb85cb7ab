//! Which draining tasks still have flows from outside: looked at in the kernel's map of flows, while anything drains.
//!
//! The map is what packets go by, and outlives this process. Flows that the kernel has forgotten are in no way of a
//! drain, which counters of beginnings and ends would make them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::Track;
use mesonet_model::{Protocol, ServiceKey, TaskKey};
use tokio::sync::watch;

use super::ledger::Ledger;
use super::maps::FlowTable;
use crate::silence::{Heard, listen};

/// How often it is looked whether draining endpoints are in use: a fraction of what a drain waits for.
const INTERVAL: Duration = Duration::from_millis(250);

/// The first look comes so long after a change: a program may have chosen an endpoint just before it began to drain, and
/// have to note the flow yet.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// Looking takes no more than this part of a processor, however many flows there are.
const SHARE: u32 = 10;

/// An endpoint in the map of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Served {
    pub(super) number: u32,
    pub(super) stamp: u32,
    pub(super) protocol: Protocol,
}

/// A draining task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Drain {
    /// What its flows lead to.
    pub(super) served: BTreeSet<Served>,
    /// Whether it gets new flows for now, because no other endpoint has started.
    pub(super) stands_in: bool,
}

/// Draining tasks.
pub(super) type Draining = BTreeMap<TaskKey, Drain>;

/// Looks after draining tasks, on a thread of its own.
#[derive(Debug)]
pub(super) struct Drains {
    by_service: BTreeMap<ServiceKey, Draining>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    busy: watch::Sender<BTreeSet<TaskKey>>,
}

#[derive(Debug, Default)]
struct Wanted {
    draining: Draining,
    /// Counts changes.
    version: u64,
    is_over: bool,
}

impl Drains {
    pub(super) fn start(flows: FlowTable, ledger: Ledger) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            busy: watch::Sender::new(BTreeSet::new()),
        });
        let looker = Looker { shared: shared.clone(), flows, ledger, heard: BTreeMap::new() };
        thread::Builder::new().name("packet-drains".to_owned()).spawn(move || looker.run())?;
        Ok(Self { by_service: BTreeMap::new(), shared })
    }

    pub(super) fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.shared.busy.subscribe()
    }

    /// From now on these tasks of these services drain, and those of others as before. Those that are new count as busy
    /// until their flows are looked at.
    pub(super) fn change(&mut self, services: BTreeMap<ServiceKey, Draining>) {
        for (key, draining) in services {
            if draining.is_empty() {
                self.by_service.remove(&key);
            } else {
                self.by_service.insert(key, draining);
            }
        }
        let mut all = Draining::new();
        for (task, drain) in self.by_service.values().flatten() {
            let whole: &mut Drain = all.entry(task.clone()).or_default();
            whole.served.extend(&drain.served);
            whole.stands_in |= drain.stands_in;
        }
        let mut wanted = self.shared.lock();
        if wanted.draining == all {
            return;
        }
        let is_new = |task: &&TaskKey| !wanted.draining.contains_key(*task);
        let new: Vec<TaskKey> = all.keys().filter(is_new).cloned().collect();
        self.shared.publish(|busy| {
            busy.retain(|task| all.contains_key(task));
            busy.extend(new);
        });
        wanted.draining = all;
        wanted.version += 1;
        self.shared.changed.notify_one();
    }
}

impl Drop for Drains {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, change: impl FnOnce(&mut BTreeSet<TaskKey>)) {
        self.busy.send_if_modified(|busy| {
            let before = busy.clone();
            change(busy);
            *busy != before
        });
    }
}

/// The thread's side.
#[derive(Debug)]
struct Looker {
    shared: Arc<Shared>,
    flows: FlowTable,
    ledger: Ledger,
    heard: BTreeMap<Served, Heard>,
}

impl Looker {
    fn run(mut self) {
        let mut pause = SETTLE_TIME;
        while let Some((draining, version)) = self.wait(pause) {
            let begun = Instant::now();
            let found = self.look(&draining, begun);
            let wanted = self.shared.lock();
            // What has changed meanwhile is looked at again.
            let is_current = wanted.version == version;
            if is_current {
                self.shared.publish(|busy| *busy = found);
            }
            drop(wanted);
            pause = if is_current { INTERVAL.max(begun.elapsed() * SHARE) } else { SETTLE_TIME };
        }
    }

    /// Waits until it is time to look, and for as long as nothing drains. Returns what does; nothing if it is all over.
    fn wait(&self, pause: Duration) -> Option<(Draining, u64)> {
        let shared = self.shared.clone();
        let mut wanted = shared.lock();
        let version = wanted.version;
        let is_quiet = |wanted: &mut Wanted| !wanted.is_over && wanted.draining.is_empty();
        let is_same = |wanted: &mut Wanted| !wanted.is_over && wanted.version == version;
        let is_going_on = |wanted: &mut Wanted| !wanted.is_over;
        let changed = &shared.changed;
        if is_quiet(&mut wanted) {
            wanted = changed.wait_while(wanted, is_quiet).unwrap_or_else(PoisonError::into_inner);
        } else {
            let waited = changed.wait_timeout_while(wanted, pause, is_same);
            wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if wanted.version != version {
            let waited = changed.wait_timeout_while(wanted, SETTLE_TIME, is_going_on);
            wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (!wanted.is_over).then(|| (wanted.draining.clone(), wanted.version))
    }

    /// The tasks that are busy. All that drain, if the kernel does not say.
    fn look(&mut self, draining: &Draining, now: Instant) -> BTreeSet<TaskKey> {
        let served = draining.values().flat_map(|drain| &drain.served);
        let served: BTreeMap<(u32, u32), Served> =
            served.map(|each| ((each.number, each.stamp), *each)).collect();
        let mut found = BTreeSet::new();
        let looked = self.flows.for_each(|track| {
            if let Some(served) = served.get(&(track.endpoint, track.stamp))
                && is_open(&track)
            {
                found.insert(*served);
            }
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "Cannot read which flows draining tasks have");
            return draining.keys().cloned().collect();
        }
        let packets = |served: &Served| {
            let count = self.ledger.of(served.number);
            count.packets_in.wrapping_add(count.packets_out)
        };
        let of_datagrams = found.iter().filter(|each| each.protocol == Protocol::Udp);
        let counted: BTreeMap<Served, u64> = of_datagrams.map(|each| (*each, packets(each))).collect();
        self.heard = listen(&self.heard, &counted, now);
        busy_tasks(draining, &found, &self.heard, now)
    }
}

/// Whether a flow is one that its endpoint has not ended.
fn is_open(track: &Track) -> bool {
    track.direction == Track::FROM_CLIENT && track.seen & (Track::OVER | Track::ENDPOINT_ENDED) == 0
}

fn busy_tasks(
    draining: &Draining,
    found: &BTreeSet<Served>,
    heard: &BTreeMap<Served, Heard>,
    now: Instant,
) -> BTreeSet<TaskKey> {
    let is_silent = |served: &Served| heard.get(served).is_some_and(|heard| heard.is_silent(now));
    let is_used = |served: &Served| found.contains(served) && !is_silent(served);
    let is_busy = |drain: &Drain| drain.stands_in || drain.served.iter().any(is_used);
    draining.iter().filter(|(_, drain)| is_busy(drain)).map(|(task, _)| task.clone()).collect()
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId};

    use super::*;

    #[test]
    fn datagrams_keep_a_task_busy_until_none_has_passed_for_a_second() {
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        let served = Served { number: 3, stamp: 7, protocol: Protocol::Udp };
        let drain = Drain { served: [served].into(), stands_in: false };
        let draining = Draining::from([(task.clone(), drain)]);
        let found = BTreeSet::from([served]);
        let begin = Instant::now();
        let mut heard = BTreeMap::new();
        for (milliseconds, packets, is_busy) in [
            (0, 5, true),
            (900, 5, true),
            (950, 6, true),
            (1_900, 6, true),
            (1_950, 6, false),
            (2_000, 7, true),
        ] {
            let now = begin + Duration::from_millis(milliseconds);
            heard = listen(&heard, &BTreeMap::from([(served, packets)]), now);
            let busy = busy_tasks(&draining, &found, &heard, now);
            assert_eq!(busy.contains(&task), is_busy, "{milliseconds}");
        }
        assert!(busy_tasks(&draining, &BTreeSet::new(), &heard, begin).is_empty(), "no flow");
    }

    #[test]
    fn connections_keep_a_task_busy_however_quiet_they_are_and_so_does_who_stands_in() {
        let task = |name: &str| TaskKey::new(FrameworkId::new("f"), TaskId::new(name));
        let served = |number| Served { number, stamp: 7, protocol: Protocol::Tcp };
        let draining = [("a", 1, false), ("b", 2, false), ("c", 3, true)].map(|(name, number, stands_in)| {
            (task(name), Drain { served: [served(number)].into(), stands_in })
        });
        let found = BTreeSet::from([served(2), served(9)]);
        let busy = busy_tasks(&Draining::from(draining), &found, &BTreeMap::new(), Instant::now());
        assert_eq!(busy, [task("b"), task("c")].into(), "a flow, or new ones");
    }
}
