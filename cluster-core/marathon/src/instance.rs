//! An instance as Marathon keeps it.

use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AgentInfo, AppDefinition, Attribute, KillSelection, TaskState, Timestamp, UnreachableStrategy,
};
use serde::{Deserialize, Serialize};

use crate::InstanceView;
use crate::census::{Entry, Generation, Standing};

/// A kill is asked for again after this time without an answer. Longer than the default drain grace, so that an
/// ordinary drain is not asked for twice.
pub(crate) const KILL_RETRY: Duration = Duration::from_secs(10);

/// A task that does not run after this time is given up (Marathon's `task_launch_timeout`).
pub(crate) const LAUNCH_TIMEOUT: Duration = Duration::from_secs(300);

/// An instance that has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// What readers see of it.
    pub(crate) view: Arc<InstanceView>,
    /// `last_config_change_at` of the version that it was launched from.
    pub(crate) config: Timestamp,
    /// Its agent's attributes, for placement constraints.
    pub(crate) attributes: Vec<Attribute>,
    /// When its end was last asked for; it is wanted otherwise.
    pub(crate) kill_asked_at: Option<Timestamp>,
    /// Since when its agent does not answer.
    pub(crate) unreachable_since: Option<Timestamp>,
    /// Whether it is replaced because its agent does not answer.
    pub(crate) is_given_up: bool,
    /// Whether its agent is to be empty, so that it is replaced elsewhere and then killed.
    #[serde(default)]
    pub(crate) is_leaving: bool,
    /// For each of its health checks, after how many failures in a row it is killed; never if 0.
    #[serde(default)]
    pub(crate) failures_max: Vec<u32>,
    /// Whether it runs, but does not listen yet on the ports that it publishes.
    #[serde(default)]
    pub(crate) is_opening: bool,
}

impl Instance {
    /// Whether it is to be kept.
    pub(crate) fn is_wanted(&self) -> bool {
        self.kill_asked_at.is_none() && !self.is_given_up
    }

    /// Its place in the census of its app.
    pub(crate) fn entry(&self, definition: &AppDefinition) -> Entry {
        let age = self.view.started_at.unwrap_or(self.view.staged_at).as_millis();
        let is_current = self.config == definition.version_info.last_config_change_at;
        Entry {
            generation: match (self.is_leaving, is_current) {
                (true, _) => Generation::Leaving,
                (false, true) => Generation::Current,
                (false, false) => Generation::Old,
            },
            standing: self.standing(),
            age: match definition.kill_selection {
                KillSelection::YoungestFirst => age.saturating_neg(),
                KillSelection::OldestFirst => age,
            },
            task: self.view.task.clone(),
        }
    }

    /// Whether a deployment waits until it is ready.
    pub(crate) fn is_unready(&self) -> bool {
        self.view.readiness.as_ref().is_some_and(|result| !result.ready)
    }

    /// The check for which it is to be killed, if there is one.
    pub(crate) fn hopeless_check(&self) -> Option<usize> {
        let mut checks = self.view.health_results.iter().zip(&self.failures_max);
        checks.position(|(result, failures_max)| result.is_hopeless(*failures_max))
    }

    /// When it has to be looked at, if its state does not change before, and why.
    pub(crate) fn due(&self, definition: &AppDefinition) -> Option<(Timestamp, &'static str)> {
        if let Some(since) = self.unreachable_since {
            return match definition.unreachable_strategy {
                UnreachableStrategy::Disabled => None,
                UnreachableStrategy::Enabled { inactive_after, .. } if !self.is_given_up => {
                    Some((since.plus(inactive_after), "an unreachable instance is replaced"))
                }
                UnreachableStrategy::Enabled { expunge_after, .. } => {
                    Some((since.plus(expunge_after), "an unreachable instance is forgotten"))
                }
            };
        }
        if let Some(asked) = self.kill_asked_at {
            return Some((asked.plus(KILL_RETRY), "a kill is asked for again"));
        }
        match self.view.state {
            TaskState::Staging | TaskState::Starting => {
                Some((self.view.staged_at.plus(LAUNCH_TIMEOUT), "a launch takes too long"))
            }
            TaskState::Running
            | TaskState::Killing
            | TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Unreachable
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown => None,
        }
    }

    /// What placement constraints look at.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { host: &self.view.host, attributes: &self.attributes }
    }

    /// Whether each of its checks has succeeded at least once.
    fn has_proved_itself(&self) -> bool {
        let results = &self.view.health_results;
        results.len() == self.failures_max.len()
            && results.iter().all(|result| result.first_success.is_some())
    }

    fn standing(&self) -> Standing {
        if self.is_given_up {
            return Standing::Away;
        }
        if self.kill_asked_at.is_some() {
            return Standing::Doomed;
        }
        match self.view.state {
            TaskState::Running if self.is_unready() => Standing::Unproved,
            TaskState::Running if self.is_opening => Standing::Unhealthy,
            TaskState::Running if self.failures_max.is_empty() || self.view.healthy == Some(true) => {
                Standing::Running
            }
            TaskState::Running if self.has_proved_itself() => Standing::Unhealthy,
            TaskState::Running => Standing::Unproved,
            TaskState::Unreachable => Standing::Missing,
            TaskState::Staging
            | TaskState::Starting
            | TaskState::Killing
            | TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown => Standing::Pending,
        }
    }
}

/// Where an instance is or might be, as placement constraints see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    host: &'a str,
    attributes: &'a [Attribute],
}

impl<'a> Place<'a> {
    /// An agent.
    pub(crate) fn of(agent: &'a AgentInfo) -> Self {
        Self { host: &agent.hostname, attributes: &agent.attributes }
    }

    /// The value of a constraint's field.
    pub(crate) fn value(&self, field: &str) -> Option<&'a str> {
        match field {
            "hostname" | "@hostname" => Some(self.host),
            _ => {
                let attribute = self.attributes.iter().find(|attribute| attribute.name == field)?;
                Some(&attribute.value)
            }
        }
    }
}
