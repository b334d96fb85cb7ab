//! What the kernel says about a packet that it hands over, and is told about one that it gets: `virtio_net_hdr`.

/// Octets of it.
pub(crate) const VNET_LENGTH: usize = 10;

/// The checksum field holds the sum of the pseudo header only.
const NEEDS_CHECKSUM: u8 = 1;

/// Explicit congestion is signalled, beside the kind of cut.
const ECN: u8 = 0x80;

/// How a packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Gso {
    /// Not at all.
    #[default]
    None,
    Tcp4,
    Tcp6,
    /// Into datagrams.
    Udp,
}

/// The header, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VnetHeader {
    pub(crate) gso: Gso,
    pub(crate) needs_checksum: bool,
    /// Octets of all headers of the packet.
    pub(crate) headers: u16,
    /// Octets of payload of each piece.
    pub(crate) segment: u16,
    /// Where what the checksum covers begins.
    pub(crate) checksum_start: u16,
    /// Where the checksum is, counted from there.
    pub(crate) checksum_offset: u16,
}

impl VnetHeader {
    /// Reads it. Nothing if the kernel asks for a cut that it was not told we can do.
    pub(crate) fn read(octets: &[u8; VNET_LENGTH]) -> Option<Self> {
        let number = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let gso = match octets[1] & !ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            gso,
            needs_checksum: octets[0] & NEEDS_CHECKSUM != 0,
            headers: number(2),
            segment: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
        })
    }

    /// The same, where so many octets more come before the packet.
    pub(crate) fn moved(self, octets: u16) -> Self {
        if self.needs_checksum || self.gso != Gso::None {
            let (headers, checksum_start) = (self.headers + octets, self.checksum_start + octets);
            Self { headers, checksum_start, ..self }
        } else {
            self
        }
    }

    /// Where so many octets less come before the packet, in a header that was not looked at.
    pub(crate) fn moved_back(mut header: [u8; VNET_LENGTH], octets: u16) -> [u8; VNET_LENGTH] {
        for at in [2, 6] {
            let number = u16::from_ne_bytes([header[at], header[at + 1]]).saturating_sub(octets);
            header[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        header
    }

    pub(crate) fn write(self) -> [u8; VNET_LENGTH] {
        let mut octets = [0; VNET_LENGTH];
        octets[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        octets[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        let numbers = [self.headers, self.segment, self.checksum_start, self.checksum_offset];
        for (place, number) in octets[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        octets
    }
}
