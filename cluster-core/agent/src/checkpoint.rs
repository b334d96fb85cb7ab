//! Small JSON files that are replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A file or directory of the agent cannot be written or read.
#[derive(Debug, Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct FileError {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

impl FileError {
    /// Names the operation that failed, for `map_err`.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }
}

/// How much a written file is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It survives the end of the process. What it describes does not survive a power failure either.
    Process,
    /// It survives a power failure.
    Disk,
}

/// Replaces a file by a value in one step: readers see the old one or the new one. Only the owner can read it.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(value).expect("BUG: a checkpoint has a map key that is no text");
    let temporary = path.with_extension("new");
    let written = write_new(&temporary, &bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Room that a partial file takes is room that the next attempt lacks.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(FileError::at("write", path))?;
    match durability {
        Durability::Process => Ok(()),
        Durability::Disk => sync(path),
    }
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    match durability {
        Durability::Process => Ok(()),
        Durability::Disk => file.sync_all(),
    }
}

/// Makes a written file and its name survive a power failure.
pub(crate) fn sync(path: &Path) -> Result<(), FileError> {
    for path in [Some(path), path.parent()].into_iter().flatten() {
        File::open(path).and_then(|file| file.sync_all()).map_err(FileError::at("sync", path))?;
    }
    Ok(())
}

/// Reads a file that [`write`] has made; `None` if it does not exist.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::at("read", path)(error)),
    };
    let value = serde_json::from_slice(&bytes).map_err(io::Error::from);
    value.map(Some).map_err(FileError::at("understand", path))
}

/// Creates a directory and its parents; `mode` is for all that are new.
pub(crate) fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    let created = DirBuilder::new().recursive(true).mode(mode).create(path);
    created.map_err(FileError::at("create directory", path))
}

/// An error and what caused it, in one line, for messages that leave the process.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
