//! Tasks: what runs, where, and whether clients may be sent to it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text_key::{TextKeyError, serde_as_text};
use crate::{AgentId, Discovery, FrameworkId, Resources, ServicePort, TaskId, TaskNetwork, Timestamp};

/// A task of a framework; frameworks choose task ids, so only both together are unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The framework.
    pub framework: FrameworkId,
    /// The framework's name for the task.
    pub task: TaskId,
}

/// A task that the master has launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub key: TaskKey,
    /// Name, not unique.
    pub name: String,
    /// Where it runs.
    pub agent: AgentId,
    /// The state last reported.
    pub state: TaskState,
    /// What is set aside for it.
    pub resources: Resources,
    /// What it publishes.
    pub discovery: Option<Discovery>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses of its own; empty on the host's network.
    pub addresses: Vec<IpAddr>,
    /// What a Mesos cluster reports of its network; `None` for a task of mesonet's own cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Arc<TaskNetwork>>,
    /// Last health check result; `None` without a check, `Some(false)` before the first result.
    pub healthy: Option<bool>,
    /// Whether the framework wants clients to be sent to it.
    pub ready: bool,
    /// Whether its endpoints are withdrawn because it is about to be killed.
    pub draining: bool,
    /// Whether its agent does not answer, so that it may be out of reach. It may as well run and serve.
    #[serde(default)]
    pub suspect: bool,
    /// When clients could be sent to it last after they could not; `None` if they never could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_since: Option<Timestamp>,
    /// When it was given to the agent.
    pub staged_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When `state` was reported.
    pub updated_at: Timestamp,
}

/// Whether clients may be sent to a task, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serving {
    /// It runs and no check says otherwise.
    Ready,
    /// It ran when its agent was last heard of: only if nothing is ready.
    Suspect,
    /// It runs, but a check fails or has no result yet: only if nothing is better.
    NotReady,
    /// It is about to end: what is connected stays, nothing new.
    Draining,
    /// It does not run.
    Down,
}

/// Mesos `TaskState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Given to an agent.
    #[serde(rename = "TASK_STAGING")]
    Staging,
    /// The agent is starting it.
    #[serde(rename = "TASK_STARTING")]
    Starting,
    /// Its process runs.
    #[serde(rename = "TASK_RUNNING")]
    Running,
    /// It was told to end.
    #[serde(rename = "TASK_KILLING")]
    Killing,
    /// It ended by itself, successfully.
    #[serde(rename = "TASK_FINISHED")]
    Finished,
    /// It ended by itself with a failure.
    #[serde(rename = "TASK_FAILED")]
    Failed,
    /// It was ended.
    #[serde(rename = "TASK_KILLED")]
    Killed,
    /// Its description was wrong.
    #[serde(rename = "TASK_ERROR")]
    Error,
    /// It is lost; a partition-unaware framework's word for several states below.
    #[serde(rename = "TASK_LOST")]
    Lost,
    /// It never reached an agent.
    #[serde(rename = "TASK_DROPPED")]
    Dropped,
    /// Its agent does not answer.
    #[serde(rename = "TASK_UNREACHABLE")]
    Unreachable,
    /// Its agent came back without it.
    #[serde(rename = "TASK_GONE")]
    Gone,
    /// An operator declared its agent gone.
    #[serde(rename = "TASK_GONE_BY_OPERATOR")]
    GoneByOperator,
    /// Nobody knows it.
    #[serde(rename = "TASK_UNKNOWN")]
    Unknown,
}

// === impl TaskKey ===

impl TaskKey {
    /// The key of a framework's task.
    pub fn new(framework: FrameworkId, task: TaskId) -> Self {
        Self { framework, task }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.framework, self.task)
    }
}

impl FromStr for TaskKey {
    type Err = TextKeyError;

    fn from_str(text: &str) -> Result<Self, TextKeyError> {
        match text.split_once('/') {
            Some((framework, task)) if !framework.is_empty() && !task.is_empty() => {
                Ok(Self::new(FrameworkId::new(framework), TaskId::new(task)))
            }
            _ => Err(TextKeyError { text: text.to_owned(), kind: "task key", expected: "FRAMEWORK/TASK" }),
        }
    }
}

serde_as_text!(TaskKey);

// === impl Task ===

impl Task {
    /// Whether clients may be sent to it.
    pub fn serving(&self) -> Serving {
        match self.state {
            TaskState::Unreachable if self.started_at.is_none() => Serving::Down,
            TaskState::Running | TaskState::Unreachable if self.draining => Serving::Draining,
            TaskState::Running | TaskState::Unreachable if self.healthy == Some(false) || !self.ready => {
                Serving::NotReady
            }
            TaskState::Running | TaskState::Unreachable if self.suspect => Serving::Suspect,
            TaskState::Running => Serving::Ready,
            TaskState::Killing => Serving::Draining,
            TaskState::Staging
            | TaskState::Starting
            | TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Unreachable
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown => Serving::Down,
        }
    }

    /// Notes when clients can be sent to it, given its form before. That its agent is out of reach for a while does not
    /// count, as it goes on.
    #[must_use]
    pub fn with_readiness(self, before: Option<&Self>, now: Timestamp) -> Self {
        let since = before.and_then(|before| before.ready_since);
        let ready_since = match (before.map(Self::serving), self.serving()) {
            (None | Some(Serving::NotReady | Serving::Down), Serving::Ready) => Some(now),
            (Some(Serving::Ready | Serving::Suspect | Serving::Draining), Serving::Ready) => since,
            (_, Serving::Suspect | Serving::NotReady | Serving::Draining | Serving::Down) => since,
        };
        Self { ready_since, ..self }
    }

    /// The name that discovery knows it by: that of its discovery information, else its own.
    pub fn discovery_name(&self) -> &str {
        let published = self.discovery.as_ref().and_then(|discovery| discovery.name.as_deref());
        published.filter(|name| !name.is_empty()).unwrap_or(&self.name)
    }

    /// Its id as its framework gave it.
    pub fn given_id(&self) -> &TaskId {
        let shared = self.network.as_ref().and_then(|network| network.shared_id.as_ref());
        shared.unwrap_or(&self.key.task)
    }

    /// The ports that it publishes. On the host's network a port without scope is a host port.
    pub fn service_ports(&self) -> Vec<ServicePort> {
        if let Some(network) = &self.network {
            return network.ports.iter().map(crate::NetworkPort::service_port).collect();
        }
        let ports = self.discovery.iter().flat_map(|discovery| &discovery.ports);
        let mut ports: Vec<ServicePort> = ports.filter_map(crate::DiscoveryPort::service_port).collect();
        if self.addresses.is_empty() {
            for port in &mut ports {
                port.host_port = port.host_port.or(port.port.take());
            }
        }
        ports
    }
}

// === impl TaskState ===

impl TaskState {
    /// The name that Mesos gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "TASK_STAGING",
            Self::Starting => "TASK_STARTING",
            Self::Running => "TASK_RUNNING",
            Self::Killing => "TASK_KILLING",
            Self::Finished => "TASK_FINISHED",
            Self::Failed => "TASK_FAILED",
            Self::Killed => "TASK_KILLED",
            Self::Error => "TASK_ERROR",
            Self::Lost => "TASK_LOST",
            Self::Dropped => "TASK_DROPPED",
            Self::Unreachable => "TASK_UNREACHABLE",
            Self::Gone => "TASK_GONE",
            Self::GoneByOperator => "TASK_GONE_BY_OPERATOR",
            Self::Unknown => "TASK_UNKNOWN",
        }
    }

    /// Whether the task has ended and no other state can follow.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Staging
            | Self::Starting
            | Self::Running
            | Self::Killing
            | Self::Unreachable
            | Self::Unknown => false,
            Self::Finished
            | Self::Failed
            | Self::Killed
            | Self::Error
            | Self::Lost
            | Self::Dropped
            | Self::Gone
            | Self::GoneByOperator => true,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
