//! Runs tasks as supervised processes and recovers them.
//!
//! The agent takes commands and gives reports; it keeps what it must know of its tasks in its work directory. Each
//! task has a small supervisor process of its own, which outlives the agent: it starts the task, keeps its output
//! within bounds, and sees to it that nothing of the task is left when it ends. An agent that starts again finds the
//! supervisors by their sockets and takes their tasks up.
//!
//! What runs where is the master's decision, and what a task's end means for its app is Marathon's.
//!
//! Main entries: [`start`], [`supervise`], [`read_sandbox`].

mod addresses;
mod agent;
mod attachments;
mod bridges;
mod cgroup;
mod checkpoint;
mod clock;
mod collector;
mod config;
mod container_network;
mod ended;
mod environment;
mod health;
mod interfaces;
mod joined;
mod launcher;
mod layout;
mod leftovers;
mod link;
mod listeners;
mod listening;
mod metrics;
mod place;
mod protocol;
mod recovery;
mod rights;
mod rounds;
mod sandbox_file;
mod status_queue;
mod supervisor;
mod task;
mod task_networks;

use std::io;
use std::path::PathBuf;

use mesonet_model::{AgentCommand, AgentReport};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use attachments::{
    AttachedAddress, Attachment, AttachmentError, AttachmentKey, AttachmentRequest, Attachments,
};
pub use config::{CgroupMode, Config, LogLimits};
pub use metrics::AgentMetrics;
pub use place::Place;
pub use sandbox_file::{READ_BYTES_MAX, ReadSandboxError, SandboxPiece, read_sandbox};
pub use supervisor::supervise;

use checkpoint::FileError;

/// The agent cannot start. Tasks of an earlier agent run on.
#[derive(Debug, Error)]
pub enum StartError {
    /// The settings name no supervisor.
    #[error("the agent's settings name no supervisor program")]
    NoSupervisor,
    /// Another agent uses the directory.
    #[error("work directory {} is in use by another agent", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// A file or directory below the work directory cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The agent's thread cannot be set up.
    #[error("cannot set up the agent's thread")]
    Thread {
        /// The system's words.
        source: io::Error,
    },
}

impl From<FileError> for StartError {
    fn from(FileError { action, path, source }: FileError) -> Self {
        Self::File { action, path, source }
    }
}

/// Starts the agent: recovers what still runs, registers, then carries out commands until either channel closes.
/// Tasks run on when it ends. The handle is finished when it has ended, and with a panic if that was a bug.
pub async fn start(
    config: Config,
    commands: mpsc::Receiver<AgentCommand>,
    reports: mpsc::Sender<AgentReport>,
) -> Result<JoinHandle<()>, StartError> {
    if config.supervisor.is_empty() {
        return Err(StartError::NoSupervisor);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| StartError::Thread { source })?;
    let (started, starts) = oneshot::channel();
    let (ended, ends) = oneshot::channel::<()>();
    let serve = move || {
        runtime.block_on(async {
            let (sender, notices) = agent::notice_channel();
            match recovery::recover(config, sender) {
                Ok(agent) => {
                    // Whoever has started the agent may have gone on to something else.
                    let _ = started.send(Ok(()));
                    agent.run(commands, reports, notices).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        // Clearing up after a task may take seconds, and whoever recovers it does it again.
        runtime.shutdown_background();
        // Not received only if nobody waits for the end.
        let _ = ended.send(());
    };
    // A thread rather than a blocking task, so that no runtime waits for it when it shuts down.
    let thread = std::thread::Builder::new().name("agent".to_owned()).spawn(serve);
    thread.map_err(|source| StartError::Thread { source })?;
    let stopped = || StartError::Thread { source: io::ErrorKind::BrokenPipe.into() };
    starts.await.map_err(|_| stopped())??;
    Ok(tokio::spawn(async { ends.await.expect("BUG: the agent's thread has panicked") }))
}
