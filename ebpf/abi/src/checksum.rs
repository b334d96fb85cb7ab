//! The Internet checksum, changed by what changes in a packet (RFC 1624), whatever the byte order.

/// By how much the sum over a packet grows, as words of it are replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference(u32);

impl Difference {
    /// Counts a word that is replaced by another one.
    #[inline(always)]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        self.add(!old).add(new)
    }

    /// Counts a word that is added.
    #[inline(always)]
    pub const fn add(self, new: u32) -> Self {
        let (sum, carried) = self.0.overflowing_add(new);
        // The carry goes around; it cannot carry again.
        Self(sum.wrapping_add(carried as u32))
    }

    /// Counts an address that is replaced by another one.
    #[inline(always)]
    pub const fn replace_address(self, old: &[u32; 4], new: &[u32; 4]) -> Self {
        self.replace(old[0], new[0]).replace(old[1], new[1]).replace(old[2], new[2]).replace(old[3], new[3])
    }

    /// The checksum (as it is in the packet) after the change.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.add((!checksum) as u32).0)
    }

    /// As the kernel's helpers want it.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// The sum as one's complement of 16 bits.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    ((once >> 16) + (once & 0xffff)) as u16
}
