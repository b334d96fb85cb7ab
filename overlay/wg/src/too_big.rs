//! What the sender of a packet is told that does not fit: ICMP, as a router would.

use crate::checksum;
use crate::ip::{IPV4_HEADER, IPV6_HEADER, write_length};

/// Octets of the refused packet that are quoted.
const QUOTE_MAX: usize = 512;

const ICMP_HEADER: usize = 8;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// No IPv6 link has a smaller MTU, and senders are not told of one.
const IPV6_MTU_MIN: usize = 1280;

/// What the sender of a packet is told, which size fits: an ICMP message. Nobody is told about what ICMP itself says.
pub(crate) fn refusal(packet: &[u8], mtu: usize) -> Option<Vec<u8>> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER => refusal_v4(packet, mtu),
        6 if packet.len() >= IPV6_HEADER => refusal_v6(packet, mtu.max(IPV6_MTU_MIN)),
        _ => None,
    }
}

fn refusal_v4(packet: &[u8], mtu: usize) -> Option<Vec<u8>> {
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let is_later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
    let header = usize::from(packet[0] & 15) * 4;
    let is_icmp_error = packet[9] == ICMP && !matches!(packet.get(header), Some(0 | 8));
    if is_later_fragment || is_icmp_error {
        return None;
    }
    let quote = &packet[..packet.len().min(QUOTE_MAX)];
    let mut out = vec![0; IPV4_HEADER + ICMP_HEADER];
    out[0] = 0x45;
    out[8] = 64;
    out[9] = ICMP;
    // From the address that could not be reached, because the tunnel has none that would say more.
    out[12..16].copy_from_slice(&packet[16..20]);
    out[16..20].copy_from_slice(&packet[12..16]);
    out[20] = UNREACHABLE;
    out[21] = FRAGMENTATION_NEEDED;
    out[26..28].copy_from_slice(&(mtu as u16).to_be_bytes());
    out.extend_from_slice(quote);
    let length = out.len();
    write_length(&mut out, true, length);
    let sum = checksum::finished(checksum::add(0, &out[IPV4_HEADER..]));
    out[22..24].copy_from_slice(&sum);
    Some(out)
}

fn refusal_v6(packet: &[u8], mtu: usize) -> Option<Vec<u8>> {
    const PACKET_TOO_BIG: u8 = 2;
    let is_icmp_error = packet[6] == ICMP_V6 && packet.get(IPV6_HEADER).is_some_and(|kind| *kind < 128);
    if is_icmp_error {
        return None;
    }
    let quote = &packet[..packet.len().min(QUOTE_MAX)];
    let mut out = vec![0; IPV6_HEADER + ICMP_HEADER];
    out[0] = 0x60;
    out[6] = ICMP_V6;
    out[7] = 64;
    out[8..24].copy_from_slice(&packet[24..40]);
    out[24..40].copy_from_slice(&packet[8..24]);
    out[40] = PACKET_TOO_BIG;
    out[44..48].copy_from_slice(&(mtu as u32).to_be_bytes());
    out.extend_from_slice(quote);
    let length = out.len();
    write_length(&mut out, false, length);
    let pseudo = checksum::add_number(0, u16::from(ICMP_V6));
    let pseudo = checksum::add_number(pseudo, (length - IPV6_HEADER) as u16);
    let sum = checksum::add(checksum::add(pseudo, &out[8..40]), &out[IPV6_HEADER..]);
    out[42..44].copy_from_slice(&checksum::finished(sum));
    Some(out)
}
