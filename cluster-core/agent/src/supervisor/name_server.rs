//! Makes a task with a network of its own ask the node's name server.
//!
//! A file with that address is mounted over `/etc/resolv.conf`, which only the task's mount namespace shows. The kernel
//! takes such a mount away when somebody replaces what is below it, in whatever namespace: on the host that is how the
//! file is changed. Each change of the namespace's mounts is therefore an occasion to look whether the file is there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::network::NetworkError;
use crate::container_network::ContainerNetwork;

/// What programs ask for the name server.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The mounts of this process' namespace. Polling tells of changes.
const MOUNTS: &str = "/proc/self/mountinfo";

/// How often it is tried while there is nothing to mount over: programs ask the name server on their own host then, and
/// there is none in the namespace.
const RETRY: Duration = Duration::from_secs(1);

/// The file over `/etc/resolv.conf`.
#[derive(Debug)]
pub(super) struct NameServer {
    own: PathBuf,
    mounts: File,
    retry_at: Option<Instant>,
}

impl NameServer {
    /// Writes the file into the task's checkpoint and mounts it. To be called in the task's mount namespace.
    pub(super) fn put_in_place(network: &ContainerNetwork, directory: &Path) -> Result<Self, NetworkError> {
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source: io::Error| NetworkError::File { action, path, source }
        };
        let own = directory.join("resolv.conf");
        fs::write(&own, format!("nameserver {}\n", network.name_server)).map_err(failed("write", &own))?;
        let mounts = File::open(MOUNTS).map_err(failed("open", Path::new(MOUNTS)))?;
        let mut name_server = Self { own, mounts, retry_at: None };
        match name_server.cover() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                name_server.retry_at = Some(Instant::now() + RETRY);
            }
            covered => covered.map_err(failed("mount over", Path::new(RESOLV_CONF)))?,
        }
        Ok(name_server)
    }

    /// When [`NameServer::keep_in_place`] is to be called, besides after each change of mounts.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Mounts the file again if it is not there any more.
    pub(super) fn keep_in_place(&mut self) {
        self.retry_at = (!self.is_in_place() && self.cover().is_err()).then(|| Instant::now() + RETRY);
    }

    fn is_in_place(&self) -> bool {
        let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        identity(Path::new(RESOLV_CONF)).is_some_and(|place| identity(&self.own) == Some(place))
    }

    /// Mounts over the name itself, also over that of a symbolic link, whose target is not what will be replaced.
    fn cover(&self) -> io::Result<()> {
        let name =
            rustix::fs::open(RESOLV_CONF, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", name.as_raw_fd());
        Ok(rustix::mount::mount_bind(&self.own, name)?)
    }
}

/// Polled for priority, which means that mounts have changed; it is always readable.
impl AsFd for NameServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }
}
