//! When a worker waits a moment longer, so that it wakes up for several events at once.
//!
//! Under load, waking up for each event costs as much as handling it. Network drivers moderate interrupts for the same
//! reason. A worker does so only while events come so fast that several come within the moment that it waits; a
//! connection that is alone, or a quiet node, never waits.

use std::time::{Duration, Instant};

/// The moment. A request waits for it at most twice, on its way in and out.
const MOMENT: Duration = Duration::from_micros(50);

/// Events that are expected within the moment, or there is no wait.
const EVENTS_EXPECTED: u64 = 4;

/// After a round with as many events there is no wait: the worker has enough to do without.
const EVENTS_ENOUGH: usize = 16;

/// A round counts as much as the sum of all before in so many parts.
const SMOOTHING: u64 = 16;

/// Rounds that are further apart than this tell nothing about a pace.
const ELAPSED_MAX: Duration = Duration::from_millis(10);

/// How fast events come. Sums of the rounds so far, each of which counts less with every further round.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    last_events: usize,
    events: u64,
    elapsed_ns: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, last_events: 0, events: 0, elapsed_ns: 0 }
    }

    /// A round begins with so many events.
    pub(super) fn note_round(&mut self, events: usize, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last).min(ELAPSED_MAX);
        self.last = now;
        self.last_events = events;
        // Scaled, so that the sums keep their fractions.
        let add = |sum: u64, value: u64| sum - sum / SMOOTHING + value * SMOOTHING;
        self.events = add(self.events, events as u64);
        self.elapsed_ns = add(self.elapsed_ns, elapsed.as_nanos() as u64);
    }

    /// How long to wait before the next look for events, if at all.
    pub(super) fn moment(&self) -> Option<Duration> {
        let expected_ns = self.events * MOMENT.as_nanos() as u64;
        let is_fast = expected_ns > 0 && expected_ns >= EVENTS_EXPECTED * self.elapsed_ns;
        (is_fast && self.last_events < EVENTS_ENOUGH).then_some(MOMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a worker does after many rounds of one kind.
    fn moment_after(events: usize, apart: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        (1..200).for_each(|round| pace.note_round(events, start + apart * round));
        pace.moment()
    }

    #[test]
    fn a_worker_waits_only_while_several_events_come_within_the_moment() {
        assert_eq!(Pace::new(Instant::now()).moment(), None);
        for (events, apart_us, waits) in [
            (1, 5, true),
            (1, 12, true),
            (1, 20, false),
            (1, 1_000, false),
            (4, 40, true),
            (4, 100, false),
            (EVENTS_ENOUGH, 50, false),
            (0, 5, false),
        ] {
            let waits = waits.then_some(MOMENT);
            assert_eq!(
                moment_after(events, Duration::from_micros(apart_us)),
                waits,
                "{events} in {apart_us} us"
            );
        }
    }

    #[test]
    fn one_pause_ends_the_waiting() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        (1..200).for_each(|round| pace.note_round(1, start + Duration::from_micros(5) * round));
        pace.note_round(1, start + Duration::from_secs(1));
        assert_eq!(pace.moment(), None);
    }
}
