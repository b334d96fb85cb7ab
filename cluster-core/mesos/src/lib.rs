//! What a Mesos master says of its cluster, as a view.
//!
//! [`StateFollower`] takes the answers of `/master/state`, one after the other; [`OperatorFollower`] takes the events of
//! the v1 operator API. Both keep a [`ClusterView`](mesonet_model::ClusterView) whose revision counts up with every
//! change and which shares what did not change with the view before, so that a poll with one changed task makes a small
//! delta. Fetching, framing and name resolution are the caller's: a host name that stands where an address is needed is
//! listed by `unresolved_hosts` and known once `set_host` was told its addresses.
//!
//! What is read is bounded in size first; unknown members are skipped and missing ones are empty. A task, agent or
//! framework that cannot be read is left out and counted, and the others stay.
//!
//! The crate is pure: time is a parameter. Sources: spec/dcos-networking.md §1 and §2.2, Mesos' `mesos.proto` and
//! `master.proto`.

#![forbid(unsafe_code)]

mod cluster;
mod events;
mod facts;
mod hosts;
mod json;
mod masters;
mod network;
mod operator_follower;
mod options;
mod ports;
mod services;
mod state;
mod state_follower;

pub use operator_follower::{EventError, OperatorFollower};
pub use options::Options;
pub use state_follower::{StateError, StateFollower};
