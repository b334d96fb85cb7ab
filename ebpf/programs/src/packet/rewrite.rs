//! New addresses and ports for a packet.

use mesonet_ebpf_abi::{Difference, LOOPBACK_INTERFACE, PacketEvent, TCP, Track, Tuple};

use crate::Action;
use crate::endpoints;
use crate::flows;
use crate::headers::Segment;
use crate::packet::{ChecksumChange, Family, Packet, octets, own_length, read, write};
use crate::route::{self, Route};
use crate::scratch::{TunnelEnds, scratch};

/// What becomes of a packet that got other addresses; nothing if it was left as it is.
type Applied = Result<Option<Action>, PacketEvent>;

/// Gives a packet the addresses and ports of its flow, counts it for an endpoint, and sends it on.
#[inline(always)]
pub fn apply<P: Packet>(packet: &P, segment: &Segment, track: &mut Track, counted: Option<u32>) -> Applied {
    let (old, family) = (&segment.tuple, segment.header.family);
    let new = &track.tuple;
    let start = P::LINK + family.header();
    let is_tcp = old.protocol == TCP as u32;
    let checksum_at = if is_tcp { start + 16 } else { start + 6 };
    if P::IS_EARLY && lacks_checksum(packet, segment, checksum_at)? {
        return Ok(None);
    }
    // A question is where it goes, not how.
    let is_direct = track.direction == Track::DIRECT && packet.interface() != LOOPBACK_INTERFACE;
    // What is in a tunnel may become shorter.
    let length = if is_direct { 1 } else { packet.longest(family, old.protocol) };
    let way = route::find(packet, &segment.header, new, length, &mut track.hop)?;
    if is_direct {
        return prepare_tunnel::<P>(segment, track.endpoint, new, way);
    }
    // The rest of the kernel would not take it, or would tell whoever it seems to be from then.
    let is_lost = old.from != new.from || !segment.header.may_be_cut;
    if !P::IS_EARLY && way.interface == 0 && way.mtu != 0 && is_lost {
        return Err(PacketEvent::TooLong);
    }
    if is_left(packet, old, new, way) {
        return Ok(None);
    }
    packet.change_checksum(&ChecksumChange {
        at: checksum_at,
        is_optional: !is_tcp,
        family,
        addresses: addresses(family, old, new),
        ports: Difference::default().replace(old.ports, new.ports),
    })?;
    write(packet, start, new.ports)?;
    write_addresses(packet, P::LINK, family, old, new)?;
    if let Some(endpoint) = counted {
        flows::count(packet, family, old.protocol, endpoint, track.direction == Track::TO_CLIENT);
    }
    send(packet, family, way).map(Some)
}

/// Whether somebody on the way is to make the checksum, as on virtual interfaces: there is only the sum of the pseudo header.
/// Who comes first does not know it otherwise. If it is the checksum by chance, no harm is done.
#[inline(always)]
fn lacks_checksum<P: Packet>(packet: &P, segment: &Segment, at: usize) -> Result<bool, PacketEvent> {
    let Tuple { from, to, protocol, .. } = &segment.tuple;
    let family = segment.header.family;
    let length = own_length(packet, family).wrapping_sub(family.header() as u32);
    let rest = Difference::default().add(protocol.to_be() >> 16).add(length.to_be() >> 16);
    let sum = match family {
        Family::V4 => rest.add(from[3]).add(to[3]),
        Family::V6 => from.iter().chain(to).fold(rest, |sum, word| sum.add(*word)),
    };
    Ok(sum.apply(!0) == !read::<P, u16>(packet, at)?)
}

/// Leaves a packet as it is, and says where the tunnel leads that it goes through. One that has no hop left is the kernel's,
/// and whoever comes first leaves it to the program that does the rest.
#[inline(always)]
fn prepare_tunnel<P: Packet>(segment: &Segment, endpoint: u32, new: &Tuple, way: &Route) -> Applied {
    if P::IS_EARLY || segment.header.hops <= 1 {
        return Ok(None);
    }
    let source = endpoints::endpoint(endpoint).ok_or(PacketEvent::NoFlow)?.source;
    let scratch = scratch()?;
    let way = *way;
    // SAFETY: nothing else uses these parts.
    unsafe {
        (*scratch).route = way;
        (*scratch).ends = TunnelEnds { source, endpoint: new.destination(), number: endpoint };
    }
    Ok(Some(Action::ENCAPSULATE))
}

/// Whether another program should do what cannot be done here: the rest of the kernel takes no packets from outside
/// with one of its own addresses, nor, if it is strict, with those of others than live there.
#[inline(always)]
pub fn is_left<P: Packet>(packet: &P, old: &Tuple, new: &Tuple, way: &Route) -> bool {
    P::IS_EARLY && way.interface == 0 && old.from != new.from && packet.interface() != LOOPBACK_INTERFACE
}

/// Sends a packet its way.
#[inline(always)]
pub fn send<P: Packet>(packet: &P, family: Family, way: &Route) -> Result<Action, PacketEvent> {
    if way.interface == 0 {
        return Ok(Action::PASS);
    }
    route::address(way, packet, family)?;
    Ok(packet.send(family, way))
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
    let header = octets(packet, start, family.header())?;
    // SAFETY: all that is read and written is within what was found to be there. BPF has no alignment.
    unsafe {
        match family {
            Family::V4 => {
                let checksum = header.add(10).cast::<u16>();
                *checksum = addresses(family, old, new).apply(*checksum);
                *header.add(12).cast::<u32>() = new.from[3];
                *header.add(16).cast::<u32>() = new.to[3];
            }
            Family::V6 => {
                *header.add(8).cast::<[u32; 4]>() = new.from;
                *header.add(24).cast::<[u32; 4]>() = new.to;
            }
        }
    }
    Ok(())
}
