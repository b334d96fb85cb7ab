//! Runs tasks as supervised processes and recovers them.

mod config;
mod layout;
mod sandbox_file;
mod supervise;

use mesonet_model::{AgentCommand, AgentReport};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use config::{CgroupMode, Config, LogLimits};
pub use sandbox_file::{READ_BYTES_MAX, ReadSandboxError, SandboxPiece, read_sandbox};
pub use supervise::supervise;

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
