//! etcd for tests: real processes on loopback, with data in a temporary directory, which end with the test.
//!
//! Everything panics when it cannot do its work. Main types: [`Etcd`], and [`Cable`], a way to it that can be cut.

#![forbid(unsafe_code)]

mod cable;
mod gateway;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use cable::Cable;
pub use gateway::base64;

/// How long members may take until they serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a port is taken by another process between its choice and its use.
const STARTS_MAX: usize = 5;

/// Where members listen: an address that nobody else uses, so that nobody takes the port of a member that was killed.
/// Certificates are for the usual one.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 90, 14, 1);

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    scheme: &'static str,
    dir: TempDir,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: SocketAddr,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// Starts a cluster with so many members and waits until it serves.
    pub fn start(size: usize) -> Self {
        Self::with_arguments(size, "http", &[])
    }

    /// The same with further arguments. With `https` it is not waited for.
    pub fn with_arguments(size: usize, scheme: &'static str, further: &[&str]) -> Self {
        for _ in 1..STARTS_MAX {
            let mut etcd = Self::configure(size, scheme, further);
            (0..size).for_each(|member| etcd.spawn(member));
            if etcd.is_up() {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    fn configure(size: usize, scheme: &'static str, further: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = if scheme == "https" { Ipv4Addr::LOCALHOST } else { ADDRESS };
        let ports = free_ports(address, 2 * size);
        let (clients, peers) = ports.split_at(size);
        let name = |index: usize| format!("m{index}");
        let peer = |index: usize| format!("{}=http://{}", name(index), peers[index]);
        let cluster = (0..size).map(peer).collect::<Vec<_>>().join(",");
        let member = |index: usize| {
            let client = format!("{scheme}://{}", clients[index]);
            let peer = format!("http://{}", peers[index]);
            let data = dir.path().join(name(index)).display().to_string();
            let pairs = [
                ("--name", name(index)),
                ("--data-dir", data),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", cluster.clone()),
                ("--log-level", "error".to_owned()),
            ];
            let arguments = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            let arguments = arguments.chain(further.iter().map(|flag| (*flag).to_owned())).collect();
            Member { name: name(index), client: clients[index], arguments, process: None }
        };
        Self { members: (0..size).map(member).collect(), scheme, dir }
    }

    /// Where clients connect.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("{}://{}", self.scheme, member.client)).collect()
    }

    /// Where a member is.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// Calls a method of etcd's JSON API, such as `kv/range`; returns the answer's text.
    pub fn call(&self, method: &str, body: &str) -> String {
        gateway::call(self.members[0].client, method, body)
    }

    /// Kills a member without notice.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts a member that was killed, with the data that it has, and waits until it serves.
    pub fn restart(&mut self, member: usize) {
        for _ in 1..STARTS_MAX {
            self.spawn(member);
            if self.is_up() {
                return;
            }
            self.kill(member);
        }
        panic!("etcd does not start again");
    }

    fn spawn(&mut self, index: usize) {
        let member = &mut self.members[index];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{}.log", member.name)));
        let process = Command::new("etcd")
            .args(&member.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("log file"))
            .spawn()
            .expect("etcd runs (Debian: etcd-server)");
        member.process = Some(process);
    }

    fn is_up(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        let is_secure = self.scheme == "https";
        while Instant::now() < until {
            let mut running = self.members.iter_mut().filter_map(|member| {
                let process = member.process.as_mut()?;
                Some((member.client, process.try_wait().expect("process").is_none()))
            });
            if running.all(|(client, runs)| runs && (is_secure || is_healthy(client))) {
                return true;
            }
            let ended = |member: &mut Member| {
                member.process.as_mut().is_some_and(|process| process.try_wait().expect("process").is_some())
            };
            if self.members.iter_mut().any(ended) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }
}

fn is_healthy(client: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(client)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}

/// Ports that are free just now, all different.
fn free_ports(address: Ipv4Addr, count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind((address, 0)).expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("address")).collect()
}
