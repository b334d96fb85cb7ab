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

/// The types of packets in link headers.
const IPV4: u16 = Family::V4.kind();
pub const IPV6: u16 = Family::V6.kind();

/// Octets that are looked at: headers of link, IP and TCP, or of link, IP, ICMP, IP and the ports within.
const LOOKED_AT: usize = 14 + 40 + 8 + 40 + 8;

/// The numbers of ICMP in IP headers.
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// That of tunnels (GRE).
pub const TUNNEL: u8 = 47;

/// Headers of IPv6 that stand before those of a protocol: options, routing, security, mobility and others.
const EXTENSIONS: [u8; 8] = [0, 43, 50, 51, 60, 135, 139, 140];
const FRAGMENT: u8 = 44;

/// "Do not fragment".
const WHOLE_BIT: u16 = 0x4000_u16.to_be();

/// "More fragments" and the offset.
const FRAGMENT_BITS: u16 = 0x3fff_u16.to_be();

/// What is known of an IP header besides addresses.
#[derive(Clone, Copy)]
pub struct Header {
    pub family: Family,
    /// How many hops it has left.
    pub hops: u8,
    /// The packet's way.
    pub direction: Direction,
    /// Whether routers may cut it to pieces.
    pub may_be_cut: bool,
}

/// A packet of TCP or UDP.
pub struct Segment {
    pub tuple: Tuple,
    pub header: Header,
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
    let [first, second, third, source, destination]: [u32; 5] = read(packet, P::LINK)?;
    let [version, _, high, low] = first.to_ne_bytes();
    match version {
        0x45 => {}
        0x46..=0x4f => return Err(PacketEvent::Options),
        _ => return Err(PacketEvent::Malformed),
    }
    if u16::from_be_bytes([high, low]) as u32 > packet.length() {
        return Err(PacketEvent::Malformed);
    }
    let [_, _, high, low] = second.to_ne_bytes();
    let fragment = u16::from_ne_bytes([high, low]);
    if fragment & FRAGMENT_BITS != 0 {
        return Err(PacketEvent::Fragment);
    }
    let [hops, protocol, ..] = third.to_ne_bytes();
    let (from, to) = (Place::ipv4(source, 0).address, Place::ipv4(destination, 0).address);
    let may_be_cut = fragment & WHOLE_BIT == 0;
    let header = Header { family: Family::V4, hops, direction, may_be_cut };
    match protocol {
        ICMP => icmp::translate(packet, header, &from, &to),
        protocol => transport(packet, header, from, to, protocol),
    }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, direction: Direction) -> Result<Action, PacketEvent> {
    let [first, second, a, b, c, d, e, f, g, h]: [u32; 10] = read(packet, P::LINK)?;
    let (from, to) = ([a, b, c, d], [e, f, g, h]);
    if first.to_ne_bytes()[0] >> 4 != 6 {
        return Err(PacketEvent::Malformed);
    }
    let [high, low, protocol, hops] = second.to_ne_bytes();
    if u16::from_be_bytes([high, low]) as u32 + Family::V6.header() as u32 > packet.length() {
        return Err(PacketEvent::Malformed);
    }
    let header = Header { family: Family::V6, hops, direction, may_be_cut: false };
    match protocol {
        ICMPV6 => icmp::translate(packet, header, &from, &to),
        FRAGMENT => Err(PacketEvent::Fragment),
        protocol if EXTENSIONS.contains(&protocol) => Err(PacketEvent::Options),
        protocol => transport(packet, header, from, to, protocol),
    }
}

#[inline(always)]
fn transport<P: Packet>(
    packet: &P,
    header: Header,
    from: [u32; 4],
    to: [u32; 4],
    protocol: u8,
) -> Result<Action, PacketEvent> {
    let start = P::LINK + header.family.header();
    let (ports, flags) = match protocol {
        // Its header has at least 20 octets.
        TCP => {
            let [ports, _, _, flags, _]: [u32; 5] = read(packet, start)?;
            (ports, flags.to_ne_bytes()[1])
        }
        UDP => (read::<P, [u32; 2]>(packet, start)?[0], 0),
        TUNNEL if header.direction == Direction::In => return Ok(Action::DECAPSULATE),
        _ => return Ok(Action::PASS),
    };
    let tuple = Tuple { from, to, ports, protocol: protocol as u32 };
    flows::translate(packet, &Segment { tuple, header, flags })
}
