//! When a worker waits a moment longer, so that it wakes up for several events at once.
//!
//! Under load, waking up for each event costs as much as handling it. Network drivers moderate interrupts for the same
//! reason. A worker does so only while so much comes that it gets several events, or many bytes of a bulk transfer,
//! within the moment that it waits; a connection that is alone, or a quiet node, never waits.
//!
//! What has come already is handled first: a wait then would be one more sleep, and clients would wait for it. And where
//! there are few clients, all of them may wait for the worker, so that nothing comes meanwhile: whether waiting for
//! their events saves anything is tried out ([`PauseTrial`]).

use std::time::{Duration, Instant};

use super::pause_trial::PauseTrial;

/// The moment. A request waits for it at most twice, on its way in and out. In a virtual machine, to sleep and wake up
/// may cost as much as two requests, so the moment is about as long as it can be before somebody feels it.
const MOMENT: Duration = Duration::from_micros(200);

/// Events that are expected within the moment, or there is no wait.
const EVENTS_EXPECTED: u64 = 16;

/// The moment for bulk data, which stops when the buffers of its sender and receiver are full.
const BULK_MOMENT: Duration = Duration::from_micros(100);

/// A new connection is as much work as so many events besides its own.
const ARRIVAL_EVENTS: usize = 4;

/// Bytes of bulk data that are expected within its moment, or there is no wait for them.
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

/// How a worker looks for its next events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As soon as there is one.
    AtOnce,
    /// As soon as there is one, but not for so long if there is none yet.
    UnlessSomeWait(Duration),
    /// Not for so long, even if there are some.
    Later(Duration),
}

/// How fast events come. Sums of the rounds so far, each of which counts less with every further round.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    events: u64,
    bulk_bytes: u64,
    elapsed_ns: u64,
    trial: PauseTrial,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, events: 0, bulk_bytes: 0, elapsed_ns: 0, trial: PauseTrial::new() }
    }

    /// A round begins with so many events, after what was done in the last one. `cpu_time` tells what the worker has used
    /// so far.
    pub(super) fn note_round(
        &mut self,
        events: usize,
        done: Done,
        now: Instant,
        cpu_time: impl FnOnce() -> Duration,
    ) {
        let elapsed = now.saturating_duration_since(self.last).min(ELAPSED_MAX);
        self.last = now;
        // Scaled, so that the sums keep their fractions.
        let add = |sum: u64, value: u64| sum - sum / SMOOTHING + value * SMOOTHING;
        let events = (events + done.arrivals * ARRIVAL_EVENTS) as u64;
        self.events = add(self.events, events);
        self.bulk_bytes = add(self.bulk_bytes, done.bulk_bytes);
        self.elapsed_ns = add(self.elapsed_ns, elapsed.as_nanos() as u64);
        self.trial.note(events, cpu_time);
    }

    /// Whether several events are expected within a moment.
    pub(super) fn is_fast(&self) -> bool {
        self.is_expected(self.events, EVENTS_EXPECTED, MOMENT)
    }

    /// How to look for the next events.
    pub(super) fn look(&self, done: Done) -> Look {
        let is_bulk = (1..BULK_ENOUGH).contains(&done.bulk_bytes)
            && self.is_expected(self.bulk_bytes, BULK_EXPECTED, BULK_MOMENT);
        if is_bulk {
            Look::Later(BULK_MOMENT)
        } else if self.is_fast() && (done.arrivals > 0 || self.trial.pauses()) {
            Look::UnlessSomeWait(MOMENT)
        } else {
            Look::AtOnce
        }
    }

    /// Whether at least so much of what is summed up comes within a moment.
    fn is_expected(&self, sum: u64, least: u64, moment: Duration) -> bool {
        sum > 0 && sum.saturating_mul(moment.as_nanos() as u64) >= least.saturating_mul(self.elapsed_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a worker looks after many rounds of one kind.
    fn look_after(events: usize, done: Done, apart: Duration) -> Look {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        (1..200).for_each(|round| pace.note_round(events, done, start + apart * round, || Duration::ZERO));
        pace.look(done)
    }

    #[test]
    fn a_worker_waits_only_while_several_events_come_within_the_moment() {
        assert_eq!(Pace::new(Instant::now()).look(Done::default()), Look::AtOnce);
        for (events, apart_us, waits) in [
            (1, 5, true),
            (1, 12, true),
            (1, 20, false),
            (1, 1_000, false),
            (4, 40, true),
            (4, 100, false),
            (0, 5, false),
        ] {
            let look = if waits { Look::UnlessSomeWait(MOMENT) } else { Look::AtOnce };
            let apart = Duration::from_micros(apart_us);
            assert_eq!(look_after(events, Done::default(), apart), look, "{events} in {apart:?}");
        }
    }

    #[test]
    fn one_pause_ends_the_waiting() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut note = |at| pace.note_round(1, Done::default(), start + at, || Duration::ZERO);
        (1..200).for_each(|round| note(Duration::from_micros(5) * round));
        note(Duration::from_secs(1));
        assert_eq!(pace.look(Done::default()), Look::AtOnce);
    }

    #[test]
    fn a_worker_waits_for_newcomers_but_not_for_requests_if_that_saves_nothing() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut used, mut waits, mut rounds) = (Duration::ZERO, 0, 0);
        for round in 1..200_000 {
            let is_waiting = pace.look(Done::default()) != Look::AtOnce;
            (waits, rounds) = (waits + u32::from(is_waiting), rounds + 1);
            used += Duration::from_micros(if is_waiting { 12 } else { 10 });
            pace.note_round(2, Done::default(), start + Duration::from_micros(10) * round, || used);
            assert_eq!(pace.look(Done { arrivals: 1, bulk_bytes: 0 }), Look::UnlessSomeWait(MOMENT));
        }
        assert!(waits < rounds / 4, "{waits} of {rounds} rounds");
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
                look_after(1, done, apart) == Look::Later(BULK_MOMENT),
                waits,
                "{bulk_bytes} bytes in {apart:?}"
            );
        }
    }

    #[test]
    fn new_connections_are_more_work_than_other_events() {
        let apart = Duration::from_micros(50);
        assert_eq!(look_after(2, Done::default(), apart), Look::AtOnce);
        let done = Done { arrivals: 1, bulk_bytes: 0 };
        assert_eq!(look_after(2, done, apart), Look::UnlessSomeWait(MOMENT));
    }
}
