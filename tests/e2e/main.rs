//! End-to-end tests: the built binary as a user runs it, asked by the clients that users have (dig, curl, wrk, the
//! `dcos` CLI and the `marathon` library for Python).
//!
//! Every test has a cluster of its own, with ports and addresses of its own, so that they run side by side. Those
//! of many nodes need root and make network namespaces; the others do not. A missing program fails the test that needs it.

#![forbid(unsafe_code)]

mod bad_input;
mod change;
mod clients;
mod cluster;
mod cluster_bad_input;
mod cluster_under_load;
mod cni;
mod command_line;
mod containers;
mod drop_in;
mod harness;
mod health;
mod host_resolver;
mod kernel;
mod masters;
mod moving;
mod network;
mod overlay;
mod packets;
mod policies;
mod readiness;
mod recovery;
mod rolling;
mod story;
