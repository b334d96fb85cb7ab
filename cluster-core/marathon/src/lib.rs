//! Apps and deployments as a pure framework scheduler: Marathon's decisions without its I/O.
//!
//! [`Marathon::handle`] takes one [`Input`] and the time and returns [`Effect`]s; readers get a [`MarathonView`].
//! Marathon knows the master only through the scheduler calls and events of the model, like any other framework.

#![forbid(unsafe_code)]

mod app;
mod census;
mod command;
mod commands;
mod constraints;
mod dependencies;
mod environment;
mod event;
mod health_checks;
mod host_ports;
mod instance;
mod launch;
mod machine;
mod matching;
mod offers;
mod plan;
mod progress;
mod queue;
mod readiness;
mod recover;
mod rolling;
mod service_ports;
mod settle;
mod statuses;
mod timers;
mod view;

pub use command::{AppBase, AppPut, Command, Rejection, Reply};
pub use event::{Event, EventKind};
pub use machine::{Config, Effect, Input, Marathon};
pub use recover::{RecoverError, Recovered};
pub use view::{
    ActionKind, AppView, Deployment, DeploymentAction, DeploymentStep, InstanceCounts, InstanceView,
    MarathonView, NoMatchReason, QueueEntry, RejectSummary, TaskFailure, UnusedOffer,
};
