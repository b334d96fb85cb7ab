//! Cuts what the kernel hands over into packets that fit through the tunnel.
//!
//! The kernel leaves a TCP stream in long pieces, which cost it one passage through its stack each. They
//! are cut here, into pieces that fit the path to the peer: that may be smaller than what the connection agreed on,
//! because where a stream is cut does not matter to it.

use crate::checksum;
use crate::ip::{
    IPV4_HEADER, TCP, TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_PSH, TCP_SYN, Transport, UDP_CHECKSUM,
};
use crate::vnet::{Gso, VnetHeader};

/// Why a packet cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutError {
    /// It is not what its header says.
    Malformed,
    /// It does not fit through the path, and is no stream.
    TooBig,
}

/// A packet and how it is cut.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    packet: &'a [u8],
    /// Absent if the packet stays as it is.
    pieces: Option<Pieces>,
    /// How many there are.
    pub(crate) count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Pieces {
    transport: Transport,
    /// Octets of payload of each piece but the last.
    segment: usize,
    /// The sum over the IP header, without what differs between pieces.
    network_sum: u64,
    /// The sum over addresses, protocol and the TCP or UDP header, without what differs between pieces.
    transport_sum: u64,
    sequence: u32,
    /// Length of the header and flags, of TCP.
    flags: u16,
    identification: u16,
}

impl<'a> Cut<'a> {
    /// Decides how to cut a packet into pieces of at most `limit` octets. A checksum that the kernel left open is
    /// closed; a packet that cannot be cut is left as it is.
    pub(crate) fn new(header: VnetHeader, packet: &'a mut [u8], limit: usize) -> Result<Self, CutError> {
        if header.gso == Gso::None && packet.len() <= limit {
            if header.needs_checksum {
                close_checksum(header, packet)?;
            }
            return Ok(Self { packet, pieces: None, count: 1 });
        }
        let transport = Transport::of(packet).ok_or(match header.gso {
            Gso::None => CutError::TooBig,
            _ => CutError::Malformed,
        })?;
        let is_stream = transport.protocol == TCP;
        let segment = match header.gso {
            Gso::None if !is_stream || packet[transport.network + 13] & TCP_SYN != 0 => {
                return Err(CutError::TooBig);
            }
            Gso::None => packet.len(),
            Gso::Tcp4 | Gso::Tcp6 if is_stream => usize::from(header.segment),
            Gso::Udp if !is_stream => usize::from(header.segment),
            Gso::Tcp4 | Gso::Tcp6 | Gso::Udp => return Err(CutError::Malformed),
        };
        let room = limit.saturating_sub(transport.headers);
        if room == 0 || (!is_stream && segment > room) {
            return Err(CutError::TooBig);
        }
        Self::into_pieces(packet, transport, segment.min(room))
    }

    fn into_pieces(packet: &'a [u8], transport: Transport, segment: usize) -> Result<Self, CutError> {
        if segment == 0 {
            return Err(CutError::Malformed);
        }
        let payload = packet.len() - transport.headers;
        let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let pseudo_sum = transport.pseudo_sum(packet, 0);
        let header = &packet[transport.network..transport.headers];
        let (transport_sum, sequence, flags) = if transport.protocol == TCP {
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let same = [&header[..4], &header[8..12], &header[14..TCP_CHECKSUM], &header[TCP_CHECKSUM + 2..]];
            let sum = same.into_iter().fold(pseudo_sum, checksum::add);
            (sum, sequence, number(transport.network + 12))
        } else {
            (checksum::add(pseudo_sum, &header[..4]), 0, 0)
        };
        let same = [&packet[..2], &packet[6..10], &packet[12..transport.network]];
        let pieces = Pieces {
            transport,
            segment,
            network_sum: same.into_iter().fold(0, checksum::add),
            transport_sum,
            sequence,
            flags,
            identification: number(4),
        };
        Ok(Self { packet, pieces: Some(pieces), count: payload.div_ceil(segment).max(1) })
    }

    /// Octets of a piece.
    #[inline]
    pub(crate) fn length_of(&self, piece: usize) -> usize {
        match &self.pieces {
            None => self.packet.len(),
            Some(pieces) => {
                let headers = pieces.transport.headers;
                let payload = self.packet.len() - headers - piece * pieces.segment;
                headers + payload.min(pieces.segment)
            }
        }
    }

    /// Writes a piece to a place of its length.
    #[inline]
    pub(crate) fn write(&self, piece: usize, out: &mut [u8]) {
        let Some(pieces) = &self.pieces else {
            out.copy_from_slice(self.packet);
            return;
        };
        let headers = pieces.transport.headers;
        let from = headers + piece * pieces.segment;
        let (header, payload) = out.split_at_mut(headers);
        header.copy_from_slice(&self.packet[..headers]);
        let payload_sum = checksum::copy(0, &self.packet[from..from + payload.len()], payload);
        pieces.adapt(piece, piece + 1 == self.count, header, payload.len(), payload_sum);
    }
}

impl Pieces {
    /// Makes copied headers those of a piece.
    ///
    /// They are only written to. Reading what parts were just written of waits until the copy of the payload is done.
    #[inline]
    fn adapt(&self, piece: usize, is_last: bool, header: &mut [u8], payload: usize, payload_sum: u64) {
        let Transport { protocol, is_ipv4, network, headers } = self.transport;
        let mut put = |at: usize, number: u16| header[at..at + 2].copy_from_slice(&number.to_be_bytes());
        if is_ipv4 {
            let length = (headers + payload) as u16;
            let number = self.identification.wrapping_add(piece as u16);
            put(2, length);
            put(4, number);
            let sum = checksum::add_number(checksum::add_number(self.network_sum, length), number);
            put(10, u16::from_be_bytes(checksum::finished(sum)));
        } else {
            put(4, (headers + payload - network) as u16);
        }
        let length = (headers + payload - network) as u16;
        let mut sum = checksum::add_number(self.transport_sum + payload_sum, length);
        let mut put = |at: usize, number: u16| {
            sum = checksum::add_number(sum, number);
            put(network + at, number);
        };
        if protocol == TCP {
            let sequence = self.sequence.wrapping_add((piece * self.segment) as u32);
            put(4, (sequence >> 16) as u16);
            put(6, sequence as u16);
            let after_first = if piece > 0 { u16::from(TCP_CWR) } else { 0 };
            let before_last = if is_last { 0 } else { u16::from(TCP_FIN | TCP_PSH) };
            put(12, self.flags & !after_first & !before_last);
        } else {
            put(4, length);
        }
        // A UDP checksum of zero says that there is none.
        let sum = match checksum::finished(sum) {
            [0, 0] if protocol != TCP => [0xff, 0xff],
            sum => sum,
        };
        let at = self.transport.checksum_at();
        header[at..at + 2].copy_from_slice(&sum);
    }
}

/// Sums up what the kernel left to the device. The field holds the sum of what is outside of the covered part.
fn close_checksum(header: VnetHeader, packet: &mut [u8]) -> Result<(), CutError> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() || start < IPV4_HEADER {
        return Err(CutError::Malformed);
    }
    let sum = checksum::finished(checksum::add(0, &packet[start..]));
    let is_udp = usize::from(header.checksum_offset) == UDP_CHECKSUM;
    packet[at..at + 2].copy_from_slice(if is_udp && sum == [0, 0] { &[0xff, 0xff] } else { &sum });
    Ok(())
}
