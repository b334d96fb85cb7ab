//! Programs under test as processes on one CPU.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Measured;

/// How long a program may take to begin to listen, or to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A process that has one CPU. It is ended when this is dropped.
pub struct PinnedProcess {
    pub name: &'static str,
    process: Child,
}

impl PinnedProcess {
    /// Starts a program that says nothing.
    pub fn start(name: &'static str, cpu: &str, command: &Command) -> Measured<Self> {
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", cpu]).arg(command.get_program()).args(command.get_args());
        pinned.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = pinned.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { name, process })
    }

    /// Waits until it listens.
    pub fn wait_until_open(&self, address: SocketAddr) -> Measured<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{} does not listen at {address} after {PATIENCE:?}", self.name).into());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// CPU time that its threads have used so far, with those of the processes that it has started.
    pub fn cpu_seconds(&self) -> Measured<f64> {
        let mut nanos = 0;
        for pid in family(self.process.id())? {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                // Not in clock ticks as elsewhere in /proc, which would be too coarse.
                let text = fs::read_to_string(thread?.path().join("schedstat"))?;
                nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
            }
        }
        Ok(nanos as f64 / 1e9)
    }
}

impl Drop for PinnedProcess {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
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

/// A process and those that it has started.
fn family(first: u32) -> Measured<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
    let children = children.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    Ok([vec![first], children].concat())
}

/// A port that nobody has.
pub fn free_port() -> Measured<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
