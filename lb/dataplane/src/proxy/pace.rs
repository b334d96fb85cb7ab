//! When a worker waits a moment longer, so that it wakes up for several events at once.
//!
//! Under load, waking up for each event costs as much as handling it. Network drivers moderate interrupts for the same
//! reason. A worker does so only while so much comes that it gets several events, or many bytes of a bulk transfer,
//! within the moment that it waits; a connection that is alone, or a quiet node, never waits.

use std::time::{Duration, Instant};

/// The moment. A request waits for it at most twice, on its way in and out. In a virtual machine, to sleep and wake up
/// may cost as much as two requests, so the moment is about as long as it can be before somebody feels it.
const MOMENT: Duration = Duration::from_micros(100);

/// Events that are expected within the moment, or there is no wait.
const EVENTS_EXPECTED: u64 = 8;

/// After a round with as many events there is no wait: the worker has enough to do without.
const EVENTS_ENOUGH: usize = 32;

/// A new connection is as much work as so many events besides its own.
const ARRIVAL_EVENTS: usize = 4;

/// Bytes of bulk data that are expected within the moment, or there is no wait for them.
const BULK_EXPECTED: u64 = 32 * 1024;

/// After a round that moved as many there is no wait.
const BULK_ENOUGH: u64 = 256 * 1024;

/// A round counts as much as the sum of all before in so many parts.
const SMOOTHING: u64 = 16;

/// Rounds that are further apart than this tell nothing about a pace.
const ELAPSED_MAX: Duration = Duration::from_millis(10);

/// What a worker has done since a round began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    /// Clients that it has accepted.
    pub(super) arrivals: usize,
    /// Bytes that it has moved of bulk transfers.
    pub(super) bulk_bytes: u64,
}

/// How fast events come. Sums of the rounds so far, each of which counts less with every further round.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    last_events: usize,
    events: u64,
    bulk_bytes: u64,
    elapsed_ns: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, last_events: 0, events: 0, bulk_bytes: 0, elapsed_ns: 0 }
    }

    /// A round begins with so many events, after what was done in the last one.
    pub(super) fn note_round(&mut self, events: usize, done: Done, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last).min(ELAPSED_MAX);
        self.last = now;
        self.last_events = events;
        // Scaled, so that the sums keep their fractions.
        let add = |sum: u64, value: u64| sum - sum / SMOOTHING + value * SMOOTHING;
        self.events = add(self.events, (events + done.arrivals * ARRIVAL_EVENTS) as u64);
        self.bulk_bytes = add(self.bulk_bytes, done.bulk_bytes);
        self.elapsed_ns = add(self.elapsed_ns, elapsed.as_nanos() as u64);
    }

    /// Whether several events are expected within a moment.
    pub(super) fn is_fast(&self) -> bool {
        self.is_expected(self.events, EVENTS_EXPECTED)
    }

    /// How long to wait before the next look for events, if at all.
    pub(super) fn moment(&self, done: Done) -> Option<Duration> {
        let is_bulk =
            (1..BULK_ENOUGH).contains(&done.bulk_bytes) && self.is_expected(self.bulk_bytes, BULK_EXPECTED);
        (is_bulk || self.is_fast() && self.last_events < EVENTS_ENOUGH).then_some(MOMENT)
    }

    /// Whether at least so much of what is summed up comes within the moment.
    fn is_expected(&self, sum: u64, least: u64) -> bool {
        sum > 0 && sum.saturating_mul(MOMENT.as_nanos() as u64) >= least.saturating_mul(self.elapsed_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a worker does after many rounds of one kind.
    fn moment_after(events: usize, done: Done, apart: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        (1..200).for_each(|round| pace.note_round(events, done, start + apart * round));
        pace.moment(done)
    }

    #[test]
    fn a_worker_waits_only_while_several_events_come_within_the_moment() {
        assert_eq!(Pace::new(Instant::now()).moment(Done::default()), None);
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
                moment_after(events, Done::default(), Duration::from_micros(apart_us)),
                waits,
                "{events} in {apart_us} us"
            );
        }
    }

    #[test]
    fn one_pause_ends_the_waiting() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        (1..200).for_each(|round| {
            pace.note_round(1, Done::default(), start + Duration::from_micros(5) * round);
        });
        pace.note_round(1, Done::default(), start + Duration::from_secs(1));
        assert_eq!(pace.moment(Done::default()), None);
    }

    #[test]
    fn it_waits_for_more_bulk_data_unless_it_is_slow_or_there_is_enough() {
        for (bulk_bytes, apart_us, waits) in [
            (90_000, 80, true),
            (90_000, 250, true),
            (90_000, 1_000, false),
            (BULK_ENOUGH, 100, false),
            (2_000, 5, true),
            (1_000, 50, false),
        ] {
            let (done, apart) = (Done { arrivals: 0, bulk_bytes }, Duration::from_micros(apart_us));
            assert_eq!(
                moment_after(1, done, apart) == Some(MOMENT),
                waits,
                "{bulk_bytes} bytes in {apart:?}"
            );
        }
    }

    #[test]
    fn new_connections_are_more_work_than_other_events() {
        let apart = Duration::from_micros(50);
        assert_eq!(moment_after(2, Done::default(), apart), None);
        assert_eq!(moment_after(2, Done { arrivals: 1, bulk_bytes: 0 }, apart), Some(MOMENT));
    }
}
