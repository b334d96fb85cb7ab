//! Which connections the programs have made: told as metrics, looked at while endpoints drain, ended when one is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::{Flow, Frontend, Origin, Place};
use mesonet_model::{Protocol, TaskKey};
use tokio::sync::watch;

use super::kernel::SharedKernel;
use super::ledger::Ledger;
use super::maps::Memory;
use super::{drain, namespaces, older_layout, sockets};
use crate::Metrics;
use crate::silence::{Heard, listen};

/// How often it is looked whether draining endpoints are in use: a fraction of what a drain waits for.
const DRAIN_INTERVAL: Duration = Duration::from_millis(250);

/// How many times as long as a look takes it is that none is taken: there may be many namespaces and connections.
const DRAIN_PAUSE: u32 = 20;

/// For how long none is taken at most. A look may have taken long because others had the processors, and a task is killed no
/// sooner than two looks have found it unused.
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long an endpoint must have been without a connection: a program may have chosen it just before it began to drain,
/// and the connection may not have begun since.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// How often metrics are brought up to date: a reader comes every some seconds.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Draining tasks, with the counters of their connections and datagrams.
pub(super) type Draining = BTreeMap<TaskKey, BTreeSet<u32>>;

/// Endpoints that are gone, each with the virtual address that led there, and their counters.
pub(super) type Dead = BTreeMap<(Frontend, Place), u32>;

/// Looks at what is counted, in the background.
#[derive(Debug)]
pub(super) struct Usage {
    kernel: SharedKernel,
    ledger: Mutex<Ledger>,
    memory: Memory,
    metrics: Metrics,
    draining: watch::Sender<Draining>,
    /// Draining endpoints of datagrams, by their counters.
    heard: Mutex<BTreeMap<u32, Heard>>,
    /// Since when draining tasks have no connection.
    idle: Mutex<BTreeMap<TaskKey, Instant>>,
    busy: watch::Sender<BTreeSet<TaskKey>>,
}

impl Usage {
    pub(super) fn start(
        kernel: SharedKernel,
        ledger: Ledger,
        memory: Memory,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let usage = Arc::new(Self {
            kernel,
            ledger: Mutex::new(ledger),
            memory,
            metrics: metrics.clone(),
            draining: watch::Sender::new(Draining::new()),
            heard: Mutex::default(),
            idle: Mutex::default(),
            busy: watch::Sender::new(BTreeSet::new()),
        });
        // The task must not keep what it looks at alive.
        tokio::spawn(look(Arc::downgrade(&usage), usage.draining.subscribe()));
        usage
    }

    pub(super) fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.busy.subscribe()
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// From now on these tasks drain. Those that are new count as busy until their connections are counted.
    pub(super) fn watch(&self, draining: Draining) {
        self.draining.send_if_modified(|current| {
            if *current == draining {
                return false;
            }
            let new = draining.keys().filter(|task| !current.contains_key(task)).cloned();
            self.busy.send_if_modified(|busy| {
                let before = busy.len();
                busy.extend(new);
                busy.len() != before
            });
            *current = draining;
            true
        });
    }

    /// Ends the connections that were made to dead endpoints.
    pub(super) async fn end(self: &Arc<Self>, dead: Dead) {
        let usage = self.clone();
        let ending = tokio::task::spawn_blocking(move || usage.end_now(&dead));
        if let Err(error) = ending.await {
            tracing::error!(%error, "BUG: ending connections has failed");
        }
    }

    fn end_now(&self, dead: &Dead) {
        // Most endpoints die without a connection from this node.
        let has_uncounted = self.memory.has_uncounted.load(Ordering::Relaxed);
        if !has_uncounted && !dead.values().any(|counter| self.ledger().is_used(*counter)) {
            return;
        }
        let origins = match self.origins(has_uncounted) {
            Ok(origins) => origins,
            Err(error) => {
                tracing::warn!(%error, "Cannot read which connections lead to dead endpoints");
                return;
            }
        };
        let ends = Ends::new(dead, origins);
        if ends.sockets.is_empty() {
            return;
        }
        let end = |cookie, netlink: &OwnedFd| (cookie, ends.end_here(netlink));
        let visit = namespaces::visit(|cookie| ends.is_in(cookie), end);
        let ended: usize = visit.found.iter().map(|(_, count)| count).sum();
        tracing::debug!(ended, namespaces = visit.found.len(), "Ended connections to dead endpoints");
        let visited: BTreeSet<u64> = visit.found.iter().map(|(cookie, _)| *cookie).collect();
        let is_complete = ends.namespaces.is_subset(&visited);
        let left = if is_complete { 0 } else { self.count_left(dead, &visited) };
        self.metrics.set_closed_namespaces(visit.closed.max(left));
        if left > visit.closed {
            tracing::warn!(
                namespaces = left - visit.closed,
                "Connections to dead endpoints go on in network namespaces that are not seen"
            );
        }
        if let Some(error) = visit.reason {
            tracing::warn!(
                %error, namespaces = visit.closed,
                "Connections to dead endpoints go on where network namespaces cannot be entered"
            );
        }
    }

    /// In how many other namespaces connections to dead endpoints are open. Some may have ended during the visit.
    fn count_left(&self, dead: &Dead, visited: &BTreeSet<u64>) -> usize {
        // Those that no counter has may be of namespaces that ended long ago.
        let open = self.origins(false).unwrap_or_default();
        Ends::new(dead, open).namespaces.difference(visited).count()
    }

    /// The connections that are open, and if asked for those that no counter has.
    fn origins(&self, has_uncounted: bool) -> io::Result<Vec<(Flow, Origin)>> {
        let connections = self.memory.connections.all()?;
        let mut origins: Vec<(Flow, Origin)> = connections.into_iter().map(older_layout::flow).collect();
        if has_uncounted {
            origins.extend(self.memory.origins.all()?);
        }
        Ok(origins)
    }

    /// Those of the counters with open connections whose endpoints have not ended them.
    fn in_use(&self, open: BTreeSet<u32>) -> BTreeSet<u32> {
        if open.is_empty() {
            return open;
        }
        drain::in_use(&self.memory.connections, &open).unwrap_or_else(|error| {
            tracing::warn!(%error, "Cannot read in which state connections to draining endpoints are");
            open
        })
    }

    /// Those of the counters of datagrams that have had one lately.
    fn listen(&self, sent: &BTreeMap<u32, u64>, now: Instant) -> BTreeSet<u32> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = listen(&heard, sent, now);
        heard.iter().filter(|(_, heard)| !heard.is_silent(now)).map(|(counter, _)| *counter).collect()
    }

    fn look_now(&self, draining: &Draining, is_export: bool) {
        // Connections of these come and go, and there may be none at the moment.
        let stand_ins = self.kernel.lock().stand_ins();
        let mut ledger = self.ledger();
        if is_export && let Err(error) = ledger.export() {
            tracing::warn!(%error, "Cannot read what the eBPF programs have counted");
        }
        let counters = draining.values().flatten().copied();
        let (of_datagrams, of_connections): (BTreeSet<u32>, BTreeSet<u32>) =
            counters.partition(|counter| ledger.is_of_datagrams(*counter));
        let open = of_connections.into_iter().filter(|counter| ledger.is_used(*counter)).collect();
        let sent = of_datagrams.into_iter().map(|counter| (counter, ledger.count(counter).packets_out));
        let sent = sent.filter(|(_, packets)| *packets > 0).collect();
        drop(ledger);
        let mut in_use = self.in_use(open);
        in_use.extend(self.listen(&sent, Instant::now()));
        let is_used = |counters: &BTreeSet<u32>| {
            counters.iter().any(|counter| stand_ins.contains(counter) || in_use.contains(counter))
        };
        let unused: BTreeSet<&TaskKey> =
            draining.iter().filter(|(_, counters)| !is_used(counters)).map(|(task, _)| task).collect();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|task, _| unused.contains(task));
        let mut is_busy = |task: &TaskKey| {
            !unused.contains(task)
                || idle.entry(task.clone()).or_insert_with(Instant::now).elapsed() < SETTLE_TIME
        };
        let found: BTreeSet<TaskKey> = draining.keys().filter(|task| is_busy(task)).cloned().collect();
        let current = self.draining.borrow();
        if *current != *draining {
            // Others drain since this look began. The next one comes at once.
            return;
        }
        self.busy.send_if_modified(|busy| {
            let is_new = *busy != found;
            *busy = found;
            is_new
        });
    }
}

/// The sockets to end.
#[derive(Debug)]
struct Ends {
    /// By the kernel's cookies of them.
    sockets: BTreeSet<[u32; 2]>,
    namespaces: BTreeSet<u64>,
    peers: BTreeMap<Protocol, BTreeSet<SocketAddr>>,
}

impl Ends {
    fn new(dead: &Dead, origins: Vec<(Flow, Origin)>) -> Self {
        let mut ends = Self { sockets: BTreeSet::new(), namespaces: BTreeSet::new(), peers: BTreeMap::new() };
        for (flow, origin) in origins {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let frontend = Frontend { place: origin.place, protocol: super::number(protocol) };
                if dead.contains_key(&(frontend, flow.place)) {
                    ends.sockets.insert(flow.socket);
                    let [low, high] = origin.netns.map(u64::from);
                    ends.namespaces.insert(high << 32 | low);
                    ends.peers.entry(protocol).or_default().insert(flow.place.into());
                }
            }
        }
        ends
    }

    fn is_in(&self, namespace: u64) -> bool {
        self.namespaces.contains(&namespace)
    }

    /// Ends those of the namespace that the netlink socket is in. Returns how many there were.
    fn end_here(&self, netlink: &OwnedFd) -> usize {
        let mut ended = 0;
        for (protocol, peers) in &self.peers {
            let result =
                sockets::connected(netlink, *protocol, peers, sockets::CONNECTED).and_then(|mut found| {
                    found.retain(|each| self.sockets.contains(&each.cookie));
                    sockets::destroy(netlink, &found)?;
                    Ok(found.len())
                });
            match result {
                Ok(count) => ended += count,
                Err(error) => tracing::warn!(%error, %protocol, "Cannot end connections to dead endpoints"),
            }
        }
        ended
    }
}

async fn look(usage: std::sync::Weak<Usage>, mut draining: watch::Receiver<Draining>) {
    let mut exported: Option<Instant> = None;
    loop {
        let current = draining.borrow_and_update().clone();
        let Some(usage) = usage.upgrade() else { return };
        let is_export = exported.is_none_or(|exported| exported.elapsed() >= EXPORT_INTERVAL);
        if is_export {
            exported = Some(Instant::now());
        }
        let is_quiet = current.is_empty();
        let begun = Instant::now();
        let looking = tokio::task::spawn_blocking(move || usage.look_now(&current, is_export));
        if let Err(error) = looking.await {
            tracing::error!(%error, "BUG: looking at connections has failed");
        }
        let drain_pause = (begun.elapsed() * DRAIN_PAUSE).clamp(DRAIN_INTERVAL, DRAIN_PAUSE_MAX);
        let pause = if is_quiet { EXPORT_INTERVAL } else { drain_pause };
        tokio::select! {
            changed = draining.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
