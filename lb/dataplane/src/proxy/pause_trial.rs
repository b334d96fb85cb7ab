//! Whether to wait for events saves a worker CPU time.
//!
//! It depends on the machine, what else runs there, and how many clients there are: waiting was seen to save 40 % of the
//! time of a request, and to cost 28 %. So both ways are tried, in turns that are short beside the changes of a load. As
//! much else changes the time, each trial compares two turns that follow one another, and many trials count.

use std::time::Duration;

/// Events of one turn: some 10 ms of a busy worker, so that the change from one way to the other is a small part of it.
const TURN_EVENTS: u64 = 2048;

/// Turns from one trial to the next. Two of them are the trial, one of which goes the worse way.
const CYCLE_TURNS: u32 = 32;

/// A trial counts as much as so many parts of the sum of all before.
const SMOOTHING: f64 = 8.0;

/// No trial counts as more than this ratio of both ways, or its inverse.
const RATIO_MAX: f64 = 2.0;

/// The ratio below which a worker begins to wait. For less it would make clients wait for nearly nothing.
const PAYS_BELOW: f64 = 0.98;

/// The ratio above which it no longer waits.
const COSTS_ABOVE: f64 = 1.0;

/// Tries both ways and knows which is better.
#[derive(Debug)]
pub(super) struct PauseTrial {
    /// In this turn.
    events: u64,
    /// What had been used when the turn began, unless it is the first one.
    used: Option<Duration>,
    turn: u32,
    /// The first turn of a trial waits. Changes from trial to trial.
    begins_with_pauses: bool,
    /// What an event took in the first turn of the trial.
    first_ns: f64,
    /// What an event takes with waiting, in relation to without. Smoothed.
    ratio: f64,
    pays: bool,
}

impl PauseTrial {
    pub(super) fn new() -> Self {
        Self {
            events: 0,
            used: None,
            turn: 0,
            begins_with_pauses: true,
            first_ns: 0.0,
            // Where there is much to do it pays more often than not.
            ratio: PAYS_BELOW,
            pays: true,
        }
    }

    /// Whether to wait for events.
    pub(super) fn pauses(&self) -> bool {
        match self.turn {
            0 => self.begins_with_pauses,
            1 => !self.begins_with_pauses,
            _ => self.pays,
        }
    }

    /// So many events have come. `cpu_time` tells what the worker has used so far.
    pub(super) fn note(&mut self, events: u64, cpu_time: impl FnOnce() -> Duration) {
        self.events += events;
        if self.events < TURN_EVENTS && self.used.is_some() {
            return;
        }
        let used = cpu_time();
        if let Some(before) = self.used.replace(used) {
            self.end_turn(used.saturating_sub(before).as_nanos() as f64 / self.events as f64);
        }
        self.events = 0;
    }

    fn end_turn(&mut self, event_ns: f64) {
        match self.turn {
            0 => self.first_ns = event_ns,
            1 => self.end_trial(event_ns),
            _ => {}
        }
        self.turn = (self.turn + 1) % CYCLE_TURNS;
    }

    fn end_trial(&mut self, second_ns: f64) {
        let (with, without) =
            if self.begins_with_pauses { (self.first_ns, second_ns) } else { (second_ns, self.first_ns) };
        if with > 0.0 && without > 0.0 {
            let ratio = (with / without).clamp(1.0 / RATIO_MAX, RATIO_MAX);
            self.ratio += (ratio - self.ratio) / SMOOTHING;
            self.pays = self.ratio < if self.pays { COSTS_ABOVE } else { PAYS_BELOW };
        }
        self.begins_with_pauses = !self.begins_with_pauses;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that has used some time, and what an event takes it with waiting and without.
    struct Worker {
        trial: PauseTrial,
        used: Duration,
    }

    impl Worker {
        fn new() -> Self {
            let mut trial = PauseTrial::new();
            trial.note(0, || Duration::ZERO);
            Self { trial, used: Duration::ZERO }
        }

        /// Has events for so many cycles. Returns the share of them that came while it waited.
        fn work(&mut self, cycles: u32, mut event_ns: impl FnMut(bool) -> u64) -> f64 {
            const STEP: u64 = 32;
            let steps = u64::from(cycles * CYCLE_TURNS) * TURN_EVENTS / STEP;
            let mut paused = 0;
            for _ in 0..steps {
                let pauses = self.trial.pauses();
                paused += u64::from(pauses);
                self.used += Duration::from_nanos(STEP * event_ns(pauses));
                self.trial.note(STEP, || self.used);
            }
            paused as f64 / steps as f64
        }
    }

    #[test]
    fn a_worker_waits_if_that_saves_time() {
        for (with, without, waits) in
            [(5_000, 6_000, true), (5_800, 6_000, true), (6_200, 6_000, false), (6_000, 5_000, false)]
        {
            let mut worker = Worker::new();
            worker.work(50, |pauses| if pauses { with } else { without });
            let share = worker.work(50, |pauses| if pauses { with } else { without });
            assert_eq!(share > 0.5, waits, "{with} ns with waiting, {without} ns without");
            let worse = if waits { 1.0 - share } else { share };
            assert!(worse < 0.1, "the worse way was gone for {worse} of the time");
        }
    }

    #[test]
    fn it_follows_a_load_that_changes() {
        let mut worker = Worker::new();
        for (with, without) in [(5_000, 6_000), (6_000, 5_000), (5_000, 6_000)] {
            worker.work(30, |pauses| if pauses { with } else { without });
            let share = worker.work(10, |pauses| if pauses { with } else { without });
            assert_eq!(share > 0.5, with < without);
        }
    }

    #[test]
    fn what_slows_down_both_ways_does_not_count() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut worker = Worker::new();
        let mut slow = 1.0;
        let mut cost = |pauses: bool| {
            // The machine becomes slower and faster by up to a half, over many turns.
            slow = f64::clamp(slow + random.f64() * 0.002 - 0.001, 1.0, 1.5);
            (slow * if pauses { 5_400.0 } else { 6_000.0 }) as u64
        };
        worker.work(50, &mut cost);
        assert!(worker.work(50, &mut cost) > 0.8);
    }

    #[test]
    fn the_clock_is_read_once_in_a_turn() {
        let mut trial = PauseTrial::new();
        let mut reads = 0;
        for _ in 0..10 * TURN_EVENTS {
            trial.note(1, || {
                reads += 1;
                Duration::from_micros(reads)
            });
        }
        assert_eq!(reads, 10);
    }
}
