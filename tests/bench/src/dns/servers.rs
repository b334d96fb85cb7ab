//! The servers under test as processes.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use mesonet_test_process::{PinnedProcess, free_port};

use super::inputs::{ZONE_FILE, mesos_state};
use crate::fake_mesos;

/// The CPU of the servers.
pub const SERVER_CPU: &str = "0";

/// How long a server may take to read its zone.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// How long to wait for an answer, and between looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A query for the address of the first app: id 7, recursion not wanted, class IN.
const FIRST_APP: &[u8] = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x04app0\x08marathon\x05mesos\0\0\x01\0\x01";

/// A server. It is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    process: PinnedProcess,
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
        command
            .arg("--source")
            .arg(format!("mesos-state://{}", fake_mesos::serve(|address| mesos_state(apps, address))?));
        command.arg("--dns").arg(format!("127.0.0.1:{port}"));
        Self::start("mesonet", port, &mut command)
    }

    fn start(name: &'static str, port: u16, command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self { process: PinnedProcess::start(name, SERVER_CPU, command, Stdio::inherit())?, port })
    }

    /// CPU time that it has used so far, with the processes that it has started.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        Ok(self.process.cpu_seconds()?)
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
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process.fmt(f)
    }
}
