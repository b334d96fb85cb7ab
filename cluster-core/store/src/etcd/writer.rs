//! Commits of a leader.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use mesonet_model::{Revision, Table, Write};
use prost::Message as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Fault;
use super::core::{Core, PATIENCE};
use super::keys::{self, Fate, Marker};
use super::messages::{Compare, KeyValue, Part, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use crate::CommitError;

/// Operations of one transaction. etcd takes 128 unless told otherwise (--max-txn-ops).
const OPERATIONS_MAX: usize = 128;

/// Bytes of one transaction. etcd takes 1.5 MiB unless told otherwise (--max-request-bytes).
const BYTES_MAX: usize = 1 << 20;

/// Bytes of one value. Longer ones go on under further keys.
const VALUE_MAX: usize = 512 << 10;

/// Bytes of an operation besides its key and value, at most.
const OVERHEAD: usize = 32;

/// Transactions under way at once that belong to the same commit, so that etcd writes them to its disk together.
const UNDER_WAY_MAX: usize = 16;

/// How long a transaction is asked for before the log says that it is not answered.
const ROUND: Duration = Duration::from_secs(1);

/// How long the leader whose lease is lost asks what became of the commit that it was about to make. It has ceased to
/// lead meanwhile; only users who wait for their answers are kept.
const LAST_WORD: Duration = Duration::from_secs(4);

/// What a leader needs to commit.
#[derive(Debug)]
pub(super) struct Writer {
    core: Arc<Core>,
    /// The change that made the key `leader`. Whatever is written depends on it.
    fence: i64,
    term: u64,
    lost: watch::Receiver<bool>,
    last: Revision,
    /// As it is in etcd.
    last_value: Option<Bytes>,
    attempts: u64,
    /// How many keys those records go on with that are too long for one.
    long: BTreeMap<Bytes, usize>,
    /// With which commits the terms before have ended.
    earlier: Vec<String>,
    /// A commit that has failed in a way that leaves open whether it has taken effect.
    doubt: Option<Attempt>,
    /// Whether parts of a commit are pending that are to be carried out or to be removed.
    is_unsettled: bool,
}

/// Writes of one commit, as operations for etcd.
#[derive(Debug)]
pub(super) struct Batch {
    revision: Revision,
    hash: u64,
    records: BTreeMap<(Table, String), Option<Bytes>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    revision: Revision,
    hash: u64,
    marker: Bytes,
    commit: String,
}

/// A transaction was not made.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("this master leads no longer")]
    Deposed,
    #[error("this master leads no longer, and nobody can tell whether the commit was made")]
    Undecided,
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("a pending part of the commit cannot be read")]
    Damaged(#[from] prost::DecodeError),
}

impl Batch {
    pub(super) fn new(revision: Revision, writes: &[Write]) -> Self {
        let mut hasher = DefaultHasher::new();
        let mut records = BTreeMap::new();
        for write in writes {
            (write.table, &write.key, &write.value).hash(&mut hasher);
            let value = write.value.as_deref().map(Bytes::copy_from_slice);
            records.insert((write.table, write.key.clone()), value);
        }
        Self { revision, hash: hasher.finish(), records }
    }
}

impl Writer {
    pub(super) fn new(core: Arc<Core>, fence: i64, term: u64, lost: watch::Receiver<bool>) -> Self {
        let image = core.image();
        let mut long = BTreeMap::new();
        for key in image.records.keys() {
            if let Some(end) = key.iter().position(|byte| *byte == 0) {
                let record =
                    core.keys.key(&format!("{}{}", keys::RECORDS, String::from_utf8_lossy(&key[..end])));
                *long.entry(record).or_insert(0) += 1;
            }
        }
        let (last, last_value) = (image.marker.revision, image.marker_value.clone());
        let earlier = image.marker.clone().handed_on();
        drop(image);
        Self {
            core,
            fence,
            term,
            lost,
            last,
            last_value,
            attempts: 0,
            long,
            earlier,
            doubt: None,
            is_unsettled: true,
        }
    }

    pub(super) fn term(&self) -> u64 {
        self.term
    }

    /// Completes what an earlier leader has begun.
    pub(super) async fn take_over(&mut self) -> Result<(), Failure> {
        self.settle().await
    }

    pub(super) async fn commit(&mut self, batch: Batch) -> Result<(), CommitError> {
        let Batch { revision, .. } = batch;
        if revision <= self.last {
            return Err(CommitError::NotNewer { revision, last: self.last });
        }
        let place = self.core.connection.place();
        match self.try_commit(batch).await {
            Ok(()) => Ok(()),
            Err(Failure::Deposed) => Err(CommitError::Deposed { revision, term: self.term }),
            Err(Failure::Undecided) => Err(CommitError::Undecided { revision, term: self.term }),
            Err(Failure::Fault(fault)) if fault.is_full() => {
                Err(CommitError::Full { revision, place, source: Box::new(fault) })
            }
            Err(failure) => Err(CommitError::Storage { revision, place, source: Box::new(failure) }),
        }
    }

    async fn try_commit(&mut self, batch: Batch) -> Result<(), Failure> {
        let (attempt, was_tried) = self.attempt(&batch);
        let result = self.make(&batch, &attempt, was_tried).await;
        if result.is_err() && (was_tried || self.doubt.is_some()) {
            self.doubt = Some(attempt);
        }
        result
    }

    async fn make(&mut self, batch: &Batch, attempt: &Attempt, was_tried: bool) -> Result<(), Failure> {
        let mut long = self.long.clone();
        let mut parts = packed(self.operations(batch, &mut long));
        let is_staged = parts.len() > 1;
        if !was_tried || !self.is_made(attempt).await? {
            let mut operations = if is_staged { Vec::new() } else { parts.pop().unwrap_or_default() };
            match self.prepare(&attempt.commit, &parts).await {
                Err(Failure::Deposed) if was_tried => return Err(Failure::Undecided),
                prepared => prepared?,
            }
            operations.push(RequestOp::put(self.core.keys.key(keys::REVISION), attempt.marker.clone()));
            self.make_true(attempt, operations, was_tried).await?;
        }
        self.doubt = None;
        self.last = batch.revision;
        self.last_value = Some(attempt.marker.clone());
        self.long = long;
        if is_staged && let Err(failure) = self.settle().await {
            // It is the truth all the same: whoever reads adds what is pending.
            tracing::warn!(%failure, "A large commit is not carried out yet");
        }
        Ok(())
    }

    /// The same attempt again, if this commit is the one that is in doubt, and whether it is.
    fn attempt(&mut self, batch: &Batch) -> (Attempt, bool) {
        let Batch { revision, hash, .. } = *batch;
        if let Some(attempt) = self.doubt.take_if(|doubt| (doubt.revision, doubt.hash) == (revision, hash)) {
            return (attempt, true);
        }
        self.attempts += 1;
        let commit = format!("{}-{}", self.term, self.attempts);
        let marker = Marker { revision, commit: commit.clone(), earlier: self.earlier.clone() };
        let marker = serde_json::to_vec(&marker).expect("BUG: the marker has a map key that is no text");
        (Attempt { revision, hash, marker: marker.into(), commit }, false)
    }

    /// Has nothing pending but the parts of this commit.
    async fn prepare(&mut self, commit: &str, parts: &[Vec<RequestOp>]) -> Result<(), Failure> {
        if self.is_unsettled {
            self.settle().await?;
        }
        if !parts.is_empty() {
            self.is_unsettled = true;
            self.stage(commit, parts).await?;
        }
        Ok(())
    }

    /// Whether an earlier attempt has taken effect.
    async fn is_made(&self, attempt: &Attempt) -> Result<bool, Failure> {
        let request = RangeRequest { key: self.core.keys.key(keys::REVISION), ..RangeRequest::default() };
        let answer = self.core.connection.range(request, Instant::now() + PATIENCE).await?;
        match self.fate(answer.kvs.first(), attempt) {
            Fate::Made => Ok(true),
            Fate::NotMade => Ok(false),
            Fate::Forgotten => Err(Failure::Undecided),
        }
    }

    fn fate(&self, marker: Option<&KeyValue>, attempt: &Attempt) -> Fate {
        match marker.map(|pair| serde_json::from_slice::<Marker>(&pair.value)) {
            Some(Ok(marker)) => marker.fate(self.term, &attempt.commit),
            Some(Err(_)) => Fate::Forgotten,
            None => Fate::NotMade,
        }
    }

    fn operations(&self, batch: &Batch, long: &mut BTreeMap<Bytes, usize>) -> Vec<RequestOp> {
        let mut operations = Vec::with_capacity(batch.records.len());
        for ((table, key), value) in &batch.records {
            let key = self.core.keys.record(*table, key);
            let went_on = long.remove(&key).unwrap_or(0);
            let Some(value) = value else {
                operations.push(RequestOp::delete_range(key.clone(), keys::after_record(&key)));
                continue;
            };
            let mut goes_on = 0;
            operations.push(RequestOp::put(key.clone(), value.slice(..value.len().min(VALUE_MAX))));
            for start in (VALUE_MAX..value.len()).step_by(VALUE_MAX) {
                goes_on += 1;
                let end = value.len().min(start + VALUE_MAX);
                operations.push(RequestOp::put(keys::continued(&key, goes_on), value.slice(start..end)));
            }
            if went_on > goes_on {
                let start = keys::continued(&key, goes_on + 1);
                operations.push(RequestOp::delete_range(start, keys::after_record(&key)));
            }
            if goes_on > 0 {
                long.insert(key, goes_on);
            }
        }
        operations
    }

    /// Writes the parts of a commit beside the truth.
    async fn stage(&self, commit: &str, parts: &[Vec<RequestOp>]) -> Result<(), Failure> {
        let place = self.core.keys.pending(commit);
        for (round, parts) in parts.chunks(UNDER_WAY_MAX).enumerate() {
            let put = |(index, part): (usize, &Vec<RequestOp>)| {
                let number = round * UNDER_WAY_MAX + index;
                let key = self.core.keys.key(&format!("{place}{number:06}"));
                let part = Part { operations: part.clone() }.encode_to_vec();
                self.while_leading(vec![RequestOp::put(key, part.into())])
            };
            let answers = try_join_all(parts.iter().enumerate().map(put)).await?;
            if answers.iter().any(|answer| !answer.succeeded) {
                return Err(Failure::Deposed);
            }
        }
        Ok(())
    }

    /// Makes the change that decides on a commit. Once it is begun, whether the lease is lost meanwhile says nothing
    /// about what becomes of it, so etcd's answer is waited for.
    async fn make_true(
        &mut self,
        attempt: &Attempt,
        operations: Vec<RequestOp>,
        was_tried: bool,
    ) -> Result<(), Failure> {
        if !was_tried && *self.lost.borrow() {
            return Err(Failure::Deposed);
        }
        self.doubt = Some(attempt.clone());
        let request = self.fenced(operations);
        let mut lost = self.lost.clone();
        let given_up = async move {
            let _ = lost.wait_for(|lost| *lost).await;
            tokio::time::sleep(LAST_WORD).await;
        };
        let answer = tokio::select! {
            answer = self.persist(request) => answer,
            () = given_up => return Err(Failure::Undecided),
        };
        let answer = match answer {
            // etcd makes a change, and says that it is full, if it became so after it had taken the request.
            Err(Failure::Fault(fault)) if fault.is_full() => {
                return if self.is_made(attempt).await? { Ok(()) } else { Err(Failure::Fault(fault)) };
            }
            answer => answer?,
        };
        // It took effect earlier if its answer was lost.
        let fate = if answer.succeeded { Fate::Made } else { self.fate(answer.got(0), attempt) };
        match fate {
            Fate::Made => Ok(()),
            Fate::NotMade => Err(Failure::Deposed),
            Fate::Forgotten => Err(Failure::Undecided),
        }
    }

    /// Carries out the pending parts of the last commit, and removes those of others.
    async fn settle(&mut self) -> Result<(), Failure> {
        let marker: Marker = self
            .last_value
            .as_deref()
            .and_then(|value| serde_json::from_slice(value).ok())
            .unwrap_or_default();
        let place = self.core.keys.key(&self.core.keys.pending(&marker.commit));
        loop {
            let pending = RangeRequest { limit: UNDER_WAY_MAX as i64, ..self.core.keys.below(keys::PENDING) };
            let pending = self.core.connection.range(pending, Instant::now() + PATIENCE).await?;
            let carry_out = async |key: Bytes, value: Bytes| {
                let mut operations = match key.starts_with(&place) {
                    true => Part::decode(value)?.operations,
                    false => Vec::new(),
                };
                operations.push(RequestOp::delete(key));
                self.while_leading(operations).await
            };
            let parts = pending.kvs.into_iter().map(|pair| carry_out(pair.key, pair.value));
            let answers = try_join_all(parts).await?;
            if answers.iter().any(|answer| !answer.succeeded) {
                return Err(Failure::Deposed);
            }
            if !pending.more {
                break;
            }
        }
        self.is_unsettled = false;
        Ok(())
    }

    /// A transaction that is made if this is still the leader and nobody else has committed. If not, the first answer
    /// is the marker that was found.
    fn fenced(&self, success: Vec<RequestOp>) -> TxnRequest {
        let keys = &self.core.keys;
        TxnRequest {
            compare: vec![
                Compare::created(keys.key(keys::LEADER), self.fence),
                Compare::value(keys.key(keys::REVISION), self.last_value.clone()),
            ],
            success,
            failure: vec![RequestOp::get(keys.key(keys::REVISION))],
        }
    }

    /// Makes a change that decides nothing, however long it takes until etcd says so or the lease is lost.
    async fn while_leading(&self, success: Vec<RequestOp>) -> Result<TxnResponse, Failure> {
        let request = self.fenced(success);
        let mut lost = self.lost.clone();
        tokio::select! {
            biased;
            _ = lost.wait_for(|lost| *lost) => Err(Failure::Deposed),
            answer = self.persist(request) => answer,
        }
    }

    /// Has etcd decide on a transaction, however long it takes.
    async fn persist(&self, request: TxnRequest) -> Result<TxnResponse, Failure> {
        loop {
            match self.core.connection.txn(request.clone(), Instant::now() + ROUND).await {
                Err(fault @ Fault::Silent { .. }) => {
                    tracing::debug!(%fault, "Cannot reach etcd to commit, trying again");
                }
                answer => return Ok(answer?),
            }
        }
    }
}

/// Operations in groups that each fit into a transaction together with one more.
fn packed(operations: Vec<RequestOp>) -> Vec<Vec<RequestOp>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for operation in operations {
        let size = operation.encoded_len() + OVERHEAD;
        if !part.is_empty() && (part.len() + 1 == OPERATIONS_MAX || bytes + size > BYTES_MAX) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(operation);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}
