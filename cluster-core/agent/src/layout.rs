//! Where the agent keeps what, below its work directory.
//!
//! ```text
//! meta/agent                                     the agent's id
//! meta/tasks/<framework>/<task>/                 one task that has not ended, or whose end is not acknowledged
//!     launch.json                                  what the supervisor is to run
//!     supervisor                                   the supervisor's process id
//!     control                                      the supervisor's socket
//!     statuses.json                                the latest status and those not acknowledged
//!     exit.json                                    how it ended
//! cni/                                           interfaces of containers that others run
//! slaves/<agent>/frameworks/<framework>/executors/<task>/runs/<container>/{stdout,stderr,…}      the sandbox
//! slaves/<agent>/frameworks/<framework>/executors/<task>/runs/latest                             link to it
//! ```
//!
//! The second half is that of Mesos, which clients that read sandboxes know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesonet_model::{AgentId, TaskKey};
use thiserror::Error;
use uuid::Uuid;

use crate::checkpoint::FileError;

pub(crate) const LATEST: &str = "latest";
pub(crate) const LAUNCH_FILE: &str = "launch.json";
pub(crate) const SUPERVISOR_FILE: &str = "supervisor";
pub(crate) const CONTROL_SOCKET: &str = "control";
pub(crate) const STATUSES_FILE: &str = "statuses.json";
pub(crate) const EXIT_FILE: &str = "exit.json";

/// An id becomes the name of a directory, and Linux allows so many bytes for one.
const ID_BYTES_MAX: usize = 255;

/// An id from outside cannot be the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum InvalidId {
    #[error("{kind} id must not be empty")]
    Empty { kind: &'static str },
    #[error("{kind} id must not be longer than {ID_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong { kind: &'static str, bytes: usize },
    #[error("{kind} id must not be '.' or '..'")]
    Dots { kind: &'static str },
    #[error("{kind} id {id:?} must not contain '/', '\\' or control characters")]
    Character { kind: &'static str, id: String },
}

/// Refuses a task whose ids cannot be names of directories.
pub(crate) fn check_ids(key: &TaskKey) -> Result<(), InvalidId> {
    check_id("task", key.task.as_str())?;
    check_id("framework", key.framework.as_str())
}

/// Refuses an id that cannot be the name of a directory.
pub(crate) fn check_id(kind: &'static str, id: &str) -> Result<(), InvalidId> {
    match id {
        "" => Err(InvalidId::Empty { kind }),
        "." | ".." => Err(InvalidId::Dots { kind }),
        _ if id.len() > ID_BYTES_MAX => Err(InvalidId::TooLong { kind, bytes: id.len() }),
        _ if id.chars().any(|c| c == '/' || c == '\\' || c.is_control()) => {
            Err(InvalidId::Character { kind, id: id.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The paths below one work directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The work directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the agent's id is kept.
    pub(crate) fn agent_file(&self) -> PathBuf {
        self.dir.join("meta/agent")
    }

    /// The parent of the frameworks' checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.dir.join("meta/tasks")
    }

    /// The checkpoints of all tasks.
    pub(crate) fn checkpoints_there(&self) -> Result<Vec<PathBuf>, FileError> {
        let list = |path: &Path| match fs::read_dir(path) {
            // Another process may remove it at this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
        };
        let parent = self.checkpoints();
        let frameworks: Vec<PathBuf> = list(&parent).map_err(FileError::at("list", &parent))?;
        let mut found = Vec::new();
        for framework in frameworks {
            found.extend(list(&framework).map_err(FileError::at("list", &framework))?);
        }
        found.sort();
        Ok(found)
    }

    /// Where the interfaces of containers that others run are written down.
    pub(crate) fn attachments(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The directory of a task's checkpoint. The ids must have been checked.
    pub(crate) fn checkpoint(&self, task: &TaskKey) -> PathBuf {
        self.checkpoints().join(task.framework.as_str()).join(task.task.as_str())
    }

    /// The parent of the sandboxes of all agent ids that this directory has seen.
    pub(crate) fn agents(&self) -> PathBuf {
        self.dir.join("slaves")
    }

    /// The directory of all runs of a task. The ids must have been checked.
    pub(crate) fn executor(&self, agent: &AgentId, task: &TaskKey) -> PathBuf {
        executor_of(&self.agents().join(agent.as_str()), task)
    }

    /// The sandbox of one run of a task.
    pub(crate) fn sandbox(&self, agent: &AgentId, task: &TaskKey, container: Uuid) -> PathBuf {
        self.executor(agent, task).join("runs").join(container.to_string())
    }
}

/// The directory of all runs of a task, below that of one agent id.
pub(crate) fn executor_of(agent: &Path, task: &TaskKey) -> PathBuf {
    agent.join("frameworks").join(task.framework.as_str()).join("executors").join(task.task.as_str())
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId};

    use super::*;

    #[test]
    fn ids_that_are_no_directory_names_are_refused_by_rule() {
        for (id, expected) in [
            ("", "task id must not be empty"),
            (".", "task id must not be '.' or '..'"),
            ("..", "task id must not be '.' or '..'"),
            ("a/b", "task id \"a/b\" must not contain '/', '\\' or control characters"),
            ("a\\b", "task id \"a\\\\b\" must not contain '/', '\\' or control characters"),
            ("a\0", "task id \"a\\0\" must not contain '/', '\\' or control characters"),
            ("a\n", "task id \"a\\n\" must not contain '/', '\\' or control characters"),
        ] {
            let error = check_ids(&TaskKey::new(FrameworkId::new("f"), TaskId::new(id))).expect_err(id);
            assert_eq!(error.to_string(), expected);
        }
        let long = "x".repeat(256);
        let error = check_ids(&TaskKey::new(FrameworkId::new("f"), TaskId::new(&long))).expect_err("long");
        assert_eq!(error.to_string(), "task id must not be longer than 255 bytes, this one has 256");
        let longest = "x".repeat(255);
        assert_eq!(check_ids(&TaskKey::new(FrameworkId::new("f"), TaskId::new(&longest))), Ok(()));
        let error =
            check_ids(&TaskKey::new(FrameworkId::new(".."), TaskId::new("t"))).expect_err("framework");
        assert_eq!(error.to_string(), "framework id must not be '.' or '..'");
    }
}
