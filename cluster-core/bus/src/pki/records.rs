//! What the authority keeps of nodes and tokens, as JSON.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use mesonet_model::{AgentId, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::certificate::Fingerprint;
use super::files::FileError;
use crate::{NodeName, Role};

/// How often a change is tried again because another process was faster. Each of them has made its own change then, so
/// only as many in a row as there are operators and nodes at work in the same moment are plausible.
const ATTEMPTS_MAX: u32 = 32;

/// Before a change is tried again: by then the other's change is known here.
const PAUSE: Duration = Duration::from_millis(5);

/// Where the authority keeps what changes: nodes, tokens and a mark that differs after each revocation. Records are
/// texts by name, such as `nodes/n1`.
///
/// Several processes may use the same records.
pub trait Records: fmt::Debug + Send + Sync {
    /// The content of a record.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, name: &str) -> Result<Option<String>, RecordError>;

    /// The records of a folder with their contents, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    fn list(&self, folder: &str) -> Result<Vec<(String, String)>, RecordError>;

    /// Replaces a content if it is still the old one, and says whether it was; `None` stands for no record. What was
    /// replaced survives a crash from here on.
    ///
    /// # Errors
    /// When it cannot be read or written.
    fn swap(&self, name: &str, old: Option<&str>, new: Option<&str>) -> Result<bool, RecordError>;
}

/// A record cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The records are not in files, and cannot be used where they are.
    #[error("cannot use the authority's records")]
    Elsewhere(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its content is none that this program writes.
    #[error("the authority's record {name} is damaged")]
    Damaged {
        /// The record.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Others change it all the time.
    #[error("the authority's record {0} is changed by others again and again")]
    Contended(String),
}

/// A node that has joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: NodeName,
    /// Of the public key that the name is bound to; absent once the node is revoked.
    pub(crate) key: Option<Fingerprint>,
    pub(crate) roles: BTreeSet<Role>,
    /// Certificates that are in use.
    pub(crate) issued: Vec<Issued>,
    /// Certificates that are void though they have not expired.
    pub(crate) revoked: Vec<Issued>,
    #[serde(default)]
    pub(crate) agent: Option<AgentId>,
}

/// A certificate that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) serial: String,
    pub(crate) expires: Timestamp,
}

/// A token that was given out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Hash of the secret. The secret has 256 random bits, so the hash needs no salt and no secrecy.
    pub(crate) secret: Fingerprint,
    pub(crate) expires: Timestamp,
    pub(crate) uses_left: u32,
    pub(crate) roles: BTreeSet<Role>,
    /// Keys of the nodes that have joined with it, which may repeat that.
    pub(crate) joined: Vec<Fingerprint>,
}

/// Reads a record, if there is one.
pub(crate) fn read<T: DeserializeOwned>(records: &dyn Records, name: &str) -> Result<Option<T>, RecordError> {
    records.read(name)?.map(|content| parse(name, &content)).transpose()
}

/// What a record says.
pub(crate) fn parse<T: DeserializeOwned>(name: &str, content: &str) -> Result<T, RecordError> {
    serde_json::from_str(content).map_err(|source| RecordError::Damaged { name: name.to_owned(), source })
}

/// Changes a record, in one step for everybody else. What is asked for may be asked more than once, each time about the
/// record as it is then; it says what the record is to be, `None` for none, and what to return.
pub(crate) fn update<T, R, E>(
    records: &dyn Records,
    name: &str,
    mut change: impl FnMut(Option<T>) -> Result<(Option<T>, R), E>,
) -> Result<R, E>
where
    T: DeserializeOwned + Serialize,
    E: From<RecordError>,
{
    for _ in 0..ATTEMPTS_MAX {
        let old = records.read(name)?;
        let (new, result) = change(old.as_deref().map(|content| parse(name, content)).transpose()?)?;
        let new = new.map(|record| {
            serde_json::to_string_pretty(&record).expect("BUG: a record has a map key that is no text")
        });
        if old == new || records.swap(name, old.as_deref(), new.as_deref())? {
            return Ok(result);
        }
        std::thread::sleep(PAUSE);
    }
    Err(RecordError::Contended(name.to_owned()).into())
}
