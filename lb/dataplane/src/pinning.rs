//! What keeps programs in the kernel while no process has them: names in a BPF file system.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

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
    /// It is a directory of another kind.
    #[error("{} is no BPF file system: mount one there with mount -t bpf bpf DIR, or name another (--bpffs)", path.display())]
    OtherFileSystem {
        /// The path.
        path: PathBuf,
    },
    /// Something cannot be pinned.
    #[error("cannot pin {} (is a BPF file system mounted there? mount -t bpf bpf DIR)", path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// The kernel's words.
        source: PinError,
    },
    /// Two would undo what the other does.
    #[error(
        "another daemon balances by what is pinned in {}: end it first, or name another BPF file system (--bpffs)",
        path.display()
    )]
    Held {
        /// The BPF file system.
        path: PathBuf,
    },
}

/// What tells a BPF file system from others (linux/magic.h).
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

/// How long to wait for a daemon that is just ending.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// For as long as a process has it, no other one changes what is pinned in a BPF file system.
#[derive(Debug)]
pub struct KernelHold {
    bpffs: PathBuf,
    directory: File,
}

impl KernelHold {
    /// Takes it; waits some seconds for a process that ends.
    ///
    /// # Errors
    /// When another process has it, or there is no such file system.
    pub fn take(bpffs: &Path) -> Result<Self, PinningError> {
        check_file_system(bpffs)?;
        Self::take_directory(bpffs)
    }

    fn take_directory(bpffs: &Path) -> Result<Self, PinningError> {
        let directory = bpffs.join(DIRECTORY);
        let deadline = Instant::now() + PATIENCE;
        loop {
            make_directory(&directory)?;
            if let Some(file) = try_lock(bpffs, &directory)? {
                return Ok(Self { bpffs: bpffs.to_path_buf(), directory: file });
            }
            if Instant::now() > deadline {
                return Err(PinningError::Held { path: bpffs.to_path_buf() });
            }
            thread::sleep(LOOK);
        }
    }

    /// Takes it again where somebody has removed the directory, or the file system, that others look for it in.
    ///
    /// # Errors
    /// As [`KernelHold::take`], without any wait.
    pub fn renew(&mut self) -> Result<(), PinningError> {
        let directory = self.bpffs.join(DIRECTORY);
        let held = self.directory.metadata().map(Identity::from).map_err(directory_error(&directory))?;
        if Identity::of(&directory).ok() == Some(held) {
            return Ok(());
        }
        check_file_system(&self.bpffs)?;
        make_directory(&directory)?;
        let held = || PinningError::Held { path: self.bpffs.clone() };
        self.directory = try_lock(&self.bpffs, &directory)?.ok_or_else(held)?;
        Ok(())
    }

    /// Takes it to remove everything, if there is anything.
    ///
    /// # Errors
    /// As [`KernelHold::take`].
    pub fn take_present(bpffs: &Path) -> Result<Option<Self>, PinningError> {
        if bpffs.join(DIRECTORY).exists() { Self::take_directory(bpffs).map(Some) } else { Ok(None) }
    }
}

/// The directory, locked, unless another process has it or has just removed it.
fn try_lock(bpffs: &Path, directory: &Path) -> Result<Option<File>, PinningError> {
    let file = match File::open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(directory_error(directory))?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(directory_error(bpffs)(source)),
    }
    let its = file.metadata().map(Identity::from).map_err(directory_error(directory))?;
    let is_there = Identity::of(directory).is_ok_and(|found| found == its);
    Ok(is_there.then_some(file))
}

/// The directory of a BPF file system that holds everything of mesonet.
pub(crate) const DIRECTORY: &str = "mesonet";

/// Tells a file or directory from whatever has its name later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    number: u64,
}

impl Identity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(Self::from)
    }
}

impl From<fs::Metadata> for Identity {
    fn from(metadata: fs::Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}

/// Whether a path is in a BPF file system. A directory may yet have to be made.
pub(crate) fn check_file_system(path: &Path) -> Result<(), PinningError> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let found = rustix::fs::statfs(there).map_err(|error| directory_error(path)(error.into()))?;
    if found.f_type != BPF_FS_MAGIC {
        return Err(PinningError::OtherFileSystem { path: path.to_path_buf() });
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_changes_what_is_pinned() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(KernelHold::take_present(dir.path()).expect("nothing to hold").is_none());
        let first = KernelHold::take_directory(dir.path()).expect("nobody has it");
        let error = KernelHold::take_directory(dir.path()).expect_err("it is taken").to_string();
        assert!(error.contains(&dir.path().display().to_string()) && error.contains("--bpffs"), "{error}");
        assert!(KernelHold::take_present(dir.path()).is_err());
        let waiting = thread::spawn({
            let path = dir.path().to_path_buf();
            move || KernelHold::take_directory(&path).map(drop)
        });
        // Whoever waits is given the directory that is there then.
        fs::remove_dir(dir.path().join(DIRECTORY)).expect("removed");
        drop(first);
        waiting.join().expect("no panic").expect("it is free");
    }

    #[test]
    fn a_directory_that_is_removed_is_made_again_only_in_a_bpf_file_system() {
        let dir = tempfile::tempdir().expect("directory");
        let mut held = KernelHold::take_directory(dir.path()).expect("nobody has it");
        held.renew().expect("it is as it was");
        fs::remove_dir(dir.path().join(DIRECTORY)).expect("removed");
        assert!(matches!(held.renew(), Err(PinningError::OtherFileSystem { .. })));
        assert!(!dir.path().join(DIRECTORY).exists());
    }

    #[test]
    fn a_directory_of_another_kind_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let error = KernelHold::take(dir.path()).expect_err("it is no BPF file system").to_string();
        assert!(
            error.contains("mount -t bpf") && error.contains(&dir.path().display().to_string()),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).expect("it is left").count(), 0, "nothing is made there");
        assert!(KernelHold::take(&dir.path().join("none")).is_err());
    }
}
