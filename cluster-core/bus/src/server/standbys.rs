//! The masters that stand by, as the leader sees them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesonet_model::Revision;
use quinn::Connection;

use crate::NodeName;

/// A master that stands by and is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyState {
    /// Its name.
    pub name: NodeName,
    /// Since when it is connected.
    pub since: Instant,
    /// The newest revision that it has.
    pub revision: Revision,
    /// Planes that are connected there and that it passes on the reports of.
    pub planes: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Standbys(Mutex<BTreeMap<NodeName, Standby>>);

#[derive(Debug)]
struct Standby {
    connection: usize,
    since: Instant,
    revision: Revision,
    planes: usize,
}

impl Standbys {
    pub(crate) fn joined(&self, name: &NodeName, connection: &Connection) {
        let standby = Standby {
            connection: connection.stable_id(),
            since: Instant::now(),
            revision: Revision::ZERO,
            planes: 0,
        };
        self.lock().insert(name.clone(), standby);
    }

    pub(crate) fn reached(&self, name: &NodeName, revision: Revision) {
        if let Some(standby) = self.lock().get_mut(name) {
            standby.revision = revision;
        }
    }

    pub(crate) fn relays(&self, name: &NodeName, planes: usize) {
        if let Some(standby) = self.lock().get_mut(name) {
            standby.planes = planes;
        }
    }

    /// A connection has ended, which may not be the standby's newest one.
    pub(crate) fn left(&self, name: &NodeName, connection: &Connection) {
        let mut standbys = self.lock();
        if standbys.get(name).is_some_and(|standby| standby.connection == connection.stable_id()) {
            standbys.remove(name);
        }
    }

    pub(crate) fn list(&self) -> Vec<StandbyState> {
        let state = |(name, standby): (&NodeName, &Standby)| StandbyState {
            name: name.clone(),
            since: standby.since,
            revision: standby.revision,
            planes: standby.planes,
        };
        self.lock().iter().map(state).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Standby>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
