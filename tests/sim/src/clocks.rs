//! Clocks of machines: none is quite right, and some are set by hours.

use std::time::Duration;

use fastrand::Rng;
use mesonet_model::Timestamp;

/// What the clock of a machine says when the run begins, if it is right: some time in 2001.
const BEGINNING: i64 = 1_000_000_000_000;

/// The most that a clock runs too fast or too slow, in millionths: a poor quartz.
const DRIFT_MAX: i64 = 200;

/// The most that a clock is wrong by when it is set, in milliseconds.
const WRONG_MAX: i64 = 2 * 3_600_000;

/// The clock of one machine.
#[derive(Debug)]
pub(crate) struct MachineClock {
    /// Millionths.
    drift: i64,
    /// Milliseconds that the wall clock is ahead of what the machine has counted.
    ahead: i64,
}

impl MachineClock {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { drift: rng.i64(-DRIFT_MAX..=DRIFT_MAX), ahead: rng.i64(-1000..=1000) }
    }

    /// What has passed since the run began, as this machine counts it.
    pub(crate) fn monotonic(&self, now: Timestamp) -> Duration {
        let micros = now.as_millis() * (1_000_000 + self.drift) / 1000;
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// What it says.
    pub(crate) fn wall(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_millis(BEGINNING + self.ahead).plus(self.monotonic(now))
    }

    /// Somebody sets it, and not well.
    pub(crate) fn set(&mut self, rng: &mut Rng) {
        self.ahead = rng.i64(-WRONG_MAX..=WRONG_MAX);
    }
}
