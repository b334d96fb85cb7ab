//! Files that only their owner may read, written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file or directory cannot be used.
#[derive(Debug, Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's words.
    pub source: io::Error,
}

/// Makes a directory and those above it, for the owner only, unless it exists.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| FileError { action: "make directory", path: path.to_owned(), source })
}

/// Waits for a lock that is held, also against other processes, until the file is dropped.
pub(crate) fn lock(path: &Path) -> Result<File, FileError> {
    let lock = || {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(|source| FileError { action: "lock", path: path.to_owned(), source })
}

/// Replaces a file by one with this content, which survives a crash from here on.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    // Two processes never write to the same temporary file.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| FileError { action: "write", path: path.to_owned(), source })
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError { action: "read", path: path.to_owned(), source })
}

/// Reads a file, if there is one.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<String>, FileError> {
    match read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
