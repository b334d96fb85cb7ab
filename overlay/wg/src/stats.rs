//! What a tunnel tells about itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::drops::Drop;
use crate::key::PublicKey;
use crate::peer::Traffic;
use crate::peer_control::PeerControl;
use crate::settings::Offloads;

/// A tunnel at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStats {
    /// What the kernel does for many packets at once.
    pub offloads: Offloads,
    /// Whether somebody removed the device. Then the tunnel carries nothing, and is to be opened again.
    pub is_device_gone: bool,
    /// Peers by name.
    pub peers: BTreeMap<String, PeerStats>,
    /// Packets that were dropped and belong to no peer.
    pub drops: BTreeMap<Drop, u64>,
}

/// A peer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Packets to it.
    pub sent_packets: u64,
    /// Octets of these, without what encryption adds.
    pub sent_octets: u64,
    /// Packets from it.
    pub received_packets: u64,
    /// Octets of these.
    pub received_octets: u64,
    /// Sessions that there were so far.
    pub sessions: u64,
    /// How long ago the last handshake was, if there is a session.
    pub handshake_age: Option<Duration>,
    /// This node's key by which the session is, if there is one.
    pub own_key: Option<PublicKey>,
    /// Octets of the longest packet that reaches it.
    pub path_mtu: u16,
    /// How long it has not answered, though there was something to answer.
    pub silent: Option<Duration>,
    /// Packets that were dropped.
    pub drops: BTreeMap<Drop, u64>,
}

impl PeerStats {
    pub(crate) fn of(control: &PeerControl, now: Instant) -> Self {
        let peer = &control.peer;
        let age = |since: Instant| now.saturating_duration_since(since);
        let (sent_packets, sent_octets) = read(&peer.sent);
        let (received_packets, received_octets) = read(&peer.received);
        Self {
            endpoint: peer.endpoint.load().as_ref().map(|endpoint| **endpoint),
            sent_packets,
            sent_octets,
            received_packets,
            received_octets,
            sessions: control.session_count,
            handshake_age: peer.session.load().as_ref().map(|session| age(session.established)),
            own_key: peer.session.load().as_ref().map(|session| session.keys.own),
            path_mtu: peer.mtu.load(Ordering::Relaxed),
            silent: control.silent_since.map(age),
            drops: peer.drops.read(),
        }
    }
}

fn read(traffic: &Traffic) -> (u64, u64) {
    (traffic.packets.load(Ordering::Relaxed), traffic.octets.load(Ordering::Relaxed))
}
