//! New addresses and ports for a packet.

use mesonet_ebpf_abi::{Difference, LOOPBACK_INTERFACE, PacketEvent, TCP, Tuple};

use crate::Action;
use crate::headers::{Direction, Segment};
use crate::packet::{ChecksumChange, Family, Packet, read, write};
use crate::route::{Route, has_hops};

/// What becomes of a packet that got other addresses; nothing if it was left as it is.
type Applied = Result<Option<Action>, PacketEvent>;

/// Gives a packet the addresses and ports of its flow and sends it on.
#[inline(always)]
pub fn apply<P: Packet>(packet: &P, direction: Direction, segment: &Segment, new: &Tuple) -> Applied {
    let (old, family) = (&segment.tuple, segment.family);
    let way = way(packet, direction, family, new)?;
    if is_left(packet, old, new, &way) {
        return Ok(None);
    }
    let start = P::LINK + family.header();
    let is_tcp = old.protocol == TCP as u32;
    packet.change_checksum(&ChecksumChange {
        at: if is_tcp { start + 16 } else { start + 6 },
        is_optional: !is_tcp,
        family,
        addresses: addresses(family, old, new),
        ports: Difference::default().replace(old.ports, new.ports),
    })?;
    write(packet, start, new.ports)?;
    write_addresses(packet, P::LINK, family, old, new)?;
    send(packet, family, &way).map(Some)
}

/// Where a packet with such addresses goes, if not to the rest of the kernel.
#[inline(always)]
pub fn way<P: Packet>(
    packet: &P,
    direction: Direction,
    family: Family,
    new: &Tuple,
) -> Result<Option<Route>, PacketEvent> {
    let is_forwarded = direction == Direction::In && has_hops(packet, family)?;
    Ok(if is_forwarded { packet.way(family, new) } else { None })
}

/// Whether another program should do what cannot be done here: the rest of the kernel takes no packets from outside
/// with one of its own addresses, nor, if it is strict, with those of others than live there.
#[inline(always)]
pub fn is_left<P: Packet>(packet: &P, old: &Tuple, new: &Tuple, way: &Option<Route>) -> bool {
    P::IS_EARLY && way.is_none() && old.from != new.from && packet.interface() != LOOPBACK_INTERFACE
}

/// Sends a packet its way.
#[inline(always)]
pub fn send<P: Packet>(packet: &P, family: Family, way: &Option<Route>) -> Result<Action, PacketEvent> {
    match way {
        Some(way) => packet.send(family, way),
        None => Ok(Action::PASS),
    }
}

/// What changes in the addresses.
#[inline(always)]
pub fn addresses(family: Family, old: &Tuple, new: &Tuple) -> Difference {
    let none = Difference::default();
    match family {
        // Those of IPv4 differ in their last words only.
        Family::V4 => none.replace(old.from[3], new.from[3]).replace(old.to[3], new.to[3]),
        Family::V6 => none.replace_address(&old.from, &new.from).replace_address(&old.to, &new.to),
    }
}

/// Replaces the addresses of an IP header, and its checksum if it has one.
#[inline(always)]
pub fn write_addresses<P: Packet>(
    packet: &P,
    start: usize,
    family: Family,
    old: &Tuple,
    new: &Tuple,
) -> Result<(), PacketEvent> {
    match family {
        Family::V4 => {
            let checksum = addresses(family, old, new).apply(read(packet, start + 10)?);
            write(packet, start + 10, checksum)?;
            write(packet, start + 12, new.from[3])?;
            write(packet, start + 16, new.to[3])
        }
        Family::V6 => {
            write(packet, start + 8, new.from)?;
            write(packet, start + 24, new.to)
        }
    }
}
