//! The replicated store: etcd, shared by several masters.
//!
//! `keys.rs` says what is kept where. Whoever holds the key `leader`, which lives as long as its lease, may commit;
//! each of its transactions is fenced, that is, has no effect once the key is gone or another's. Everybody else follows
//! all keys of the cluster and so has what a new leader needs in memory.

mod connection;
mod core;
mod election;
mod engine;
mod image;
mod keys;
mod messages;
mod settings;
mod shared_keys;
mod writer;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesonet_model::{MasterId, Revision, Write};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::core::Core;
use self::engine::{Ended, Engine};
use self::writer::{Batch, Writer};
use crate::{CommitError, Contents, OpenError, Store};

pub use settings::{EtcdSettings, EtcdTls};
pub use shared_keys::{EtcdKeys, KeysError, Swap};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Who it is.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Its term. Each is greater than those before, also when the cluster moves to another etcd.
    pub term: u64,
}

/// Follows a cluster's records and its leader in etcd, on a thread of its own. Clones follow together.
#[derive(Debug, Clone)]
pub struct EtcdReplica {
    core: Arc<Core>,
    engine: Arc<Engine>,
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

/// Holds on to leadership. When all clones are dropped, it is given up.
#[derive(Debug, Clone)]
pub struct TermLease {
    lost: watch::Receiver<bool>,
    holder: Arc<LeaseHolder>,
}

#[derive(Debug)]
struct LeaseHolder {
    /// Taken to give the lease up.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Runs as long as somebody may wait for the lease's end.
    _engine: Arc<Engine>,
}

/// Where the leader commits. A commit blocks its thread, at most as long as the lease lasts.
#[derive(Debug)]
pub struct EtcdStore {
    term: u64,
    /// `None` once the connection is closed.
    writer: Option<Writer>,
    engine: Arc<Engine>,
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
    /// It is not said where etcd is.
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    /// An endpoint or what TLS needs cannot be used.
    #[error("etcd's endpoint {endpoint} cannot be used: {reason}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// No member answers, or etcd refuses.
    #[error("cannot read from {place}")]
    Unreachable {
        /// The endpoints.
        place: String,
        /// What the last one said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The keys have a format that this program does not know.
    #[error(
        "the state in etcd was written by a newer version: format {found}, this program reads up to {supported}"
    )]
    Newer {
        /// The format found.
        found: u64,
        /// The newest format that this program reads.
        supported: u64,
    },
    /// A key does not hold what this program writes.
    #[error("the state in etcd is damaged: key {key}: {detail}")]
    Damaged {
        /// The key, below the cluster's.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// The thread that speaks with etcd cannot be started.
    #[error("cannot start the thread that speaks with etcd")]
    Thread(#[source] std::io::Error),
    /// The thread has ended.
    #[error("the connection to etcd is closed")]
    Ended,
}

impl From<Ended> for EtcdError {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

// === impl EtcdReplica ===

impl EtcdReplica {
    /// Connects to etcd and reads everything. Waits some seconds for an etcd that is just starting.
    ///
    /// # Errors
    /// When etcd cannot be reached, or what it holds cannot be used.
    pub async fn open(settings: EtcdSettings) -> Result<Self, OpenError> {
        let engine = Engine::start().map_err(EtcdError::Thread)?;
        let open = async move {
            let core = Arc::new(Core::open(&settings).await?);
            tokio::spawn(core.clone().follow());
            Ok::<_, EtcdError>(core)
        };
        let core = engine.run(open).await.map_err(EtcdError::from)??;
        Ok(Self { core, engine })
    }

    /// The leader, as far as known: `None` while nobody leads.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.core.leader.subscribe()
    }

    /// The revision of [`EtcdReplica::contents`], to wait for changes.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.core.revision.subscribe()
    }

    /// Whether etcd is reached; while it is not, everything is as it was last seen.
    pub fn is_current(&self) -> watch::Receiver<bool> {
        self.core.is_current.subscribe()
    }

    /// All records as they were after a commit. Copies them, which takes a moment when there are many.
    pub fn contents(&self) -> Contents {
        self.core.contents()
    }

    /// The facts of the cluster's authority. Reading is from memory and does not wait for etcd.
    pub fn keys(&self) -> EtcdKeys {
        EtcdKeys::of_replica(self.core.clone(), self.engine.clone())
    }

    /// Stands for election; returns once elected, which may take for ever. Dropping it before withdraws.
    ///
    /// # Errors
    /// When it can never be elected.
    pub async fn campaign(&self, me: &Candidate) -> Result<Term, ElectionError> {
        let campaign = election::campaign(self.core.clone(), me.clone());
        let won = self.engine.run(campaign).await.map_err(|Ended| ElectionError::Ended)??;
        let number = won.writer.term();
        let holder = LeaseHolder { stop: Mutex::new(Some(won.keeper.stop)), _engine: self.engine.clone() };
        Ok(Term {
            number,
            store: EtcdStore { term: number, writer: Some(won.writer), engine: self.engine.clone() },
            contents: self.core.contents(),
            lease: TermLease { lost: won.keeper.lost, holder: Arc::new(holder) },
        })
    }
}

// === impl TermLease ===

impl TermLease {
    /// Returns when the term is over or may be over: another leads, or etcd has not confirmed the lease for as long as
    /// it lasts. Cancel safe.
    pub async fn lost(&self) {
        // It also is when nobody can say any more that it is.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Gives leadership up, so that another is elected at once. Returns when etcd has it, or after a moment when it
    /// cannot be reached; then the lease runs out. For all clones it is lost then.
    pub async fn resign(self) {
        drop(self.holder.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut lost = self.lost.clone();
        // Who could say that it is lost ends when it is given up.
        while lost.changed().await.is_ok() {}
    }
}

// === impl EtcdStore ===

impl Store for EtcdStore {
    fn commit(&mut self, revision: Revision, writes: &[Write]) -> Result<(), CommitError> {
        let batch = Batch::new(revision, writes);
        let term = self.term;
        let Some(mut writer) = self.writer.take() else {
            return Err(CommitError::Deposed { revision, term });
        };
        let commit = async move {
            let result = writer.commit(batch).await;
            (writer, result)
        };
        let Ok((writer, result)) = self.engine.run_blocking(commit) else {
            return Err(CommitError::Undecided { revision, term });
        };
        self.writer = Some(writer);
        result
    }
}
