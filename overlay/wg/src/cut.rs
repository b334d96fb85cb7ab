//! Cuts what the kernel hands over into packets that fit through the tunnel.
//!
//! The kernel leaves a TCP stream in pieces of up to 64 KiB, which cost it one passage through its stack each. They
//! are cut here, into pieces that fit the path to the peer: that may be smaller than what the connection agreed on,
//! because where a stream is cut does not matter to it.

use crate::checksum;
use crate::ip::{
    IPV4_HEADER, TCP, TCP_CWR, TCP_FIN, TCP_PSH, TCP_SYN, Transport, UDP_CHECKSUM, write_length,
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
    /// The checksum over addresses and protocol.
    address_sum: u64,
    sequence: u32,
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
        let number = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
        let pieces = Pieces {
            transport,
            segment,
            address_sum: transport.pseudo_sum(packet, 0),
            sequence: if transport.protocol == TCP {
                u32::from_be_bytes(number(transport.network + 4))
            } else {
                0
            },
            identification: u16::from_be_bytes([packet[4], packet[5]]),
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
        out[..headers].copy_from_slice(&self.packet[..headers]);
        let payload = out.len() - headers;
        out[headers..].copy_from_slice(&self.packet[from..from + payload]);
        pieces.adapt(piece, piece + 1 == self.count, out);
    }
}

impl Pieces {
    /// Makes copied headers those of a piece.
    #[inline]
    fn adapt(&self, piece: usize, is_last: bool, out: &mut [u8]) {
        let Transport { protocol, is_ipv4, network, headers } = self.transport;
        if is_ipv4 {
            let number = self.identification.wrapping_add(piece as u16);
            out[4..6].copy_from_slice(&number.to_be_bytes());
        }
        write_length(out, is_ipv4, out.len());
        let length = out.len() - network;
        let transport = &mut out[network..];
        if protocol == TCP {
            let sequence = self.sequence.wrapping_add((piece * self.segment) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                transport[13] &= !(TCP_FIN | TCP_PSH);
            }
            if piece > 0 {
                transport[13] &= !TCP_CWR;
            }
        } else {
            transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let at = self.transport.checksum_at() - network;
        transport[at..at + 2].fill(0);
        let sum = checksum::add_number(self.address_sum, length as u16);
        let sum = checksum::finished(checksum::add(sum, transport));
        // A UDP checksum of zero says that there is none.
        let sum = if protocol != TCP && sum == [0, 0] { [0xff, 0xff] } else { sum };
        transport[at..at + 2].copy_from_slice(&sum);
        debug_assert!(headers <= out.len());
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
