//! What is read from packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const UDP_HEADER: usize = 8;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Where the checksum is in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// Where the checksum is in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Flags in the fourteenth octet of a TCP header.
pub(crate) const TCP_FIN: u8 = 1;
pub(crate) const TCP_SYN: u8 = 2;
pub(crate) const TCP_PSH: u8 = 8;
pub(crate) const TCP_CWR: u8 = 128;

/// Version, addresses and length of a packet, or nothing if it is no whole IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Octets without what pads it.
    pub(crate) length: usize,
}

/// How long a packet is: what its header says, or all there is, if it is longer than that can say. The kernel hands over
/// pieces of streams that are ("BIG TCP"); between nodes there are none.
#[inline]
fn length_of(said: u16, before: usize, packet: &[u8]) -> usize {
    if said == 0 && packet.len() > usize::from(u16::MAX) { packet.len() } else { before + usize::from(said) }
}

impl Outline {
    #[inline]
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => {
                let length = length_of(u16::from_be_bytes([packet[2], packet[3]]), 0, packet);
                let header = usize::from(packet[0] & 15) * 4;
                (header >= IPV4_HEADER && length >= header && length <= packet.len()).then(|| Self {
                    source: ipv4_at(packet, 12),
                    destination: ipv4_at(packet, 16),
                    length,
                })
            }
            6 if packet.len() >= IPV6_HEADER => {
                let length = length_of(u16::from_be_bytes([packet[4], packet[5]]), IPV6_HEADER, packet);
                (length <= packet.len()).then(|| Self {
                    source: ipv6_at(packet, 8),
                    destination: ipv6_at(packet, 24),
                    length,
                })
            }
            _ => None,
        }
    }
}

/// A TCP or UDP packet: where its parts are. Fragments, extension headers and other protocols have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transport {
    pub(crate) protocol: u8,
    pub(crate) is_ipv4: bool,
    /// Octets of the IP header.
    pub(crate) network: usize,
    /// Octets of the IP header and the TCP or UDP header.
    pub(crate) headers: usize,
}

impl Transport {
    #[inline]
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, is_ipv4, network) = match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => {
                let is_fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
                let header = usize::from(packet[0] & 15) * 4;
                if is_fragment || header < IPV4_HEADER {
                    return None;
                }
                (packet[9], true, header)
            }
            6 if packet.len() >= IPV6_HEADER => (packet[6], false, IPV6_HEADER),
            _ => return None,
        };
        let transport = match protocol {
            TCP => usize::from(packet.get(network + 12)? >> 4) * 4,
            UDP => UDP_HEADER,
            _ => return None,
        };
        let least = if protocol == TCP { TCP_HEADER } else { UDP_HEADER };
        let headers = network + transport;
        (transport >= least && headers <= packet.len()).then_some(Self {
            protocol,
            is_ipv4,
            network,
            headers,
        })
    }

    /// Where the checksum is in the packet.
    #[inline]
    pub(crate) fn checksum_at(self) -> usize {
        self.network + if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// The sum over what the checksum covers outside of the transport header: addresses, protocol and length.
    #[inline]
    pub(crate) fn pseudo_sum(self, packet: &[u8], length: usize) -> u64 {
        let addresses = if self.is_ipv4 { 12..IPV4_HEADER } else { 8..IPV6_HEADER };
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        let sum = checksum::add_number(0, u16::from(self.protocol));
        checksum::add(checksum::add_number(sum, length), &packet[addresses])
    }
}

/// Writes the length of a packet, and the IPv4 header's checksum.
#[inline]
pub(crate) fn write_length(packet: &mut [u8], is_ipv4: bool, length: usize) {
    if is_ipv4 {
        let header = usize::from(packet[0] & 15) * 4;
        packet[2..4].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::finished(checksum::add(0, &packet[..header]));
        packet[10..12].copy_from_slice(&sum);
    } else {
        let length = u16::try_from(length - IPV6_HEADER).unwrap_or(u16::MAX);
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
}

/// Moves the header of an IPv6 packet over the option that tells of a length of more than 65,535 octets (RFC 2675), with
/// which Linux begins long pieces of streams. By how many octets, or 0 if there is none.
pub(crate) fn without_jumbo_option(packet: &mut [u8]) -> usize {
    const HOP_BY_HOP: u8 = 0;
    const OPTION: usize = 8;
    /// No more than these eight octets, and in them the option of four.
    const JUMBO: [u8; 3] = [0, 0xc2, 4];
    let Some(header) = packet.first_chunk::<{ IPV6_HEADER + OPTION }>() else {
        return 0;
    };
    let (ip, option) = header.split_at(IPV6_HEADER);
    if ip[0] >> 4 != 6 || ip[4..7] != [0, 0, HOP_BY_HOP] || option[1..4] != JUMBO {
        return 0;
    }
    packet[6] = option[0];
    packet.copy_within(..IPV6_HEADER, OPTION);
    OPTION
}

#[inline]
fn ipv4_at(packet: &[u8], at: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]))
}

#[inline]
fn ipv6_at(packet: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&packet[at..at + 16]);
    IpAddr::V6(Ipv6Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_octets_are_read(first in prop::sample::select(vec![0x45_u8, 0x4f, 0x60, 0x00]),
                               rest in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut packet = vec![first];
            packet.extend(rest);
            if let Some(outline) = Outline::of(&packet) {
                prop_assert!(outline.length <= packet.len());
            }
            if let Some(transport) = Transport::of(&packet) {
                prop_assert!(transport.headers <= packet.len());
                transport.pseudo_sum(&packet, packet.len() - transport.network);
            }
        }
    }
}
