//! From octets to addresses and ports.

use mesonet_ebpf_abi::{PacketEvent, Place, TCP, Tuple, UDP};

use crate::Action;
use crate::packet::{Family, Packet, read};
use crate::{flows, icmp};

/// The way of a packet through the interface.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

const IPV4: u16 = 0x0800_u16.to_be();
/// The type of packets of IPv6 in link headers.
pub const IPV6: u16 = 0x86dd_u16.to_be();

/// Octets that are looked at: headers of link, IP and TCP, or of link, IP, ICMP, IP and the ports within.
const LOOKED_AT: usize = 14 + 40 + 8 + 40 + 8;

/// The numbers of ICMP in IP headers.
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// Headers of IPv6 that stand before those of a protocol: options, routing, security, mobility and others.
const EXTENSIONS: [u8; 8] = [0, 43, 50, 51, 60, 135, 139, 140];
const FRAGMENT: u8 = 44;

/// "More fragments" and the offset.
const FRAGMENT_BITS: u16 = 0x3fff_u16.to_be();

/// A packet of TCP or UDP.
pub struct Segment {
    pub tuple: Tuple,
    pub family: Family,
    /// The flags of TCP; none for UDP.
    pub flags: u8,
}

impl Segment {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;

    /// Whether it asks for a connection.
    #[inline(always)]
    pub fn begins(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether it ends a half of a connection, or all of it.
    #[inline(always)]
    pub fn ends(&self) -> bool {
        self.flags & (Self::FIN | Self::RST) != 0
    }

    /// Whether it ends a connection at once.
    #[inline(always)]
    pub fn resets(&self) -> bool {
        self.flags & Self::RST != 0
    }
}

/// Decides on a packet and changes it.
#[inline(always)]
pub fn balance<P: Packet>(packet: &P, direction: Direction) -> Result<Action, PacketEvent> {
    if packet.is_tagged() {
        return Ok(Action::PASS);
    }
    packet.pull(LOOKED_AT);
    if P::LINK > 0 {
        match read::<P, u16>(packet, P::LINK - 2)? {
            IPV4 => ipv4(packet, direction),
            IPV6 => ipv6(packet, direction),
            _ => Ok(Action::PASS),
        }
    } else {
        match read::<P, u8>(packet, 0)? >> 4 {
            4 => ipv4(packet, direction),
            6 => ipv6(packet, direction),
            _ => Ok(Action::PASS),
        }
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, direction: Direction) -> Result<Action, PacketEvent> {
    let start = P::LINK;
    let source: u32 = read(packet, start + 12)?;
    let destination: u32 = read(packet, start + 16)?;
    match read::<P, u8>(packet, start)? {
        0x45 => {}
        0x46..=0x4f => return Err(PacketEvent::Options),
        _ => return Err(PacketEvent::Malformed),
    }
    let total = u16::from_be(read(packet, start + 2)?) as u32;
    if total > packet.length() {
        return Err(PacketEvent::Malformed);
    }
    if read::<P, u16>(packet, start + 6)? & FRAGMENT_BITS != 0 {
        return Err(PacketEvent::Fragment);
    }
    let (from, to) = (Place::ipv4(source, 0).address, Place::ipv4(destination, 0).address);
    match read::<P, u8>(packet, start + 9)? {
        ICMP => icmp::translate(packet, direction, Family::V4, &from, &to),
        protocol => transport(packet, direction, Family::V4, from, to, protocol),
    }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, direction: Direction) -> Result<Action, PacketEvent> {
    let start = P::LINK;
    let from: [u32; 4] = read(packet, start + 8)?;
    let to: [u32; 4] = read(packet, start + 24)?;
    if read::<P, u8>(packet, start)? >> 4 != 6 {
        return Err(PacketEvent::Malformed);
    }
    let payload = u16::from_be(read(packet, start + 4)?) as u32;
    if payload + Family::V6.header() as u32 > packet.length() {
        return Err(PacketEvent::Malformed);
    }
    match read::<P, u8>(packet, start + 6)? {
        ICMPV6 => icmp::translate(packet, direction, Family::V6, &from, &to),
        FRAGMENT => Err(PacketEvent::Fragment),
        header if EXTENSIONS.contains(&header) => Err(PacketEvent::Options),
        protocol => transport(packet, direction, Family::V6, from, to, protocol),
    }
}

#[inline(always)]
fn transport<P: Packet>(
    packet: &P,
    direction: Direction,
    family: Family,
    from: [u32; 4],
    to: [u32; 4],
    protocol: u8,
) -> Result<Action, PacketEvent> {
    let start = P::LINK + family.header();
    let flags = match protocol {
        // Its header has at least 20 octets.
        TCP => read::<P, [u8; 20]>(packet, start)?[13],
        UDP => {
            read::<P, u64>(packet, start)?;
            0
        }
        _ => return Ok(Action::PASS),
    };
    let tuple = Tuple { from, to, ports: read(packet, start)?, protocol: protocol as u32 };
    flows::translate(packet, direction, &Segment { tuple, family, flags })
}
