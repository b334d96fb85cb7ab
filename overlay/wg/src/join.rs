//! Joins packets of a flow that came together, so that the kernel's stack is passed once for all of them.
//!
//! Packets stay where they were decrypted. A join is a list of places: the first packet, whose headers become those
//! of the whole, and the payloads of those that follow.
//!
//! Checksums of TCP and UDP are not looked at: that a packet was decrypted proves that it is the one that the peer had.
//! The kernel makes a new one for what is joined, so one that was wrong before the peer encrypted the packet is not
//! found out at this end. The kernel's own WireGuard takes checksums for right as well, of all packets.

use std::ops::Range;

use crate::checksum;
use crate::ip::{TCP, TCP_CHECKSUM, TCP_PSH, Transport, UDP_CHECKSUM, write_length};
use crate::vnet::{Gso, VnetHeader};

/// Most octets of a packet with its headers. With that of Ethernet it is below 64 KiB: longer ones are cut by the kernel
/// before an interface that was not told to take them, as most of containers are not.
const LENGTH_MAX: usize = 65_520;

/// Most packets that are joined; of datagrams, older kernels cut no more than that apart.
pub(crate) const PIECES_MAX: usize = 64;

/// How many of the last packets are looked at for one that can be continued.
const OPEN_MAX: usize = 8;

/// Flags of TCP with which packets are joined: ACK, and PSH at the end.
const TCP_ACK: u8 = 16;

/// Packets of one batch, in order, joined where that can be.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    joins: Vec<Join>,
    /// All payloads that follow a first packet, as a list through the joins.
    pieces: Vec<Piece>,
    /// Whether datagrams stay as they are: a kernel before Linux 6.2 does not take joined ones.
    keeps_datagrams: bool,
}

/// A packet for the kernel.
#[derive(Debug)]
pub(crate) struct Join {
    /// The first packet.
    head: Range<usize>,
    /// Absent if it is not of a kind that can be joined.
    flow: Option<Flow>,
    /// Octets of the whole.
    length: usize,
    first_piece: Option<usize>,
    last_piece: usize,
    pub(crate) packets: usize,
}

#[derive(Debug)]
struct Piece {
    octets: Range<usize>,
    next: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    transport: Transport,
    /// Octets of payload of each packet but the last.
    segment: usize,
    next_sequence: u32,
    is_closed: bool,
}

impl Joiner {
    pub(crate) fn new(joins_datagrams: bool) -> Self {
        Self { keeps_datagrams: !joins_datagrams, ..Self::default() }
    }

    /// Adds the packet at a place.
    pub(crate) fn push(&mut self, octets: &[u8], place: Range<usize>) {
        let packet = &octets[place.clone()];
        let is_kept = |flow: &Flow| self.keeps_datagrams && flow.transport.protocol != TCP;
        let flow = joinable(packet).filter(|flow| !is_kept(flow));
        if let Some(flow) = flow
            && self.extend(octets, &place, flow)
        {
            return;
        }
        self.joins.push(Join {
            length: packet.len(),
            head: place,
            flow,
            first_piece: None,
            last_piece: 0,
            packets: 1,
        });
    }

    /// Continues the last packet of the same flow, if that is what the given one does.
    fn extend(&mut self, octets: &[u8], place: &Range<usize>, flow: Flow) -> bool {
        let packet = &octets[place.clone()];
        let recent = self.joins.len().saturating_sub(OPEN_MAX);
        let Some(join) = self.joins[recent..]
            .iter_mut()
            .rev()
            .find(|join| join.is_same_flow(&octets[join.head.clone()], packet, flow))
        else {
            return false;
        };
        let (head, payload) = (join.head.clone(), place.start + flow.transport.headers..place.end);
        let Some(open) = &mut join.flow else {
            return false;
        };
        let length = join.length + payload.len();
        let continues = !open.is_closed
            && payload.len() <= open.segment
            && length <= LENGTH_MAX
            && join.packets < PIECES_MAX
            && open.continues(&octets[head], packet, flow);
        if !continues {
            open.is_closed = true;
            return false;
        }
        open.next_sequence = flow.next_sequence;
        open.is_closed = payload.len() < open.segment || flow.is_closed;
        join.length = length;
        join.packets += 1;
        let piece = self.pieces.len();
        self.pieces.push(Piece { octets: payload, next: None });
        match join.first_piece {
            None => join.first_piece = Some(piece),
            Some(_) => self.pieces[join.last_piece].next = Some(piece),
        }
        join.last_piece = piece;
        true
    }

    /// Makes the headers of all first packets those of the whole.
    pub(crate) fn finish(&mut self, octets: &mut [u8]) {
        for join in self.joins.iter().filter(|join| join.packets > 1) {
            if let Some(flow) = &join.flow {
                let is_pushed = join.first_piece.is_some() && flow.is_closed;
                flow.write_headers(&mut octets[join.head.clone()], join.length, is_pushed);
            }
        }
    }

    /// The packets for the kernel, in order.
    pub(crate) fn joins(&self) -> &[Join] {
        &self.joins
    }

    /// Where the octets of a packet for the kernel are.
    pub(crate) fn places<'a>(&'a self, join: &'a Join) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut next = join.first_piece;
        let rest = std::iter::from_fn(move || {
            let piece = &self.pieces[next?];
            next = piece.next;
            Some(piece.octets.clone())
        });
        std::iter::once(join.head.clone()).chain(rest)
    }

    /// Forgets all packets, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.joins.clear();
        self.pieces.clear();
    }
}

impl Join {
    /// What the kernel is told about it.
    pub(crate) fn header(&self) -> VnetHeader {
        let Some(flow) = self.flow.as_ref().filter(|_| self.packets > 1) else {
            return VnetHeader::default();
        };
        let Transport { protocol, is_ipv4, network, headers } = flow.transport;
        let (gso, offset) = match (protocol, is_ipv4) {
            (TCP, true) => (Gso::Tcp4, TCP_CHECKSUM),
            (TCP, false) => (Gso::Tcp6, TCP_CHECKSUM),
            _ => (Gso::Udp, UDP_CHECKSUM),
        };
        VnetHeader {
            gso,
            needs_checksum: true,
            headers: headers as u16,
            segment: flow.segment as u16,
            checksum_start: network as u16,
            checksum_offset: offset as u16,
        }
    }

    #[inline]
    fn is_same_flow(&self, head: &[u8], packet: &[u8], other: Flow) -> bool {
        self.flow.as_ref().is_some_and(|flow| {
            let Transport { is_ipv4, network, .. } = flow.transport;
            let addresses = if is_ipv4 { 12..20 } else { 8..40 };
            flow.transport.protocol == other.transport.protocol
                && is_ipv4 == other.transport.is_ipv4
                && network == other.transport.network
                && head[network..network + 4] == packet[network..network + 4]
                && are_same(&head[addresses.clone()], &packet[addresses])
        })
    }
}

impl Flow {
    /// Whether a packet's headers differ from the first one's only in what differs between neighbours.
    #[inline]
    fn continues(&self, head: &[u8], packet: &[u8], other: Self) -> bool {
        let Transport { protocol, is_ipv4, network, headers } = self.transport;
        let is_network_same = if is_ipv4 {
            head[..2] == packet[..2]
                && head[6..9] == packet[6..9]
                && are_same(&head[20..network], &packet[20..network])
        } else {
            head[..4] == packet[..4] && head[6..8] == packet[6..8]
        };
        if !is_network_same || headers != other.transport.headers {
            return false;
        }
        if protocol != TCP {
            return true;
        }
        let (head, packet) = (&head[network..], &packet[network..]);
        let end = headers - network;
        let sequence = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        sequence == self.next_sequence
            && head[8..12] == packet[8..12]
            && are_same(&head[20..end], &packet[20..end])
    }

    fn write_headers(&self, head: &mut [u8], length: usize, is_pushed: bool) {
        let Transport { protocol, is_ipv4, network, .. } = self.transport;
        write_length(head, is_ipv4, length);
        let sum = checksum::folded(self.transport.pseudo_sum(head, length - network));
        let at = self.transport.checksum_at();
        head[at..at + 2].copy_from_slice(&sum);
        if protocol == TCP {
            if is_pushed {
                head[network + 13] |= TCP_PSH;
            }
        } else {
            head[network + 4..network + 6].copy_from_slice(&((length - network) as u16).to_be_bytes());
        }
    }
}

/// Whether parts of headers are the same, which are some times four octets: too few for a call of a function.
#[inline]
fn are_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.as_chunks::<4>().0.iter().zip(other.as_chunks::<4>().0).all(|(one, other)| one == other)
}

/// What is needed to join a packet with others, if it is one that carries data of a flow and nothing special.
#[inline]
fn joinable(packet: &[u8]) -> Option<Flow> {
    let transport = Transport::of(packet)?;
    let segment = packet.len() - transport.headers;
    let header = &packet[transport.network..];
    let (next_sequence, is_closed) = if transport.protocol == TCP {
        if header[13] & !TCP_PSH != TCP_ACK {
            return None;
        }
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        (sequence.wrapping_add(segment as u32), header[13] & TCP_PSH != 0)
    } else {
        let is_whole =
            usize::from(u16::from_be_bytes([header[4], header[5]])) == packet.len() - transport.network;
        if !is_whole || header[UDP_CHECKSUM..UDP_CHECKSUM + 2] == [0, 0] {
            return None;
        }
        (0, false)
    };
    (segment > 0).then_some(Flow { transport, segment, next_sequence, is_closed })
}
