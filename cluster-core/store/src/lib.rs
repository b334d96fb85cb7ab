//! Durable state of the control plane.
//!
//! A [`Store`] keeps records in named tables and makes groups of writes durable at once, each under its revision.
//! [`RedbStore`] is the embedded one: a single file. [`EtcdStore`] is shared by several masters, of which one at a
//! time may write: [`EtcdReplica`] follows it and elects. What records mean is none of its business.
//!
//! Main types: [`Store`], [`Contents`], [`RedbStore`], [`EtcdReplica`], [`EtcdStore`], [`EtcdKeys`].

#![forbid(unsafe_code)]

mod etcd;
mod redb_store;

use std::io;
use std::path::PathBuf;

use mesonet_model::{Revision, Table, Write};
use thiserror::Error;

pub use etcd::{
    Candidate, ElectionError, EtcdError, EtcdKeys, EtcdReplica, EtcdSettings, EtcdStore, EtcdTls, KeysError,
    Leader, Swap, Term, TermLease,
};
pub use redb_store::{FORMAT, RedbStore};

/// Keeps records. A commit is atomic and survives a crash once it has returned.
pub trait Store: Send {
    /// Makes all writes at once, and the revision that they belong to, which must be newer than the last one.
    ///
    /// The store stays usable after an error: the commit can be tried again, or another one made.
    fn commit(&mut self, revision: Revision, writes: &[Write]) -> Result<(), CommitError>;
}

/// What a store held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last committed revision.
    pub revision: Revision,
    /// Every record: tables in the order of [`Table::ALL`], keys in byte order.
    pub records: Vec<(Table, String, Vec<u8>)>,
}

/// A commit did not happen; nothing of it is kept, except where a variant says otherwise.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The revision does not follow the last one.
    #[error("cannot commit revision {revision}: revision {last} is committed already")]
    NotNewer {
        /// The revision asked for.
        revision: Revision,
        /// The last committed one.
        last: Revision,
    },
    /// There is no room left, by the disk's size, a quota or a limit.
    #[error("cannot commit revision {revision}: no space left for {place}")]
    Full {
        /// The revision asked for.
        revision: Revision,
        /// The state file, or etcd with its endpoints.
        place: String,
        /// The system's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It could not be written or read for another reason.
    #[error("cannot commit revision {revision} to {place}")]
    Storage {
        /// The revision asked for.
        revision: Revision,
        /// The state file, or etcd with its endpoints.
        place: String,
        /// The engine's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This master is the leader no longer, or may be none: no further commit of this term can succeed, so there is
    /// no use in trying again.
    #[error("cannot commit revision {revision}: term {term} of this master is over")]
    Deposed {
        /// The revision asked for.
        revision: Revision,
        /// The term.
        term: u64,
    },
    /// The same, but etcd was gone while this commit was made, or too many leaders have come and gone since: it may
    /// have taken effect. The next leader starts from whatever is true.
    #[error(
        "cannot tell whether revision {revision} is committed: term {term} of this master is over, \
         and the store has not said"
    )]
    Undecided {
        /// The revision asked for.
        revision: Revision,
        /// The term.
        term: u64,
    },
}

/// The store cannot be opened. Nothing that it holds is changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory does not exist and cannot be made.
    #[error("cannot create state directory {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The file in the directory cannot be opened for writing.
    #[error("state directory {} is not writable", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Another process has the file open.
    #[error("state file {} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold what this program writes.
    #[error("state file {} is damaged: {detail}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The records have a format that this program does not know.
    #[error(
        "state directory {} was written by a newer version: format {found}, this program reads up to {supported}",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: u64,
        /// The newest format that this program reads.
        supported: u64,
    },
    /// Reading or writing failed.
    #[error("cannot open state file {}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// The engine's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state is in etcd and cannot be had from there.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}
