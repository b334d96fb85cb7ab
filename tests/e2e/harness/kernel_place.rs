//! A control group and a BPF file system of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use super::network::Network;
use super::{PATIENCE, program};

/// Both are removed when it is dropped, with all processes of the control group.
pub struct KernelPlace {
    cgroup: PathBuf,
    dir: tempfile::TempDir,
}

impl KernelPlace {
    /// Makes them; the name tells them from those of other tests.
    #[track_caller]
    pub fn new(test: &str) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount =
            mount.into_iter().find(|fields| fields[2] == "cgroup2").expect("a cgroup2 mount")[1].to_owned();
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let name = dir.path().file_name().expect("a name").to_string_lossy();
        let cgroup = Path::new(&mount).join(format!("{name}-{test}"));
        fs::create_dir(&cgroup).expect("a cgroup");
        let place = Self { cgroup, dir };
        let bpffs = place.bpffs();
        fs::create_dir(&bpffs).expect("a directory");
        program::run("mount", &["-t", "bpf", "bpf", &bpffs.to_string_lossy()]).success();
        place
    }

    /// The control group.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where the BPF file system is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    /// A directory for whatever else the test has.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A program that will run in the control group, on a host. Its process id is that of the program.
    pub fn command(&self, network: &Network, host: &str, program: &str) -> Command {
        let inner = network.command(host, program);
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.cgroup.join("cgroup.procs"));
        command.arg(inner.get_program()).args(inner.get_args());
        command
    }
}

impl Drop for KernelPlace {
    fn drop(&mut self) {
        // All that runs in it: daemons, tasks, their clients. It is gone once they are.
        let killed = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + PATIENCE;
        while killed.is_ok() && remove_cgroup(&self.cgroup).is_err() && Instant::now() < deadline {
            thread::yield_now();
        }
        let _ = Command::new("umount").arg(self.bpffs()).output();
    }
}

/// Removes a control group with those that have been made in it.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
