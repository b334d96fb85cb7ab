//! Which masters are of the past.

use std::time::{Duration, Instant};

/// For how long a node remembers the newest term. A master that was deposed knows it after its lease, which is a few
/// seconds long; a cluster whose records were moved or restored may count anew.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The newest term that a node has heard of, and when.
#[derive(Debug, Default)]
pub(super) struct Terms(Option<(u64, Instant)>);

impl Terms {
    /// Takes note of a master's term, unless it was elected before one that was heard of lately: then that one's term.
    pub(super) fn hear(&mut self, term: Option<u64>, now: Instant) -> Result<(), u64> {
        // A lone master is not elected, so nothing can be said of it.
        let Some(term) = term else { return Ok(()) };
        match self.0 {
            Some((newest, heard)) if term < newest && now.duration_since(heard) < REMEMBERED => Err(newest),
            _ => {
                self.0 = Some((term, now));
                Ok(())
            }
        }
    }

    /// The connection to the master that was heard last has held until now.
    pub(super) fn confirm(&mut self, now: Instant) {
        if let Some((_, heard)) = &mut self.0 {
            *heard = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_elected_earlier_is_refused_for_a_while() {
        let mut terms = Terms::default();
        let start = Instant::now();
        assert_eq!(terms.hear(Some(5), start), Ok(()));
        assert_eq!(terms.hear(Some(4), start), Err(5));
        assert_eq!(terms.hear(Some(5), start), Ok(()), "the same one is still there");
        assert_eq!(terms.hear(None, start), Ok(()), "a lone master");
        assert_eq!(terms.hear(Some(9), start), Ok(()));
        terms.confirm(start + REMEMBERED);
        assert_eq!(terms.hear(Some(8), start + REMEMBERED + Duration::from_secs(1)), Err(9));
        assert_eq!(terms.hear(Some(2), start + 2 * REMEMBERED), Ok(()), "the cluster counts anew");
    }
}
