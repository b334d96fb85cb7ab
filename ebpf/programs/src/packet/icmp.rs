//! Errors about packets that were translated, for whom they are meant: the embedded packet becomes the one that the
//! receiver has sent.

use mesonet_ebpf_abi::{Difference, Hop, PacketEvent, TCP, Tuple, UDP};

use crate::Action;
use crate::flows;
use crate::headers::Header;
use crate::packet::{Family, Packet, at, read, write};
use crate::rewrite;
use crate::route;
use crate::scratch::scratch;

/// Octets of ICMP's header.
const HEADER: usize = 8;

/// Translates an error about a packet of a known flow. Everything else of ICMP passes.
#[inline(always)]
pub fn translate<P: Packet>(
    packet: &P,
    header: Header,
    from: &[u32; 4],
    to: &[u32; 4],
) -> Result<Action, PacketEvent> {
    let family = header.family;
    let start = P::LINK + family.header();
    if !is_error(family, read(packet, start)?) {
        return Ok(Action::PASS);
    }
    let Some(embedded) = embedded(packet, family, start + HEADER)? else { return Ok(Action::PASS) };
    // The error travels against the packet that it is about.
    let way = embedded.flip();
    let Some(track) = flows::find(&way) else { return Ok(Action::PASS) };
    if *to != way.to {
        return Err(PacketEvent::Malformed);
    }
    let new = track.tuple;
    // A router on the way keeps its own address.
    let sender = if *from == way.from { new.from } else { *from };
    let old = Tuple { from: *from, to: *to, ..way };
    let outer = Tuple { from: sender, to: new.to, ..new };
    // An error has a way of its own, which is not noted.
    // SAFETY: nothing else uses this part.
    let hop = unsafe { &mut (*scratch()?).track.hop };
    *hop = Hop::default();
    let out = route::find(packet, &header, &outer, packet.length(), hop)?;
    if rewrite::is_left(packet, &old, &outer, out) {
        return Ok(Action::PASS);
    }
    let inner = change_embedded(packet, family, start + HEADER, &embedded, &new.flip())?;
    let checksum: u16 = read(packet, start + 2)?;
    let change = match family {
        Family::V4 => inner,
        // Its checksum covers the addresses.
        Family::V6 => inner.replace_address(&old.from, &outer.from).replace_address(&old.to, &outer.to),
    };
    write(packet, start + 2, change.apply(checksum))?;
    rewrite::write_addresses(packet, P::LINK, family, &old, &outer)?;
    rewrite::send(packet, family, out)
}

/// Whether a type of message tells of a packet that was not delivered.
#[inline(always)]
fn is_error(family: Family, kind: u8) -> bool {
    match family {
        // Destination unreachable, time exceeded, parameter problem.
        Family::V4 => matches!(kind, 3 | 11 | 12),
        // The same, and packet too big.
        Family::V6 => matches!(kind, 1..=4),
    }
}

/// The addresses and ports of the embedded packet, if it is a whole one of TCP or UDP.
#[inline(always)]
fn embedded<P: Packet>(packet: &P, family: Family, start: usize) -> Result<Option<Tuple>, PacketEvent> {
    let (protocol, is_plain) = match family {
        Family::V4 => {
            let is_first = read::<P, u16>(packet, start + 6)? & 0x1fff_u16.to_be() == 0;
            (read::<P, u8>(packet, start + 9)?, read::<P, u8>(packet, start)? == 0x45 && is_first)
        }
        Family::V6 => (read::<P, u8>(packet, start + 6)?, read::<P, u8>(packet, start)? >> 4 == 6),
    };
    if !is_plain || !matches!(protocol, TCP | UDP) {
        return Ok(None);
    }
    // Errors have at least eight octets of what follows the IP header.
    let [ports, _]: [u32; 2] = read(packet, start + family.header())?;
    let (from, to) = match family {
        Family::V4 => {
            let [from, to]: [u32; 2] = read(packet, start + 12)?;
            (mesonet_ebpf_abi::Place::ipv4(from, 0).address, mesonet_ebpf_abi::Place::ipv4(to, 0).address)
        }
        Family::V6 => (read(packet, start + 8)?, read(packet, start + 24)?),
    };
    Ok(Some(Tuple { from, to, ports, protocol: protocol as u32 }))
}

/// Gives the embedded packet other addresses and ports. Returns by how much the sum over it grows.
#[inline(always)]
fn change_embedded<P: Packet>(
    packet: &P,
    family: Family,
    start: usize,
    old: &Tuple,
    new: &Tuple,
) -> Result<Difference, PacketEvent> {
    let addresses = rewrite::addresses(family, old, new);
    let ports = Difference::default().replace(old.ports, new.ports);
    rewrite::write_addresses(packet, start, family, old, new)?;
    let transport = start + family.header();
    write(packet, transport, new.ports)?;
    let is_tcp = old.protocol == TCP as u32;
    // The checksum of TCP is beyond what every error has.
    let place = if is_tcp { transport + 16 } else { transport + 6 };
    let both = ports.add(addresses.bits());
    let mut grown = match family {
        // The checksum of the header makes up for its addresses.
        Family::V4 => ports,
        Family::V6 => both,
    };
    if let Ok(pointer) = at::<P, u16>(packet, place) {
        // SAFETY: within bounds.
        let checksum = unsafe { *pointer };
        if is_tcp || checksum != 0 {
            let changed = both.apply(checksum);
            // SAFETY: as above.
            unsafe { *pointer = changed };
            grown = grown.replace(checksum as u32, changed as u32);
        }
    }
    Ok(grown)
}
