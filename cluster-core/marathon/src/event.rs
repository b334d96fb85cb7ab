//! What Marathon tells those who listen to its event stream (spec/client-surface.md §6.8).

use std::net::IpAddr;
use std::sync::Arc;

use mesonet_model::{AgentId, AppId, TaskId, TaskState, Timestamp};
use serde_json::Value;

use crate::{Deployment, DeploymentStep};

/// Something that happened. The API adds the events that only it knows of (requests, subscribers).
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub timestamp: Timestamp,
    /// What.
    pub kind: EventKind,
}

/// Kinds of events.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// `status_update_event`: an instance's task has another state.
    StatusUpdate {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// Where it runs.
        agent: AgentId,
        /// That agent's host name.
        host: String,
        /// The new state.
        state: TaskState,
        /// What the agent says of it.
        message: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Its host ports.
        ports: Vec<u16>,
        /// The version it was launched from.
        version: Timestamp,
    },
    /// `instance_changed_event`: the same, in terms of instances.
    InstanceChanged {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// Where it runs.
        agent: AgentId,
        /// That agent's host name.
        host: String,
        /// The new state.
        state: TaskState,
        /// The version it was launched from.
        version: Timestamp,
    },
    /// `health_status_changed_event`: a health check of an instance succeeds, or does not any more.
    HealthStatusChanged {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// The version it was launched from.
        version: Timestamp,
        /// Whether it succeeds.
        alive: bool,
    },
    /// `instance_health_changed_event`: what all checks of an instance say together has changed.
    InstanceHealthChanged {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// The version it was launched from.
        version: Timestamp,
        /// What they say.
        healthy: Option<bool>,
    },
    /// `failed_health_check_event`: a health check has failed in a way that something follows from.
    FailedHealthCheck {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// The check, as the app has it.
        check: Value,
    },
    /// `unhealthy_instance_kill_event`: an instance is killed because a check has failed too often.
    UnhealthyInstanceKill {
        /// The task.
        task: TaskId,
        /// Its app.
        app: AppId,
        /// Where it runs.
        agent: AgentId,
        /// That agent's host name.
        host: String,
        /// The version it was launched from.
        version: Timestamp,
        /// Why the check failed last.
        reason: String,
    },
    /// `unknown_instance_terminated_event`: a task ended that Marathon does not know.
    UnknownInstanceTerminated {
        /// The task.
        task: TaskId,
        /// Its last state.
        state: TaskState,
    },
    /// `group_change_success`: apps were created, changed or removed.
    GroupChanged {
        /// Timestamp of the change.
        version: Timestamp,
    },
    /// `deployment_info`: a step of a deployment begins.
    DeploymentInfo {
        /// The deployment.
        plan: Arc<Deployment>,
        /// The step.
        step: DeploymentStep,
    },
    /// `deployment_step_success`: a step of a deployment is done.
    DeploymentStepSuccess {
        /// The deployment.
        plan: Arc<Deployment>,
        /// The step.
        step: DeploymentStep,
    },
    /// `deployment_success`: a deployment is done.
    DeploymentSuccess {
        /// The deployment.
        plan: Arc<Deployment>,
    },
    /// `deployment_failed`: a deployment was cancelled.
    DeploymentFailed {
        /// The deployment.
        plan: Arc<Deployment>,
        /// Why.
        reason: String,
    },
    /// `app_terminated_event`: an app is gone.
    AppTerminated {
        /// The app.
        app: AppId,
    },
}
