//! What master and frameworks say to each other (Mesos v1 scheduler API).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AgentId, AgentInfo, FrameworkId, NetworkRoom, OfferId, Resources, TaskId, TaskSpec, TaskStatus};

/// Resources of one agent that a framework may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Identity.
    pub id: OfferId,
    /// Whose they are.
    pub agent: AgentId,
    /// What the agent said of itself, for placement constraints.
    pub agent_info: AgentInfo,
    /// What is offered.
    pub resources: Resources,
    /// Virtual networks that tasks can be in there, and how many more of them.
    #[serde(default)]
    pub networks: NetworkRoom,
}

/// What a framework says to the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchedulerCall {
    /// Use an offer for tasks. What they leave over is not offered to this framework for the time given.
    Accept {
        /// The offer; unknown ones make the tasks `TASK_DROPPED`.
        offer: OfferId,
        /// What to run on it.
        tasks: Vec<TaskSpec>,
        /// How long the rest is not wanted.
        refuse: Duration,
    },
    /// Do not use an offer.
    Decline {
        /// The offer; unknown ones are ignored.
        offer: OfferId,
        /// How long the agent's resources are not wanted.
        refuse: Duration,
    },
    /// End a task: its endpoints are withdrawn, then it is killed.
    Kill {
        /// The task; unknown ones are answered with a status `TASK_UNKNOWN`.
        task: TaskId,
    },
    /// Report whether a task passes the framework's own checks.
    SetServing {
        /// The task.
        task: TaskId,
        /// Health check result; `None` leaves it.
        healthy: Option<bool>,
        /// Whether it wants clients to be sent to the task; `None` leaves it.
        ready: Option<bool>,
    },
    /// Do not check any more whether a task is ready. Unknown ones are ignored.
    EndReadiness {
        /// The task.
        task: TaskId,
    },
    /// A status has been dealt with and need not be repeated.
    Acknowledge {
        /// The status.
        status: Box<TaskStatus>,
    },
    /// Send the latest status of these tasks, of all if the list is empty.
    Reconcile {
        /// Tasks.
        tasks: Vec<TaskId>,
    },
    /// Offer again what was refused.
    Revive,
    /// Send no offers until revived.
    Suppress,
}

/// What the master says to a framework.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchedulerEvent {
    /// The framework is registered.
    Subscribed {
        /// Its id.
        framework: FrameworkId,
    },
    /// Resources to use or decline.
    Offers(Vec<Offer>),
    /// An offer is no longer valid.
    Rescind(OfferId),
    /// A task's status.
    Update(Box<TaskStatus>),
    /// These agents, and no others, are to be empty: tasks on them should be replaced elsewhere and then killed.
    /// Follows every subscription, and every change.
    Draining(BTreeSet<AgentId>),
}
