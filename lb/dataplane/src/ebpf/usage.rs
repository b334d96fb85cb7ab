//! Which connections the programs have made, found among the sockets of this network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesonet_ebpf_abi::{Flow, Place};
use mesonet_model::{Protocol, TaskKey};
use tokio::sync::watch;

use super::maps::Origins;
use super::sockets::{self, Connection};

/// How often the sockets are looked at while endpoints drain: a fraction of what a drain waits for, and a dump of ten
/// thousand sockets takes some 10 ms.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

type Draining = BTreeMap<SocketAddr, BTreeSet<TaskKey>>;

/// Looks at sockets, in the background while something drains.
#[derive(Debug)]
pub(super) struct Usage {
    origins: Mutex<Origins>,
    draining: watch::Sender<Draining>,
    busy: watch::Sender<BTreeSet<TaskKey>>,
}

impl Usage {
    pub(super) fn start(origins: Origins) -> Arc<Self> {
        let usage = Arc::new(Self {
            origins: Mutex::new(origins),
            draining: watch::Sender::new(Draining::new()),
            busy: watch::Sender::new(BTreeSet::new()),
        });
        // The task must not keep what it looks at alive.
        tokio::spawn(look(Arc::downgrade(&usage), usage.draining.subscribe()));
        usage
    }

    pub(super) fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.busy.subscribe()
    }

    /// From now on these endpoints drain. Those that are new count as busy until their connections are counted.
    pub(super) fn watch(&self, draining: Draining) {
        self.draining.send_if_modified(|current| {
            if *current == draining {
                return false;
            }
            let new: BTreeSet<TaskKey> = draining
                .iter()
                .filter(|(address, _)| !current.contains_key(address))
                .flat_map(|(_, tasks)| tasks.iter().cloned())
                .collect();
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
    pub(super) async fn end(self: &Arc<Self>, dead: BTreeSet<SocketAddr>) {
        let usage = self.clone();
        let ending = tokio::task::spawn_blocking(move || usage.end_now(&dead));
        if let Err(error) = ending.await {
            tracing::error!(%error, "BUG: ending connections has failed");
        }
    }

    fn end_now(&self, dead: &BTreeSet<SocketAddr>) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for connection in self.connections(protocol) {
                if dead.contains(&connection.peer)
                    && let Err(error) = sockets::destroy(&connection)
                {
                    tracing::warn!(%error, peer = %connection.peer, "Cannot end a connection to a dead endpoint");
                }
            }
        }
    }

    /// The sockets whose endpoint the programs have chosen.
    fn connections(&self, protocol: Protocol) -> Vec<Connection> {
        let all = match sockets::connected(protocol) {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, %protocol, "Cannot list the sockets of this node");
                return Vec::new();
            }
        };
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |each: &Connection| {
            let flow = Flow { socket: each.cookie, place: Place::from(each.peer) };
            origins.get::<Flow, Place>(&flow).is_some()
        };
        all.into_iter().filter(is_ours).collect()
    }

    /// The draining tasks that have connections. Datagram flows have no end to wait for.
    fn look_now(&self, draining: &Draining) -> BTreeSet<TaskKey> {
        let connections = self.connections(Protocol::Tcp);
        connections.iter().filter_map(|each| draining.get(&each.peer)).flatten().cloned().collect()
    }
}

async fn look(usage: std::sync::Weak<Usage>, mut draining: watch::Receiver<Draining>) {
    loop {
        let current = draining.borrow_and_update().clone();
        let Some(usage) = usage.upgrade() else { return };
        if current.is_empty() {
            usage.busy.send_if_modified(|busy| !std::mem::take(busy).is_empty());
            drop(usage);
            if draining.changed().await.is_err() {
                return;
            }
            continue;
        }
        let looking = tokio::task::spawn_blocking(move || {
            let found = usage.look_now(&current);
            usage.busy.send_if_modified(|busy| {
                let is_new = *busy != found;
                *busy = found;
                is_new
            });
        });
        if let Err(error) = looking.await {
            tracing::error!(%error, "BUG: looking at sockets has failed");
        }
        tokio::select! {
            changed = draining.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}
