//! A network namespace, cgroups and a BPF file system of their own.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::{EbpfSettings, cleanup};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Measured;

/// How long the kernel may take to give up a cgroup whose processes have ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// The namespace is that of the calling thread and of all that it starts.
pub struct Site {
    name: String,
    /// Without hooks.
    plain: PathBuf,
    /// With hooks.
    hooked: PathBuf,
    bpffs: PathBuf,
}

impl Site {
    pub fn new() -> Measured<Self> {
        let name = format!("mesonet-bench-{}", std::process::id());
        let root = cgroup2_mount()?;
        let site = Self {
            plain: root.join(format!("{name}-plain")),
            hooked: root.join(format!("{name}-hooked")),
            bpffs: std::env::temp_dir().join(&name),
            name,
        };
        for directory in [&site.plain, &site.hooked, &site.bpffs] {
            fs::create_dir(directory)?;
        }
        command("mount", &["-t", "bpf", "bpf", &site.bpffs.to_string_lossy()])?;
        command("ip", &["netns", "add", &site.name])?;
        command("ip", &["-n", &site.name, "link", "set", "lo", "up"])?;
        join(&site.name)?;
        Ok(site)
    }

    pub fn settings(&self) -> EbpfSettings {
        EbpfSettings { cgroup: self.hooked.clone(), bpffs: self.bpffs.clone() }
    }

    /// This program, as a part of the measurement, in the namespace and in one of the cgroups.
    pub fn worker(&self, is_hooked: bool, words: &[&str]) -> Measured<Child> {
        let cgroup = if is_hooked { &self.hooked } else { &self.plain };
        let program = std::env::current_exe()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
        command.arg(program).args(["worker", &self.name]).args(words);
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = cleanup(&self.bpffs);
        let _ = command("umount", &[&self.bpffs.to_string_lossy()]);
        let _ = command("ip", &["netns", "delete", &self.name]);
        let _ = fs::remove_dir(&self.bpffs);
        let begun = Instant::now();
        for cgroup in [&self.plain, &self.hooked] {
            while fs::remove_dir(cgroup).is_err() && begun.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
        }
    }
}

/// Moves the calling thread into a namespace.
pub fn join(namespace: &str) -> Measured<()> {
    let file = File::open(Path::new("/run/netns").join(namespace))?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn command(program: &str, arguments: &[&str]) -> Measured<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

fn cgroup2_mount() -> Measured<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.ok_or_else(|| "no cgroup2 is mounted".into())
}
