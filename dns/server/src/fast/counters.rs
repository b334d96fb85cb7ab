//! What a thread of the fast path counts. It alone writes, so that counting takes no lock and shares no cache line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{BUCKET_COUNT, CODE_COUNT, CodeLabel, KIND_COUNT, KindLabel, bucket_bounds};
use crate::query_metrics::{ZONE_COUNT, ZoneLabel};

/// The counts of one thread since it started.
#[derive(Debug)]
pub(crate) struct ThreadCounters {
    /// By zone, type and result.
    answered: Box<[AtomicU64]>,
    /// By bucket of latency, not cumulative; the last one has no upper bound.
    durations: [AtomicU64; BUCKET_COUNT + 1],
    bounds: [Duration; BUCKET_COUNT],
    nanoseconds: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

impl ThreadCounters {
    /// All are zero.
    pub(crate) fn new() -> Self {
        Self {
            answered: (0..ZONE_COUNT * KIND_COUNT * CODE_COUNT).map(|_| AtomicU64::new(0)).collect(),
            durations: std::array::from_fn(|_| AtomicU64::new(0)),
            bounds: bucket_bounds().map(Duration::from_secs_f64),
            nanoseconds: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// A query was answered.
    pub(crate) fn answered(&self, zone: ZoneLabel, kind: KindLabel, code: CodeLabel) {
        if let Some(cell) = self.answered.get(cell(zone, kind, code)) {
            add(cell, 1);
        }
    }

    /// So many answers were there so long after their queries were read.
    pub(crate) fn took(&self, answered: u64, duration: Duration) {
        let bucket = self.bounds.iter().position(|bound| duration <= *bound).unwrap_or(BUCKET_COUNT);
        add(&self.durations[bucket], answered);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanoseconds, nanoseconds.saturating_mul(answered));
    }

    /// The system refused to send answers.
    pub(crate) fn refused(&self, answers: u64) {
        add(&self.refused, answers);
    }

    /// A query was dropped because too many wait for the full path.
    pub(crate) fn dropped(&self) {
        add(&self.dropped, 1);
    }

    /// Queries answered so far.
    pub(crate) fn answered_total(&self, zone: ZoneLabel, kind: KindLabel, code: CodeLabel) -> u64 {
        self.answered.get(cell(zone, kind, code)).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Answers so far by bucket of latency, and the sum of the latencies in seconds.
    pub(crate) fn durations(&self) -> ([u64; BUCKET_COUNT + 1], f64) {
        let counts = std::array::from_fn(|at| self.durations[at].load(Ordering::Relaxed));
        (counts, self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9)
    }

    /// Answers that the system refused to send so far.
    pub(crate) fn refused_total(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Queries dropped so far.
    pub(crate) fn dropped_total(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn cell(zone: ZoneLabel, kind: KindLabel, code: CodeLabel) -> usize {
    (zone.number() * KIND_COUNT + kind as usize) * CODE_COUNT + code as usize
}

/// Only one thread writes, so that this needs no atomic addition.
fn add(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}
