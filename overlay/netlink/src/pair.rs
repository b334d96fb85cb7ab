//! Pairs of interfaces: from a bridge into a namespace, or with a process that reads and writes packets at one end.

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

/// An end of a pair that is to be made.
struct End<'name> {
    name: &'name str,
    /// Its address on the wire; the kernel chooses one if it is absent.
    hardware_address: Option<[u8; 6]>,
    /// Of which process or thread the namespace is that it is in; this one if absent.
    namespace_of: Option<u32>,
}

impl End<'_> {
    fn describe(&self, request: &mut Message) {
        request.attribute(link::NAME, &text(self.name));
        if let Some(address) = &self.hardware_address {
            request.attribute(link::HARDWARE_ADDRESS, address);
        }
        if let Some(pid) = self.namespace_of {
            request.attribute(link::NAMESPACE_OF, &pid.to_ne_bytes());
        }
    }
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
        let [near, far] =
            ends.map(|(name, address)| End { name, hardware_address: Some(address), namespace_of: None });
        self.order_pair(&near, &far)?;
        Ok([self.present(near.name)?, self.present(far.name)?])
    }

    /// Makes a pair of interfaces, of which the other one is in the namespace of a process or thread and has this address
    /// on the wire.
    ///
    /// # Errors
    /// When the kernel refuses, as when there is one of the name.
    pub fn make_veth(
        &mut self,
        name: &str,
        peer: &str,
        hardware_address: [u8; 6],
        pid: u32,
    ) -> Result<Link, NetlinkError> {
        let near = End { name, hardware_address: None, namespace_of: None };
        let far = End { name: peer, hardware_address: Some(hardware_address), namespace_of: Some(pid) };
        self.order_pair(&near, &far)?;
        self.present(name)
    }

    fn order_pair(&mut self, near: &End<'_>, far: &End<'_>) -> Result<(), NetlinkError> {
        let mut request = Message::of_link(kind::NEW_LINK, 0, 0).creates();
        near.describe(&mut request);
        let info = request.begin(link::INFO);
        request.attribute(link::INFO_KIND, b"veth");
        let data = request.begin(link::INFO_DATA);
        let other = request.begin(link::VETH_PEER);
        request.link_header(0, 0);
        far.describe(&mut request);
        request.end(other);
        request.end(data);
        request.end(info);
        self.socket.order(request).map_err(|source| failed("make interface", near.name, source))
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
