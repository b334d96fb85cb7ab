//! Programs under test as processes on one CPU.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// Between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A process that has one CPU. It is ended when this is dropped.
#[derive(Debug)]
pub struct PinnedProcess {
    name: &'static str,
    process: Child,
}

impl PinnedProcess {
    /// Starts a program whose output is of no interest. What it says of errors goes to `complaints`.
    ///
    /// # Errors
    /// When there is no `taskset`, or the system starts no more processes.
    pub fn start(name: &'static str, cpu: &str, command: &Command, complaints: Stdio) -> io::Result<Self> {
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", cpu]).arg(command.get_program()).args(command.get_args());
        pinned.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints);
        let process = pinned
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {name}: {error}")))?;
        Ok(Self { name, process })
    }

    /// What it is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// CPU time that its threads have used so far, with those of the processes that it has started.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn cpu_seconds(&self) -> io::Result<f64> {
        let mut nanos = 0;
        for pid in family(self.process.id())? {
            // One that has just ended has used what its parent is charged with.
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                // Not in clock ticks as elsewhere in /proc, which would be too coarse.
                let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                nanos += text.split(' ').next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(nanos as f64 / 1e9)
    }
}

impl fmt::Display for PinnedProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Drop for PinnedProcess {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + END_PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.process.try_wait() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process and those that it or they have started.
fn family(first: u32) -> io::Result<Vec<u32>> {
    let mut pids = vec![first];
    let mut all: Vec<u32> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // Mostly, parents have lower numbers.
    all.sort_unstable();
    for pid in all {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent.is_some_and(|parent: u32| pids.contains(&parent)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// A port that nobody has for UDP or TCP.
///
/// # Errors
/// When the system gives no socket.
pub fn free_port() -> io::Result<u16> {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address.port());
        }
    }
}
