//! The cluster's state as a master reads it out of the shared records while nobody leads.

use std::sync::{Arc, Mutex, PoisonError};

use mesonet_api::{Replica, State};
use mesonet_model::Revision;
use mesonet_store::EtcdReplica;

use crate::master_role::{self, MasterSettings};

/// Reads the records.
#[derive(Debug)]
pub struct RecordsReader {
    settings: MasterSettings,
    replica: EtcdReplica,
    /// The state that was read last: records change only with the revision.
    latest: Mutex<Option<(Revision, Arc<State>)>>,
}

impl RecordsReader {
    /// With what a master would recover from.
    pub fn new(settings: MasterSettings, replica: EtcdReplica) -> Self {
        Self { settings, replica, latest: Mutex::new(None) }
    }
}

impl Replica for RecordsReader {
    fn state(&self) -> Result<Arc<State>, String> {
        // Held meanwhile, so that many who ask at once have it read once.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = *self.replica.revision().borrow();
        if let Some((known, state)) = &*latest
            && *known == revision
        {
            return Ok(state.clone());
        }
        let contents = self.replica.contents();
        let state =
            master_role::recorded_state(&self.settings, &contents).map_err(|error| format!("{error:#}"))?;
        let state = Arc::new(state);
        *latest = Some((contents.revision, state.clone()));
        Ok(state)
    }
}
