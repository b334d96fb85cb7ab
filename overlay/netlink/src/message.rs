//! Requests and answers as bytes: headers in the machine's byte order, attributes that are aligned to four bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The header of every message: length, kind, flags, sequence number, port.
pub(crate) const HEADER_LENGTH: usize = 16;

const REQUEST: u16 = 0x1;
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE: u16 = 0x600;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
const REPLACE: u16 = 0x500;

/// `NLM_F_CREATE`, and with `NLM_F_APPEND`.
const MAKE: u16 = 0x400;
const APPEND: u16 = 0xc00;

/// `NFNL_SUBSYS_NFTABLES`, `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` (`linux/netfilter/nfnetlink.h`).
const NFTABLES: u8 = 10;
const BATCH_BEGINS: u16 = 16;
const BATCH_ENDS: u16 = 17;

/// `NFPROTO_INET`: both families.
const BOTH_FAMILIES: u8 = 1;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    flags: u16,
}

impl Message {
    fn new(kind: u16) -> Self {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        Self { bytes, flags: REQUEST }
    }

    /// A request about a link; flags that are not set stay as they are.
    pub(crate) fn of_link(kind: u16, index: u32, flags: u32) -> Self {
        let mut message = Self::new(kind);
        message.link_header(index, flags);
        message
    }

    /// A request about an address.
    pub(crate) fn of_address(kind: u16, family: u8, prefix: u8, flags: u8, link: u32) -> Self {
        let mut message = Self::new(kind);
        message.bytes.extend([family, prefix, flags, 0]);
        message.bytes.extend(link.to_ne_bytes());
        message
    }

    /// A request about a route: family, lengths of destination and source, type of service, table, protocol, scope and
    /// type.
    pub(crate) fn of_route(kind: u16, header: [u8; 8]) -> Self {
        let mut message = Self::new(kind);
        message.bytes.extend(header);
        message.bytes.extend(0_u32.to_ne_bytes());
        message
    }

    /// A request about nftables.
    pub(crate) fn of_nftables(kind: u8) -> Self {
        let mut message = Self::new(u16::from_be_bytes([NFTABLES, kind]));
        message.bytes.extend([BOTH_FAMILIES, 0, 0, 0]);
        message
    }

    /// What stands before and after requests about nftables that are granted together or not at all.
    pub(crate) fn batch_limits() -> [Self; 2] {
        [BATCH_BEGINS, BATCH_ENDS].map(|kind| {
            let mut message = Self::new(kind);
            message.bytes.extend([0, 0, 0, NFTABLES]);
            message
        })
    }

    /// What it makes may be there.
    pub(crate) fn makes(mut self) -> Self {
        self.flags |= MAKE;
        self
    }

    /// What it makes comes after what is there.
    pub(crate) fn appends(mut self) -> Self {
        self.flags |= APPEND;
        self
    }

    /// It fails if what it makes is there.
    pub(crate) fn creates(mut self) -> Self {
        self.flags |= CREATE;
        self
    }

    /// It takes the place of what is there.
    pub(crate) fn replaces(mut self) -> Self {
        self.flags |= REPLACE;
        self
    }

    pub(crate) fn link_header(&mut self, index: u32, flags: u32) {
        self.bytes.extend([0; 4]);
        for field in [index, flags, flags] {
            self.bytes.extend(field.to_ne_bytes());
        }
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.bytes.extend(value);
        self.end(start);
    }

    /// Begins an attribute of attributes.
    pub(crate) fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// Ends the attribute that began there.
    pub(crate) fn end(&mut self, start: usize) {
        // Requests are some hundred bytes long.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole, with a sequence number.
    pub(crate) fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(self.flags | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A name as the kernel wants it.
pub(crate) fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// An address in network byte order.
pub(crate) fn be_address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address that bytes are.
pub(crate) fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = || <[u8; 16]>::try_from(bytes).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    v4.or_else(|_| v6()).ok()
}

/// The number that bytes are.
pub(crate) fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// The attributes in a text of attributes; what is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    /// Marks of attributes of attributes and of network byte order.
    const MARKS: u16 = 0xc000;
    let mut found = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !MARKS;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut message = Message::of_link(16, 7, 1);
        let begin = message.begin(18);
        message.attribute(1, b"veth");
        message.attribute(3, &text("eth0"));
        message.end(begin);
        let bytes = message.finish(ACKNOWLEDGE, 9);
        assert_eq!(u32_of(&bytes[0..4]), Some(u32::try_from(bytes.len()).expect("short")));
        let outer = attributes(&bytes[HEADER_LENGTH + 16..]);
        assert_eq!(outer.len(), 1);
        assert_eq!(attributes(outer[0].1), [(1, &b"veth"[..]), (3, &b"eth0\0"[..])]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        for length in 0..12 {
            let bytes = [8, 0, 1, 0, 1, 2, 3, 4, 200, 0, 1, 0];
            assert!(attributes(&bytes[..length]).len() <= 1);
        }
        assert_eq!(attributes(&[0; 8]), Vec::<(u16, &[u8])>::new(), "no endless loop");
    }
}
