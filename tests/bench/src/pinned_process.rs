//! Programs under test as processes on one CPU.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::Usage;

/// How long a process may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Between looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A process that has one CPU. It is ended when this is dropped.
#[derive(Debug)]
pub struct PinnedProcess {
    name: &'static str,
    process: Child,
}

impl PinnedProcess {
    /// Starts a program that says nothing on its output.
    pub fn start(name: &'static str, cpu: &str, command: &Command) -> anyhow::Result<Self> {
        let process = Command::new("taskset")
            .args(["-c", cpu])
            .arg(command.get_program())
            .args(command.get_args())
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, process })
    }

    /// CPU time that it has used so far, with the processes that it has started.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut total = 0.0;
        for pid in family(self.process.id())? {
            // One that has just ended has used what its parent is charged with.
            total += Usage::of_process(pid).map_or(0.0, |usage| usage.cpu_s);
        }
        Ok(total)
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
fn family(first: u32) -> anyhow::Result<Vec<u32>> {
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
pub fn free_port() -> anyhow::Result<u16> {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address.port());
        }
    }
}
