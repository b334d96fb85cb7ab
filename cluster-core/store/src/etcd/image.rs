//! What a cluster's keys say, kept up to date from etcd's changes. Does no I/O.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use mesonet_model::{Revision, Table};
use prost::Message as _;
use serde::de::DeserializeOwned;

use super::keys::{self, Keys, Marker};
use super::messages::{Event, KeyValue, Operation, Part};
use super::{EtcdError, Leader};
use crate::Contents;

/// Records by `TABLE/KEY`, as they are in etcd: a long value goes on under further keys.
pub(super) type Records = OrdMap<Arc<[u8]>, Arc<[u8]>>;

/// A cluster's keys at one moment, with all of the last commit carried out.
#[derive(Debug, Clone)]
pub(super) struct Image {
    keys: Keys,
    /// The newest of etcd's changes that is in here.
    pub(super) at: i64,
    pub(super) records: Records,
    /// By `COMMIT/PART`.
    pending: BTreeMap<String, Bytes>,
    pub(super) marker: Marker,
    /// As it is in etcd; `None` before the first commit.
    pub(super) marker_value: Option<Bytes>,
    pub(super) authority: BTreeMap<String, Vec<u8>>,
    pub(super) leader: Option<Leader>,
    pub(super) term: u64,
    pub(super) term_value: Option<Bytes>,
    pub(super) has_format: bool,
}

impl Image {
    /// A cluster without any key.
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            at: 0,
            records: Records::new(),
            pending: BTreeMap::new(),
            marker: Marker::default(),
            marker_value: None,
            authority: BTreeMap::new(),
            leader: None,
            term: 0,
            term_value: None,
            has_format: false,
        }
    }

    /// Takes a key that was read. All of them together are an image once [`Image::complete`] is called.
    pub(super) fn take(&mut self, pair: &KeyValue) -> Result<(), EtcdError> {
        self.put(pair)
    }

    /// Carries out what is pending of the last commit.
    pub(super) fn complete(&mut self, at: i64) -> Result<(), EtcdError> {
        self.at = at;
        let place = format!("{}/", self.marker.commit);
        let parts = self.pending.range(place.clone()..).take_while(|(name, _)| name.starts_with(&place));
        let parts: Vec<(String, Bytes)> = parts.map(|(name, part)| (name.clone(), part.clone())).collect();
        for (name, part) in parts {
            let part = Part::decode(part).map_err(|error| damaged(&name, &error))?;
            for operation in part.operations {
                self.carry_out(operation.request);
            }
        }
        Ok(())
    }

    /// Takes a change. Those of one transaction must be taken before anybody looks.
    pub(super) fn change(&mut self, event: &Event) -> Result<(), EtcdError> {
        let Some(pair) = &event.kv else { return Ok(()) };
        if event.kind == 0 {
            self.put(pair)?;
        } else {
            self.delete(&pair.key);
        }
        self.at = self.at.max(pair.mod_revision);
        let is_commit = self.keys.name(&pair.key) == Some(keys::REVISION.as_bytes());
        if is_commit { self.complete(self.at) } else { Ok(()) }
    }

    fn put(&mut self, pair: &KeyValue) -> Result<(), EtcdError> {
        let Some(name) = self.keys.name(&pair.key) else { return Ok(()) };
        if let Some(record) = name.strip_prefix(keys::RECORDS.as_bytes()) {
            self.records.insert(record.into(), (*pair.value).into());
            return Ok(());
        }
        // Names that this program makes are text; others are none of its business.
        let Ok(name) = str::from_utf8(name) else { return Ok(()) };
        if let Some(part) = name.strip_prefix(keys::PENDING) {
            self.pending.insert(part.to_owned(), copied(&pair.value));
        } else if let Some(fact) = name.strip_prefix(keys::AUTHORITY) {
            self.authority.insert(fact.to_owned(), pair.value.to_vec());
        } else if name == keys::REVISION {
            self.marker = parse(name, &pair.value)?;
            self.marker_value = Some(copied(&pair.value));
        } else if name == keys::LEADER {
            self.leader = Some(parse(name, &pair.value)?);
        } else if name == keys::TERM {
            self.term = parse(name, &pair.value)?;
            self.term_value = Some(copied(&pair.value));
        } else if name == keys::FORMAT_KEY {
            check_format(&pair.value)?;
            self.has_format = true;
        }
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) {
        let Some(name) = self.keys.name(key) else { return };
        if let Some(record) = name.strip_prefix(keys::RECORDS.as_bytes()) {
            self.records.remove(record);
            return;
        }
        let Ok(name) = str::from_utf8(name) else { return };
        if let Some(part) = name.strip_prefix(keys::PENDING) {
            self.pending.remove(part);
        } else if let Some(fact) = name.strip_prefix(keys::AUTHORITY) {
            self.authority.remove(fact);
        } else if name == keys::LEADER {
            self.leader = None;
        } else if name == keys::REVISION {
            self.marker = Marker::default();
            self.marker_value = None;
        } else if name == keys::TERM {
            self.term_value = None;
        } else if name == keys::FORMAT_KEY {
            self.has_format = false;
        }
    }

    fn carry_out(&mut self, operation: Option<Operation>) {
        let record = |key: &[u8]| -> Option<Arc<[u8]>> {
            Some(self.keys.name(key)?.strip_prefix(keys::RECORDS.as_bytes())?.into())
        };
        match operation {
            Some(Operation::Put(put)) => {
                if let Some(key) = record(&put.key) {
                    self.records.insert(key, (*put.value).into());
                }
            }
            Some(Operation::DeleteRange(range)) => {
                let (Some(start), Some(end)) = (record(&range.key), record(&range.range_end)) else { return };
                let bounds = (Bound::Included(start), Bound::Excluded(end));
                let gone: Vec<_> = self.records.range(bounds).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    self.records.remove(&key);
                }
            }
            Some(Operation::Range(_)) | None => {}
        }
    }
}

/// All records, put together again.
pub(super) fn contents(revision: Revision, records: &Records) -> Contents {
    let mut contents = Contents { revision, records: Vec::with_capacity(records.len()) };
    for table in Table::ALL {
        let place: Arc<[u8]> = format!("{table}/").into_bytes().into();
        let of_table = records.range(place.clone()..).take_while(|(key, _)| key.starts_with(&place));
        for (key, value) in of_table {
            let key = &key[place.len()..];
            match (key.contains(&0), contents.records.last_mut()) {
                (true, Some((_, _, begun))) => begun.extend_from_slice(value),
                (_, _) => {
                    let key = String::from_utf8_lossy(key).into_owned();
                    contents.records.push((table, key, value.to_vec()));
                }
            }
        }
    }
    contents
}

pub(super) fn check_format(value: &[u8]) -> Result<(), EtcdError> {
    let found: u64 = parse(keys::FORMAT_KEY, value)?;
    if found > keys::FORMAT {
        return Err(EtcdError::Newer { found, supported: keys::FORMAT });
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, EtcdError> {
    serde_json::from_slice(value).map_err(|error| damaged(name, &error))
}

fn damaged(name: &str, error: &dyn std::error::Error) -> EtcdError {
    EtcdError::Damaged { key: name.to_owned(), detail: error.to_string() }
}

/// A copy, because a part of an answer keeps all of it in memory.
fn copied(value: &[u8]) -> Bytes {
    Bytes::copy_from_slice(value)
}
