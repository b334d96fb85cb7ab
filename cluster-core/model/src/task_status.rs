//! Reports on tasks, as they travel from agents to frameworks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{AgentId, HealthResult, ReadinessResult, TaskKey, TaskState, Timestamp};

/// One report on a task (Mesos `TaskStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The task.
    pub task: TaskKey,
    /// Its agent, if it was ever given to one.
    pub agent: Option<AgentId>,
    /// The state that the task is in.
    pub state: TaskState,
    /// Who says so.
    pub source: StatusSource,
    /// Why, for states that need a reason.
    pub reason: Option<StatusReason>,
    /// For people.
    pub message: String,
    /// When it became so.
    pub timestamp: Timestamp,
    /// The result of the task's health check, if it has one and there is a result.
    pub healthy: Option<bool>,
    /// What each of the task's checks has found, in their order; empty if it has none, or if the master says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_results: Vec<HealthResult>,
    /// What the task's readiness check has found; `None` if it is not checked, or if the master says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ReadinessResult>,
    /// Whether the task listens on the TCP ports that it publishes; `None` if nobody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening: Option<bool>,
    /// Addresses of the task's own; empty on the host's network.
    pub addresses: Vec<IpAddr>,
    /// Present if the sender repeats the report until it is acknowledged with this id.
    pub uuid: Option<Uuid>,
}

/// Mesos `TaskStatus.Source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StatusSource {
    /// The master.
    SourceMaster,
    /// The agent.
    SourceAgent,
    /// The task's executor or supervisor.
    SourceExecutor,
}

/// Mesos `TaskStatus.Reason`, those that mesonet gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StatusReason {
    /// The process ended with a failure.
    ReasonCommandExecutorFailed,
    /// The agent could not start the process.
    ReasonContainerLaunchFailed,
    /// The process used more memory than it asked for.
    ReasonContainerLimitationMemory,
    /// The task's description is not one that the agent can run.
    ReasonTaskInvalid,
    /// The offer was gone when it was accepted.
    ReasonInvalidOffers,
    /// The agent's connection is lost.
    ReasonAgentDisconnected,
    /// The agent does not answer, or is gone for good.
    ReasonAgentRemoved,
    /// The agent came back without the task.
    ReasonAgentReregistered,
    /// An answer to a framework that asked.
    ReasonReconciliation,
    /// The task is not known.
    ReasonTaskUnknown,
    /// The result of a health check has changed.
    ReasonTaskHealthCheckStatusUpdated,
    /// The result of a readiness check has changed.
    ReasonTaskCheckStatusUpdated,
}
