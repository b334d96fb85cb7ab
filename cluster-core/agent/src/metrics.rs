//! What an agent counts.

use mesonet_model::TaskState;
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The states of tasks that have not ended.
const LIVING: [TaskState; 4] =
    [TaskState::Staging, TaskState::Starting, TaskState::Running, TaskState::Killing];

/// How tasks of an agent end. What is shown before it has happened is seen to grow when it does.
const ENDS: [TaskState; 4] = [TaskState::Finished, TaskState::Failed, TaskState::Killed, TaskState::Error];

/// What a check asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Whether a task is healthy.
    Health,
    /// Whether it is ready.
    Readiness,
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckResult {
    /// It is.
    Success,
    /// It is not.
    Failure,
    /// The agent could not ask.
    NotAsked,
}

/// What an agent counts, for Prometheus. Cloning shares it.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    tasks: IntGaugeVec,
    launched: IntCounter,
    ended: IntCounterVec,
    unacknowledged: IntGauge,
    checks: IntCounterVec,
    restored: IntCounter,
    missing: IntGauge,
    registrations: IntCounter,
    lost_supervisors: IntCounter,
}

impl AgentMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self::new()?;
        metrics.show_tasks(std::iter::empty(), 0);
        for state in ENDS {
            metrics.ended.with_label_values(&[state.as_str()]);
        }
        for checked in [Checked::Health, Checked::Readiness] {
            for result in [CheckResult::Success, CheckResult::Failure, CheckResult::NotAsked] {
                metrics.checks.with_label_values(&[checked.as_str(), result.as_str()]);
            }
        }
        let all: [Box<dyn Collector>; 9] = [
            Box::new(metrics.tasks.clone()),
            Box::new(metrics.launched.clone()),
            Box::new(metrics.ended.clone()),
            Box::new(metrics.unacknowledged.clone()),
            Box::new(metrics.checks.clone()),
            Box::new(metrics.restored.clone()),
            Box::new(metrics.missing.clone()),
            Box::new(metrics.registrations.clone()),
            Box::new(metrics.lost_supervisors.clone()),
        ];
        all.into_iter().try_for_each(|each| registry.register(each))?;
        Ok(metrics)
    }

    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            tasks: IntGaugeVec::new(
                Opts::new("mesonet_agent_tasks", "Tasks of this node that have not ended, by state."),
                &["state"],
            )?,
            launched: IntCounter::new(
                "mesonet_agent_tasks_launched_total",
                "Tasks that this agent was told to start.",
            )?,
            ended: IntCounterVec::new(
                Opts::new("mesonet_agent_tasks_ended_total", "Tasks that have ended, by their last state."),
                &["state"],
            )?,
            unacknowledged: IntGauge::new(
                "mesonet_agent_unacknowledged_statuses",
                "Statuses of tasks that no framework has acknowledged; they are repeated until then.",
            )?,
            checks: IntCounterVec::new(
                Opts::new(
                    "mesonet_agent_checks_total",
                    "Health and readiness checks of tasks that were made, by what came of them.",
                ),
                &["kind", "result"],
            )?,
            restored: IntCounter::new(
                "mesonet_agent_network_restored_total",
                "Bridges, interfaces and forwarders of tasks that somebody has changed or ended and that were put back.",
            )?,
            missing: IntGauge::new(
                "mesonet_agent_network_missing",
                "Bridges and interfaces of tasks and containers that are not as they should be and cannot be put back.",
            )?,
            registrations: IntCounter::new(
                "mesonet_agent_registrations_total",
                "Times that the agent has told a master what it is and runs.",
            )?,
            lost_supervisors: IntCounter::new(
                "mesonet_agent_lost_supervisors_total",
                "Supervisors of tasks that have ended without a record of how their task has.",
            )?,
        })
    }

    /// Shows what tasks there are.
    pub(crate) fn show_tasks(&self, states: impl Iterator<Item = TaskState> + Clone, unacknowledged: usize) {
        for living in LIVING {
            let count = states.clone().filter(|state| *state == living).count();
            self.tasks.with_label_values(&[living.as_str()]).set(as_gauge(count));
        }
        self.unacknowledged.set(as_gauge(unacknowledged));
    }

    /// A task is to be started.
    pub(crate) fn launched(&self) {
        self.launched.inc();
    }

    /// A task has come to a state.
    pub(crate) fn reached(&self, state: TaskState) {
        if state.is_terminal() {
            self.ended.with_label_values(&[state.as_str()]).inc();
        }
    }

    /// A task was checked.
    pub(crate) fn checked(&self, what: Checked, result: CheckResult) {
        self.checks.with_label_values(&[what.as_str(), result.as_str()]).inc();
    }

    /// Something of a network is as it should be again.
    pub(crate) fn restored(&self) {
        self.restored.inc();
    }

    /// So much of networks is not as it should be.
    pub(crate) fn missing(&self, count: usize) {
        self.missing.set(as_gauge(count));
    }

    /// The agent registers.
    pub(crate) fn registered(&self) {
        self.registrations.inc();
    }

    /// A supervisor has ended with its task.
    pub(crate) fn lost_supervisor(&self) {
        self.lost_supervisors.inc();
    }
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

// === impl Checked ===

impl Checked {
    fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Readiness => "readiness",
        }
    }
}

// === impl CheckResult ===

impl CheckResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::NotAsked => "not_asked",
        }
    }
}
