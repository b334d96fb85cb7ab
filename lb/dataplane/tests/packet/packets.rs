//! Packets as octets, made independently of the programs.

use std::net::{IpAddr, SocketAddr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const TUNNEL: u8 = 47;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What numbers packets of IPv4.
const NUMBER: u16 = 0x1234;

/// Octets of Ethernet's header.
pub const LINK: usize = 14;

/// A packet with headers of Ethernet.
#[derive(Debug, Clone)]
pub struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub protocol: u8,
    pub flags: u8,
    pub hops: u8,
    pub has_checksum: bool,
    pub payload: Vec<u8>,
}

/// A packet between two places, text for short.
pub fn packet(protocol: u8, from: &str, to: &str) -> Packet {
    let place = |text: &str| text.parse().expect("an address with a port");
    Packet {
        from: place(from),
        to: place(to),
        protocol,
        flags: SYN,
        hops: 64,
        has_checksum: true,
        payload: b"an odd number of octets".to_vec(),
    }
}

impl Packet {
    pub fn with_flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// With headers of Ethernet, IP and the protocol.
    pub fn octets(&self) -> Vec<u8> {
        let mut octets = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        octets.extend(if self.from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        octets.extend(self.without_link());
        octets
    }

    pub fn without_link(&self) -> Vec<u8> {
        network(NUMBER, self.from.ip(), self.to.ip(), self.protocol, self.hops, &self.transport())
    }

    /// What stands in the place of a checksum that somebody else makes.
    pub fn pseudo_sum(&self) -> u16 {
        let transport = self.transport();
        let all = pseudo(self.from.ip(), self.to.ip(), self.protocol, &transport);
        !checksum(&all[..all.len() - transport.len()])
    }

    fn transport(&self) -> Vec<u8> {
        let mut header = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let at = match self.protocol {
            TCP => {
                header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0x12, 0x34, 0, 0, 0, 0]);
                16
            }
            UDP => {
                header.extend((8 + self.payload.len() as u16).to_be_bytes());
                header.extend([0, 0]);
                6
            }
            _ => panic!("no such protocol"),
        };
        header.extend(&self.payload);
        if self.has_checksum {
            let checksum = checksum(&pseudo(self.from.ip(), self.to.ip(), self.protocol, &header));
            let checksum = if self.protocol == UDP && checksum == 0 { 0xffff } else { checksum };
            header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        header
    }
}

/// A packet of TCP or UDP without link headers, taken apart.
pub struct Arrived {
    pub from: SocketAddr,
    pub to: SocketAddr,
    transport: Vec<u8>,
}

impl Arrived {
    /// Fails if a checksum is wrong.
    pub fn parse(octets: &[u8]) -> Self {
        let (header, protocol): (usize, u8) =
            if octets[0] >> 4 == 4 { (20, octets[9]) } else { (40, octets[6]) };
        let (from, to): (IpAddr, IpAddr) = if header == 20 {
            assert_eq!(checksum(&octets[..20]), 0, "the checksum of {octets:?}");
            let address = |at: usize| <[u8; 4]>::try_from(&octets[at..at + 4]).expect("four octets").into();
            (address(12), address(16))
        } else {
            let address = |at: usize| <[u8; 16]>::try_from(&octets[at..at + 16]).expect("16 octets").into();
            (address(8), address(24))
        };
        let transport = octets[header..].to_vec();
        assert_eq!(checksum(&pseudo(from, to, protocol, &transport)), 0, "the checksum of {octets:?}");
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        Self { from: SocketAddr::new(from, port(0)), to: SocketAddr::new(to, port(2)), transport }
    }

    /// What a datagram carries.
    pub fn payload(&self) -> &[u8] {
        &self.transport[8..]
    }

    /// The flags of a segment.
    pub fn flags(&self) -> u8 {
        self.transport[13]
    }
}

/// An error of ICMP about a packet, of which it has so many octets.
pub fn error(kind: u8, from: &str, to: &str, about: &Packet, octets: usize) -> Vec<u8> {
    let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
    message(NUMBER, [kind, 1, 0, 0, 0, 0, 5, 0], from, to, about, octets)
}

/// The answer that nobody receives a datagram, the way back.
pub fn unreachable(about: &Packet) -> Vec<u8> {
    let (head, octets) = if about.from.is_ipv4() {
        ([3, 3, 0, 0, 0, 0, 0, 0], 20 + 8)
    } else {
        ([1, 4, 0, 0, 0, 0, 0, 0], 40 + 8)
    };
    turned(message(0, head, about.to.ip(), about.from.ip(), about, octets))
}

/// The answer that a packet is longer than so many octets, the way back.
pub fn too_long(about: &Packet, most: u16) -> Vec<u8> {
    let [high, low] = most.to_be_bytes();
    let (kind, code, header) = if about.from.is_ipv4() { (3, 4, 20) } else { (2, 0, 40) };
    let octets = header + if about.protocol == TCP { 20 } else { 8 };
    let head = [kind, code, 0, 0, 0, 0, high, low];
    turned(message(0, head, about.to.ip(), about.from.ip(), about, octets))
}

/// A packet in a tunnel from a node to an endpoint on another one.
pub fn tunnelled(node: &str, endpoint: &str, inner: &Packet) -> Vec<u8> {
    let endpoint: SocketAddr = endpoint.parse().expect("an address with a port");
    let mut content = vec![0x20, 0];
    content.extend(if endpoint.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    content.extend([0, 0]);
    content.extend(endpoint.port().to_be_bytes());
    content.extend(inner.without_link());
    let mut frame = inner.octets()[..LINK].to_vec();
    frame.extend(network(0, node.parse().expect("an address"), endpoint.ip(), TUNNEL, 64, &content));
    frame
}

/// The answer that nobody has a connection that a segment may be of, the way back (RFC 9293 §3.10.7.1).
pub fn reset(about: &Packet) -> Vec<u8> {
    let mut header = [about.to.port().to_be_bytes(), about.from.port().to_be_bytes()].concat();
    if about.flags & ACK != 0 {
        header.extend([0, 0, 0, 2, 0, 0, 0, 0, 0x50, RST]);
    } else {
        let controls = [SYN, FIN].iter().filter(|control| about.flags & **control != 0).count();
        header.extend([0, 0, 0, 0]);
        header.extend((1 + (about.payload.len() + controls) as u32).to_be_bytes());
        header.extend([0x50, RST | ACK]);
    }
    header.extend([0; 6]);
    let (from, to) = (about.to.ip(), about.from.ip());
    let checksum = checksum(&pseudo(from, to, TCP, &header));
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = about.octets()[..LINK].to_vec();
    packet.extend(network(0, from, to, TCP, 64, &header));
    turned(packet)
}

/// A frame the other way.
fn turned(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..12].rotate_left(6);
    frame
}

fn message(number: u16, head: [u8; 8], from: IpAddr, to: IpAddr, about: &Packet, octets: usize) -> Vec<u8> {
    let embedded = about.without_link();
    let mut message = head.to_vec();
    message.extend(&embedded[..octets.min(embedded.len())]);
    let (protocol, kind) = if from.is_ipv4() { (1, [0x08, 0x00]) } else { (58, [0x86, 0xdd]) };
    let checksum =
        if from.is_ipv4() { checksum(&message) } else { checksum(&pseudo(from, to, protocol, &message)) };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    packet.extend(kind);
    packet.extend(network(number, from, to, protocol, 64, &message));
    packet
}

fn network(number: u16, from: IpAddr, to: IpAddr, protocol: u8, hops: u8, content: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + content.len() as u16).to_be_bytes();
            let number = number.to_be_bytes();
            let mut header =
                vec![0x45, 0, total[0], total[1], number[0], number[1], 0x40, 0, hops, protocol, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let checksum = checksum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header.extend(content);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (content.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, hops];
            header.extend(from.octets());
            header.extend(to.octets());
            header.extend(content);
            header
        }
        _ => panic!("of two families"),
    }
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend((content.len() as u32).to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header.extend(content);
    header
}

/// RFC 1071, one word after the other.
pub fn checksum(octets: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
