//! What the programs of packet balancing and their user side agree on.

use crate::Place;
use crate::words::{Words, words};

/// Endpoints of all services together that packets can be sent to. Each has counters on each processor.
pub const PACKET_ENDPOINTS_MAX: u32 = 65_536;

/// Slots of a row of the table of choices: a row is written and read as a whole.
pub const ROW_SLOTS: u32 = 16;

/// Rows of the table of choices: 4 million slots, 16 MiB.
pub const ROWS_MAX: u32 = 262_144;

/// Flows of packets, two entries each: one for every direction. The kernel forgets those that were unused for the
/// longest time.
pub const PACKET_FLOWS_MAX: u32 = 262_144;

/// Interfaces that packets can be handed to without the rest of the kernel.
pub const DEVICES_MAX: u32 = 256;

/// Addresses of nodes that packets in tunnels are taken from.
pub const NODES_MAX: u32 = 32_768;

/// Programs that others go on with: one of each kind for interfaces like Ethernet, and one for those without link headers.
pub const PROGRAMS_MAX: u32 = 8;

/// What is left to the programs of another version while these ones take over from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OlderVersion;

/// The first of two programs, in the array of those that others go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum NextProgram {
    /// For packets that come in.
    In = 0,
    /// For those that are to leave through a tunnel.
    Encapsulate = 2,
    /// For those that may have come through one.
    Decapsulate = 4,
    /// For those whose sender is told why they reach nobody.
    Refuse = 6,
}

/// The interface that every network namespace has and that no program is attached to: packets that seem to come from it
/// are questions, and leave nothing behind.
pub const LOOPBACK_INTERFACE: u32 = 1;

/// The first port that stands for a client where replies would not come back by themselves. Linux gives sockets ports
/// below it unless it is told otherwise (`ip_local_port_range`).
pub const MASQUERADE_PORT_FIRST: u32 = 61_000;

/// How many such ports there are, for each endpoint.
pub const MASQUERADE_PORTS: u32 = 65_536 - MASQUERADE_PORT_FIRST;

/// A packet's addresses and ports: the key of the map of flows.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The source address, IPv4 in mapped form.
    pub from: [u32; 4],
    /// The destination address.
    pub to: [u32; 4],
    /// Both ports as they are in the packet, source first.
    pub ports: u32,
    /// The number of the protocol.
    pub protocol: u32,
}

/// What becomes of the packets of one direction of a flow.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Track {
    /// The addresses and ports that they get.
    pub tuple: Tuple,
    /// The number of the endpoint.
    pub endpoint: u32,
    /// The endpoint's stamp. Another one in the map of endpoints means that the endpoint is gone.
    pub stamp: u32,
    /// What has been seen of a flow, mostly of its end, as `Track::CLIENT_ENDED` and others say. Only that of the
    /// direction from the client counts.
    pub seen: u32,
    /// The direction: [`Track::FROM_CLIENT`], [`Track::TO_CLIENT`] or [`Track::DIRECT`].
    pub direction: u32,
    /// The way that they went last.
    pub hop: Hop,
}

/// The way of a flow's packets out of the node, so that not every packet has to ask the kernel for it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// When the kernel was asked, by its clock.
    pub since: u32,
    /// Whose way it is: [`Hop::XDP`], [`Hop::TC`], or nobody's, if the kernel was not asked.
    pub place: u32,
    /// The interface; 0 if the packets are the rest of the kernel's.
    pub interface: u32,
    /// The longest packet that it takes.
    pub mtu: u32,
    /// Link addresses as they are in a packet.
    pub addresses: [u32; 3],
}

/// How to find the endpoints of a virtual address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketService {
    /// Its number.
    pub id: u32,
    /// The first row of its part of the table of choices.
    pub row: u32,
    /// How many slots its part has; none if no endpoint takes new flows.
    pub slots: u32,
    /// [`PacketService::BY_SOURCE`] or nothing.
    pub flags: u32,
    /// Tells a part of the table from others with other endpoints.
    pub fingerprint: u32,
}

/// An endpoint of a service: the key of the map of members, where its number is found.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketMember {
    /// The number of the service.
    pub service: u32,
    /// Where the endpoint is.
    pub place: Place,
}

/// A row of the table of choices: numbers of endpoints.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The endpoint of each slot.
    pub endpoints: [u32; ROW_SLOTS as usize],
}

/// An endpoint that packets are sent to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketEndpoint {
    /// Where it is.
    pub place: Place,
    /// The number of its service.
    pub service: u32,
    /// Never the same for two endpoints that have the same number one after the other.
    pub stamp: u32,
    /// `PacketEndpoint::READY` and others; 0 if there is none.
    pub flags: u32,
    /// The node's own address on the way to it.
    pub source: [u32; 4],
}

/// What is counted of an endpoint, on each processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Connections and datagram flows that were sent to it.
    pub flows: u64,
    /// Connections that have ended.
    pub ended: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients, with the headers of IP.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients, with the headers of IP.
    pub bytes_out: u64,
}

/// Why a packet was not translated though it may have been meant to be: the index of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum PacketEvent {
    /// It ends before its headers do, or they contradict each other.
    Malformed,
    /// It is a part of a larger one.
    Fragment,
    /// It has IP options or extension headers.
    Options,
    /// No endpoint takes flows of the service.
    NoEndpoint,
    /// Every port that could stand for the client is in use.
    NoPort,
    /// The flow cannot be noted.
    NoFlow,
    /// It is longer than what the way takes.
    TooLong,
    /// It cannot be sent through the tunnel to the endpoint.
    NoWay,
}

impl PacketEvent {
    /// Every event, in the order of the counters.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::NoEndpoint,
        Self::NoPort,
        Self::NoFlow,
        Self::TooLong,
        Self::NoWay,
    ];

    /// The name that users know.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::NoEndpoint => "no_endpoint",
            Self::NoPort => "no_port",
            Self::NoFlow => "no_flow",
            Self::TooLong => "too_long",
            Self::NoWay => "no_way",
        }
    }
}

impl Tuple {
    /// The source port in network byte order.
    #[inline(always)]
    pub const fn source_port(&self) -> u32 {
        u32_halves(self.ports).0
    }

    /// The destination port in network byte order.
    #[inline(always)]
    pub const fn destination_port(&self) -> u32 {
        u32_halves(self.ports).1
    }

    /// The destination as a place.
    #[inline(always)]
    pub const fn destination(&self) -> Place {
        Place { address: self.to, port: self.destination_port() }
    }

    /// The source as a place.
    #[inline(always)]
    pub const fn source(&self) -> Place {
        Place { address: self.from, port: self.source_port() }
    }

    /// The packets of a protocol from one place to another.
    #[inline(always)]
    pub const fn between(from: &Place, to: &Place, protocol: u32) -> Self {
        Self { from: from.address, to: to.address, ports: join_ports(from.port, to.port), protocol }
    }

    /// The packets of the other direction.
    #[inline(always)]
    pub const fn flip(&self) -> Self {
        Self { from: self.to, to: self.from, ports: self.ports.rotate_left(16), protocol: self.protocol }
    }
}

impl Track {
    /// From the client to the endpoint.
    pub const FROM_CLIENT: u32 = 0;
    /// From the endpoint to the client.
    pub const TO_CLIENT: u32 = 1;
    /// From the client, through a tunnel to the endpoint, which answers the client by itself: there is no entry of the
    /// other direction.
    pub const DIRECT: u32 = 2;
    /// The client has ended its half of the connection.
    pub const CLIENT_ENDED: u32 = 1;
    /// The endpoint has ended its half.
    pub const ENDPOINT_ENDED: u32 = 2;
    /// Both have, or one has reset it.
    pub const OVER: u32 = 4;
    /// Another node has chosen the endpoint and sends packets in a tunnel.
    pub const TUNNELLED: u32 = 8;
}

impl Hop {
    /// Of XDP, which sends only through interfaces that it is attached to.
    pub const XDP: u32 = 1;
    /// Of tc.
    pub const TC: u32 = 2;
}

impl OlderVersion {
    /// There are none.
    pub const NOTHING: u32 = 0;
    /// The flows that they know.
    pub const KNOWN_FLOWS: u32 = 1;
    /// All flows that are not known here.
    pub const ALL: u32 = 2;
}

impl PacketService {
    /// All flows of a client's address go to one endpoint.
    pub const BY_SOURCE: u32 = 1;
}

impl PacketEndpoint {
    /// It is there: flows that it has stay.
    pub const PRESENT: u32 = 1;
    /// It takes new flows.
    pub const READY: u32 = 2;
    /// Its replies would not come back through this node by themselves: the node's address stands for the client's.
    pub const MASQUERADE: u32 = 4;
    /// It is on another node, which takes packets in a tunnel and answers clients itself.
    pub const DIRECT: u32 = 8;
}

#[inline(always)]
const fn u32_halves(ports: u32) -> (u32, u32) {
    if cfg!(target_endian = "little") { (ports & 0xffff, ports >> 16) } else { (ports >> 16, ports & 0xffff) }
}

#[inline(always)]
const fn join_ports(source: u32, destination: u32) -> u32 {
    if cfg!(target_endian = "little") { source | destination << 16 } else { source << 16 | destination }
}

words!(Tuple { from: [u32; 4], to: [u32; 4], ports: u32, protocol: u32 });
words!(Track { tuple: Tuple, endpoint: u32, stamp: u32, seen: u32, direction: u32, hop: Hop });
words!(Hop { since: u32, place: u32, interface: u32, mtu: u32, addresses: [u32; 3] });
words!(PacketService { id: u32, row: u32, slots: u32, flags: u32, fingerprint: u32 });
words!(PacketMember { service: u32, place: Place });
words!(Row { endpoints: [u32; ROW_SLOTS as usize] });
words!(PacketEndpoint { place: Place, service: u32, stamp: u32, flags: u32, source: [u32; 4] });
words!(PacketCount {
    flows: u64,
    ended: u64,
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
});
