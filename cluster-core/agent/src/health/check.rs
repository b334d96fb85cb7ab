//! When a task is probed, and what follows from the outcomes.
//!
//! ```text
//!            delay                    probe ends
//!  started ────────► due ──► probing ────────────► due again after the interval
//! ```
//!
//! A failure before the first success does not count while the grace lasts. Others are told of a result only when it
//! changes what follows from it: the check succeeds, fails, or has failed as often as it may (Marathon kills the task
//! then). So a task that is well causes no traffic beyond its node.
//!
//! Checks that were made together do not stay together: that would be a burst in every interval, which a server's queue
//! of connections may be too short for. After its first success each has its own place within the interval, and keeps it
//! when a probe begins late.

use std::time::{Duration, Instant};

use mesonet_model::{HealthCheck, HealthResult, Timestamp};

/// What is kept of a failure's cause, in bytes: it is stored with the instance and shown to users.
const CAUSE_BYTES_MAX: usize = 256;

/// The part of the interval by which first probes of tasks that start together are spread, and its bound: the first
/// success is what deployments wait for.
const FIRST_SPREAD_DIVISOR: u32 = 10;
const FIRST_SPREAD_MAX: Duration = Duration::from_secs(1);

/// One check of one task.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    settings: HealthCheck,
    result: HealthResult,
    grace_ends: Instant,
    place: f64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The next probe begins then.
    Waiting { until: Instant },
    /// A probe is under way, which began so much later than it was due.
    Probing { late: Duration },
}

/// The time, by a clock that never goes back, and as people tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) wall: Timestamp,
}

/// How a task's check begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Beginning {
    /// How long the task has been running.
    pub(crate) age: Duration,
    /// Where it is among the checks that begin at the same time, from 0 to 1.
    pub(crate) place: f64,
}

/// How a probe has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The task is well.
    Success,
    /// It is not, and why.
    Failure(String),
    /// Nothing was found out.
    Nothing,
}

/// What a check reacts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Time has passed.
    Tick,
    /// The probe that was asked for has ended.
    Probed(Outcome),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Probe the task.
    Probe,
    /// Let others know the result.
    Tell(HealthResult),
}

impl Check {
    /// A check that goes on with a result that an earlier one has told; the default one if there is none.
    pub(crate) fn new(
        settings: HealthCheck,
        result: HealthResult,
        Beginning { age, place }: Beginning,
        now: Now,
    ) -> Self {
        let place = place.clamp(0.0, 1.0);
        let is_first =
            result == HealthResult::default() && age < settings.delay.saturating_add(settings.interval);
        let spread = match is_first {
            true => first_spread(settings.interval, place),
            false => settings.interval.mul_f64(place),
        };
        let wait = settings.delay.saturating_sub(age).saturating_add(spread);
        let grace_ends = later(now.instant, settings.grace.saturating_sub(age));
        let phase = Phase::Waiting { until: later(now.instant, wait) };
        Self { settings, result, grace_ends, place, phase }
    }

    /// Reacts to one input.
    pub(crate) fn handle(&mut self, input: Input, now: Now) -> Vec<Effect> {
        match (input, self.phase) {
            (Input::Tick, Phase::Waiting { until }) if until <= now.instant => {
                self.phase = Phase::Probing { late: now.instant.duration_since(until) };
                vec![Effect::Probe]
            }
            (Input::Probed(outcome), Phase::Probing { late }) => {
                let had_succeeded = self.result.first_success.is_some();
                let told = self.take(outcome, now);
                let interval = self.settings.interval;
                let pause = match self.result.first_success {
                    // Now nobody waits for it any more.
                    Some(_) if !had_succeeded => interval.mul_f64(1.0 - self.place),
                    Some(_) | None => pause_after(late, interval),
                };
                self.phase = Phase::Waiting { until: later(now.instant, pause) };
                told.map(Effect::Tell).into_iter().collect()
            }
            (Input::Tick, Phase::Waiting { .. } | Phase::Probing { .. })
            | (Input::Probed(_), Phase::Waiting { .. }) => Vec::new(),
        }
    }

    /// When `handle` is to be called with [`Input::Tick`]; `None` while a probe is under way.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Probing { .. } => None,
        }
    }

    /// Takes note of an outcome. Returns the result if others are to know it.
    fn take(&mut self, outcome: Outcome, now: Now) -> Option<HealthResult> {
        let before = self.result.is_alive();
        let result = &mut self.result;
        match outcome {
            Outcome::Nothing => return None,
            Outcome::Success => {
                result.consecutive_failures = 0;
                result.first_success = result.first_success.or(Some(now.wall));
                result.last_success = Some(now.wall);
            }
            Outcome::Failure(_) if result.first_success.is_none() && now.instant < self.grace_ends => {
                return None;
            }
            Outcome::Failure(cause) => {
                result.consecutive_failures = result.consecutive_failures.saturating_add(1);
                result.last_failure = Some(now.wall);
                result.last_failure_cause = Some(shortened_to(CAUSE_BYTES_MAX, cause));
            }
        }
        // Once more each time the bound is reached again: whoever was to kill the task may not have.
        let (failures, bound) = (result.consecutive_failures, self.settings.failures_max);
        let is_bound_reached = failures > 0 && bound > 0 && failures.is_multiple_of(bound);
        (result.is_alive() != before || is_bound_reached).then(|| result.clone())
    }
}

/// From the end of a probe to the next one: the interval, but for what keeps the next one at its time although this one
/// was late. It is at least half of the interval.
fn pause_after(late: Duration, interval: Duration) -> Duration {
    let late = late.as_nanos().checked_rem(interval.as_nanos()).unwrap_or(0);
    let late = Duration::from_nanos(u64::try_from(late).unwrap_or(0));
    if late <= interval / 2 { interval - late } else { interval.saturating_mul(2) - late }
}

/// How long the first probe of a task waits, so that tasks that start together are probed one after the other.
pub(super) fn first_spread(interval: Duration, place: f64) -> Duration {
    (interval / FIRST_SPREAD_DIVISOR).min(FIRST_SPREAD_MAX).mul_f64(place.clamp(0.0, 1.0))
}

/// A time beyond what the clock can say never comes.
pub(super) fn later(now: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now + wait.min(FAR)
}

/// A text of at most so many bytes: its end gives way to an ellipsis if it has more.
pub(super) fn shortened_to(bytes_max: usize, mut text: String) -> String {
    if text.len() > bytes_max {
        let fitting = 0..=bytes_max.saturating_sub('…'.len_utf8());
        text.truncate(fitting.rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use mesonet_model::HealthProbe;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(grace: u64, interval: u64, failures_max: u32) -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Tcp { port: 80 },
            delay: 15 * SECOND,
            grace: Duration::from_secs(grace),
            interval: Duration::from_secs(interval),
            timeout: 5 * SECOND,
            failures_max,
            ip_protocol: None,
        }
    }

    /// A clock that only the test moves.
    #[derive(Clone, Copy)]
    struct Clock(Instant);

    impl Clock {
        fn at(self, seconds: f64) -> Now {
            Now {
                instant: self.0 + Duration::from_secs_f64(seconds),
                wall: Timestamp::from_millis((seconds * 1000.0) as i64),
            }
        }

        fn seconds(self, instant: Instant) -> f64 {
            instant.duration_since(self.0).as_secs_f64()
        }
    }

    fn fresh(settings: HealthCheck, clock: Clock) -> Check {
        Check::new(
            settings,
            HealthResult::default(),
            Beginning { age: Duration::ZERO, place: 0.0 },
            clock.at(0.0),
        )
    }

    /// Whether the check succeeds, and how often it has failed in a row.
    type Told = (Option<bool>, u32);

    fn failure() -> Outcome {
        Outcome::Failure("no answer".to_owned())
    }

    /// Lets probes have these outcomes, each after half a second. Returns when each began, in whole seconds, and what
    /// was told.
    fn play(check: &mut Check, clock: Clock, outcomes: &[Outcome]) -> Vec<(u64, Option<Told>)> {
        let mut played = Vec::new();
        for outcome in outcomes {
            let due = clock.seconds(check.due().expect("no probe is under way"));
            assert_eq!(check.handle(Input::Tick, clock.at(due - 0.001)), []);
            assert_eq!(check.handle(Input::Tick, clock.at(due)), [Effect::Probe]);
            assert_eq!(check.due(), None);
            assert_eq!(check.handle(Input::Tick, clock.at(due + 0.1)), [], "one probe at a time");
            let effects = check.handle(Input::Probed(outcome.clone()), clock.at(due + 0.5));
            let mut told = effects.into_iter().map(|effect| match effect {
                Effect::Tell(result) => (result.is_alive(), result.consecutive_failures),
                Effect::Probe => panic!("a probe begins when another one ends"),
            });
            played.push((due as u64, told.next_back()));
        }
        played
    }

    #[test]
    fn only_changes_and_reached_bounds_are_told() {
        use Outcome::{Nothing, Success};
        let clock = Clock(Instant::now());
        let mut check = fresh(settings(0, 10, 2), clock);
        let outcomes = [
            Success,
            Success,
            failure(),
            failure(),
            failure(),
            failure(),
            Nothing,
            Success,
            failure(),
            Success,
        ];
        let told: Vec<_> = play(&mut check, clock, &outcomes).into_iter().map(|(_, told)| told).collect();
        let (well, ill) = (Some((Some(true), 0)), |failures| Some((Some(false), failures)));
        assert_eq!(told, [well, None, ill(1), ill(2), None, ill(4), None, well, ill(1), well]);
    }

    #[test]
    fn the_first_probe_waits_for_the_delay_and_others_for_the_interval() {
        let clock = Clock(Instant::now());
        let mut check = fresh(settings(0, 10, 3), clock);
        let begun: Vec<u64> =
            play(&mut check, clock, &[Outcome::Success, failure(), Outcome::Nothing, Outcome::Success])
                .into_iter()
                .map(|(at, _)| at)
                .collect();
        assert_eq!(begun, [15, 25, 36, 46]);
    }

    #[test]
    fn failures_within_the_grace_count_only_after_a_success() {
        let clock = Clock(Instant::now());
        // Probes at 15, 25.5, 36 and 46.5 s.
        let mut check = fresh(settings(40, 10, 3), clock);
        let told = play(&mut check, clock, &[failure(), failure(), failure(), failure()]);
        let told: Vec<_> = told.into_iter().map(|(_, told)| told).collect();
        assert_eq!(told, [None, None, None, Some((Some(false), 1))]);
        let mut check = fresh(settings(40, 10, 3), clock);
        let told = play(&mut check, clock, &[failure(), Outcome::Success, failure()]);
        let told: Vec<_> = told.into_iter().map(|(_, told)| told).collect();
        assert_eq!(told, [None, Some((Some(true), 0)), Some((Some(false), 1))]);
    }

    #[test]
    fn a_bound_of_zero_is_never_told() {
        let clock = Clock(Instant::now());
        let mut check = fresh(settings(0, 1, 0), clock);
        let told = play(&mut check, clock, &vec![failure(); 50]);
        assert_eq!(told.iter().filter(|(_, told)| told.is_some()).count(), 1);
    }

    #[test]
    fn the_result_has_what_users_see() {
        let clock = Clock(Instant::now());
        let mut check = fresh(settings(0, 10, 1), clock);
        play(&mut check, clock, &[Outcome::Success, Outcome::Success, Outcome::Failure("é".repeat(200))]);
        let expected = HealthResult {
            consecutive_failures: 1,
            first_success: Some(Timestamp::from_millis(15_500)),
            last_success: Some(Timestamp::from_millis(26_000)),
            last_failure: Some(Timestamp::from_millis(36_500)),
            last_failure_cause: Some(format!("{}…", "é".repeat(126))),
        };
        assert_eq!(check.result, expected);
    }

    #[test]
    fn an_earlier_result_goes_on_and_needs_no_grace() {
        let clock = Clock(Instant::now());
        let told = HealthResult { first_success: Some(Timestamp::default()), ..HealthResult::default() };
        let beginning = Beginning { age: 5 * SECOND, place: 0.5 };
        let mut check = Check::new(settings(300, 60, 3), told, beginning, clock.at(0.0));
        // What is left of the delay, and half of the interval.
        assert_eq!(
            play(&mut check, clock, &[Outcome::Success, failure()]),
            [(40, None), (100, Some((Some(false), 1)))]
        );
    }

    #[test]
    fn tasks_that_start_together_are_probed_one_after_the_other() {
        let clock = Clock(Instant::now());
        let due = |result: &HealthResult, age, place| {
            let check =
                Check::new(settings(0, 60, 3), result.clone(), Beginning { age, place }, clock.at(0.0));
            clock.seconds(check.due().expect("it waits"))
        };
        let unknown = HealthResult::default();
        assert_eq!([0.0, 0.5, 1.0].map(|place| due(&unknown, Duration::ZERO, place)), [15.0, 15.5, 16.0]);
        let known = HealthResult { first_success: Some(Timestamp::default()), ..unknown.clone() };
        let age = 3600 * SECOND;
        assert_eq!([0.0, 0.5, 1.0].map(|place| due(&known, age, place)), [0.0, 30.0, 60.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|place| due(&unknown, age, place)), [0.0, 30.0, 60.0]);
    }

    /// When each of these checks is probed within a time, if a probe takes a millisecond and an agent that cannot act
    /// until `busy_until` makes up for all at once then.
    fn probed(checks: &mut [Check], clock: Clock, busy_until: f64, end: f64) -> Vec<f64> {
        let mut times = Vec::new();
        for check in checks {
            while let Some(due) = check.due().map(|due| clock.seconds(due)).filter(|due| *due < end) {
                let begins = due.max(busy_until);
                assert_eq!(check.handle(Input::Tick, clock.at(begins)), [Effect::Probe]);
                check.handle(Input::Probed(Outcome::Success), clock.at(begins + 0.001));
                times.push(begins);
            }
        }
        times
    }

    /// The most of these times within a twentieth of a second, after a time.
    fn most_at_once(times: &[f64], after: f64) -> usize {
        let mut slots = std::collections::BTreeMap::<u64, usize>::new();
        for time in times.iter().filter(|time| **time >= after) {
            *slots.entry((time * 20.0) as u64).or_default() += 1;
        }
        slots.into_values().max().unwrap_or(0)
    }

    #[test]
    fn checks_that_are_made_together_do_not_stay_together() {
        const CHECKS: usize = 400;
        // In a twentieth of the interval, twice as many as there are on average.
        const FEW: usize = CHECKS / 10;
        let clock = Clock(Instant::now());
        let settings = HealthCheck { delay: Duration::ZERO, ..settings(0, 1, 3) };
        let begin = |index: usize| {
            let beginning = Beginning { age: Duration::ZERO, place: index as f64 / CHECKS as f64 };
            Check::new(settings.clone(), HealthResult::default(), beginning, clock.at(0.0))
        };
        let mut checks: Vec<Check> = (0..CHECKS).map(begin).collect();
        let times = probed(&mut checks, clock, 0.0, 5.0);
        assert!(times.iter().filter(|time| **time < 0.1).count() >= CHECKS, "first results come soon");
        assert!(most_at_once(&times, 1.2) <= FEW, "after the first success");
        // The agent gets to nothing for two seconds and a half.
        let times = probed(&mut checks, clock, 7.5, 12.0);
        assert_eq!(most_at_once(&times, 0.0), CHECKS, "all are late");
        assert!(most_at_once(&times, 9.1) <= FEW, "after the agent was busy");
    }

    #[test]
    fn a_late_probe_is_followed_by_one_in_time() {
        let pause = |late, interval| {
            pause_after(Duration::from_millis(late), Duration::from_millis(interval)).as_millis()
        };
        for (late, expected) in [(0, 1000), (1, 999), (500, 500), (501, 1499), (999, 1001), (2_300, 700)] {
            assert_eq!(pause(late, 1000), expected, "{late} ms late");
        }
        assert_eq!(pause(5, 0), 0);
        assert_eq!(pause_after(Duration::MAX, Duration::MAX), Duration::MAX);
    }

    #[test]
    fn settings_beyond_all_bounds_are_waited_for() {
        let endless = HealthCheck { delay: Duration::MAX, grace: Duration::MAX, ..settings(0, 1, 1) };
        let clock = Clock(Instant::now());
        let check = fresh(endless, clock);
        assert!(clock.seconds(check.due().expect("it waits")) > 1e9);
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![Just(Outcome::Success), Just(failure()), Just(Outcome::Nothing)]
    }

    proptest! {
        /// Whoever hears only what is told knows at any time whether the check succeeds, and hears of every bound that
        /// is reached. The reference has no grace periods or clocks: it looks at all outcomes at once.
        #[test]
        fn what_is_told_is_all_that_others_need(
            outcomes in prop::collection::vec(any_outcome(), 0..40),
            grace in 0_u64..300,
            interval in 1_u64..20,
            failures_max in 0_u32..5,
        ) {
            let clock = Clock(Instant::now());
            let mut check = fresh(settings(grace, interval, failures_max), clock);
            let (mut known, mut succeeded, mut in_row, mut alive) = (None, false, 0_u32, None);
            for (index, outcome) in outcomes.iter().enumerate() {
                let told = play(&mut check, clock, std::slice::from_ref(outcome))[0].1;
                known = told.map_or(known, |(alive, _)| alive);
                let ended = 15.5 + index as f64 * (interval as f64 + 0.5);
                match outcome {
                    Outcome::Success => (succeeded, in_row, alive) = (true, 0, Some(true)),
                    Outcome::Failure(_) if succeeded || ended >= grace as f64 => {
                        (in_row, alive) = (in_row + 1, Some(false));
                        if in_row == failures_max {
                            prop_assert_eq!(told, Some((Some(false), in_row)));
                        }
                    }
                    Outcome::Failure(_) | Outcome::Nothing => prop_assert_eq!(told, None),
                }
                prop_assert_eq!(known, alive);
                prop_assert_eq!(check.result.consecutive_failures, in_row);
            }
        }
    }
}
