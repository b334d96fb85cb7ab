//! How many descriptors the proxy may use.

use rustix::process::{Resource, getrlimit};

/// Bounds of one worker, from the process's limit on open descriptors (RLIMIT_NOFILE, soft).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DescriptorBudget {
    /// TCP connections, two descriptors each. When there are as many, clients wait in the listeners' queues until
    /// one ends.
    pub(super) connections: usize,
    /// UDP sessions, one descriptor each. When there are as many, the oldest is dropped for a new one.
    pub(super) sessions: usize,
    /// Pipes for bulk data, two descriptors each. Without one, bulk data is copied through a buffer.
    pub(super) pipes: usize,
}

/// Of the process's limit; the rest is for listeners, the other parts of the process, and their tasks' files.
const CONNECTION_SHARE: f64 = 0.6;
const SESSION_SHARE: f64 = 0.1;
const PIPE_SHARE: f64 = 0.05;

/// Bounds where the process has no limit.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// A pipe holds up to 256 KiB and the kernel gives all pipes of an unprivileged user 64 MiB (pipe-user-pages-soft).
const PIPES_MAX: usize = 128;

/// 16,384 sessions answer 1,600 new clients per second for ten seconds; a flood beyond that is not worth memory.
const SESSIONS_MAX: usize = 16_384;

impl DescriptorBudget {
    /// Of the process as a whole.
    pub(super) fn of_process() -> Self {
        Self::within(getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX))
    }

    fn within(descriptors: u64) -> Self {
        let share = |share: f64| (descriptors as f64 * share) as usize;
        Self {
            connections: share(CONNECTION_SHARE) / 2,
            sessions: share(SESSION_SHARE).min(SESSIONS_MAX),
            pipes: (share(PIPE_SHARE) / 2).min(PIPES_MAX),
        }
    }

    /// An equal part for each worker; at least one of everything that cannot do without.
    pub(super) fn per_worker(self, workers: usize) -> Self {
        Self {
            connections: (self.connections / workers).max(1),
            sessions: (self.sessions / workers).max(1),
            pipes: self.pipes / workers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workers_together_stay_below_the_limit() {
        for (descriptors, workers) in [(64, 1), (1024, 2), (20_000, 4), (DESCRIPTORS_MAX, 4)] {
            let budget = DescriptorBudget::within(descriptors).per_worker(workers);
            let used = workers * (2 * budget.connections + budget.sessions + 2 * budget.pipes);
            assert!(used as u64 <= descriptors * 4 / 5, "{used} of {descriptors} descriptors");
            assert!(budget.connections > 0 && budget.sessions > 0);
        }
    }
}
