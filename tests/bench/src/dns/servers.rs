//! The servers under test as processes.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::inputs::{ZONE_FILE, mesos_state};
use crate::process::Usage;

/// The CPU of the servers.
pub const SERVER_CPU: &str = "0";

/// How long a server may take to read its zone.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for an answer, and between looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A query for the address of the first app: id 7, recursion not wanted, class IN.
const FIRST_APP: &[u8] = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x04app0\x08marathon\x05mesos\0\0\x01\0\x01";

/// A server. It is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: &'static str,
    process: Child,
    port: u16,
}

impl Running {
    /// Knot with one thread for UDP.
    pub fn knot(dir: &Path) -> anyhow::Result<Self> {
        let (port, folder) = (free_port()?, dir.display());
        let config = dir.join("knot.conf");
        fs::write(
            &config,
            format!(
                "server:\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
                 background-workers: 1\n    rundir: {folder}\nlog:\n  - target: stderr\n    any: warning\n\
                 database:\n    storage: {folder}\ntemplate:\n  - id: default\n    storage: {folder}\n    \
                 semantic-checks: off\n    journal-content: none\n    zonefile-load: whole\nzone:\n  \
                 - domain: mesos\n    file: {ZONE_FILE}\n"
            ),
        )?;
        Self::start("knot", port, Command::new("knotd").arg("-c").arg(config))
    }

    /// NSD with one process that serves.
    pub fn nsd(dir: &Path) -> anyhow::Result<Self> {
        let (port, folder) = (free_port()?, dir.display());
        let config = dir.join("nsd.conf");
        fs::write(
            &config,
            format!(
                "server:\n    ip-address: 127.0.0.1@{port}\n    server-count: 1\n    zonesdir: {folder}\n    \
                 database: \"\"\n    pidfile: {folder}/nsd.pid\n    xfrdfile: {folder}/xfrd.state\n    \
                 zonelistfile: {folder}/zone.list\n    username: \"\"\n    logfile: {folder}/nsd.log\n    \
                 rrl-ratelimit: 0\nremote-control:\n    control-enable: no\nzone:\n    name: mesos\n    \
                 zonefile: {ZONE_FILE}\n"
            ),
        )?;
        Self::start("nsd", port, Command::new("nsd").args(["-d", "-c"]).arg(config))
    }

    /// The network daemon, with the state of a Mesos master as its source.
    pub fn mesonet(dir: &Path, apps: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("mesonet");
        let port = free_port()?;
        let mut command = Command::new(program);
        command.args([
            "net",
            "--refresh",
            "1h",
            "--dns-http",
            "off",
            "--http",
            "127.0.0.1:0",
            "--log",
            "warn",
        ]);
        command.arg("--dir").arg(dir.join("node"));
        command.arg("--source").arg(format!("mesos-state://{}", serve_state(apps)?));
        command.arg("--dns").arg(format!("127.0.0.1:{port}"));
        Self::start("mesonet", port, &mut command)
    }

    fn start(name: &'static str, port: u16, command: &mut Command) -> anyhow::Result<Self> {
        let process = Command::new("taskset")
            .args(["-c", SERVER_CPU])
            .arg(command.get_program())
            .args(command.get_args())
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, process, port })
    }

    /// Where it serves.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until it knows the zone.
    pub fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, self.port))?;
        socket.set_read_timeout(Some(PAUSE))?;
        let deadline = Instant::now() + START_PATIENCE;
        let mut answer = [0; 512];
        while Instant::now() < deadline {
            // Nobody may be there yet, which the system says with either call.
            let _ = socket.send(FIRST_APP);
            match socket.recv(&mut answer) {
                // One answer and no error.
                Ok(_) if answer[3] & 0x0f == 0 && answer[7] == 1 => return Ok(()),
                _ => std::thread::sleep(PAUSE),
            }
        }
        bail!("{self} does not serve the zone after {START_PATIENCE:?}")
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

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Drop for Running {
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
fn free_port() -> anyhow::Result<u16> {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address.port());
        }
    }
}

/// Serves the state of a Mesos master to whoever asks, until the process ends. Says where.
fn serve_state(apps: usize) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    let body = serde_json::to_vec(&mesos_state(apps, &address))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(stream, &body) {
                eprintln!("the state was not read: {error}");
            }
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, body: &[u8]) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
