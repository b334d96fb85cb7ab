//! What users ask of Marathon, and what it answers.

use std::sync::Arc;

use mesonet_model::{AppDefinition, AppId, DeploymentId, TaskId, Timestamp};
use thiserror::Error;

use crate::InstanceView;

/// A change that a user wants. It is carried out whole or refused whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Create or change apps, in one deployment.
    Put {
        /// The apps; one id at most once.
        apps: Vec<AppPut>,
        /// Whether to cancel deployments that hold a lock on one of the apps.
        force: bool,
    },
    /// Stop an app and forget it.
    Delete {
        /// The app.
        app: AppId,
        /// Whether to cancel deployments that hold a lock on it.
        force: bool,
    },
    /// Replace every instance, following the upgrade strategy.
    Restart {
        /// The app.
        app: AppId,
        /// Whether to cancel deployments that hold a lock on it.
        force: bool,
    },
    /// Kill tasks; others are started in their place unless `scale`.
    KillTasks {
        /// The tasks, of any apps. Those that there are not are passed over, unless there is none of them.
        tasks: Vec<TaskId>,
        /// Whether to reduce the apps' instances by as many.
        scale: bool,
        /// Whether to cancel deployments that hold a lock, with `scale`.
        force: bool,
    },
    /// Cancel a deployment.
    CancelDeployment {
        /// The deployment.
        deployment: DeploymentId,
        /// Whether to leave things as they are; else a new deployment restores what was before.
        force: bool,
    },
    /// Launch at once what waits because of failures.
    ResetDelay {
        /// The app.
        app: AppId,
    },
}

/// A new version of an app. Version, version information and service ports of 0 are filled in by Marathon.
#[derive(Debug, Clone, PartialEq)]
pub struct AppPut {
    /// The complete new definition.
    pub definition: AppDefinition,
    /// What the definition was made from: nothing, or the version that was current. If that has changed in the
    /// meantime the command is refused, so that no concurrent change is lost.
    pub base: AppBase,
}

/// What a new version was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppBase {
    /// The app must not exist.
    Absent,
    /// The app must be at this version.
    Version(Timestamp),
}

/// The answer to a command that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A deployment has begun, or was finished at once because nothing had to be done.
    Deployment {
        /// Its id.
        id: DeploymentId,
        /// The timestamp of the change; version of the apps that were put.
        version: Timestamp,
        /// The apps as stored, for `Put`.
        apps: Vec<Arc<AppDefinition>>,
    },
    /// These tasks will be killed.
    Killed(Vec<Arc<InstanceView>>),
    /// Done; there is nothing to say.
    Done,
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Rejection {
    /// An app to be created exists.
    #[error("An app with id [{0}] already exists.")]
    AppExists(AppId),
    /// The path of an app to be created is that of a group, or leads through an app.
    #[error("Groups and Applications may not have the same identifier.")]
    PlaceTaken(AppId),
    /// No such app.
    #[error("App '{0}' does not exist")]
    UnknownApp(AppId),
    /// No such task.
    #[error("Task '{0}' does not exist")]
    UnknownTask(TaskId),
    /// No such deployment.
    #[error("DeploymentPlan {0} does not exist")]
    UnknownDeployment(DeploymentId),
    /// The app waits for nothing.
    #[error("Application {0} not found in tasks queue.")]
    NotQueued(AppId),
    /// The app has changed since the new version was made from it: make it again from the current one.
    #[error("App '{0}' was changed in the meantime")]
    Stale(AppId),
    /// A deployment holds a lock on the app.
    #[error(
        "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'."
    )]
    Locked(Vec<DeploymentId>),
    /// So many deployments run that no other may begin.
    #[error(
        "Max number ({0}) of running deployments reached. Cannot create new deployments until the number decreases."
    )]
    TooManyDeployments(usize),
    /// The range of service ports is used up.
    #[error("No service port is free between {first} and {last}")]
    ServicePortsExhausted {
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// The change makes apps depend on each other in a circle.
    #[error("Dependency graph has at least one cycle: {0}")]
    DependencyCycle(AppId),
}
