//! The checksum of IP, TCP and UDP.

/// Octets from which on wider instructions pay off.
#[cfg(target_arch = "x86_64")]
const WIDE_MIN: usize = 256;

/// Adds octets to a sum. All but the last part of what is summed must have an even length.
#[inline]
pub(crate) fn add(sum: u64, octets: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if octets.len() >= WIDE_MIN && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        return unsafe { add_wide(sum, octets) };
    }
    add_any(sum, octets)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_wide(sum: u64, octets: &[u8]) -> u64 {
    add_any(sum, octets)
}

#[inline(always)]
fn add_any(sum: u64, octets: &[u8]) -> u64 {
    // Halves of wide words, so that the compiler makes vector instructions of it and nothing is carried in between.
    let mut wide = [0_u64; 4];
    let blocks = octets.chunks_exact(32);
    let rest = blocks.remainder();
    for block in blocks {
        for (sum, word) in wide.iter_mut().zip(block.chunks_exact(8)) {
            let word =
                u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            *sum += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    let mut sum = sum + wide.iter().sum::<u64>();
    let pairs = rest.chunks_exact(2);
    if let [odd] = pairs.remainder() {
        sum += u64::from(*odd);
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
        fn it_is_that_of_the_standard(octets in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..150) {
            let cut = (cut * 2).min(octets.len() / 2 * 2);
            let sum = add(add(0, &octets[..cut]), &octets[cut..]);
            prop_assert_eq!(finished(sum), by_the_book(&octets));
        }
    }

    #[test]
    fn the_largest_sums_are_folded() {
        assert_eq!(finished(add(0, &[0xff; 65_534])), [0, 0]);
        assert_eq!(folded(add_number(0, 0x1234)), [0x12, 0x34]);
    }
}
