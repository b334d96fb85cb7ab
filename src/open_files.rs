//! The bound on open files of this process.
//!
//! Connections through VIPs and to the API take descriptors. The soft limit that a login gives (often 1,024) protects
//! programs that use `select`, which this one does not; the hard limit is what the administrator means.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. Gives the soft limit as it was, which is what tasks are to have; `None`
/// if there was none.
pub fn raise_limit() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before })
    {
        tracing::warn!(%error, limit = before.current, "Cannot raise the limit on open files");
    }
    before.current
}

/// A share of the limit, at least one and at most `max`.
pub fn share(share: f64, max: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(max, |limit| ((limit as f64 * share) as usize).clamp(1, max))
}
