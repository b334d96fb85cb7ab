//! The tunnels that are measured.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesonet_overlay_wg::{PeerSettings, PrivateKey, Tunnel, TunnelSettings};

use super::steps::{SHORT, end, run, run_within};
use super::two_ends::{INSIDE, OUTSIDE, TwoEnds};

const PORT: &str = "51820";

/// A program with a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// Ours.
    Mesonet,
    /// In Go, the reference implementation for user space.
    WireguardGo,
    /// In Rust, by Cloudflare.
    Boringtun,
    /// In Rust, by Mullvad.
    Gotatun,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mesonet, Self::WireguardGo, Self::Boringtun, Self::Gotatun];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mesonet => "mesonet",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
            Self::Gotatun => "gotatun",
        }
    }

    /// Names of its devices at both ends. Each tunnel has its own, because sockets by which others are told their keys
    /// are named for the device, for all namespaces together.
    fn devices(self) -> [String; 2] {
        ["a", "b"].map(|end| format!("mnb{:.8}{end}", self.name()))
    }

    /// Where its program is, if it is installed: in `MESONET_BENCH_PROGRAMS` or where programs are.
    pub fn program(self) -> Option<PathBuf> {
        if self == Self::Mesonet {
            return std::env::current_exe().ok();
        }
        let own = std::env::var_os("MESONET_BENCH_PROGRAMS").map(PathBuf::from);
        let usual = std::env::var_os("PATH").unwrap_or_default();
        own.into_iter()
            .chain(std::env::split_paths(&usual))
            .map(|folder| folder.join(self.name()))
            .find(|program| program.is_file())
    }

    /// Starts both ends and gives their devices addresses.
    pub fn start(self, ends: &TwoEnds, program: &Path) -> anyhow::Result<Running> {
        let mut running = Running { name: self.name(), ends: Vec::new() };
        let keys = [new_key()?, new_key()?];
        let devices = self.devices();
        for end in 0..2 {
            let other = 1 - end;
            let peer = keys[other].public().to_string();
            let endpoint = format!("{}:{PORT}", OUTSIDE[other]);
            let addresses = format!("{}/32", INSIDE[other]);
            let key = encoded(&keys[end]);
            let arguments: Vec<&str> = match self {
                Self::Mesonet => {
                    vec!["bench", "overlay-end", &devices[end], PORT, &peer, &endpoint, &addresses]
                }
                Self::WireguardGo => vec!["-f", &devices[end]],
                Self::Boringtun | Self::Gotatun => vec!["-f", "--disable-drop-privileges", &devices[end]],
            };
            let mut child = ends.spawn(end, program, &arguments)?;
            if let Some(input) = child.stdin.as_mut().filter(|_| self == Self::Mesonet) {
                writeln!(input, "{key}")?;
            }
            running.ends.push(child);
            ends.set_up(end, &devices[end])?;
            if self != Self::Mesonet {
                let settings = ["peer", &peer, "allowed-ips", &addresses, "endpoint", &endpoint];
                configure(&ends.names[end], &devices[end], &key, &settings)?;
            }
        }
        Ok(running)
    }
}

/// Both ends. They are ended when it is dropped.
pub struct Running {
    name: &'static str,
    ends: Vec<Child>,
}

impl Running {
    /// Their processes.
    pub fn processes(&self) -> Vec<u32> {
        self.ends.iter().map(Child::id).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.ends {
            end(child, self.name);
        }
    }
}

/// What one end of our own tunnel is told, besides its private key, which is the first line of its input.
#[derive(Debug, clap::Args)]
pub struct EndArguments {
    device: String,
    port: u16,
    peer: String,
    endpoint: SocketAddr,
    addresses: String,
}

/// One end of our own tunnel, until its input ends.
pub fn run_end(arguments: &EndArguments) -> anyhow::Result<()> {
    let EndArguments { device, port, peer, endpoint, addresses } = arguments;
    let mut lines = std::io::stdin().lock().lines();
    let key = lines.next().context("the private key is missing")??;
    let tunnel = Tunnel::open(&TunnelSettings::new(device, *port, key.parse()?))?;
    let peer = PeerSettings {
        key: peer.parse()?,
        other_key: None,
        endpoint: Some(*endpoint),
        addresses: vec![addresses.parse()?],
        keepalive: None,
    };
    tunnel.set_peers([("peer".to_owned(), peer)].into());
    for line in lines {
        line?;
    }
    tunnel.remove()?;
    Ok(())
}

fn new_key() -> anyhow::Result<PrivateKey> {
    PrivateKey::generate().map_err(|_| anyhow::anyhow!("the system has no randomness"))
}

fn encoded(key: &PrivateKey) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key.expose())
}

/// Tells another program its key and its peer, as soon as it listens.
fn configure(namespace: &str, device: &str, key: &str, peer: &[&str]) -> anyhow::Result<()> {
    let mut command = ["netns", "exec", namespace, "wg", "set", device].to_vec();
    command.extend(["listen-port", PORT, "private-key", "/dev/stdin"]);
    command.extend(peer);
    let deadline = Instant::now() + SHORT;
    while let Err(error) = run_within(SHORT, "ip", &command, &format!("{key}\n")) {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    run("ip", &["-n", namespace, "link", "set", device, "up"]).map(drop)
}
