//! Runs tasks as supervised processes and recovers them.

use std::net::IpAddr;
use std::path::PathBuf;

use mesonet_model::{AgentCommand, AgentReport, Attribute, Resources};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The agent's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Work directory: checkpoints and sandboxes.
    pub dir: PathBuf,
    /// Host name to register.
    pub hostname: String,
    /// Address at which host ports are reached.
    pub address: IpAddr,
    /// What to offer.
    pub resources: Resources,
    /// For placement constraints.
    pub attributes: Vec<Attribute>,
    /// Program and first arguments of the supervisor process; the task's directory is appended.
    pub supervisor: Vec<String>,
}

/// The agent cannot start.
#[derive(Debug, Error)]
pub enum StartError {}

/// Starts the agent: recovers what still runs, registers, then carries out commands until the channel closes.
/// Tasks run on when it ends.
pub async fn start(
    _config: Config,
    _commands: mpsc::Receiver<AgentCommand>,
    _reports: mpsc::Sender<AgentReport>,
) -> Result<JoinHandle<()>, StartError> {
    Ok(tokio::spawn(async {}))
}
