//! Pairs of interfaces of one namespace, at one end of which a process reads and writes packets.

use crate::message::{Message, attributes, text, u32_of};
use crate::{Link, Netlink, NetlinkError, failed, kind, link};

/// Attributes of a link that are a family's: of IPv6, how it gets addresses by itself (`linux/if_link.h`).
const IPV6: u16 = 10;
const IPV6_ADDRESSES: u16 = 8;

/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_ADDRESSES: u8 = 1;

/// What is told of a TUN device (`linux/if_link.h`).
mod tun {
    pub(super) const IS_PERSISTENT: u16 = 6;
    pub(super) const HAS_QUEUES: u16 = 7;
    pub(super) const QUEUES: u16 = 8;
    pub(super) const IDLE_QUEUES: u16 = 9;
}

/// A kind of interfaces that are made by software.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a pair.
    Veth {
        /// The number of the other end, which may be in another namespace.
        peer: Option<u32>,
    },
    /// One that a process reads and writes packets at.
    Tun {
        /// Whether it was made to stay, with several queues, and nobody has it now.
        is_left: bool,
    },
    /// Another one.
    Other,
}

impl LinkKind {
    /// What the kernel tells of an interface's kind.
    pub(crate) fn parse(info: &[u8]) -> Option<Self> {
        let info = attributes(info);
        let value = |wanted| info.iter().find(|(attribute, _)| *attribute == wanted).map(|(_, value)| *value);
        let name = value(link::INFO_KIND)?;
        Some(match name.strip_suffix(&[0]).unwrap_or(name) {
            b"veth" => Self::Veth { peer: None },
            b"tun" => Self::Tun { is_left: is_left(value(link::INFO_DATA).unwrap_or_default()) },
            _ => Self::Other,
        })
    }
}

fn is_left(data: &[u8]) -> bool {
    let data = attributes(data);
    let value = |wanted| data.iter().find(|(attribute, _)| *attribute == wanted).map(|(_, value)| *value);
    let is_set = |wanted| value(wanted).is_some_and(|value| value == [1]);
    let is_zero = |wanted| value(wanted).and_then(u32_of).is_none_or(|count| count == 0);
    is_set(tun::IS_PERSISTENT) && is_set(tun::HAS_QUEUES) && is_zero(tun::QUEUES) && is_zero(tun::IDLE_QUEUES)
}

impl Netlink {
    /// Makes a pair of interfaces, both in this namespace, each with a name and an address on the wire.
    ///
    /// # Errors
    /// When the kernel refuses, as when there is one of a name.
    pub fn make_pair(&mut self, ends: [(&str, [u8; 6]); 2]) -> Result<[Link; 2], NetlinkError> {
        let [(name, address), (peer, peer_address)] = ends;
        let mut request = Message::of_link(kind::NEW_LINK, 0, 0).creates();
        request.attribute(link::NAME, &text(name));
        request.attribute(link::HARDWARE_ADDRESS, &address);
        let info = request.begin(link::INFO);
        request.attribute(link::INFO_KIND, b"veth");
        let data = request.begin(link::INFO_DATA);
        let other = request.begin(link::VETH_PEER);
        request.link_header(0, 0);
        request.attribute(link::NAME, &text(peer));
        request.attribute(link::HARDWARE_ADDRESS, &peer_address);
        request.end(other);
        request.end(data);
        request.end(info);
        self.socket.order(request).map_err(|source| failed("make interface", name, source))?;
        Ok([self.present(name)?, self.present(peer)?])
    }

    /// Says that whoever is at the other end of an interface needs no ARP and no neighbour discovery.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_without_neighbours(&mut self, target: &Link) -> Result<(), NetlinkError> {
        let request = Message::of_link(kind::NEW_LINK, target.index, link::NO_ARP);
        self.socket.order(request).map_err(|source| failed("turn off ARP of interface", &target.name, source))
    }

    /// Keeps an interface from giving itself IPv6 addresses. For one that is off yet.
    ///
    /// # Errors
    /// When the kernel refuses, as when it has no IPv6.
    pub fn set_without_own_addresses(&mut self, target: &Link) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, target.index, 0);
        let families = request.begin(link::OF_FAMILIES);
        let ipv6 = request.begin(IPV6);
        request.attribute(IPV6_ADDRESSES, &[NO_ADDRESSES]);
        request.end(ipv6);
        request.end(families);
        let done = self.socket.order(request);
        done.map_err(|source| failed("turn off automatic addresses of interface", &target.name, source))
    }

    /// Sets how long pieces of TCP streams over IPv4 may be that the kernel hands to an interface, in octets. More than 65,536
    /// ("BIG TCP") is since Linux 6.3; kernels before leave this out without a word.
    ///
    /// # Errors
    /// When the kernel refuses, as when the interface cannot have that.
    pub fn set_gso_ipv4_max(&mut self, target: &Link, octets: u32) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, target.index, 0);
        request.attribute(link::GSO_IPV4_MAX_SIZE, &octets.to_ne_bytes());
        let done = self.socket.order(request);
        done.map_err(|source| failed("set the longest piece for interface", &target.name, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &[u8], data: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = Message::of_link(kind::NEW_LINK, 0, 0);
        message.attribute(link::INFO_KIND, name);
        let begin = message.begin(link::INFO_DATA);
        for (attribute, value) in data {
            message.attribute(*attribute, value);
        }
        message.end(begin);
        message.finish(0, 0)[crate::message::HEADER_LENGTH + 16..].to_vec()
    }

    #[test]
    fn kinds_are_told_apart() {
        let zero: &[u8] = &[0; 4];
        let left = [(6, &[1][..]), (7, &[1]), (8, zero), (9, zero)];
        let is_left = |data: &[(u16, &[u8])]| LinkKind::parse(&info(b"tun\0", data));
        assert_eq!(is_left(&left), Some(LinkKind::Tun { is_left: true }));
        for changed in 0..left.len() {
            let mut other = left;
            other[changed].1 = if changed < 2 { &[0] } else { &[1, 0, 0, 0] };
            assert_eq!(is_left(&other), Some(LinkKind::Tun { is_left: false }), "{changed}");
        }
        assert_eq!(is_left(&[]), Some(LinkKind::Tun { is_left: false }));
        assert_eq!(LinkKind::parse(&info(b"veth", &[])), Some(LinkKind::Veth { peer: None }));
        assert_eq!(LinkKind::parse(&info(b"bridge\0", &[])), Some(LinkKind::Other));
        assert_eq!(LinkKind::parse(&[]), None);
    }
}
