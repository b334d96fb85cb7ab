//! What keeps programs in the kernel while no process has them: names in a BPF file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::pin::PinError;
use aya::programs::links::{FdLink, PinnedLink};
use thiserror::Error;

/// Programs cannot be kept in the kernel.
#[derive(Debug, Error)]
pub enum PinningError {
    /// Nothing can be pinned there.
    #[error("cannot use {} to pin programs (mount it with: mount -t bpf bpf DIR)", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Something cannot be pinned.
    #[error("cannot pin {} (is a BPF file system mounted there? mount -t bpf bpf DIR)", path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// The kernel's words.
        source: PinError,
    },
}

/// Makes a directory for pins, unless it is there.
pub(crate) fn make_directory(path: &Path) -> Result<(), PinningError> {
    fs::create_dir_all(path).map_err(directory_error(path))
}

/// What goes wrong with a path of the file system.
pub(crate) fn directory_error(path: &Path) -> impl FnOnce(io::Error) -> PinningError {
    move |source| PinningError::Directory { path: path.to_path_buf(), source }
}

/// Keeps a program attached for as long as the name is there.
pub(crate) fn pin(link: FdLink, path: &Path) -> Result<PinnedLink, PinningError> {
    link.pin(path).map_err(|source| PinningError::Pin { path: path.to_path_buf(), source })
}
