//! Facts that several processes change, each by itself: those of the cluster's authority.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;

use super::connection::{Connection, Fault};
use super::core::{Core, PATIENCE};
use super::engine::{Ended, Engine};
use super::keys::{self, Keys};
use super::messages::{Compare, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use super::{EtcdError, EtcdSettings, image};
use crate::OpenError;

/// Keys of one page of a list.
const PAGE: i64 = 1000;

/// Facts by name, changed by compare and swap. Calls may block, for some seconds when etcd cannot be reached.
#[derive(Debug, Clone)]
pub struct EtcdKeys {
    source: Source,
    engine: Arc<Engine>,
}

#[derive(Debug, Clone)]
enum Source {
    /// Reads from memory.
    Replica(Arc<Core>),
    /// Reads from etcd.
    Direct(Arc<Direct>),
}

#[derive(Debug)]
struct Direct {
    connection: Connection,
    keys: Keys,
}

/// What became of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// It was made.
    Made,
    /// The value was not the expected one; nothing is changed.
    Refused,
}

/// A fact cannot be read or changed.
#[derive(Debug, Error)]
pub enum KeysError {
    /// No member answers, or etcd refuses. A swap may have been made all the same.
    #[error("cannot reach {place}")]
    Unreachable {
        /// The endpoints.
        place: String,
        /// What the last one said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no room in etcd. Nothing is changed.
    #[error("no space left for {place}")]
    Full {
        /// The endpoints.
        place: String,
    },
    /// The connection is closed.
    #[error("the connection to etcd is closed")]
    Ended,
}

impl From<Ended> for KeysError {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl EtcdKeys {
    /// Connects to etcd without following it. Every call asks etcd then.
    ///
    /// # Errors
    /// When etcd cannot be reached, or what it holds cannot be used.
    pub fn open(settings: &EtcdSettings) -> Result<Self, OpenError> {
        let engine = Engine::start().map_err(EtcdError::Thread)?;
        let settings = settings.clone();
        let direct = engine.run_blocking(Direct::open(settings)).map_err(EtcdError::from)??;
        Ok(Self { source: Source::Direct(Arc::new(direct)), engine })
    }

    pub(super) fn of_replica(core: Arc<Core>, engine: Arc<Engine>) -> Self {
        Self { source: Source::Replica(core), engine }
    }

    /// The value of a fact.
    ///
    /// # Errors
    /// When etcd has to be asked and cannot be reached.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, KeysError> {
        match &self.source {
            Source::Replica(core) => Ok(core.image().authority.get(name).cloned()),
            Source::Direct(direct) => {
                let (direct, name) = (direct.clone(), name.to_owned());
                self.engine.run_blocking(async move { direct.read(&name).await })?
            }
        }
    }

    /// All facts whose names start so, by name.
    ///
    /// # Errors
    /// When etcd has to be asked and cannot be reached.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, KeysError> {
        match &self.source {
            Source::Replica(core) => {
                let image = core.image();
                let from = image.authority.range(prefix.to_owned()..);
                let listed = from.take_while(|(name, _)| name.starts_with(prefix));
                Ok(listed.map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            Source::Direct(direct) => {
                let (direct, prefix) = (direct.clone(), prefix.to_owned());
                self.engine.run_blocking(async move { direct.list(&prefix).await })?
            }
        }
    }

    /// Replaces a value if it is still the old one; `None` stands for no value. Reads see it once this has returned,
    /// and if it was refused, they see what it was refused for.
    ///
    /// # Errors
    /// When etcd cannot be reached; the swap may have been made all the same.
    pub fn swap(&self, name: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<Swap, KeysError> {
        let source = self.source.clone();
        let name = name.to_owned();
        let [old, new] = [old, new].map(|value| value.map(Bytes::copy_from_slice));
        let swap = async move {
            match source {
                Source::Direct(direct) => {
                    swapped(&direct.connection, &direct.keys, &name, old, new).await.map(|(swap, _)| swap)
                }
                Source::Replica(core) => {
                    let (swap, at) = swapped(&core.connection, &core.keys, &name, old, new).await?;
                    // If it takes longer, reads lag a moment.
                    core.reach(at, Instant::now() + PATIENCE).await;
                    Ok(swap)
                }
            }
        };
        self.engine.run_blocking(swap)?
    }
}

impl Direct {
    async fn open(settings: EtcdSettings) -> Result<Self, EtcdError> {
        let connection = Connection::new(&settings)?;
        let keys = Keys::new(&settings.cluster);
        let request = RangeRequest { key: keys.key(keys::FORMAT_KEY), ..RangeRequest::default() };
        match connection.range(request, Instant::now() + PATIENCE).await {
            Ok(answer) => {
                if let Some(format) = answer.kvs.first() {
                    image::check_format(&format.value)?;
                }
                Ok(Self { connection, keys })
            }
            Err(fault) => Err(EtcdError::Unreachable { place: connection.place(), source: Box::new(fault) }),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, KeysError> {
        let key = self.keys.key(&format!("{}{name}", keys::AUTHORITY));
        let request = RangeRequest { key, ..RangeRequest::default() };
        let answer = self.connection.range(request, Instant::now() + PATIENCE).await;
        let answer = answer.map_err(|fault| failed(&self.connection, fault))?;
        Ok(answer.kvs.into_iter().next().map(|pair| pair.value.to_vec()))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, KeysError> {
        let mut request = self.keys.below(&format!("{}{prefix}", keys::AUTHORITY));
        request.limit = PAGE;
        let mut facts = Vec::new();
        loop {
            let answer = self.connection.range(request.clone(), Instant::now() + PATIENCE).await;
            let answer = answer.map_err(|fault| failed(&self.connection, fault))?;
            for pair in &answer.kvs {
                let name = self.keys.name(&pair.key).and_then(|name| str::from_utf8(name).ok());
                if let Some(name) = name.and_then(|name| name.strip_prefix(keys::AUTHORITY)) {
                    facts.push((name.to_owned(), pair.value.to_vec()));
                }
            }
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(facts) };
            let mut next = last.key.to_vec();
            next.push(0);
            request.key = next.into();
        }
    }
}

/// Swaps, and tells the change of etcd's after which it is to be seen.
async fn swapped(
    connection: &Connection,
    keys: &Keys,
    name: &str,
    old: Option<Bytes>,
    new: Option<Bytes>,
) -> Result<(Swap, i64), KeysError> {
    let key = keys.key(&format!("{}{name}", keys::AUTHORITY));
    let change = match &new {
        Some(new) => RequestOp::put(key.clone(), new.clone()),
        None => RequestOp::delete(key.clone()),
    };
    let request = TxnRequest {
        compare: vec![Compare::value(key.clone(), old)],
        success: vec![change],
        failure: vec![RequestOp::get(key)],
    };
    let answer = connection.txn_counted(request, Instant::now() + PATIENCE).await;
    let (answer, is_repeated) = answer.map_err(|fault| failed(connection, fault))?;
    Ok(outcome(&answer, new.as_ref(), is_repeated))
}

fn outcome(answer: &TxnResponse, new: Option<&Bytes>, is_repeated: bool) -> (Swap, i64) {
    let found = answer.got(0);
    if answer.succeeded {
        (Swap::Made, answer.revision())
    } else if is_repeated && found.map(|found| &found.value) == new {
        // It is as it was to be: an earlier answer was lost.
        (Swap::Made, found.map_or(0, |found| found.mod_revision))
    } else {
        (Swap::Refused, found.map_or(0, |found| found.mod_revision))
    }
}

fn failed(connection: &Connection, fault: Fault) -> KeysError {
    let place = connection.place();
    if fault.is_full() {
        KeysError::Full { place }
    } else {
        KeysError::Unreachable { place, source: Box::new(fault) }
    }
}
