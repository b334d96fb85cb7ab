//! What the authority keeps of nodes and tokens, as JSON in files of their own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mesonet_model::{AgentId, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::certificate::Fingerprint;
use super::files::{self, FileError};
use crate::{NodeName, Role};

/// A record cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content is none that this program writes.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
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
pub(crate) fn read<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, RecordError> {
    match files::read_if_present(&path)? {
        Some(content) => {
            serde_json::from_str(&content).map(Some).map_err(|source| RecordError::Damaged { path, source })
        }
        None => Ok(None),
    }
}

/// Writes a record.
pub(crate) fn write<T: Serialize>(path: PathBuf, record: &T) -> Result<(), RecordError> {
    let content = serde_json::to_vec_pretty(record).expect("BUG: a record has a map key that is no text");
    Ok(files::write(&path, &content)?)
}
