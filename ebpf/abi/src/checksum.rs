//! The Internet checksum, changed by what changes in a packet (RFC 1624), whatever the byte order.

/// By how much the sum over a packet grows, as words of it are replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// Counts a word that is replaced by another one.
    #[inline(always)]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        self.add(!old).add(new)
    }

    /// Counts a word that is added. There is room for the carries of more words than any packet has.
    #[inline(always)]
    pub const fn add(self, new: u32) -> Self {
        Self(self.0 + new as u64)
    }

    /// Counts an address that is replaced by another one.
    #[inline(always)]
    pub const fn replace_address(self, old: &[u32; 4], new: &[u32; 4]) -> Self {
        self.replace(old[0], new[0]).replace(old[1], new[1]).replace(old[2], new[2]).replace(old[3], new[3])
    }

    /// The checksum (as it is in the packet) after the change.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let sum = fold(fold(self.add((!checksum) as u32).0, 32), 16);
        !(fold(fold(sum, 16), 16) as u16)
    }

    /// As the kernel's helpers want it.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        fold(fold(self.0, 32), 32) as u32
    }
}

/// Adds what is above so many bits to what is below: a step to the sum as one's complement of so many bits.
#[inline(always)]
const fn fold(sum: u64, bits: u32) -> u64 {
    (sum >> bits) + (sum & ((1 << bits) - 1))
}
