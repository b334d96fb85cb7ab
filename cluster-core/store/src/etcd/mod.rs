//! The replicated store: etcd, shared by several masters.
//!
//! Layout: see `keys.rs`. Whoever holds the key `leader`, which lives as long as its lease, may write; each of its
//! transactions is fenced, that is, has no effect once the key is another's.

mod settings;

use std::net::SocketAddr;

use mesonet_model::{MasterId, Revision, Write};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::{CommitError, Contents, OpenError, Store};

pub use settings::{EtcdSettings, EtcdTls};

/// What a master that stands for election lets everybody know once it is elected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its id, new with each start of its process.
    pub master: MasterId,
    /// Where its API is reached.
    pub api: SocketAddr,
    /// Where nodes reach it: `HOST:PORT`.
    pub bus: String,
}

/// The master that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Who it is.
    pub candidate: Candidate,
    /// Its term. Each is greater than those before.
    pub term: u64,
}

/// Follows a cluster's records and its leader in etcd. Clones follow together.
#[derive(Debug, Clone)]
pub struct EtcdReplica {
    leader: watch::Receiver<Option<Leader>>,
    revision: watch::Receiver<Revision>,
    current: watch::Receiver<bool>,
}

impl EtcdReplica {
    /// Connects to etcd and reads everything. Waits some seconds for an etcd that is just starting.
    ///
    /// # Errors
    /// When etcd cannot be reached, or what it holds cannot be used.
    pub async fn open(_settings: EtcdSettings) -> Result<Self, OpenError> {
        Err(EtcdError::Ended.into())
    }

    /// The leader, as far as known: `None` while nobody leads.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.clone()
    }

    /// The revision of [`EtcdReplica::contents`], to wait for changes.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }

    /// Whether etcd is reached; while it is not, everything is as it was last seen.
    pub fn is_current(&self) -> watch::Receiver<bool> {
        self.current.clone()
    }

    /// All records as they were after a commit. Copies them, which takes a moment when there are many.
    pub fn contents(&self) -> Contents {
        Contents::default()
    }

    /// The cluster's other facts. Reading is from memory and does not wait for etcd.
    pub fn keys(&self) -> EtcdKeys {
        EtcdKeys {}
    }

    /// Stands for election; returns once elected, which may take for ever. Dropping it before withdraws.
    ///
    /// # Errors
    /// When it can never be elected.
    pub async fn campaign(&self, _me: &Candidate) -> Result<Term, ElectionError> {
        Err(ElectionError::Ended)
    }
}

/// The time for which a master leads.
#[derive(Debug)]
pub struct Term {
    /// Greater than that of every term before.
    pub number: u64,
    /// Where the leader commits.
    pub store: EtcdStore,
    /// What the store holds.
    pub contents: Contents,
    /// Tells when the term ends, and can end it.
    pub lease: TermLease,
}

/// Holds on to leadership. When all clones are dropped, leadership lapses.
#[derive(Debug, Clone)]
pub struct TermLease {
    lost: watch::Receiver<bool>,
}

impl TermLease {
    /// Returns when the term is over or may be over: another leads, or etcd has not confirmed the lease for as long as
    /// it lasts. Cancel safe.
    pub async fn lost(&self) {
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Gives leadership up, so that another is elected at once. Returns when etcd has it, or after a moment when it
    /// cannot be reached; then the lease runs out.
    pub async fn resign(self) {}
}

/// Where the leader commits. Blocks, at most as long as the lease lasts.
#[derive(Debug)]
pub struct EtcdStore {
    term: u64,
}

impl Store for EtcdStore {
    fn commit(&mut self, revision: Revision, _writes: &[Write]) -> Result<(), CommitError> {
        Err(CommitError::Deposed { revision, term: self.term })
    }
}

/// Small facts that several processes change, each by itself, by compare and swap. Blocks.
#[derive(Debug, Clone)]
pub struct EtcdKeys {}

/// What became of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// It was made.
    Made,
    /// The value was not the expected one; nothing is changed.
    Refused,
}

impl EtcdKeys {
    /// Connects to etcd without a replica. Every call asks etcd then.
    ///
    /// # Errors
    /// When etcd cannot be reached, or what it holds cannot be used.
    pub fn open(_settings: &EtcdSettings) -> Result<Self, OpenError> {
        Err(EtcdError::Ended.into())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub fn read(&self, _key: &str) -> Result<Option<Vec<u8>>, KeysError> {
        Err(KeysError::Ended)
    }

    /// All keys that start so, in order, with their values.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub fn list(&self, _prefix: &str) -> Result<Vec<(String, Vec<u8>)>, KeysError> {
        Err(KeysError::Ended)
    }

    /// Replaces a value if it is still the old one; `None` stands for no value. Reads see it once this has returned,
    /// and if it was refused, they see the value that it was refused for.
    ///
    /// # Errors
    /// When etcd cannot be reached; the swap may have been made all the same.
    pub fn swap(&self, _key: &str, _old: Option<&[u8]>, _new: Option<&[u8]>) -> Result<Swap, KeysError> {
        Err(KeysError::Ended)
    }
}

/// A key cannot be read or written.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The connection is closed.
    #[error("the connection to etcd is closed")]
    Ended,
}

/// A master can never be elected.
#[derive(Debug, Error)]
pub enum ElectionError {
    /// The connection is closed.
    #[error("the connection to etcd is closed")]
    Ended,
}

/// The state in etcd cannot be used.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// The connection is closed.
    #[error("the connection to etcd is closed")]
    Ended,
}
