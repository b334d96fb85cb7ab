//! The agent's settings.

use std::net::IpAddr;
use std::path::PathBuf;

use mesonet_model::{Attribute, Resources};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::metrics::AgentMetrics;
use crate::place::Place;

/// The agent's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Work directory: checkpoints and sandboxes.
    pub dir: PathBuf,
    /// Host name to register.
    pub hostname: String,
    /// Address at which host ports are reached.
    pub address: IpAddr,
    /// Where the node is reached from then on, if that can change.
    pub places: Option<watch::Receiver<Place>>,
    /// Port of the agent's HTTP endpoint at that address; 0 if it has none.
    pub port: u16,
    /// What to offer.
    pub resources: Resources,
    /// For placement constraints.
    pub attributes: Vec<Attribute>,
    /// Program and first arguments of the supervisor process, which calls [`crate::supervise`] with the directory that
    /// is appended as last argument.
    pub supervisor: Vec<String>,
    /// Bounds of what is kept of the tasks' output.
    pub logs: LogLimits,
    /// Where the tasks' control groups go.
    pub cgroups: CgroupMode,
    /// Soft limit on open files (RLIMIT_NOFILE) that tasks start with; the agent's own if `None`.
    pub open_files: Option<u64>,
    /// The name server of tasks that have addresses of their own.
    pub container_dns: IpAddr,
    /// Whether tasks end when the agent dies, because no other will ever take them up.
    pub tasks_end_with_agent: bool,
    /// What it counts.
    pub metrics: AgentMetrics,
}

/// Bounds of what is kept of a task's standard output, and likewise of its standard error: a file and those that it
/// was before (`stdout`, `stdout.1`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Size at which a file is set aside, in bytes.
    pub file_bytes: u64,
    /// How many files that were set aside are kept.
    pub old_files: u32,
}

/// Where the tasks' control groups go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Below the agent's own group, with the controllers that it may use there; if none, a warning and no limits.
    #[default]
    Auto,
    /// None; tasks are not limited.
    Off,
    /// Below this directory of a version 2 hierarchy.
    Below(PathBuf),
}

impl Default for LogLimits {
    /// 10 MiB as Mesos' log rotation has it, and enough files to see what happened before a restart.
    fn default() -> Self {
        Self { file_bytes: 10 << 20, old_files: 4 }
    }
}
