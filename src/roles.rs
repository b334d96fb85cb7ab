//! The roles of a cluster of many nodes, each a process of its own: master, agent, network daemon.
//!
//! They are made of the parts that [`crate::compose`] joins in one process; between them is the bus over QUIC.
//! A node's daemons share one directory with the node's identity. Nothing that runs needs a master to go on.

mod agent;
mod applied_mark;
mod authority;
mod bus_metrics;
mod elected_master;
mod leadership_metrics;
mod master;
mod net;
mod node_identity;
mod records_reader;
mod resolver_plan;
mod supervisor;
mod view_age;
mod view_cache;

pub(crate) use applied_mark::AppliedMark;
pub(crate) use authority::authority_dir;

pub use agent::run_agent;

pub use authority::{InitError, NewToken, TokenRoles, create_token, init, revoke_node, revoke_token, tokens};
pub use master::run_master;
pub use net::{clean_up_net, run_net};
pub use view_cache::ViewCache;
