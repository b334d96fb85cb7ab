//! The form of WireGuard's four messages.

use crate::drops::Drop;

/// Octets of the message that begins a handshake.
pub(crate) const INITIATION_LENGTH: usize = 148;

/// Octets of the answer to it.
pub(crate) const RESPONSE_LENGTH: usize = 92;

/// Octets of the message that gives a cookie to a peer, while this end is under load.
pub(crate) const COOKIE_REPLY_LENGTH: usize = 64;

/// Octets before the encrypted packet of a data message.
pub(crate) const DATA_HEADER_LENGTH: usize = 16;

/// Octets that prove a data message, after the encrypted packet.
pub(crate) const TAG_LENGTH: usize = 16;

/// What a data message is longer than its packet.
pub(crate) const DATA_OVERHEAD: usize = DATA_HEADER_LENGTH + TAG_LENGTH;

/// Packets are padded to a multiple of this, to tell less about them.
pub(crate) const PADDING: usize = 16;

/// What a datagram says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    CookieReply,
    Data,
}

impl Kind {
    /// Reads the type of a datagram and checks the length that belongs to it.
    #[inline]
    pub(crate) fn of(datagram: &[u8]) -> Result<Self, Drop> {
        let Some(head) = datagram.first_chunk::<4>() else {
            return Err(Drop::Malformed);
        };
        match (u32::from_le_bytes(*head), datagram.len()) {
            (4, DATA_OVERHEAD..) => Ok(Self::Data),
            (1, INITIATION_LENGTH) => Ok(Self::Initiation),
            (2, RESPONSE_LENGTH) => Ok(Self::Response),
            (3, COOKIE_REPLY_LENGTH) => Ok(Self::CookieReply),
            _ => Err(Drop::Malformed),
        }
    }
}

/// A number at a place that the caller has checked.
#[inline]
pub(crate) fn u32_at(octets: &[u8], at: usize) -> u32 {
    octets[at..].first_chunk().map_or(0, |octets| u32::from_le_bytes(*octets))
}

/// A number at a place that the caller has checked.
#[inline]
pub(crate) fn u64_at(octets: &[u8], at: usize) -> u64 {
    octets[at..].first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets))
}

/// Writes what stands before the encrypted packet.
#[inline]
pub(crate) fn write_data_header(out: &mut [u8], receiver: u32, counter: u64) {
    out[..4].copy_from_slice(&4_u32.to_le_bytes());
    out[4..8].copy_from_slice(&receiver.to_le_bytes());
    out[8..DATA_HEADER_LENGTH].copy_from_slice(&counter.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_length_is_malformed() {
        for (kind, length) in [(1, INITIATION_LENGTH), (2, RESPONSE_LENGTH), (3, COOKIE_REPLY_LENGTH)] {
            for cut in 0..length + 8 {
                let mut datagram = vec![0; cut];
                if let Some(octet) = datagram.first_mut() {
                    *octet = kind;
                }
                assert_eq!(Kind::of(&datagram).is_ok(), cut == length, "kind {kind}, {cut} octets");
            }
        }
    }

    #[test]
    fn reserved_octets_are_zero() {
        let mut datagram = [0; INITIATION_LENGTH];
        datagram[0] = 1;
        assert_eq!(Kind::of(&datagram), Ok(Kind::Initiation));
        datagram[3] = 1;
        assert_eq!(Kind::of(&datagram), Err(Drop::Malformed));
    }
}
