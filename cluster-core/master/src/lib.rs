//! Agents, offers, task lifecycle, VIP allocation and drain, as a pure state machine.
//!
//! [`Master::handle`] takes one [`Input`] and the time and returns [`Effect`]s; the cluster's
//! [`ClusterView`](mesonet_model::ClusterView) is its state as everybody else sees it. What must survive a crash is an
//! [`Effect::Store`] of the same call, and [`Master::recover`] begins from it.
//!
//! Nothing that one call does costs as much as the cluster is large: every choice is made from an index that the calls
//! before have kept up to date. What grows with the number of frameworks is allowed, since there are few.

#![forbid(unsafe_code)]

mod agents;
mod drain;
mod drain_label;
mod endpoints;
mod frameworks;
mod joined;
mod launch_check;
mod liveness;
mod machine;
mod networks;
mod node_drain;
mod offers;
mod outbox;
mod phash2;
mod recover;
mod services;
mod suspects;
mod tasks;
mod tunnels;
mod vips;
mod wishes;

pub use endpoints::{Published, endpoints_of};
pub use liveness::FailureDetection;
pub use machine::{Config, Effect, Input, Master};
pub use recover::{RecoverError, Recovered};
pub use vips::{Exhausted, Vips};
pub use wishes::Wishes;
