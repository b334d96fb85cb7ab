//! Kills what is left of a task whose supervisor was killed.
//!
//! The main process dies with its supervisor, but what it has started may live on. Without a supervisor there is no
//! ancestor to find it by; it is found by the id of this run, in the sandbox's path in its environment or in the name
//! of its control group. Only a process that has cleared its environment, on an agent without control groups, escapes.

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
        let left = kill_once(launch).unwrap_or(0);
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

/// Kills every process of the run. Returns how many there were.
fn kill_once(launch: &Launch) -> io::Result<usize> {
    let mark = [b"MESOS_SANDBOX=", launch.sandbox.as_os_str().as_encoded_bytes()].concat();
    let container = launch.container.to_string();
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // The descriptor is taken first, so that the process that is looked at is the one that is killed.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let process_directory = Path::new("/proc").join(name);
        let is_of_run =
            has_variable(&process_directory, &mark) || is_in_group(&process_directory, &container);
        if is_of_run && rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok() {
            found += 1;
        }
    }
    Ok(found)
}

/// A process that has ended has no environment any more, also while nobody has reaped it.
fn has_variable(process: &Path, variable: &[u8]) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == variable)
}

/// A process that has ended keeps its group until somebody has reaped it, but is none to wait for.
fn is_in_group(process: &Path, name: &str) -> bool {
    let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    groups.contains(name) && {
        let status = fs::read_to_string(process.join("stat")).unwrap_or_default();
        status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    }
}
