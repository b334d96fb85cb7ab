//! The wall clock, as the control plane sees it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesonet_api::Clock;
use mesonet_model::Timestamp;

/// By how much the clock may run faster or slower than time passes, one tenth. An hour is made up for in ten, and no
/// wait is off by more than this.
const SLEW_DIVISOR: i64 = 10;

/// A wall clock that never goes back, never stands still and never jumps. When the system's clock is set, it runs faster
/// or slower until both agree: what the control plane waits for comes neither at once nor never.
#[derive(Debug, Default)]
pub struct WallClock {
    /// Microseconds since 1970, and by the monotonic clock.
    last: Option<(i64, Duration)>,
    not_before: Timestamp,
    started: Option<Instant>,
    said: ClockReader,
}

/// Tells the time of a [`WallClock`] to others: what it has said last, and what has passed since. So times that the
/// control plane has decided on are compared with its own.
#[derive(Debug, Clone, Default)]
pub struct ClockReader(Arc<RwLock<Option<(Timestamp, Instant)>>>);

impl WallClock {
    /// A clock that begins no earlier, even if the system's does: as late as that of the control plane before this one.
    pub fn not_before(time: Timestamp) -> Self {
        Self { not_before: time, ..Self::default() }
    }

    /// The time.
    pub fn now(&mut self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = *self.started.get_or_insert_with(Instant::now);
        let now = self.advance(Timestamp::from_millis(0).plus(since_epoch), started.elapsed());
        self.said.set(now);
        now
    }

    /// What reads this clock.
    pub fn reader(&self) -> ClockReader {
        self.said.clone()
    }

    /// The time when the system's clock says `system`, and `monotonic` has passed since some moment that is always the
    /// same.
    pub fn advance(&mut self, system: Timestamp, monotonic: Duration) -> Timestamp {
        let system = system.as_millis().saturating_mul(1000);
        let now = match self.last {
            None => system.max(self.not_before.as_millis().saturating_mul(1000)),
            Some((last, before)) => {
                let passed = i64::try_from(monotonic.saturating_sub(before).as_micros()).unwrap_or(i64::MAX);
                let even = last.saturating_add(passed);
                let slack = passed / SLEW_DIVISOR;
                system.clamp(even.saturating_sub(slack), even.saturating_add(slack))
            }
        };
        self.last = Some((now, monotonic));
        Timestamp::from_millis(now / 1000)
    }
}

impl ClockReader {
    fn set(&self, now: Timestamp) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
    }
}

impl Clock for ClockReader {
    fn now(&self) -> Timestamp {
        let said = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        said.map_or_else(|| WallClock::default().now(), |(said, at)| said.plus(at.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// The clock after so many seconds, when the system's clock says so many milliseconds.
    fn after(clock: &mut WallClock, seconds: u64, system: i64) -> i64 {
        clock.advance(Timestamp::from_millis(system), Duration::from_secs(seconds)).as_millis()
    }

    #[test]
    fn a_system_clock_that_is_right_is_followed() {
        let mut clock = WallClock::default();
        assert_eq!(after(&mut clock, 100, 5_000), 5_000);
        assert_eq!(after(&mut clock, 101, 6_001), 6_001);
        assert_eq!(after(&mut clock, 111, 15_999), 15_999);
    }

    #[test]
    fn a_system_clock_that_is_set_back_is_waited_for_without_standing_still() {
        let mut clock = WallClock::default();
        after(&mut clock, 0, HOUR);
        assert_eq!(after(&mut clock, 10, 0), HOUR + 9_000);
        assert_eq!(after(&mut clock, 20, 10_000), HOUR + 18_000);
        assert_eq!(after(&mut clock, 36_110, 36_100_000), 36_100_000);
    }

    #[test]
    fn a_system_clock_that_jumps_ahead_makes_nothing_due_at_once() {
        let mut clock = WallClock::default();
        after(&mut clock, 0, 0);
        assert_eq!(after(&mut clock, 10, HOUR), 11_000);
        assert_eq!(after(&mut clock, 36_010, HOUR + 36_010_000), HOUR + 36_010_000);
    }

    #[test]
    fn small_steps_add_up() {
        let mut clock = WallClock::default();
        after(&mut clock, 0, HOUR);
        let mut last = Timestamp::default();
        for millis in 1..=1000 {
            last = clock.advance(Timestamp::from_millis(0), Duration::from_millis(millis));
        }
        assert_eq!(last.as_millis(), HOUR + 900);
    }

    #[test]
    fn a_clock_does_not_begin_before_that_of_its_predecessor() {
        let mut clock = WallClock::not_before(Timestamp::from_millis(HOUR));
        assert_eq!(after(&mut clock, 0, 0), HOUR);
        let mut clock = WallClock::not_before(Timestamp::from_millis(HOUR));
        assert_eq!(after(&mut clock, 0, 2 * HOUR), 2 * HOUR);
        assert!(WallClock::default().now() > Timestamp::from_millis(HOUR), "the system's clock is read");
    }

    #[test]
    fn who_reads_the_clock_is_told_its_time() {
        let later = WallClock::default().now().plus(Duration::from_secs(3600));
        let mut clock = WallClock::not_before(later);
        let reader = clock.reader();
        assert!(reader.now() < later, "it has said nothing yet");
        let said = clock.now();
        assert!(said >= later && reader.now() >= said, "it is not the system's");
    }
}
