//! mesonet: service discovery and networking with its own compact cluster core.
//!
//! This crate is the composition root of the one binary: the only place that knows every capability.
//! [`run_dev`] tells the whole story; [`config`] says what it can be told.

#![forbid(unsafe_code)]

mod clock;
mod compose;
pub mod config;
pub mod control_plane;
mod driver;
mod greeting;
mod histogram;
mod http_server;
mod machine;
mod master_role;
mod measure;
mod memory_agents;
mod metrics;
mod open_files;
mod planes;
mod process_metrics;
mod sample_app;
mod sandboxes;
mod signals;
mod state_dir;
mod telemetry;

pub use compose::{LocalCluster, run_dev};
pub use measure::{Applied, measure_applied};
pub use mesonet_agent::supervise;
