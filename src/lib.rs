//! mesonet: service discovery and networking with its own compact cluster core.
//!
//! This crate is the composition root of the one binary: the only place that knows every capability.
//! [`run_dev`] tells the whole story in one process; [`run_master`], [`run_agent`] and [`run_net`] are its parts as
//! processes of their own; [`config`] says what they can be told.

#![forbid(unsafe_code)]

mod cgroup_mount;
mod clock;
mod cni;
mod compose;
pub mod config;
pub mod control_plane;
mod dns_api;
mod dns_config;
mod driver;
mod etcd_records;
mod greeting;
mod histogram;
mod host;
mod http;
mod http_server;
mod lb_api;
pub mod leadership;
mod machine;
mod master_role;
mod measure;
mod memory_agents;
mod metrics;
mod net_plan;
mod open_files;
mod overlay;
mod planes;
mod process;
mod process_metrics;
mod roles;
mod sample_app;
mod sandboxes;
mod signals;
mod sources;
mod state_dir;
mod store_copy;
mod telemetry;
mod zone_listing;

pub use clock::WallClock;
pub use cni::run_cni;
pub use compose::{LocalCluster, run_dev};
pub use measure::{Applied, measure_applied};
pub use mesonet_agent::supervise;
pub use mesonet_bus::{AuthorityError, JoinToken, NodeName, TokenRecord};
pub use mesonet_dns_server::{Config as DnsServerConfig, Server as DnsServer};
pub use mesonet_store::EtcdTls;
pub use net_plan::{NetPlan, PlanError};
pub use roles::{
    InitError, NewToken, TokenRoles, clean_up_net, create_token, init, revoke_node, revoke_token, run_agent,
    run_master, run_net, tokens,
};
pub use store_copy::{Copied, CopyError, StoreCopy, StorePlace, StorePlaceError, copy_store};
pub use zone_listing::{RecordsForm, write_records};
