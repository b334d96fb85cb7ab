//! The checksum of IP, TCP and UDP.

#[cfg(target_arch = "x86_64")]
mod vnni;

/// Octets from which on wider instructions pay off.
#[cfg(target_arch = "x86_64")]
const WIDE_MIN: usize = 256;

/// Octets that are added at a time.
const BLOCK: usize = 64;

/// Adds octets, at most a packet's, to a sum. All but the last part of what is summed must have an even length.
#[inline]
pub(crate) fn add(sum: u64, octets: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if octets.len() >= WIDE_MIN {
        if vnni::is_there() {
            // SAFETY: the processor has these instructions.
            return unsafe { vnni::add(sum, octets) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { add_wide(sum, octets) };
        }
    }
    add_any(sum, octets)
}

/// Copies octets, and adds them to a sum as [`add`] does. Both must be as long.
#[inline]
pub(crate) fn copy(sum: u64, from: &[u8], to: &mut [u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= WIDE_MIN {
        if vnni::is_there() {
            // SAFETY: the processor has these instructions.
            return unsafe { vnni::copy(sum, from, to) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { copy_wide(sum, from, to) };
        }
    }
    copy_any(sum, from, to)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_wide(sum: u64, octets: &[u8]) -> u64 {
    add_any(sum, octets)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_wide(sum: u64, from: &[u8], to: &mut [u8]) -> u64 {
    copy_any(sum, from, to)
}

#[inline(always)]
fn add_any(sum: u64, octets: &[u8]) -> u64 {
    let mut lanes = Lanes::default();
    let blocks = octets.chunks_exact(BLOCK);
    let rest = blocks.remainder();
    blocks.for_each(|block| lanes.add(block));
    lanes.sum() + add_few(sum, rest)
}

#[inline(always)]
fn copy_any(sum: u64, from: &[u8], to: &mut [u8]) -> u64 {
    let mut lanes = Lanes::default();
    let (whole, rest) = from.split_at(from.len() - from.len() % BLOCK);
    let (to_whole, to_rest) = to.split_at_mut(whole.len());
    // One passage instead of two: what is copied is in a register.
    for (from, to) in whole.chunks_exact(BLOCK).zip(to_whole.chunks_exact_mut(BLOCK)) {
        to.copy_from_slice(from);
        lanes.add(from);
    }
    to_rest.copy_from_slice(rest);
    lanes.sum() + add_few(sum, rest)
}

/// Sums of both halves of words, which the compiler keeps in vectors. A packet of 64 KiB adds 2^10 times less than 2^17.
#[derive(Default)]
struct Lanes([u32; BLOCK / 4]);

impl Lanes {
    #[inline(always)]
    fn add(&mut self, block: &[u8]) {
        for (lane, word) in self.0.iter_mut().zip(block.chunks_exact(4)) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            *lane += (word & 0xffff) + (word >> 16);
        }
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        self.0.iter().map(|lane| u64::from(*lane)).sum()
    }
}

/// Adds less than a block.
#[inline(always)]
fn add_few(mut sum: u64, octets: &[u8]) -> u64 {
    let words = octets.chunks_exact(4);
    let pairs = words.remainder().chunks_exact(2);
    if let [odd] = pairs.remainder() {
        sum += u64::from(*odd);
    }
    for word in words {
        sum += u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    }
    for pair in pairs {
        sum += u64::from(u16::from_le_bytes([pair[0], pair[1]]));
    }
    sum
}

/// Adds a number of 16 bits to a sum.
#[inline]
pub(crate) fn add_number(sum: u64, number: u16) -> u64 {
    sum + u64::from(number.to_be())
}

/// The sum in 16 bits, in the order in which it is sent.
#[inline]
pub(crate) fn folded(sum: u64) -> [u8; 2] {
    let mut sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).unwrap_or(u16::MAX).to_le_bytes()
}

/// What goes into a checksum field.
#[inline]
pub(crate) fn finished(sum: u64) -> [u8; 2] {
    folded(sum).map(|octet| !octet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 by the book.
    fn by_the_book(octets: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for pair in octets.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |octet| u32::from(*octet));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).expect("folded")).to_be_bytes()
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_standard(octets in proptest::collection::vec(any::<u8>(), 0..1500), cut in 0_usize..750) {
            let cut = (cut * 2).min(octets.len() / 2 * 2);
            let sum = add(add(0, &octets[..cut]), &octets[cut..]);
            prop_assert_eq!(finished(sum), by_the_book(&octets));

            let mut copied = vec![0xaa; octets.len() - cut];
            let sum = copy(add(0, &octets[..cut]), &octets[cut..], &mut copied);
            prop_assert_eq!(finished(sum), by_the_book(&octets));
            prop_assert_eq!(&copied, &octets[cut..]);
        }
    }

    #[test]
    fn the_largest_sums_are_folded() {
        assert_eq!(finished(add(0, &[0xff; 65_534])), [0, 0]);
        assert_eq!(finished(copy(0, &[0xff; 65_534], &mut [0; 65_534])), [0, 0]);
        assert_eq!(folded(add_number(0, 0x1234)), [0x12, 0x34]);
    }
}
