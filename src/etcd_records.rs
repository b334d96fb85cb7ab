//! The authority's records in etcd, beside the state of the masters that share it.

use std::path::Path;
use std::sync::Arc;

use mesonet_bus::{Authority, AuthorityError, FileRecords, RecordError, Records};
use mesonet_store::{EtcdKeys, Swap};

/// Folders of records.
const FOLDERS: [&str; 2] = ["nodes", "tokens"];

/// The record that is in no folder.
const REVOCATIONS: &str = "revocations";

/// Where the first records came from. Once it is there, files are of no interest any more.
const ORIGIN: &str = "origin";

/// Records in etcd.
#[derive(Debug)]
pub struct EtcdRecords {
    keys: EtcdKeys,
}

impl EtcdRecords {
    /// The records among the keys of a cluster.
    pub fn new(keys: EtcdKeys) -> Self {
        Self { keys }
    }

    /// Takes the records of files over, once in a cluster's life: later, the files are old.
    fn adopt(&self, files: &dyn Records) -> Result<(), RecordError> {
        if self.read(ORIGIN)?.is_some() {
            return Ok(());
        }
        for (name, content) in all(files)? {
            // What another master has taken over meanwhile may be in use already.
            self.swap(&name, None, Some(&content))?;
        }
        self.complete()
    }

    /// Remembers that all records are here.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn complete(&self) -> Result<(), RecordError> {
        self.swap(ORIGIN, None, Some("files")).map(|_| ())
    }
}

/// The authority of a master's directory, with its records in etcd. The first one takes those over that `mesonet init`
/// has made in the directory. Blocks while etcd is asked.
///
/// # Errors
/// When there is no authority in the directory, or the records cannot be used.
pub fn shared_authority(dir: &Path, keys: EtcdKeys) -> Result<Authority, AuthorityError> {
    let records = EtcdRecords::new(keys);
    records.adopt(&FileRecords::new(dir))?;
    Authority::with_records(dir, Arc::new(records))
}

/// Makes the records of `to` those of `from`; returns how many there are.
pub fn copy_records(from: &dyn Records, to: &dyn Records) -> Result<usize, RecordError> {
    let records = all(from)?;
    for (name, old) in all(to)? {
        if !records.iter().any(|(kept, _)| *kept == name) {
            to.swap(&name, Some(&old), None)?;
        }
    }
    for (name, content) in &records {
        let old = to.read(name)?;
        to.swap(name, old.as_deref(), Some(content))?;
    }
    Ok(records.len())
}

/// Every record, by name.
pub fn all(records: &dyn Records) -> Result<Vec<(String, String)>, RecordError> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        found.extend(records.list(folder)?);
    }
    found.extend(records.read(REVOCATIONS)?.map(|content| (REVOCATIONS.to_owned(), content)));
    Ok(found)
}

impl Records for EtcdRecords {
    fn read(&self, name: &str) -> Result<Option<String>, RecordError> {
        self.keys.read(name).map_err(elsewhere)?.map(text).transpose()
    }

    fn list(&self, folder: &str) -> Result<Vec<(String, String)>, RecordError> {
        let listed = self.keys.list(&format!("{folder}/")).map_err(elsewhere)?;
        listed.into_iter().map(|(name, value)| Ok((name, text(value)?))).collect()
    }

    fn swap(&self, name: &str, old: Option<&str>, new: Option<&str>) -> Result<bool, RecordError> {
        let [old, new] = [old, new].map(|content| content.map(str::as_bytes));
        self.keys.swap(name, old, new).map(|swap| swap == Swap::Made).map_err(elsewhere)
    }
}

fn text(value: Vec<u8>) -> Result<String, RecordError> {
    String::from_utf8(value).map_err(elsewhere)
}

fn elsewhere(error: impl std::error::Error + Send + Sync + 'static) -> RecordError {
    RecordError::Elsewhere(Box::new(error))
}
