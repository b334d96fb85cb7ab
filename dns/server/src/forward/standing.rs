//! What is thought of an upstream server: how fast it is, and how often it failed lately.
//!
//! Pure: time is given. An estimate loses weight with age, so that a server that is not chosen is tried again some
//! time, and a failure is forgotten.

use std::time::{Duration, Instant};

/// How much of a new measurement goes into the estimate.
const SMOOTHING: f64 = 0.3;

/// An estimate halves in so much time without a measurement: a server that is twice as slow as the best one is looked
/// at once in so long.
const LATENCY_HALF_LIFE: Duration = Duration::from_secs(60);

/// What a failure costs, in seconds of latency: more than a server that answers at all takes.
const FAILURE_PENALTY: f64 = 2.0;

/// A penalty halves in so much time.
const PENALTY_HALF_LIFE: Duration = Duration::from_secs(10);

/// Penalties do not add up beyond this, so that a server that was away for hours is back within two minutes.
const PENALTY_MAX: f64 = 30.0;

/// What is left of a penalty after an answer.
const PENALTY_AFTER_ANSWER: f64 = 0.25;

/// What is thought of one server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    /// Smoothed latency in seconds, when it was measured last.
    latency: Option<(f64, Instant)>,
    /// Seconds of penalty, when it was set.
    penalty: Option<(f64, Instant)>,
}

impl Standing {
    /// It answered.
    pub(crate) fn answered(&mut self, latency: Duration, now: Instant) {
        let measured = latency.as_secs_f64();
        let smoothed = self.latency.map_or(measured, |(before, _)| before + (measured - before) * SMOOTHING);
        self.latency = Some((smoothed, now));
        let penalty = self.penalty_at(now) * PENALTY_AFTER_ANSWER;
        self.penalty = (penalty > f64::EPSILON).then_some((penalty, now));
    }

    /// It said that it cannot, or nothing.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.penalty = Some(((self.penalty_at(now) + FAILURE_PENALTY).min(PENALTY_MAX), now));
    }

    /// The order in which servers are asked, least first: seconds that an answer is expected to take. Nothing is known
    /// of a server that was not asked yet, so that it comes first.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        let latency = self.latency.map_or(0.0, |(latency, at)| halved(latency, now, at, LATENCY_HALF_LIFE));
        latency + self.penalty_at(now)
    }

    /// How fast it is, if that is known.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency.map(|(latency, _)| Duration::from_secs_f64(latency))
    }

    fn penalty_at(&self, now: Instant) -> f64 {
        self.penalty.map_or(0.0, |(penalty, at)| halved(penalty, now, at, PENALTY_HALF_LIFE))
    }
}

fn halved(value: f64, now: Instant, at: Instant, half_life: Duration) -> f64 {
    let age = now.saturating_duration_since(at).as_secs_f64();
    value * (-age / half_life.as_secs_f64()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(10);
    const SLOW: Duration = Duration::from_millis(40);

    #[test]
    fn the_faster_one_is_chosen_until_the_other_has_not_been_looked_at_for_long() {
        let start = Instant::now();
        let (mut fast, mut slow) = (Standing::default(), Standing::default());
        fast.answered(FAST, start);
        slow.answered(SLOW, start);
        assert!(fast.cost(start) < slow.cost(start));
        let later = start + LATENCY_HALF_LIFE * 3;
        fast.answered(FAST, later);
        assert!(slow.cost(later) < fast.cost(later));
    }

    #[test]
    fn a_failure_outweighs_any_latency_and_is_forgotten() {
        let start = Instant::now();
        let (mut failing, mut slow) = (Standing::default(), Standing::default());
        failing.answered(FAST, start);
        slow.answered(SLOW, start);
        for _ in 0..100 {
            failing.failed(start);
        }
        assert!(failing.cost(start) > slow.cost(start) && failing.cost(start) < PENALTY_MAX + 1.0);
        let later = start + Duration::from_secs(120);
        slow.answered(SLOW, later);
        assert!(failing.cost(later) < slow.cost(later));
    }

    #[test]
    fn an_unknown_server_comes_first() {
        let now = Instant::now();
        let mut known = Standing::default();
        known.answered(Duration::from_millis(1), now);
        assert!(Standing::default().cost(now) < known.cost(now));
    }
}
