//! What a tunnel is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesonet_overlay_plan::Prefix;

use crate::key::{PrivateKey, PublicKey};

/// Octets of the longest packet that fits through a tunnel over Ethernet, with either family outside.
pub const MTU_DEFAULT: u16 = 1420;

/// How a tunnel is opened.
#[derive(Debug, Clone)]
pub struct TunnelSettings {
    /// Name of the network device. One that an earlier process left is taken over.
    pub device: String,
    /// UDP port; 0 for any.
    pub port: u16,
    /// This node's keys.
    pub keys: OwnKeys,
    /// Octets of the longest packet. Paths to peers may allow less.
    pub mtu: u16,
    /// Threads that move packets, each with a queue of the device; see [`default_workers`].
    pub workers: usize,
    /// Limits of the protocol.
    pub limits: Limits,
    /// What the kernel may do for many packets at once, if it can.
    pub offloads: Offloads,
}

impl TunnelSettings {
    /// The usual settings.
    pub fn new(device: &str, port: u16, key: PrivateKey) -> Self {
        Self {
            device: device.to_owned(),
            port,
            keys: OwnKeys { primary: key, other: None },
            mtu: MTU_DEFAULT,
            workers: default_workers(),
            limits: Limits::default(),
            offloads: Offloads::ALL,
        }
    }
}

/// Half the processors, at most 8: the rest is for those who use the tunnel.
pub fn default_workers() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 8)
}

/// This node's keys. While keys change, handshakes with both are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKeys {
    /// The one with which handshakes are begun.
    pub primary: PrivateKey,
    /// The next one, before every peer knows it, or the last one, until no peer uses it.
    pub other: Option<PrivateKey>,
}

/// A node at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Its key.
    pub key: PublicKey,
    /// Another key that handshakes may come from, while its keys change.
    pub other_key: Option<PublicKey>,
    /// Where it is, if that is known. Where it really sends from counts more, from then on.
    pub endpoint: Option<SocketAddr>,
    /// Where packets go that are for these addresses, and the only ones that may come from there.
    pub addresses: Vec<Prefix>,
    /// How often something is sent even without need: only for peers behind address translation.
    pub keepalive: Option<Duration>,
}

/// Peers by name.
pub type Peers = BTreeMap<String, PeerSettings>;

/// Limits of the protocol. Other implementations have them fixed; they are shorter in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Age of a session at which the end that began it begins another.
    pub rekey_after: Duration,
    /// Age of a session at which it is not used any more.
    pub reject_after: Duration,
    /// Messages after which another session is begun.
    pub rekey_after_messages: u64,
    /// How long an answer to a handshake is waited for.
    pub handshake_retry: Duration,
    /// How long handshakes are tried.
    pub handshake_give_up: Duration,
    /// How long after a peer's packet something is sent back, if there is nothing else to send.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            rekey_after_messages: 1 << 60,
            handshake_retry: Duration::from_secs(5),
            handshake_give_up: Duration::from_secs(90),
            keepalive: Duration::from_secs(10),
        }
    }
}

/// What the kernel may do for many packets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Datagrams between nodes are joined and cut by the kernel (`UDP_GRO`, `UDP_SEGMENT`).
    pub outside: bool,
    /// Packets of containers are joined and cut here rather than by the kernel (TSO and GRO on the device).
    pub streams: bool,
    /// So are datagrams of containers (USO, since Linux 6.2).
    pub datagrams: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self { outside: true, streams: true, datagrams: true };

    /// None of them.
    pub const NONE: Self = Self { outside: false, streams: false, datagrams: false };
}
