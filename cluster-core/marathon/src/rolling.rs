//! How many instances of an app to kill and to launch.

use mesonet_model::{AppDefinition, UpgradeStrategy};
use serde::{Deserialize, Serialize};

use crate::census::{Census, Generation};

/// The label that forbids a second instance at any time.
const SINGLE_INSTANCE_LABEL: &str = "MARATHON_SINGLE_INSTANCE_APP";

/// What an app is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// So many instances, of whatever configuration.
    Scale {
        /// How many.
        instances: u32,
    },
    /// So many instances of the configuration in force and none of others, within the bounds of the upgrade strategy.
    Replace {
        /// How many.
        instances: u32,
    },
    /// No instance; then the app is forgotten.
    Stop,
}

/// What to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// So many that are to be replaced are killed.
    pub(crate) kill_outgoing: usize,
    /// So many of any generation are killed.
    pub(crate) kill_any: usize,
    /// So many are launched.
    pub(crate) launch: u32,
}

impl Goal {
    /// The generations that are to be replaced, and those that are not.
    pub(crate) fn generations(self) -> (&'static [Generation], &'static [Generation]) {
        match self {
            Self::Scale { .. } | Self::Stop => {
                (&[Generation::Leaving], &[Generation::Old, Generation::Current])
            }
            Self::Replace { .. } => (&[Generation::Leaving, Generation::Old], &[Generation::Current]),
        }
    }
}

/// The next step towards a goal.
pub(crate) fn decide(goal: Goal, census: &Census, definition: &AppDefinition) -> Decision {
    let all = census.wanted(&Generation::ALL);
    match goal {
        Goal::Stop => Decision { kill_any: all, ..Decision::default() },
        Goal::Scale { instances } if !census.is_leaving() => {
            let wanted = count(all);
            let is_blocked = is_single(definition) && census.live() > 0;
            Decision {
                kill_outgoing: 0,
                kill_any: usize::try_from(wanted.saturating_sub(u64::from(instances))).unwrap_or(usize::MAX),
                launch: if is_blocked { 0 } else { saturate(u64::from(instances).saturating_sub(wanted)) },
            }
        }
        Goal::Scale { instances } | Goal::Replace { instances } => {
            replace(goal, instances, census, definition)
        }
    }
}

/// Whether a goal is reached. An instance that is not ready yet has not proved itself. One that fails a check after it
/// was healthy is no reason to wait: what becomes of it is the check's business. A scaled app has reached it also before
/// its instances have left agents that are to be empty, so that no deployment waits for room elsewhere.
pub(crate) fn is_reached(goal: Goal, census: &Census) -> bool {
    let reached = |instances: u32, generations: &[Generation]| {
        let wanted = census.wanted(generations);
        let runs = wanted == census.proved(generations);
        count(wanted) == u64::from(instances) && runs && census.doomed() == 0
    };
    match goal {
        Goal::Stop => census.live() == 0,
        Goal::Scale { instances } => reached(instances, &Generation::ALL),
        Goal::Replace { instances } => {
            let (outgoing, staying) = goal.generations();
            census.wanted(outgoing) == 0 && reached(instances, staying)
        }
    }
}

/// One step of a rolling restart (Marathon's `TaskReplaceActor`), or of leaving agents that are to be empty.
///
/// An instance counts for the least number of healthy ones as long as its checks succeed; one without checks once it
/// listens on the ports that it publishes, or its agent does not wait for that any more.
///
/// Instances that fail a check are replaced first, but not all at once: the check may be what is wrong, and clients get
/// to them as long as there is nothing better.
fn replace(goal: Goal, instances: u32, census: &Census, definition: &AppDefinition) -> Decision {
    let (outgoing, staying) = goal.generations();
    let serving = count(census.serving(&Generation::ALL));
    let (healthy_min, mut capacity_max) = match is_single(definition) {
        // There is never a second one, so the first has to end before.
        true => (0, u64::from(instances)),
        false => bounds(instances, &definition.upgrade_strategy),
    };
    if healthy_min == capacity_max && capacity_max <= serving {
        capacity_max = capacity_max.saturating_add(1);
    }
    let (stays, stays_serving) = (count(census.wanted(staying)), count(census.serving(staying)));
    let missing = u64::from(instances).saturating_sub(stays);
    let room = capacity_max.saturating_sub(count(census.live()));
    let (out, out_running) = (census.wanted(outgoing), census.running(outgoing));
    let has_ill = census.serving(outgoing) < out_running;
    // One that fails makes room where there is none and nothing else is under way that could.
    let is_stuck = missing > 0 && room == 0 && stays == stays_serving && census.doomed() == 0;
    // Each that is missing for the least number of healthy ones is kept of the others.
    let keep = usize::try_from(healthy_min.saturating_sub(stays_serving)).unwrap_or(usize::MAX);
    let spare = out_running.saturating_sub(keep).max(usize::from(is_stuck && has_ill));
    let kill_outgoing = out - out_running + spare;
    let surplus = if kill_outgoing == out { stays.saturating_sub(u64::from(instances)) } else { 0 };
    Decision {
        kill_outgoing,
        kill_any: if out == 0 { usize::try_from(surplus).unwrap_or(usize::MAX) } else { 0 },
        launch: saturate(missing.min(room)),
    }
}

/// The least number of healthy instances and the greatest number of instances during a rolling restart.
pub(crate) fn bounds(instances: u32, strategy: &UpgradeStrategy) -> (u64, u64) {
    let share = |share: f64| if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) };
    let total = f64::from(instances);
    let healthy_min = (total * share(strategy.minimum_health_capacity)).ceil();
    let capacity_max = (total * (1.0 + share(strategy.maximum_over_capacity))).floor();
    // Both are whole, at least 0 and below 2^33, so the conversion is exact.
    (healthy_min as u64, capacity_max as u64)
}

fn is_single(definition: &AppDefinition) -> bool {
    definition.labels.get(SINGLE_INSTANCE_LABEL).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn saturate(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
