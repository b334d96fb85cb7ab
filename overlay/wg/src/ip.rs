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

/// How long an IPv4 packet is: what its header says, or all there is, if it is longer than that can say. The kernel hands
/// over pieces of streams that are ("BIG TCP"); between nodes there are none.
#[inline]
fn ipv4_length(packet: &[u8]) -> usize {
    match u16::from_be_bytes([packet[2], packet[3]]) {
        0 if packet.len() > usize::from(u16::MAX) => packet.len(),
        length => length.into(),
    }
}

impl Outline {
    #[inline]
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => {
                let length = ipv4_length(packet);
                let header = usize::from(packet[0] & 15) * 4;
                (header >= IPV4_HEADER && length >= header && length <= packet.len()).then(|| Self {
                    source: ipv4_at(packet, 12),
                    destination: ipv4_at(packet, 16),
                    length,
                })
            }
            6 if packet.len() >= IPV6_HEADER => {
                let length = IPV6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
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

    #[test]
    fn only_a_packet_that_is_too_long_to_say_so_may_leave_it_out() {
        let packet = |said: u16, length: usize| {
            let mut packet = vec![0; length];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&said.to_be_bytes());
            Outline::of(&packet).map(|outline| outline.length)
        };
        assert_eq!(packet(0, 65_536), Some(65_536));
        assert_eq!(packet(0, 200_000), Some(200_000));
        assert_eq!(packet(0, 65_535), None);
        assert_eq!(packet(100, 200_000), Some(100));
        assert_eq!(packet(101, 100), None);
    }

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
