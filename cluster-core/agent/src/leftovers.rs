//! Kills what is left of a task whose supervisor was killed.
//!
//! The main process dies with its supervisor, but what it has started may live on. Without a supervisor there is no
//! ancestor to find it by; it is found by the sandbox's path in its environment, which holds an id of this run. A
//! process that has cleared its environment is found only in a control group.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cgroup;
use crate::protocol::Launch;

/// How long processes may take to end after SIGKILL before the task is reported all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether they have ended.
const TICK: Duration = Duration::from_millis(5);

/// Kills until nothing is found. Says whether nothing is left. Blocks for at most the patience.
pub(crate) fn kill(launch: &Launch) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        cgroup::kill(&launch.cgroups);
        let left = kill_once(&launch.sandbox).unwrap_or(0);
        if left == 0 {
            cgroup::remove(&launch.cgroups);
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(TICK);
    }
}

/// Kills every process of the sandbox. Returns how many there were.
fn kill_once(sandbox: &Path) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // The descriptor is taken first, so that the process that is looked at is the one that is killed.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if belongs_to(pid, sandbox) && rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok() {
            found += 1;
        }
    }
    Ok(found)
}

/// A process that has ended has no environment any more, also while nobody has reaped it.
fn belongs_to(pid: Pid, sandbox: &Path) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return false };
    let mark = [b"MESOS_SANDBOX=", sandbox.as_os_str().as_encoded_bytes()].concat();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}
