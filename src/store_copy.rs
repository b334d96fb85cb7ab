//! Moves a cluster's state from one kind of store to the other: all records, and those of the authority.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mesonet_bus::{Authority, AuthorityError, FileRecords, RecordError};
use mesonet_model::{ClusterId, MasterId, Revision, Write};
use mesonet_store::{
    Candidate, CommitError, Contents, ElectionError, EtcdReplica, EtcdSettings, EtcdTls, OpenError,
    RedbStore, Store, Term,
};
use thiserror::Error;

use crate::etcd_records::{self, EtcdRecords};
use crate::roles::authority_dir;

/// How long it may take to be elected, which keeps masters from using etcd meanwhile. Nobody else stands for election
/// unless a master is just starting; one that has died leads for some seconds.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);

/// How long etcd waits for this process if it is stopped.
const LEASE: Duration = Duration::from_secs(10);

/// A store, as it is named on the command line: `redb:DIR` or `etcd:URL[,URL…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// The directory of a master with a store of its own.
    Redb(PathBuf),
    /// Members of etcd.
    Etcd(Vec<String>),
}

/// The text names no store.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no store: expected redb:DIR or etcd:URL[,URL…], such as etcd:http://10.0.0.1:2379")]
pub struct StorePlaceError(String);

/// What is to be copied.
#[derive(Debug, Clone)]
pub struct StoreCopy {
    /// From where.
    pub from: StorePlace,
    /// To where.
    pub to: StorePlace,
    /// What `https` endpoints of etcd are known by.
    pub tls: Option<EtcdTls>,
    /// Whether what is there may be replaced.
    pub overwrite: bool,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its revision at the source.
    pub revision: Revision,
    /// Its revision at the target: higher if that was further, since a revision never goes back.
    pub revision_at_target: Revision,
    /// How many records of masters.
    pub records: usize,
    /// How many records of the authority.
    pub authority_records: usize,
    /// How many records were replaced or removed at the target.
    pub overwritten: usize,
}

/// Nothing was copied, or not everything; the source is as it was.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The system gives no means to do anything.
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
    /// Two of a kind.
    #[error("a cluster is copied from redb to etcd or back, not from {0} to {0}")]
    SameKind(&'static str),
    /// No state there.
    #[error("there is no state in {0}")]
    NoState(PathBuf),
    /// The directory has no authority.
    #[error("there is no usable cluster in {dir} (each master has a copy of what mesonet init has made)")]
    Cluster {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: AuthorityError,
    },
    /// A store cannot be opened.
    #[error("cannot open the store")]
    Open(#[from] OpenError),
    /// A master works on it.
    #[error("master {master} at {api} leads on this etcd: stop all masters first")]
    InUse {
        /// The master.
        master: MasterId,
        /// Its API.
        api: std::net::SocketAddr,
    },
    /// Another process stands for election and wins.
    #[error("cannot keep masters from using etcd: none of {ELECTION_PATIENCE:?} was enough to be elected")]
    NotElected,
    /// The connection is closed.
    #[error("cannot keep masters from using etcd")]
    Election(#[from] ElectionError),
    /// There is something at the target.
    #[error("the target holds {records} records of revision {revision}; --overwrite replaces them")]
    NotEmpty {
        /// How many.
        records: usize,
        /// Their revision.
        revision: Revision,
    },
    /// The records cannot be written. The target is as it was.
    #[error("cannot write the records")]
    Commit(#[from] CommitError),
    /// The authority's records cannot be copied. Some of them may be.
    #[error("cannot copy the authority's records")]
    Authority(#[from] RecordError),
    /// What was read back is not what was written.
    #[error("what is read back from the target differs from the source: {0}")]
    Differs(&'static str),
}

impl FromStr for StorePlace {
    type Err = StorePlaceError;

    fn from_str(text: &str) -> Result<Self, StorePlaceError> {
        match text.split_once(':') {
            Some(("redb", dir)) if !dir.is_empty() => Ok(Self::Redb(dir.into())),
            Some(("etcd", urls)) if urls.split(',').all(|url| url.trim().starts_with("http")) => {
                Ok(Self::Etcd(urls.split(',').map(|url| url.trim().to_owned()).collect()))
            }
            _ => Err(StorePlaceError(text.to_owned())),
        }
    }
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(dir) => write!(f, "redb:{}", dir.display()),
            Self::Etcd(urls) => write!(f, "etcd:{}", urls.join(",")),
        }
    }
}

/// Copies a cluster's state and reads it back. No master may work on either store meanwhile.
///
/// # Errors
/// When a store is in use or cannot be used, or the target holds something that is not to be replaced.
pub fn copy_store(copy: &StoreCopy) -> Result<Copied, CopyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(CopyError::Runtime)?.block_on(copy_in_runtime(copy))
}

async fn copy_in_runtime(copy: &StoreCopy) -> Result<Copied, CopyError> {
    let (dir, endpoints) = match (&copy.from, &copy.to) {
        (StorePlace::Redb(dir), StorePlace::Etcd(endpoints))
        | (StorePlace::Etcd(endpoints), StorePlace::Redb(dir)) => (dir, endpoints),
        (StorePlace::Redb(_), StorePlace::Redb(_)) => return Err(CopyError::SameKind("redb")),
        (StorePlace::Etcd(_), StorePlace::Etcd(_)) => return Err(CopyError::SameKind("etcd")),
    };
    let authority = Authority::load(&authority_dir(dir))
        .map_err(|source| CopyError::Cluster { dir: dir.clone(), source })?;
    let settings = EtcdSettings {
        endpoints: endpoints.clone(),
        cluster: authority.cluster().clone(),
        tls: copy.tls.clone(),
        lease: LEASE,
    };
    match copy.from {
        StorePlace::Redb(_) => to_etcd(dir, &settings, copy.overwrite).await,
        StorePlace::Etcd(_) => to_redb(dir, &settings, copy.overwrite).await,
    }
}

async fn to_etcd(dir: &Path, settings: &EtcdSettings, overwrite: bool) -> Result<Copied, CopyError> {
    if !RedbStore::is_in(dir) {
        return Err(CopyError::NoState(dir.to_owned()));
    }
    // Open until the end, so that no master starts on it.
    let (_held, source) = RedbStore::open(dir)?;
    let (replica, mut term) = seize(settings).await?;
    let fill = async {
        let mut copied = plan(settings, &source, &term.contents, overwrite)?;
        term.store.commit(copied.revision_at_target, &writes(&source, &term.contents))?;
        let files = FileRecords::new(&authority_dir(dir));
        let shared = EtcdRecords::new(replica.keys());
        copied.authority_records = etcd_records::copy_records(&files, &shared)?;
        shared.complete()?;
        let read_back = EtcdReplica::open(settings.clone()).await?;
        check(&source, &read_back.contents(), copied.revision_at_target)?;
        check_authority(&files, &EtcdRecords::new(read_back.keys()))?;
        Ok(copied)
    };
    let copied = fill.await;
    term.lease.resign().await;
    copied
}

async fn to_redb(dir: &Path, settings: &EtcdSettings, overwrite: bool) -> Result<Copied, CopyError> {
    let (replica, term) = seize(settings).await?;
    let copied = fill_redb(dir, settings, &EtcdRecords::new(replica.keys()), &term.contents, overwrite);
    term.lease.resign().await;
    copied
}

fn fill_redb(
    dir: &Path,
    settings: &EtcdSettings,
    shared: &EtcdRecords,
    source: &Contents,
    overwrite: bool,
) -> Result<Copied, CopyError> {
    if *source == Contents::default() {
        return Err(CopyError::NoState(StorePlace::Etcd(settings.endpoints.clone()).to_string().into()));
    }
    let (mut store, target) = RedbStore::open(dir)?;
    let mut copied = plan(settings, source, &target, overwrite)?;
    store.commit(copied.revision_at_target, &writes(source, &target))?;
    drop(store);
    let files = FileRecords::new(&authority_dir(dir));
    copied.authority_records = etcd_records::copy_records(shared, &files)?;
    let (_store, read_back) = RedbStore::open(dir)?;
    check(source, &read_back, copied.revision_at_target)?;
    check_authority(&files, shared)?;
    Ok(copied)
}

/// Becomes the leader, so that no master does.
async fn seize(settings: &EtcdSettings) -> Result<(EtcdReplica, Term), CopyError> {
    let replica = EtcdReplica::open(settings.clone()).await?;
    let leader = replica.leader().borrow().clone();
    if let Some(leader) = leader {
        let Candidate { master, api, .. } = leader.candidate;
        return Err(CopyError::InUse { master, api });
    }
    // Nobody is to be sent here: the addresses lead nowhere.
    let me = Candidate {
        master: MasterId::new("store-copy"),
        api: ([127, 0, 0, 1], 0).into(),
        bus: "localhost:0".to_owned(),
    };
    let campaign = tokio::time::timeout(ELECTION_PATIENCE, replica.campaign(&me)).await;
    let term = campaign.map_err(|_| CopyError::NotElected)??;
    Ok((replica, term))
}

fn plan(
    settings: &EtcdSettings,
    source: &Contents,
    target: &Contents,
    overwrite: bool,
) -> Result<Copied, CopyError> {
    let is_empty = *target == Contents::default();
    if !is_empty && !overwrite {
        let (records, revision) = (target.records.len(), target.revision);
        return Err(CopyError::NotEmpty { records, revision });
    }
    let revision_at_target =
        if is_empty { source.revision } else { source.revision.max(target.revision.next()) };
    Ok(Copied {
        cluster: settings.cluster.clone(),
        revision: source.revision,
        revision_at_target,
        records: source.records.len(),
        authority_records: 0,
        overwritten: target.records.len(),
    })
}

/// What makes the target's records the source's.
fn writes(source: &Contents, target: &Contents) -> Vec<Write> {
    let kept: BTreeSet<_> = source.records.iter().map(|(table, key, _)| (*table, key.as_str())).collect();
    let gone = target.records.iter().filter(|(table, key, _)| !kept.contains(&(*table, key.as_str())));
    let deletions = gone.map(|(table, key, _)| Write::delete(*table, key));
    let puts = source.records.iter().map(|(table, key, value)| Write {
        table: *table,
        key: key.clone(),
        value: Some(value.clone()),
    });
    deletions.chain(puts).collect()
}

fn check(source: &Contents, read_back: &Contents, revision: Revision) -> Result<(), CopyError> {
    if read_back.revision != revision {
        return Err(CopyError::Differs("the revision"));
    }
    if read_back.records != source.records {
        return Err(CopyError::Differs("records of masters"));
    }
    Ok(())
}

fn check_authority(files: &FileRecords, shared: &EtcdRecords) -> Result<(), CopyError> {
    if etcd_records::all(files)? != etcd_records::all(shared)? {
        return Err(CopyError::Differs("records of the authority"));
    }
    Ok(())
}
