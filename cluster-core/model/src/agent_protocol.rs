//! What master and agents say to each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{AgentId, AgentInfo, JoinedContainer, TaskKey, TaskSpec, TaskStatus};

/// What the master says to an agent. Every command may arrive twice and then does nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentCommand {
    /// The registration is accepted under this id, to be kept.
    Registered {
        /// The agent's id.
        agent: AgentId,
    },
    /// Register again, since the master may not know what was said before. Said by the bus when it has connected.
    Reregister,
    /// Start a task.
    Launch(Box<TaskSpec>),
    /// End a task: SIGTERM, and SIGKILL after the grace. An unknown task is answered by `TASK_GONE`.
    Kill {
        /// The task.
        task: TaskKey,
        /// From SIGTERM to SIGKILL; the launch's own grace if absent.
        grace: Option<Duration>,
    },
    /// Nobody waits any more until a task is ready: its readiness check ends.
    EndReadiness {
        /// The task.
        task: TaskKey,
    },
    /// A status has arrived and need not be repeated.
    Acknowledge {
        /// The task.
        task: TaskKey,
        /// The status' id.
        uuid: Uuid,
    },
}

/// What an agent says to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentReport {
    /// The agent is there, with the tasks that it still runs.
    Register {
        /// The id it was given before, if any.
        agent: Option<AgentId>,
        /// What it has.
        info: AgentInfo,
        /// Tasks that have not ended, or whose end is not acknowledged.
        tasks: Vec<RunningTask>,
        /// Containers of other runtimes that are in virtual networks there; at most [`JOINED_MAX`](crate::JOINED_MAX).
        #[serde(default)]
        containers: Vec<JoinedContainer>,
    },
    /// The containers of other runtimes that are in virtual networks on the agent's node, all of them, after some have
    /// come or gone.
    Containers {
        /// The agent.
        agent: AgentId,
        /// At most [`JOINED_MAX`](crate::JOINED_MAX).
        containers: Vec<JoinedContainer>,
    },
    /// A task's status.
    Status(Box<TaskStatus>),
    /// The agent's connection is lost. Said by the bus, not by the agent.
    Disconnected {
        /// The agent.
        agent: AgentId,
    },
}

/// A task that an agent has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// What was launched.
    pub spec: TaskSpec,
    /// Its latest status.
    pub status: TaskStatus,
}
