//! What the eBPF programs and their user side agree on: keys and values of maps, byte for byte, and the choice of an
//! endpoint.
//!
//! Addresses are as the kernel hands them to socket hooks: four words in network byte order, IPv4 in its mapped form
//! (RFC 4291 §2.5.5.2), so that IPv4 and IPv6 are looked up alike. Every type is made of whole words without gaps, since
//! the kernel compares keys as octets.
//!
//! The user side has no need of unsafe code: [`Words`] turns each type into octets and back.

#![no_std]
#![forbid(unsafe_code)]

mod checksum;
mod choice;
mod flow_hash;
mod packet;
mod socket_fields;
mod tcp_end;
mod words;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use checksum::Difference;
pub use choice::{Share, choose_slot};
pub use flow_hash::{flow_hash, hash_slot, hash_words, source_hash};
pub use packet::{
    DEVICES_MAX, Hop, LOOPBACK_INTERFACE, MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, NODES_MAX, NextProgram,
    OlderVersion, PACKET_ENDPOINTS_MAX, PACKET_FLOWS_MAX, PROGRAMS_MAX, PacketCount, PacketEndpoint,
    PacketEvent, PacketMember, PacketService, ROW_SLOTS, ROWS_MAX, Row, Track, Tuple,
};
pub use socket_fields::SocketFields;
pub use tcp_end::TcpEnd;
pub use words::Words;

/// Version of everything in this crate. Maps and links are pinned below a directory of this name; a program that knows
/// another version replaces them as a whole.
pub const LAYOUT: &str = "v5";

/// The number of TCP in IP headers.
pub const TCP: u8 = 6;

/// The number of UDP in IP headers.
pub const UDP: u8 = 17;

/// Virtual addresses with port and protocol that a node can serve. DESIGN.md §10 asks for 10,000 services; each may have
/// several addresses.
pub const FRONTENDS_MAX: u32 = 131_072;

/// Endpoints of all services together, twice while services change.
pub const SLOTS_MAX: u32 = 1_048_576;

/// Datagram flows whose virtual addresses are known, and connections beyond [`CONNECTIONS_NEAR`]. The kernel forgets
/// flows that were unused for the longest time; such a socket sees its endpoint's address instead of the virtual one.
pub const FLOWS_MAX: u32 = 262_144;

/// Connections that are known at a position of an array. The kernel numbers sockets one after another, so that positions
/// that are used after each other are beside each other, too, and nothing is shared between processors. Those whose
/// position is taken go elsewhere, at the price of a few hundred nanoseconds. A power of two.
pub const CONNECTIONS_NEAR: u32 = 65_536;

/// Endpoints whose connections are counted, and services whose refusals are.
pub const COUNTERS_MAX: u32 = 262_144;

/// Clients that stay with their endpoints, by service. The kernel forgets those that came least recently.
pub const AFFINITIES_MAX: u32 = 65_536;

/// Slots that are named by one entry of the map of positions.
pub const MAGLEV_CHUNK: u32 = 64;

/// Positions of a service that chooses by the client: a prime, large for the network namespaces of a node.
pub const SOCKET_MAGLEV_SLOTS: u32 = 4093;

/// Entries for some thousand services that choose by the client.
pub const MAGLEV_CHUNKS_MAX: u32 = 262_144;

/// An address and port, as words.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address, IPv4 in mapped form, network byte order.
    pub address: [u32; 4],
    /// The port in network byte order, in the half that the kernel uses.
    pub port: u32,
}

/// Where clients reach a service: the key of the map of services.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The virtual address and port.
    pub place: Place,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// How to find the slots of a service. Replaced as a whole when its endpoints change.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its number.
    pub id: u32,
    /// Grows with each change; the slots of the generation before are removed when this one is in effect.
    pub generation: u32,
    /// How many slots it has; with none, connections are refused.
    pub slots: u32,
    /// How an endpoint is chosen: [`Service::WEIGHTED_RANDOM`] or another one.
    pub algorithm: u32,
    /// How long a client stays with its endpoint after it came last; 0 if it does not.
    pub affinity_seconds: u32,
    /// How many positions its table for choices by the client has.
    pub points: u32,
}

/// The key of the map of slots.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// The service's number.
    pub service: u32,
    /// The service's generation.
    pub generation: u32,
    /// From 0 to the number of slots.
    pub index: u32,
}

/// One endpoint that takes new connections.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Where the endpoint is.
    pub place: Place,
    /// The number that its connections are counted under.
    pub counter: u32,
    /// Its part in the choice.
    pub share: Share,
    /// What its open connections are weighed by.
    pub weight: u32,
}

/// The key of the map of positions, from which a client's hash leads to a slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaglevKey {
    /// The service's number.
    pub service: u32,
    /// The service's generation.
    pub generation: u32,
    /// The position divided by [`MAGLEV_CHUNK`].
    pub chunk: u32,
}

/// The slots of some positions, two in each word; the one of the lower position first in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaglevChunk {
    /// Pairs of slots.
    pub pairs: [u32; (MAGLEV_CHUNK / 2) as usize],
}

/// An endpoint of a service, ready or draining: the key of the map of members. A datagram flow goes on for as long as
/// its endpoint is a member.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The service's number.
    pub service: u32,
    /// Where the endpoint is.
    pub place: Place,
}

/// What is known of a member.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberState {
    /// The number that its connections are counted under.
    pub counter: u32,
    /// [`MemberState::READY`] and [`MemberState::WEIGHTLESS`], or nothing.
    pub flags: u32,
}

/// A client of a service that lets it stay with its endpoint. A network namespace is one client: a socket has no
/// address yet when its endpoint is chosen.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The service's number.
    pub service: u32,
    /// The kernel's cookie of the network namespace, low word first.
    pub netns: [u32; 2],
}

/// The endpoint that a client stays with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    /// The endpoint.
    pub slot: Slot,
    /// When the client came last, in seconds since the machine's start.
    pub used: u32,
}

/// What is known of a socket and an endpoint that it talks to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The virtual address that the client knows.
    pub place: Place,
    /// The number that the connection is counted under.
    pub counter: u32,
    /// [`Origin::LOAD`], [`Origin::TCP`] or nothing.
    pub flags: u32,
    /// The kernel's cookie of the socket's network namespace, low word first.
    pub netns: [u32; 2],
}

/// What is known of a socket that is connected.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's cookie of the socket, never used again; 0 where there is no connection.
    pub socket: u64,
    /// The other side.
    pub endpoint: Place,
    /// Where the client meant to go, and what is counted.
    pub origin: Origin,
}

/// A socket and one of the places that it talks to: the key of both maps of flows.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The kernel's cookie of the socket, never used again; low word first.
    pub socket: [u32; 2],
    /// The other side.
    pub place: Place,
}

/// What is counted of an endpoint, on each processor. Octets and packets of a connection are added when its client closes
/// it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections that were tried and flows of datagrams that began.
    pub connections: u64,
    /// Connections that their clients have closed, and attempts that were followed by another of the same socket.
    pub ended: u64,
    /// Connections that failed, or that the endpoint has reset before it said anything; of a service, clients that were refused because it has no endpoint.
    pub failures: u64,
    /// Connections that were reset by either side.
    pub resets: u64,
    /// Octets to the endpoint.
    pub bytes_out: u64,
    /// Octets from the endpoint.
    pub bytes_in: u64,
    /// Segments, and datagrams of sockets that are not connected, to the endpoint.
    pub packets_out: u64,
    /// Segments from the endpoint.
    pub packets_in: u64,
}

/// Open connections of this node to an endpoint.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many.
    pub connections: u32,
}

/// The number that clients of a service are counted under that it has no endpoint for.
#[inline(always)]
pub const fn refusals(service: u32) -> u32 {
    service | REFUSALS
}

/// Marks the counter of a service; those of endpoints are below.
pub const REFUSALS: u32 = 1 << 31;

/// Which position all connections from a network namespace lead to.
#[inline(always)]
pub fn netns_hash(netns: [u32; 2]) -> u32 {
    hash_words(&netns, NETNS_SEED)
}

const NETNS_SEED: u32 = 0x6e73_6373;

// === impl Service ===

impl Service {
    /// At random, as often as the weights say.
    pub const WEIGHTED_RANDOM: u32 = 0;

    /// Of two that are drawn, the one with fewer open connections for its weight.
    pub const LEAST_CONNECTIONS: u32 = 1;

    /// By the client.
    pub const MAGLEV: u32 = 2;
}

// === impl Slot ===

impl Slot {
    /// Whether it has fewer open connections for its weight than another one.
    #[inline(always)]
    pub fn has_fewer(&self, own: u32, other: &Self, others: u32) -> bool {
        (own as u64) * (other.weight as u64) < (others as u64) * (self.weight as u64)
    }
}

// === impl MemberState ===

impl MemberState {
    /// It takes new connections.
    pub const READY: u32 = 1;

    /// It has no weight while others have some: no client is to stay with it.
    pub const WEIGHTLESS: u32 = 2;

    /// Whether clients may stay with it for new connections.
    #[inline(always)]
    pub const fn keeps_clients(self) -> bool {
        self.flags & (Self::READY | Self::WEIGHTLESS) == Self::READY
    }
}

// === impl Origin ===

impl Origin {
    /// It counts among the open connections that endpoints are chosen by.
    pub const LOAD: u32 = 1;

    /// It is a connection of TCP, which has an end.
    pub const TCP: u32 = 2;
}

// === impl Place ===

impl Place {
    /// The first three words of every mapped IPv4 address.
    const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

    /// A place from an IPv4 address and a port as the kernel has them.
    #[inline(always)]
    pub const fn ipv4(address: u32, port: u32) -> Self {
        let [first, second, third] = Self::MAPPED;
        Self { address: [first, second, third, address], port }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        let [first, second, third] = Self::MAPPED;
        self.address[0] == first && self.address[1] == second && self.address[2] == third
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        let octets = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word =
            |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self { address: [word(0), word(4), word(8), word(12)], port: u32::from(address.port().to_be()) }
    }
}

impl From<Place> for SocketAddr {
    fn from(place: Place) -> Self {
        let mut octets = [0; 16];
        for (at, word) in place.address.iter().enumerate() {
            octets[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        let ip = Ipv6Addr::from(octets);
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), |ip: Ipv4Addr| IpAddr::V4(ip));
        // The port is in the lower half.
        SocketAddr::new(ip, u16::from_be((place.port & 0xffff) as u16))
    }
}

#[cfg(test)]
mod tests;
