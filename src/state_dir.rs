//! Where a local cluster keeps what it has.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// A directory for the state, the agent's checkpoints and the sandboxes.
#[derive(Debug)]
pub enum StateDir {
    /// The user's: kept.
    Given(PathBuf),
    /// Removed when dropped.
    Temporary(TempDir),
}

impl StateDir {
    /// The given directory, made if it does not exist, or a new temporary one.
    pub fn open(given: Option<&Path>) -> anyhow::Result<Self> {
        let Some(given) = given else {
            let dir = tempfile::Builder::new().prefix("mesonet-").tempdir();
            return dir.map(Self::Temporary).context("cannot make a temporary directory for the state");
        };
        std::fs::create_dir_all(given)
            .and_then(|()| given.canonicalize())
            .map(Self::Given)
            .with_context(|| format!("cannot make the state directory {} (--dir)", given.display()))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// Whether it is there when the program is started again.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// The agent's part of it.
    pub fn agent(&self) -> PathBuf {
        self.path().join("agent")
    }
}
