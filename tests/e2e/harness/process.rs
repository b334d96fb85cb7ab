//! Processes of a test: found by the directory that they work in, ended by their ids.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Sends a signal to a process, if it is still there.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended in the meantime.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process runs (a dead one that nobody has waited for does not).
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// Processes that work in a directory or below, or were started with it in their arguments.
pub fn working_in(dir: &Path) -> Vec<u32> {
    let text = dir.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| *pid != std::process::id() && is_alive(*pid))
        .filter(|pid| {
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cwd || arguments.windows(text.len()).any(|window| window == text)
        })
        .collect()
}

/// Ends every process that works in a directory. Those that they start meanwhile are found on the next look.
pub fn end_all_in(dir: &Path) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pids = working_in(dir);
        if pids.is_empty() || Instant::now() >= deadline {
            return;
        }
        pids.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
    }
}
