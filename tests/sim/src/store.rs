//! What survives a master's crash.

use std::collections::BTreeMap;

use mesonet::control_plane::Commit;
use mesonet_model::{Revision, Table};

/// The committed records.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) revision: Revision,
    records: BTreeMap<(Table, String), Vec<u8>>,
}

impl Store {
    pub(crate) fn commit(&mut self, commit: &Commit) {
        assert!(commit.revision > self.revision, "{} is committed after {}", commit.revision, self.revision);
        self.revision = commit.revision;
        for write in &commit.writes {
            let key = (write.table, write.key.clone());
            match &write.value {
                Some(value) => self.records.insert(key, value.clone()),
                None => self.records.remove(&key),
            };
        }
    }

    pub(crate) fn records(&self) -> Vec<(Table, String, Vec<u8>)> {
        self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect()
    }
}
