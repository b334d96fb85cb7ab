//! What the server counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Role;
use crate::reason::Reason;

/// Counters since the start, and what is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Nodes that are connected.
    pub connections: BTreeMap<Role, u64>,
    /// Planes of nodes that are connected to masters that stand by, which pass on their reports.
    pub relayed_planes: u64,
    /// Connections that have not proved who they are.
    pub newcomers: u64,
    /// Bytes of views handed to connections.
    pub view_bytes: u64,
    /// Snapshots sent.
    pub snapshots: u64,
    /// Deltas sent.
    pub deltas: u64,
    /// Views and deltas encoded; all subscribers at the same revision share one.
    pub encodings: u64,
    /// Connections refused or ended, by reason.
    pub refused: BTreeMap<Reason, u64>,
    /// Certificates given to nodes that joined.
    pub joined: u64,
    /// Certificates renewed.
    pub renewed: u64,
    /// Commands dropped because their agent was not connected.
    pub undeliverable: u64,
}

/// The counters of a running server.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<ServerStats>);

impl Counters {
    pub(crate) fn count(&self, change: impl FnOnce(&mut ServerStats)) {
        change(&mut self.lock());
    }

    pub(crate) fn refused(&self, reason: Reason) {
        *self.lock().refused.entry(reason).or_default() += 1;
    }

    pub(crate) fn read(&self) -> ServerStats {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ServerStats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
