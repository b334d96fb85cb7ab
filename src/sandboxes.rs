//! The API's look at the files of tasks.

use std::path::PathBuf;

use mesonet_agent::ReadSandboxError;
use mesonet_api::{SandboxChunk, SandboxError, SandboxReader};
use mesonet_model::TaskKey;

/// Reads the sandboxes of this process' own agent.
#[derive(Debug)]
pub struct LocalSandboxes {
    /// The agent's work directory.
    pub agent_dir: PathBuf,
}

/// Stands for the sandboxes of agents in other processes, which the master cannot read.
#[derive(Debug)]
pub struct RemoteSandboxes;

impl SandboxReader for RemoteSandboxes {
    fn read(
        &self,
        task: &TaskKey,
        file: &str,
        _offset: Option<u64>,
        _length: Option<u64>,
    ) -> Result<SandboxChunk, SandboxError> {
        Err(SandboxError::Elsewhere { task: task.to_string(), file: file.to_owned() })
    }
}

impl SandboxReader for LocalSandboxes {
    fn read(
        &self,
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
