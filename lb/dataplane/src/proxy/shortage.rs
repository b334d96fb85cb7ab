//! When to say that there is no room for another client.

use std::time::{Duration, Instant};

/// A shortage that nobody has felt for so long is over. While one lasts, clients are turned down and let in many times a
/// second, of which one line of the log is enough.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// Whether there is one, as far as clients have met it.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    felt_at: Option<Instant>,
}

impl Shortage {
    /// A client has to wait. Returns whether that is the beginning of a shortage.
    pub(super) fn is_new(&mut self, now: Instant) -> bool {
        let before = self.felt_at.replace(now);
        before.is_none_or(|before| now.saturating_duration_since(before) >= OVER_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_once_and_the_next_one_again() {
        let start = Instant::now();
        let mut shortage = Shortage::default();
        let mut told = |seconds| shortage.is_new(start + Duration::from_secs(seconds));
        let seconds = [0, 1, 40, 99, 158, 218, 219, 400];
        assert_eq!(seconds.map(&mut told), [true, false, false, false, false, true, false, true]);
    }
}
