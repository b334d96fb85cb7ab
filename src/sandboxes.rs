//! The API's look at the files of tasks.

use std::path::PathBuf;
use std::sync::Arc;

use mesonet_agent::ReadSandboxError;
use mesonet_api::{SandboxChunk, SandboxError, SandboxReader};
use mesonet_bus::{FileFailure, FilePiece, FileQuestion, Files, Server};
use mesonet_model::{AgentId, TaskKey};
use tokio::runtime::Handle;

/// Reads the sandboxes of this process' own agent.
#[derive(Debug)]
pub struct LocalSandboxes {
    /// The agent's work directory.
    pub agent_dir: PathBuf,
}

/// Has the agents of other processes read their sandboxes.
#[derive(Debug)]
pub struct RemoteSandboxes {
    /// Where agents are connected.
    bus: Arc<Server>,
    runtime: Handle,
}

impl RemoteSandboxes {
    /// For the agents that are connected to a bus. Must be called within a runtime.
    pub fn new(bus: Arc<Server>) -> Self {
        Self { bus, runtime: Handle::current() }
    }
}

impl SandboxReader for RemoteSandboxes {
    fn read(
        &self,
        agent: Option<&AgentId>,
        task: &TaskKey,
        file: &str,
        offset: Option<u64>,
        length: Option<u64>,
    ) -> Result<SandboxChunk, SandboxError> {
        let elsewhere = |reason: String| SandboxError::Elsewhere {
            reason,
            task: task.to_string(),
            file: file.to_owned(),
        };
        let Some(agent) = agent else { return Err(elsewhere("the task has ended".to_owned())) };
        let question = FileQuestion { task: task.clone(), file: file.to_owned(), offset, length };
        match self.runtime.block_on(self.bus.read_file(agent, &question)) {
            Ok(FilePiece { offset, data }) => Ok(SandboxChunk { offset, data }),
            Err(FileFailure::NotFound) => {
                Err(SandboxError::NotFound { task: task.to_string(), file: file.to_owned() })
            }
            Err(failure @ FileFailure::Unreadable(_)) => Err(SandboxError::Io {
                task: task.to_string(),
                file: file.to_owned(),
                source: std::io::Error::other(failure),
            }),
            Err(failure @ (FileFailure::Away | FileFailure::Silent)) => Err(elsewhere(failure.to_string())),
        }
    }
}

impl SandboxReader for LocalSandboxes {
    fn read(
        &self,
        _agent: Option<&AgentId>,
        task: &TaskKey,
        file: &str,
        offset: Option<u64>,
        length: Option<u64>,
    ) -> Result<SandboxChunk, SandboxError> {
        match mesonet_agent::read_sandbox(&self.agent_dir, task, file, offset, length) {
            Ok(piece) => Ok(SandboxChunk { offset: piece.offset, data: piece.data }),
            // What lies outside does not exist for a client.
            Err(ReadSandboxError::NotFound { task, file } | ReadSandboxError::Outside { task, file }) => {
                Err(SandboxError::NotFound { task: task.to_string(), file })
            }
            Err(ReadSandboxError::Io { task, file, source }) => {
                Err(SandboxError::Io { task: task.to_string(), file, source })
            }
        }
    }
}

impl Files for LocalSandboxes {
    fn read(&self, question: &FileQuestion) -> Result<FilePiece, FileFailure> {
        let FileQuestion { task, file, offset, length } = question;
        match mesonet_agent::read_sandbox(&self.agent_dir, task, file, *offset, *length) {
            Ok(piece) => Ok(FilePiece { offset: piece.offset, data: piece.data }),
            Err(ReadSandboxError::NotFound { .. } | ReadSandboxError::Outside { .. }) => {
                Err(FileFailure::NotFound)
            }
            Err(ReadSandboxError::Io { source, .. }) => Err(FileFailure::Unreadable(source.to_string())),
        }
    }
}
