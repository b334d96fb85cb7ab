//! How long to wait after failures.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first wait; the numbers are dcos-net's (spec/dcos-networking.md §2.2).
const FIRST: Duration = Duration::from_secs(2);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double with each failure in a row, each cut by a chance part, so that the daemons of a cluster do not all
/// come back at the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        // The clock's finest digits are chance enough.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let wait = longest_wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        let half = wait / 2;
        half + half.mul_f64(f64::from(nanos % 1000) / 1000.0)
    }

    /// It works again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

fn longest_wait(failures: u32) -> Duration {
    2_u32.checked_pow(failures).map_or(LONGEST, |factor| FIRST.saturating_mul(factor).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_again() {
        let mut backoff = Backoff::default();
        for expected in [2, 4, 8, 16, 30, 30] {
            let (wait, expected) = (backoff.next_wait(), Duration::from_secs(expected));
            assert!(expected / 2 <= wait && wait <= expected, "{wait:?} of {expected:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
        assert_eq!(longest_wait(u32::MAX), LONGEST);
    }
}
