//! When recent revisions were committed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mesonet_model::Revision;

/// How many commits are remembered: a plane that lags further behind gets no latency for the oldest.
/// At 1,000 commits per second this is a minute.
const COMMITS_MAX: usize = 65_536;

/// Remembers when recent revisions were committed, so that a plane can tell how long it took to apply them.
#[derive(Debug, Default)]
pub(crate) struct CommitLog(Mutex<VecDeque<(Revision, Instant)>>);

impl CommitLog {
    pub(crate) fn record(&self, revision: Revision, at: Instant) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == COMMITS_MAX {
            log.pop_front();
        }
        log.push_back((revision, at));
    }

    /// The commit times of the revisions after `from` up to `to`.
    pub(crate) fn between(&self, from: Revision, to: Revision) -> Vec<Instant> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = log.partition_point(|(revision, _)| *revision <= from);
        log.range(first..).take_while(|(revision, _)| *revision <= to).map(|(_, at)| *at).collect()
    }
}
