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

mod choice;
mod flow_hash;
mod words;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use choice::{Share, choose_slot};
pub use flow_hash::{flow_hash, hash_slot, hash_words, source_hash};
pub use words::Words;

/// Version of everything in this crate. Maps and links are pinned below a directory of this name; a program that knows
/// another version replaces them as a whole.
pub const LAYOUT: &str = "v1";

/// The number of TCP in IP headers.
pub const TCP: u8 = 6;

/// The number of UDP in IP headers.
pub const UDP: u8 = 17;

/// Virtual addresses with port and protocol that a node can serve. DESIGN.md §10 asks for 10,000 services; each may have
/// several addresses.
pub const FRONTENDS_MAX: u32 = 131_072;

/// Endpoints of all services together, twice while services change.
pub const SLOTS_MAX: u32 = 1_048_576;

/// Connections and datagram flows whose virtual addresses are known. The kernel forgets those that were unused for the
/// longest time; such a socket sees its endpoint's address instead of the virtual one.
pub const FLOWS_MAX: u32 = 262_144;

/// Endpoints whose connections are counted.
pub const COUNTERS_MAX: u32 = 262_144;

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

/// A socket and one of the places that it talks to: the key of both maps of flows.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The kernel's cookie of the socket, never used again; low word first.
    pub socket: [u32; 2],
    /// The other side.
    pub place: Place,
}

/// What is counted of an endpoint, on each processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections and datagram flows that were sent to it.
    pub connections: u64,
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
