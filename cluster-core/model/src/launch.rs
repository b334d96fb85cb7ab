//! What a framework asks an agent to run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Discovery, HealthCheck, ReadinessCheck, Resources, TaskKey, TaskNetworking};

/// The longest task id in bytes: the agent makes a directory of it (`NAME_MAX` of Linux).
pub const TASK_ID_LENGTH_MAX: usize = 255;

/// The most ports that a task may publish. Far above what an app has; it bounds the endpoints of one task.
pub const TASK_PORTS_MAX: usize = 256;

/// The most labels on a published port, as each may declare a VIP.
pub const PORT_LABELS_MAX: usize = 64;

/// A task to be launched (Mesos `TaskInfo`). It goes to the master and to the task's agent and to nobody else, since
/// the command's environment may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Identity.
    pub key: TaskKey,
    /// Name, not unique.
    pub name: String,
    /// The agent whose offer is used.
    pub agent: AgentId,
    /// What it needs.
    pub resources: Resources,
    /// What it runs.
    pub command: Command,
    /// The container image that it wants; an agent that cannot run images refuses the task.
    pub image: Option<String>,
    /// What it publishes.
    pub discovery: Option<Discovery>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its agent or the framework will report health results for it, so that it is not ready before the first
    /// one.
    pub health_checked: bool,
    /// What its agent checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_checks: Vec<HealthCheck>,
    /// What its agent checks until the task is ready; absent if nobody waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_check: Option<ReadinessCheck>,
    /// How long after SIGTERM its processes are killed.
    pub kill_grace: Duration,
    /// Its own interfaces; the host's network if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networking: Option<TaskNetworking>,
}

/// The process of a task (Mesos `CommandInfo`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// A line for `/bin/sh -c`; without it, `arguments` are executed as they are.
    pub shell: Option<String>,
    /// Program and arguments, or arguments of the image's entry point.
    pub arguments: Vec<String>,
    /// Environment, complete but for what the agent adds (`MESOS_SANDBOX`, `HOST`, …).
    pub environment: BTreeMap<String, String>,
    /// The user to run as; the agent's own user if absent.
    pub user: Option<String>,
}
