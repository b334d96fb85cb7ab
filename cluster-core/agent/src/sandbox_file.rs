//! Reads files of sandboxes for clients, and nothing outside of them.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mesonet_model::TaskKey;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use thiserror::Error;

use crate::layout::{self, LATEST, Layout};

/// The most that one call reads, so that a client cannot make the agent hold a whole log in memory.
pub const READ_BYTES_MAX: u64 = 1 << 20;

/// A piece of a sandbox file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPiece {
    /// Where the piece begins; the file's size if no offset was asked for.
    pub offset: u64,
    /// The bytes; shorter than asked for at the end of the file.
    pub data: Vec<u8>,
}

/// A sandbox file cannot be read.
#[derive(Debug, Error)]
pub enum ReadSandboxError {
    /// There is no such task, or its sandbox has no such regular file.
    #[error("task '{task}' has no file '{file}'")]
    NotFound {
        /// The task.
        task: TaskKey,
        /// The file.
        file: String,
    },
    /// The path leads out of the sandbox.
    #[error("'{file}' leads out of the sandbox of task '{task}'")]
    Outside {
        /// The task.
        task: TaskKey,
        /// The file.
        file: String,
    },
    /// Reading failed.
    #[error("cannot read '{file}' in the sandbox of task '{task}'")]
    Io {
        /// The task.
        task: TaskKey,
        /// The file.
        file: String,
        /// The system's words.
        source: io::Error,
    },
}

/// Reads up to `length` bytes from `offset` on of a file in the sandbox of a task's latest run, which may have ended;
/// without an offset, only tells the file's size. `dir` is the agent's work directory and `file` is relative to the
/// sandbox. One call reads at most [`READ_BYTES_MAX`].
pub fn read_sandbox(
    dir: &Path,
    task: &TaskKey,
    file: &str,
    offset: Option<u64>,
    length: Option<u64>,
) -> Result<SandboxPiece, ReadSandboxError> {
    let failure = |source: io::Error| match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
            ReadSandboxError::Outside { task: task.clone(), file: file.to_owned() }
        }
        _ if source.kind() == io::ErrorKind::NotFound => {
            ReadSandboxError::NotFound { task: task.clone(), file: file.to_owned() }
        }
        _ => ReadSandboxError::Io { task: task.clone(), file: file.to_owned(), source },
    };
    let file =
        open_latest(&Layout::new(dir), task).and_then(|run| open_beneath(&run, file)).map_err(failure)?;
    read_piece(&file, offset, length).map_err(failure)
}

/// Opens the sandbox of the latest run, under whichever agent id it ran.
fn open_latest(layout: &Layout, task: &TaskKey) -> io::Result<OwnedFd> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    layout::check_ids(task).map_err(|_| missing())?;
    for agent in fs::read_dir(layout.agents())? {
        let run = layout::executor_of(&agent?.path(), task).join("runs").join(LATEST);
        match rustix::fs::openat(CWD, &run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        {
            Ok(directory) => return Ok(directory),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(missing())
}

/// Opens a regular file. The task may put whatever it likes into its sandbox: links out of it are refused, and a named
/// pipe must not block.
fn open_beneath(directory: &OwnedFd, file: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(directory, file, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file)
}

fn read_piece(file: &File, offset: Option<u64>, length: Option<u64>) -> io::Result<SandboxPiece> {
    let size = file.metadata()?.len();
    let Some(offset) = offset else {
        return Ok(SandboxPiece { offset: size, data: Vec::new() });
    };
    let length = length.unwrap_or(READ_BYTES_MAX).min(READ_BYTES_MAX).min(size.saturating_sub(offset));
    let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64)? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    data.truncate(filled);
    Ok(SandboxPiece { offset, data })
}
