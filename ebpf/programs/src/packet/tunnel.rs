//! Tunnels from the node that a client's packets come to, to those that have the endpoints, which answer clients directly
//! (GRE, RFC 2784 and RFC 2890). A packet in a tunnel is as the client has sent it; the destination of the outer header
//! and the key tell which endpoint it is for.
//!
//! The programs here go on where others have ended: each has to be understood by the kernel's verifier by itself.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_GRE, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT,
    TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::generated::bpf_skb_adjust_room;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, ProgramArray};
use mesonet_ebpf_abi::{
    Difference, NODES_MAX, NextProgram, PROGRAMS_MAX, PacketEvent, Place, TCP, Tuple, UDP,
};

use crate::buffer::Buffer;
use crate::headers::{Direction, Header, IPV6, Segment, TUNNEL};
use crate::packet::{Family, Packet, read, write};
use crate::scratch::{TunnelEnds, scratch};
use crate::{Action, count, endpoints, flows, refusal, route};

/// Programs that others go on with.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(PROGRAMS_MAX, 0);

/// The addresses of the cluster's nodes, from which packets in tunnels are taken.
#[map]
static NODES: HashMap<[u32; 4], u32> = HashMap::with_max_entries(NODES_MAX, NO_PREALLOC);

const NO_PREALLOC: u32 = 1;

/// Octets of the header between two IP headers.
const GRE: usize = 8;

/// It has a key.
const KEY: u8 = 0x20;

/// How long a packet in a tunnel may live.
const HOPS: u8 = 64;

/// Octets that are looked at: headers of link, IP, GRE, IP and TCP.
const LOOKED_AT: usize = 14 + 40 + GRE + 40 + 20;

/// Goes on with another program, if there is one.
#[inline(always)]
pub fn go_on<const LINK: usize>(packet: &Buffer<LINK>, next: NextProgram) {
    // SAFETY: nothing is held that would have to be given back.
    unsafe { PROGRAMS.tail_call(&packet.0, next as u32 + (LINK == 0) as u32) };
}

/// Sends a packet through the tunnel that was prepared for it.
#[inline(always)]
pub fn encapsulate<const LINK: usize>(packet: &Buffer<LINK>) -> i32 {
    let result = match family_of(packet) {
        Ok(Family::V4) => encapsulate_of(packet, Family::V4),
        Ok(Family::V6) => encapsulate_of(packet, Family::V6),
        Err(event) => Err(event),
    };
    match result {
        Ok(Action(verdict)) => verdict as i32,
        Err(event) => {
            count(event);
            TC_ACT_SHOT as i32
        }
    }
}

#[inline(always)]
fn encapsulate_of<const LINK: usize>(packet: &Buffer<LINK>, family: Family) -> Result<Action, PacketEvent> {
    let scratch = scratch()?;
    // SAFETY: the program before has written both, and nothing else uses them.
    let (way, ends) = unsafe { (&(*scratch).route, &(*scratch).ends) };
    let overhead = family.header() + GRE;
    let protocol: u8 = match family {
        Family::V4 => read(packet, LINK + 9)?,
        Family::V6 => read(packet, LINK + 6)?,
    };
    // The kernel makes shorter segments of bundles of TCP, but no shorter datagrams.
    let is_bundle = packet.segment() != 0;
    let length = if is_bundle { packet.segment() + family.header() as u32 + 8 } else { packet.length() };
    let may_shrink = is_bundle && protocol == TCP;
    if way.mtu != 0 && !may_shrink && length + overhead as u32 > way.mtu {
        count(PacketEvent::TooLong);
        return Ok(Action(refusal::refuse(packet, way.mtu.wrapping_sub(overhead as u32)) as u32));
    }
    if way.interface == 0 {
        return Err(PacketEvent::NoWay);
    }
    let class = match family {
        Family::V4 => read::<_, [u8; 2]>(packet, LINK)?[1],
        Family::V6 => {
            let [first, second]: [u8; 2] = read(packet, LINK)?;
            first << 4 | second >> 4
        }
    };
    flows::count(packet, family, protocol as u32, ends.number, false);
    route::address(way, packet, family)?;
    let network = match family {
        Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    };
    let size = if may_shrink { 0 } else { BPF_F_ADJ_ROOM_FIXED_GSO };
    adjust(packet, overhead as i32, network | BPF_F_ADJ_ROOM_ENCAP_L4_GRE | size)?;
    let length = packet.length().wrapping_sub(family.header() as u32) as u16;
    write_header(packet, family, ends, length, class)?;
    // Most significant octets first.
    let [high, low, ..] = ends.endpoint.port.to_ne_bytes();
    write(packet, LINK + family.header(), [gre(family), u32::from_ne_bytes([0, 0, high, low])])?;
    Ok(packet.send(family, way))
}

/// What stands before the key.
#[inline(always)]
fn gre(family: Family) -> u32 {
    let [high, low] = family.kind().to_ne_bytes();
    u32::from_ne_bytes([KEY, 0, high, low])
}

/// Writes the outer header, with the class of the inner one but no mark of congestion: that would have to be taken over at
/// the other end.
#[inline(always)]
fn write_header<const LINK: usize>(
    packet: &Buffer<LINK>,
    family: Family,
    ends: &TunnelEnds,
    length: u16,
    class: u8,
) -> Result<(), PacketEvent> {
    let class = class & !3;
    let (source, target) = (&ends.source, &ends.endpoint.address);
    match family {
        Family::V4 => {
            let [high, low] = length.wrapping_add(Family::V4.header() as u16).to_be_bytes();
            let words = [
                u32::from_ne_bytes([0x45, class, high, low]),
                // May not be cut to pieces, so that it needs no number.
                u32::from_ne_bytes([0, 0, 0x40, 0]),
                u32::from_ne_bytes([HOPS, TUNNEL, 0, 0]),
                source[3],
                target[3],
            ];
            let sum = words.iter().fold(Difference::default(), |sum, word| sum.add(*word));
            write(packet, LINK, words)?;
            write(packet, LINK + 10, sum.apply(!0))
        }
        Family::V6 => {
            let [high, low] = length.to_be_bytes();
            let words = [
                u32::from_ne_bytes([0x60 | class >> 4, class << 4, 0, 0]),
                u32::from_ne_bytes([high, low, TUNNEL, HOPS]),
            ];
            write(packet, LINK, words)?;
            write(packet, LINK + 8, *source)?;
            write(packet, LINK + 24, *target)
        }
    }
}

/// Takes a packet out of a tunnel, notes its flow, and has the program go on that is for packets of flows. What does not
/// come from a node of the cluster, or is for no endpoint here, is left to the rest of the kernel.
#[inline(always)]
pub fn decapsulate<const LINK: usize>(packet: &Buffer<LINK>) -> i32 {
    packet.pull(LOOKED_AT);
    let result = match family_of(packet) {
        Ok(Family::V4) => decapsulate_of(packet, Family::V4),
        Ok(Family::V6) => decapsulate_of(packet, Family::V6),
        Err(event) => Err(event),
    };
    match result {
        Ok(true) => {
            go_on(packet, NextProgram::In);
            TC_ACT_SHOT as i32
        }
        Ok(false) => TC_ACT_UNSPEC,
        Err(event) => {
            count(event);
            TC_ACT_SHOT as i32
        }
    }
}

/// Returns whether it was in a tunnel.
#[inline(always)]
fn decapsulate_of<const LINK: usize>(packet: &Buffer<LINK>, family: Family) -> Result<bool, PacketEvent> {
    let overhead = family.header() + GRE;
    let Ok([head, key]) = read::<_, [u32; 2]>(packet, LINK + family.header()) else { return Ok(false) };
    let (from, to) = addresses(packet, family, LINK)?;
    // SAFETY: the value is not looked at.
    let is_of_node = unsafe { NODES.get(&from) }.is_some();
    if head != gre(family) || !is_of_node {
        return Ok(false);
    }
    let segment = segment(packet, family, LINK + overhead)?;
    let [_, _, high, low] = key.to_ne_bytes();
    let place = Place { address: to, port: u32::from_ne_bytes([high, low, 0, 0]) };
    let Some((number, endpoint)) = endpoints::here(&segment.tuple, place) else { return Ok(false) };
    if !flows::begin_here::<Buffer<LINK>>(&segment, number, endpoint)? {
        return Ok(false);
    }
    let network = match family {
        Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    adjust(packet, -(overhead as i32), network | BPF_F_ADJ_ROOM_FIXED_GSO)?;
    Ok(true)
}

/// The inner packet, if it is a whole one of TCP or UDP. The program that goes on with it looks at the rest.
#[inline(always)]
fn segment<const LINK: usize>(
    packet: &Buffer<LINK>,
    family: Family,
    start: usize,
) -> Result<Segment, PacketEvent> {
    let (is_plain, length, protocol) = match family {
        Family::V4 => {
            let [first, second, third]: [u32; 3] = read(packet, start)?;
            let [version, _, high, low] = first.to_ne_bytes();
            let [_, _, flags, offset] = second.to_ne_bytes();
            let is_whole = flags & 0x3f == 0 && offset == 0;
            (version == 0x45 && is_whole, u16::from_be_bytes([high, low]) as u32, third.to_ne_bytes()[1])
        }
        Family::V6 => {
            let [first, second]: [u32; 2] = read(packet, start)?;
            let [high, low, protocol, _] = second.to_ne_bytes();
            let length = u16::from_be_bytes([high, low]) as u32 + Family::V6.header() as u32;
            (first.to_ne_bytes()[0] >> 4 == 6, length, protocol)
        }
    };
    if !is_plain || length + (start - LINK) as u32 > packet.length() {
        return Err(PacketEvent::Malformed);
    }
    let (from, to) = addresses(packet, family, start)?;
    let transport = start + family.header();
    let (ports, flags) = match protocol {
        TCP => {
            let [ports, _, _, flags, _]: [u32; 5] = read(packet, transport)?;
            (ports, flags.to_ne_bytes()[1])
        }
        UDP => (read::<_, [u32; 2]>(packet, transport)?[0], 0),
        _ => return Err(PacketEvent::Malformed),
    };
    let tuple = Tuple { from, to, ports, protocol: protocol as u32 };
    let header = Header { family, hops: HOPS, direction: Direction::In, may_be_cut: false };
    Ok(Segment { tuple, header, flags })
}

/// The addresses of an IP header.
#[inline(always)]
fn addresses<const LINK: usize>(
    packet: &Buffer<LINK>,
    family: Family,
    start: usize,
) -> Result<([u32; 4], [u32; 4]), PacketEvent> {
    match family {
        Family::V4 => {
            let [from, to]: [u32; 2] = read(packet, start + 12)?;
            Ok((Place::ipv4(from, 0).address, Place::ipv4(to, 0).address))
        }
        Family::V6 => Ok((read(packet, start + 8)?, read(packet, start + 24)?)),
    }
}

#[inline(always)]
fn family_of<const LINK: usize>(packet: &Buffer<LINK>) -> Result<Family, PacketEvent> {
    let is_v6 = if LINK > 0 {
        read::<_, u16>(packet, LINK - 2)? == IPV6
    } else {
        read::<_, u8>(packet, 0)? >> 4 == 6
    };
    Ok(if is_v6 { Family::V6 } else { Family::V4 })
}

/// Makes or takes room between the link header and what follows.
#[inline(always)]
fn adjust<const LINK: usize>(packet: &Buffer<LINK>, octets: i32, flags: u32) -> Result<(), PacketEvent> {
    // SAFETY: the helper checks its arguments.
    match unsafe { bpf_skb_adjust_room(packet.0.skb.skb, octets, BPF_ADJ_ROOM_MAC, flags as u64) } {
        0 => Ok(()),
        _ => Err(PacketEvent::NoWay),
    }
}
