//! Marathon's state as its readers see it: an immutable snapshot that shares structure with its successors.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use mesonet_model::{
    AgentId, AppDefinition, AppId, DeploymentId, FrameworkId, HealthResult, ReadinessResult, Revision,
    Scalar, TaskId, TaskState, Timestamp,
};
use serde::{Deserialize, Serialize};

/// Everything that the API answers reads from.
#[derive(Debug, Clone, PartialEq)]
pub struct MarathonView {
    /// The revision that it belongs to.
    pub revision: Revision,
    /// Marathon's own id as a framework, once it is registered.
    pub framework: Option<FrameworkId>,
    /// Apps by id.
    pub apps: OrdMap<AppId, Arc<AppView>>,
    /// Running deployments by id.
    pub deployments: OrdMap<DeploymentId, Arc<Deployment>>,
}

/// An app and what is happening to it.
#[derive(Debug, Clone, PartialEq)]
pub struct AppView {
    /// The version in force.
    pub definition: Arc<AppDefinition>,
    /// All versions kept, the newest first; begins with `definition`.
    pub versions: Vec<Arc<AppDefinition>>,
    /// Its instances that have not ended.
    pub instances: OrdMap<TaskId, Arc<InstanceView>>,
    /// The end of the instance that failed last.
    pub last_failure: Option<Arc<TaskFailure>>,
    /// Deployments that affect it.
    pub deployments: Vec<DeploymentId>,
    /// Present while instances wait to be launched.
    pub queue: Option<Arc<QueueEntry>>,
}

/// An instance of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its task.
    pub task: TaskId,
    /// Its app.
    pub app: AppId,
    /// The version that it was launched from.
    pub version: Timestamp,
    /// Where it runs.
    pub agent: AgentId,
    /// The agent's host name.
    pub host: String,
    /// The agent's address.
    pub host_address: IpAddr,
    /// The state last reported.
    pub state: TaskState,
    /// Host ports, one per port of the app, in their order; 0 for a port that has none.
    pub ports: Vec<u16>,
    /// Service ports, in the same order.
    pub service_ports: Vec<u16>,
    /// Addresses: its own, else the agent's.
    pub addresses: Vec<IpAddr>,
    /// Last health result, if it is checked and there is one.
    pub healthy: Option<bool>,
    /// What each of its health checks has found; empty before any has.
    #[serde(default)]
    pub health_results: Vec<HealthResult>,
    /// What its readiness check has found; `None` if no deployment waits until it is ready.
    #[serde(default)]
    pub readiness: Option<ReadinessResult>,
    /// When it was launched.
    pub staged_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
}

/// Instances by state, as an app's counts show them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    /// Staging and starting.
    pub staged: usize,
    /// Running.
    pub running: usize,
    /// Running and passing their checks; those without check results are not counted.
    pub healthy: usize,
    /// Running and failing a check.
    pub unhealthy: usize,
}

/// How an instance failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// The app.
    pub app: AppId,
    /// The task.
    pub task: TaskId,
    /// Where it ran.
    pub agent: AgentId,
    /// That agent's host name.
    pub host: String,
    /// How it ended.
    pub state: TaskState,
    /// What the agent says of it.
    pub message: String,
    /// The version it was launched from.
    pub version: Timestamp,
    /// When.
    pub timestamp: Timestamp,
}

/// Why instances of an app wait.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueEntry {
    /// How many instances wait.
    pub count: u32,
    /// Since when.
    pub since: Timestamp,
    /// Not to be launched before this time because of failures.
    pub backoff_until: Option<Timestamp>,
    /// Offers looked at since the instances wait.
    pub processed_offers: u64,
    /// Of these, offers that did not fit.
    pub unused_offers: u64,
    /// When an offer last did not fit.
    pub last_unused_offer_at: Option<Timestamp>,
    /// When an offer was last used.
    pub last_used_offer_at: Option<Timestamp>,
    /// Of the latest offer of each agent: how many passed each test and how many failed it, in the order of the tests.
    pub last_offers: Vec<RejectSummary>,
    /// The same over all offers since the instances wait.
    pub all_offers: Vec<RejectSummary>,
    /// The latest unfitting offer of each agent.
    pub unused: Vec<Arc<UnusedOffer>>,
}

/// One test that offers must pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RejectSummary {
    /// The test.
    pub reason: NoMatchReason,
    /// Offers that failed it.
    pub declined: u64,
    /// Offers that came to it.
    pub processed: u64,
}

/// An offer that did not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedOffer {
    /// Whose.
    pub agent: AgentId,
    /// That agent's host name.
    pub host: String,
    /// The offer's cpus.
    pub cpus: Scalar,
    /// The offer's memory in MiB.
    pub mem: Scalar,
    /// Why it did not fit.
    pub reasons: Vec<NoMatchReason>,
    /// When.
    pub timestamp: Timestamp,
}

/// The tests that offers must pass, in their order (Marathon's `NoOfferMatchReason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoMatchReason {
    /// Role of the resources.
    UnfulfilledRole,
    /// Placement constraints.
    UnfulfilledConstraint,
    /// Reservation of a resident app.
    NoCorrespondingReservationFound,
    /// The agent is to be drained.
    AgentMaintenance,
    /// Cpus.
    InsufficientCpus,
    /// Memory.
    InsufficientMemory,
    /// Disk.
    InsufficientDisk,
    /// Graphics processors.
    InsufficientGpus,
    /// Host ports.
    InsufficientPorts,
    /// The agent has no part of a virtual network, or cannot give tasks addresses of their own.
    UnfulfilledNetwork,
    /// Every address of the agent in a virtual network is taken.
    InsufficientAddresses,
    /// Kept for apps that need scarce resources.
    DeclinedScarceResources,
}

/// A change on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// Identity.
    pub id: DeploymentId,
    /// The timestamp of the change.
    pub version: Timestamp,
    /// Apps that it touches.
    pub affected_apps: Vec<AppId>,
    /// What is done, one after the other.
    pub steps: Vec<DeploymentStep>,
    /// Index of the step under way.
    pub current: usize,
    /// The affected apps as they were; absent for new ones.
    pub original: Vec<Arc<AppDefinition>>,
    /// The affected apps as they are to be; absent for removed ones.
    pub target: Vec<Arc<AppDefinition>>,
}

/// Actions that are done side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStep {
    /// The actions.
    pub actions: Vec<DeploymentAction>,
}

/// One app's part of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentAction {
    /// What is done.
    pub kind: ActionKind,
    /// To which app.
    pub app: AppId,
}

/// What a deployment does to an app, named as in Marathon's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionKind {
    /// A new app is known; nothing runs yet.
    StartApplication,
    /// Instances are started or killed until their number is right.
    ScaleApplication,
    /// All instances are killed and the app is forgotten.
    StopApplication,
    /// Instances of old versions are replaced.
    RestartApplication,
}

impl ActionKind {
    /// The name in Marathon's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartApplication => "StartApplication",
            Self::ScaleApplication => "ScaleApplication",
            Self::StopApplication => "StopApplication",
            Self::RestartApplication => "RestartApplication",
        }
    }
}

impl NoMatchReason {
    /// The name in Marathon's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnfulfilledRole => "UnfulfilledRole",
            Self::UnfulfilledConstraint => "UnfulfilledConstraint",
            Self::NoCorrespondingReservationFound => "NoCorrespondingReservationFound",
            Self::AgentMaintenance => "AgentMaintenance",
            Self::InsufficientCpus => "InsufficientCpus",
            Self::InsufficientMemory => "InsufficientMemory",
            Self::InsufficientDisk => "InsufficientDisk",
            Self::InsufficientGpus => "InsufficientGpus",
            Self::InsufficientPorts => "InsufficientPorts",
            Self::UnfulfilledNetwork => "UnfulfilledNetwork",
            Self::InsufficientAddresses => "InsufficientAddresses",
            Self::DeclinedScarceResources => "DeclinedScarceResources",
        }
    }
}

impl AppView {
    /// Instances by state.
    pub fn counts(&self) -> InstanceCounts {
        let mut counts = InstanceCounts::default();
        for instance in self.instances.values() {
            match instance.state {
                TaskState::Staging | TaskState::Starting => counts.staged += 1,
                TaskState::Running => {
                    counts.running += 1;
                    counts.healthy += usize::from(instance.healthy == Some(true));
                    counts.unhealthy += usize::from(instance.healthy == Some(false));
                }
                TaskState::Killing
                | TaskState::Finished
                | TaskState::Failed
                | TaskState::Killed
                | TaskState::Error
                | TaskState::Lost
                | TaskState::Dropped
                | TaskState::Unreachable
                | TaskState::Gone
                | TaskState::GoneByOperator
                | TaskState::Unknown => {}
            }
        }
        counts
    }
}
