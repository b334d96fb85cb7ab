//! The masters of a cluster, as the API tells of them.

use std::time::{Duration, Instant};

use mesonet_model::Revision;
use serde_json::{Value, json};

/// Who leads and who stands by.
pub trait Masters: Send + Sync {
    /// What is known of them here.
    fn list(&self) -> MasterList;

    /// The leader gives leadership up.
    fn abdicate(&self);
}

/// The masters that are known here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasterList {
    /// The leader's term, where masters are elected.
    pub term: Option<u64>,
    /// The leader, where it is known.
    pub leader: Option<MasterState>,
    /// Who stands by and is connected.
    pub standbys: Vec<MasterState>,
}

/// One master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterState {
    /// Its name.
    pub name: String,
    /// How long it has been what it is.
    pub since: Duration,
    /// The newest revision that it has; `None` for the one that makes them.
    pub revision: Option<Revision>,
}

/// A master that is the only one, since this was made.
#[derive(Debug, Clone, Copy)]
pub struct LoneMaster(Instant);

impl Default for LoneMaster {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Masters for LoneMaster {
    fn list(&self) -> MasterList {
        let own = MasterState { name: "master".to_owned(), since: self.0.elapsed(), revision: None };
        MasterList { term: None, leader: Some(own), standbys: Vec::new() }
    }

    /// It leads again at once, as a lone Marathon does after it has abdicated.
    fn abdicate(&self) {}
}

impl MasterList {
    /// As `/v1/masters` says it; `committed` is the newest revision.
    pub(crate) fn to_json(&self, committed: Revision) -> Value {
        let one = |role: &str, master: &MasterState| {
            let revision = master.revision.unwrap_or(committed);
            json!({
                "name": master.name,
                "role": role,
                "sinceSeconds": master.since.as_secs(),
                "revision": revision,
                "lag": committed.0.saturating_sub(revision.0),
            })
        };
        let leaders = self.leader.iter().map(|master| one("leader", master));
        let standbys = self.standbys.iter().map(|master| one("standby", master));
        json!({
            "term": self.term,
            "revision": committed,
            "masters": leaders.chain(standbys).collect::<Vec<_>>(),
        })
    }
}
