//! What workers and the control thread know of a peer together.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::device::PACKET_ROOM;
use crate::drops::{Drop, DropCounters};
use crate::session::Session;

/// Octets of packets that wait for a handshake: two of the largest that the kernel hands over. When it is full,
/// the newest are dropped, which a TCP sender sends again.
const WAITING_OCTETS_MAX: usize = 2 * PACKET_ROOM;

/// And how many packets, because small ones have a cost of their own.
const WAITING_MAX: usize = 256;

/// A peer, as far as packets are concerned.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// The session that packets are encrypted with.
    pub(crate) session: ArcSwapOption<Session>,
    /// Where the peer is.
    pub(crate) endpoint: ArcSwapOption<SocketAddr>,
    /// Octets of the longest packet that reaches it.
    pub(crate) mtu: AtomicU16,
    /// Whether that was found out. Before, senders are not told of it, because they would remember it for minutes.
    pub(crate) is_mtu_known: AtomicBool,
    /// Packets that wait for a session, each with its header.
    waiting: Mutex<Waiting>,
    /// Whether the control thread was told that a handshake is wanted.
    pub(crate) is_handshake_wanted: AtomicBool,
    pub(crate) sent: Traffic,
    pub(crate) received: Traffic,
    pub(crate) drops: DropCounters,
    pub(crate) times: Times,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Vec<u8>>,
    octets: usize,
}

/// Packets in one direction.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: AtomicU64,
    pub(crate) octets: AtomicU64,
}

/// When something happened last, in milliseconds of the [`Clock`]; 0 for never.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Anything was sent.
    pub(crate) sent: AtomicU64,
    /// A packet was sent.
    pub(crate) data_sent: AtomicU64,
    /// Anything by the peer arrived.
    pub(crate) received: AtomicU64,
    /// A packet by the peer arrived.
    pub(crate) data_received: AtomicU64,
}

/// Milliseconds since the tunnel was opened, which fit into an atomic number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Never 0, which stands for never.
    pub(crate) fn milliseconds(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    pub(crate) fn instant(self, milliseconds: u64) -> Option<Instant> {
        (milliseconds > 0).then(|| self.0 + Duration::from_millis(milliseconds - 1))
    }
}

impl Traffic {
    pub(crate) fn add(&self, packets: u64, octets: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
    }
}

impl Peer {
    pub(crate) fn new(name: &str, mtu: u16) -> Self {
        Self {
            name: name.to_owned(),
            session: ArcSwapOption::empty(),
            endpoint: ArcSwapOption::empty(),
            mtu: AtomicU16::new(mtu),
            is_mtu_known: AtomicBool::new(false),
            waiting: Mutex::default(),
            is_handshake_wanted: AtomicBool::new(false),
            sent: Traffic::default(),
            received: Traffic::default(),
            drops: DropCounters::default(),
            times: Times::default(),
        }
    }

    /// Keeps a packet until there is a session.
    pub(crate) fn wait(&self, packet: &[u8]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.packets.len() >= WAITING_MAX || waiting.octets + packet.len() > WAITING_OCTETS_MAX {
            self.drops.count(Drop::QueueFull);
            return;
        }
        waiting.octets += packet.len();
        waiting.packets.push_back(packet.to_vec());
    }

    /// The packets that waited.
    pub(crate) fn take_waiting(&self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)).packets
    }

    /// Gives up the packets that wait.
    pub(crate) fn drop_waiting(&self) {
        let packets = self.take_waiting().len();
        if packets > 0 {
            self.drops.add(Drop::HandshakeTimeout, packets as u64);
        }
    }
}
