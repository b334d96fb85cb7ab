//! Poly1305 of eight messages at a time.
//!
//! Numbers are cut into limbs of 44, 44 and 42 bits, because the processor multiplies 52 bits at a time.

use std::arch::x86_64::*;

use super::wide::LANES;

/// Octets of a block.
const BLOCK: usize = 16;

const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

/// The bit after a block of 128 bits, in the third limb.
const END: u64 = 1 << 40;

/// Blocks that are multiplied at a time: as many as a block of the key stream has. Carries, which cost nearly as much as
/// the products of a block, are needed once for all of them.
const STEP: usize = 4;

/// The limbs of a number of each message.
type Limbs = [__m512i; 3];

/// Sums of products, not carried: of each limb the sum of what is below 52 bits, and that of what is above.
type Sums = [[__m512i; 2]; 3];

/// The state: a sum so far, and what it is multiplied by.
pub(super) struct Poly {
    sum: Limbs,
    /// The key, its square and so on: what a block is multiplied by if none, one and so on follow it in a step.
    powers: [Factor; STEP],
    /// What is added at the end.
    last: [__m512i; 2],
}

/// What limbs are multiplied by.
#[derive(Clone, Copy)]
struct Factor {
    limbs: Limbs,
    /// The upper two of these, times 20: three limbs are 132 bits, and 2^130 is 5.
    wrapped: [__m512i; 2],
}

impl Poly {
    /// By the words of keys that are for one message each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn new(keys: &[__m256i; 8]) -> Self {
        let pair = |word: usize| {
            let high = _mm512_slli_epi64::<32>(_mm512_cvtepu32_epi64(keys[word + 1]));
            _mm512_or_si512(_mm512_cvtepu32_epi64(keys[word]), high)
        };
        let low = _mm512_and_si512(pair(0), everywhere(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(pair(2), everywhere(0x0fff_fffc_0fff_fffc));
        let key = Factor::new(limbs(low, high, _mm512_setzero_si512()));
        let mut powers = [key; STEP];
        for power in 1..STEP {
            powers[power] = Factor::new(carried(products([powers[power - 1].limbs], &[key])));
        }
        Self { sum: [_mm512_setzero_si512(); 3], powers, last: [pair(4), pair(6)] }
    }

    /// Takes four blocks of each message, a register for each message.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn add(&mut self, rows: &[__m512i; LANES]) {
        self.add_blocks::<STEP>(&transposed(rows));
    }

    /// Takes the last blocks of each message, at most four. What is above `octets` must be 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn add_last(&mut self, rows: &[__m512i; LANES], octets: usize) {
        for words in transposed(rows).chunks_exact(2).take(octets.div_ceil(BLOCK)) {
            self.add_blocks::<1>(words);
        }
    }

    /// The tags of messages of a length, without additional data.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn tags(mut self, length: usize) -> [u128; LANES] {
        self.add_blocks::<1>(&[_mm512_setzero_si512(), everywhere(length as u64)]);
        self.finished()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn finished(self) -> [u128; LANES] {
        let [first, second, third] = [to_array(self.sum[0]), to_array(self.sum[1]), to_array(self.sum[2])];
        let [low, high] = [to_array(self.last[0]), to_array(self.last[1])];
        std::array::from_fn(|lane| {
            let last = u128::from(low[lane]) | u128::from(high[lane]) << 64;
            reduced(first[lane], second[lane], third[lane]).wrapping_add(last)
        })
    }

    /// Adds as many blocks, each in two words, and multiplies.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn add_blocks<const COUNT: usize>(&mut self, words: &[__m512i]) {
        let mut blocks = [[_mm512_setzero_si512(); 3]; COUNT];
        for (block, words) in blocks.iter_mut().zip(words.chunks_exact(2)) {
            *block = limbs(words[0], words[1], everywhere(END));
        }
        for (limb, sum) in blocks[0].iter_mut().zip(self.sum) {
            *limb = _mm512_add_epi64(*limb, sum);
        }
        self.sum = carried(products(blocks, &self.powers));
    }
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(limbs: Limbs) -> Self {
        let twentyfold = |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
        Self { limbs, wrapped: [twentyfold(limbs[1]), twentyfold(limbs[2])] }
    }
}

/// The sum of blocks, each multiplied by the power that belongs to its place. The first one, to which the sum so far was
/// added, comes last, so that the others need not wait for it.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn products<const COUNT: usize>(blocks: [Limbs; COUNT], powers: &[Factor]) -> Sums {
    let mut sums = [[_mm512_setzero_si512(); 2]; 3];
    for (block, power) in blocks.into_iter().rev().zip(powers) {
        let ([r0, r1, r2], [s1, s2]) = (power.limbs, power.wrapped);
        sums[0] = plus_product(sums[0], block, [r0, s2, s1]);
        sums[1] = plus_product(sums[1], block, [r1, r0, s2]);
        sums[2] = plus_product(sums[2], block, [r2, r1, r0]);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn plus_product([low, high]: [__m512i; 2], a: Limbs, b: Limbs) -> [__m512i; 2] {
    let low = _mm512_madd52lo_epu64(low, a[2], b[2]);
    let high = _mm512_madd52hi_epu64(high, a[2], b[2]);
    let low = _mm512_madd52lo_epu64(low, a[1], b[1]);
    let high = _mm512_madd52hi_epu64(high, a[1], b[1]);
    [_mm512_madd52lo_epu64(low, a[0], b[0]), _mm512_madd52hi_epu64(high, a[0], b[0])]
}

/// Carries what is above a limb's bits to the next one. The second limb stays up to 2^16 above its 44 bits.
///
/// Nothing overflows: what is multiplied has limbs below 2^46, what it is multiplied by below 2^49 (20 times 2^44), and
/// a sum has at most 12 products. So the sums of what is below 52 bits are under 2^56, and those of what is above under
/// 2^47, which leaves `above` under 2^58 and five times it under 2^61.
#[inline]
#[target_feature(enable = "avx512f")]
fn carried([[low_0, high_0], [low_1, high_1], [low_2, high_2]]: Sums) -> Limbs {
    // What is above 52 bits is above 44 by 8, and in the last limb above 42 by 10.
    let second = _mm512_add_epi64(low_1, _mm512_slli_epi64::<8>(high_0));
    let third = _mm512_add_epi64(low_2, _mm512_slli_epi64::<8>(high_1));
    let second = _mm512_add_epi64(second, _mm512_srli_epi64::<44>(low_0));
    let third = _mm512_add_epi64(third, _mm512_srli_epi64::<44>(second));
    let above = _mm512_add_epi64(_mm512_slli_epi64::<10>(high_2), _mm512_srli_epi64::<42>(third));
    let fivefold = _mm512_add_epi64(above, _mm512_slli_epi64::<2>(above));
    let low_44 = everywhere(LOW_44);
    let first = _mm512_add_epi64(_mm512_and_si512(low_0, low_44), fivefold);
    let second = _mm512_add_epi64(_mm512_and_si512(second, low_44), _mm512_srli_epi64::<44>(first));
    [_mm512_and_si512(first, low_44), second, _mm512_and_si512(third, everywhere(LOW_42))]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn everywhere(number: u64) -> __m512i {
    _mm512_set1_epi64(number.cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_array(lanes: __m512i) -> [u64; LANES] {
    let mut array = [0; LANES];
    // SAFETY: the array has the octets of a register; stores need no alignment.
    unsafe { _mm512_storeu_si512(array.as_mut_ptr().cast(), lanes) };
    array
}

/// Cuts blocks, each in two words, into limbs, with a bit above.
#[inline]
#[target_feature(enable = "avx512f")]
fn limbs(low: __m512i, high: __m512i, end: __m512i) -> Limbs {
    let low_44 = everywhere(LOW_44);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [
        _mm512_and_si512(low, low_44),
        _mm512_and_si512(middle, low_44),
        _mm512_or_si512(_mm512_srli_epi64::<24>(high), end),
    ]
}

/// From a register for each message to a register for each word.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: &[__m512i; LANES]) -> [__m512i; 8] {
    let mut pairs = [_mm512_setzero_si512(); 8];
    for row in 0..4 {
        let [a, b] = [rows[2 * row], rows[2 * row + 1]];
        // Words 0, 2, 4 and 6 of two messages, and the others.
        pairs[row] = _mm512_unpacklo_epi64(a, b);
        pairs[4 + row] = _mm512_unpackhi_epi64(a, b);
    }
    let mut words = [_mm512_setzero_si512(); 8];
    for odd in 0..2 {
        let [a, b, c, d] = [pairs[4 * odd], pairs[4 * odd + 1], pairs[4 * odd + 2], pairs[4 * odd + 3]];
        let [ab, cd] = [_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0x44>(c, d)];
        let [ab_high, cd_high] = [_mm512_shuffle_i64x2::<0xee>(a, b), _mm512_shuffle_i64x2::<0xee>(c, d)];
        words[odd] = _mm512_shuffle_i64x2::<0x88>(ab, cd);
        words[2 + odd] = _mm512_shuffle_i64x2::<0xdd>(ab, cd);
        words[4 + odd] = _mm512_shuffle_i64x2::<0x88>(ab_high, cd_high);
        words[6 + odd] = _mm512_shuffle_i64x2::<0xdd>(ab_high, cd_high);
    }
    words
}

/// The number below 2^130 - 5 that the limbs are, without what is above 128 bits.
#[inline]
fn reduced(first: u64, second: u64, third: u64) -> u128 {
    let second = second + (first >> 44);
    let third = third + (second >> 44);
    let first = (first & LOW_44) + (third >> 42) * 5;
    let second = (second & LOW_44) + (first >> 44);
    let third = (third & LOW_42) + (second >> 44);
    let [first, second] = [first & LOW_44, second & LOW_44];
    // 1 if it is not below, and 5 more reach 2^130.
    let is_above = (third + ((second + ((first + 5) >> 44)) >> 44)) >> 42;
    u128::from(first + 5 * is_above)
        .wrapping_add(u128::from(second) << 44)
        .wrapping_add(u128::from(third) << 88)
}

#[cfg(test)]
mod tests {
    use super::super::is_wide;
    use super::*;

    /// What RFC 8439 says of a message of whole blocks, a digit of 32 bits after the other.
    fn by_the_book(key: [u128; 2], message: &[u8]) -> u128 {
        let digits = |number: u128| [0, 32, 64, 96].map(|bits| number >> bits & 0xffff_ffff);
        let key_digits = digits(key[0] & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff);
        let mut sum = [0_u128; 5];
        for block in message.as_chunks().0 {
            for (digit, more) in sum.iter_mut().zip(digits(u128::from_le_bytes(*block))) {
                *digit += more;
            }
            sum[4] += 1;
            let mut product = [0; 10];
            for (place, digit) in sum.iter().enumerate() {
                for (other_place, other) in key_digits.iter().enumerate() {
                    // A product of 66 bits is cut in two, as a sum of nine would not overflow.
                    product[place + other_place] += (digit * other) & 0xffff_ffff;
                    product[place + other_place + 1] += (digit * other) >> 32;
                }
            }
            carry(&mut product);
            // 2^130 is 5: what is above it, in place, four times and once.
            let above: [u128; 5] = std::array::from_fn(|place| product[place + 4]);
            sum = std::array::from_fn(|place| if place < 4 { product[place] } else { product[4] & 3 });
            for (place, digit) in above.into_iter().enumerate() {
                let digit = if place == 0 { digit & !3 } else { digit };
                let next = product.get(place + 5).copied().unwrap_or(0);
                sum[place] += digit + ((digit >> 2) + ((next & 3) << 30));
            }
            carry(&mut sum);
        }
        for _ in 0..2 {
            let above = sum[4] >> 2;
            sum[4] &= 3;
            sum[0] += 5 * above;
            carry(&mut sum);
        }
        let mut reduced = sum;
        reduced[0] += 5;
        carry(&mut reduced);
        let sum = if reduced[4] >= 4 { reduced } else { sum };
        let number = (0..4).fold(0, |number, place| number | sum[place] << (32 * place));
        key[1].wrapping_add(number)
    }

    fn carry(digits: &mut [u128]) {
        for place in 0..digits.len() - 1 {
            digits[place + 1] += digits[place] >> 32;
            digits[place] &= 0xffff_ffff;
        }
    }

    /// The tags of one message in all lanes, of which each starts with what `first` gives it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn wide(key: [u128; 2], message: &[u8]) -> [u128; LANES] {
        let word = |at: usize| (key[at / 4] >> (32 * (at % 4))) as u32;
        let keys = std::array::from_fn(|at| _mm256_set1_epi32(word(at).cast_signed()));
        let mut poly = Poly::new(&keys);
        for octets in message.chunks(4 * BLOCK) {
            let mut block = [0; 4 * BLOCK];
            block[..octets.len()].copy_from_slice(octets);
            // SAFETY: the array has the octets of a register; loads need no alignment.
            let row = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            if octets.len() == block.len() {
                poly.add(&[row; LANES]);
            } else {
                poly.add_last(&[row; LANES], octets.len());
            }
        }
        poly.finished()
    }

    fn assert_tag(key: [u128; 2], message: &[u8]) -> u128 {
        let tag = by_the_book(key, message);
        if is_wide() {
            // SAFETY: the processor has these instructions.
            assert_eq!(unsafe { wide(key, message) }, [tag; LANES], "{key:x?} {message:x?}");
        }
        tag
    }

    fn blocks(blocks: &[u128]) -> Vec<u8> {
        blocks.iter().flat_map(|block| block.to_le_bytes()).collect()
    }

    #[test]
    fn sums_at_their_limits_have_the_tags_of_the_standard() {
        // RFC 8439, A.3, tests 7 to 12.
        let full = u128::MAX;
        for (key, message, tag) in [
            ([2, 0], &[full][..], 3),
            ([2, full], &[2], 3),
            ([1, 0], &[full, full - 15, 0x11], 5),
            ([1, 0], &[full, 0xfefe_fefe_fefe_fefe_fefe_fefe_fefe_fefb, u128::MAX / 255], 0),
            ([2, 0], &[full - 2], full - 5),
            ([1 | 4 << 64, 0], &[0xb943_5e50_d794_35e3, 0x1_cd79_435e_50d7_9433, 0, 1], 0x14 | 0x55 << 64),
            ([1 | 4 << 64, 0], &[0xb943_5e50_d794_35e3, 0x1_cd79_435e_50d7_9433, 0], 0x13),
        ] {
            assert_eq!(assert_tag(key, &blocks(message)), tag);
        }
    }

    #[test]
    fn the_largest_keys_and_messages_overflow_nothing() {
        for key in [u128::MAX, 0x0fff_fffc_0fff_fffc_0fff_fffc_0000_0000, 0x0fff_ffff, 1 << 44, 1 << 88] {
            for octet in [0xff, 0xfe, 0x80, 0x01, 0x00] {
                for count in (0..14).chain([88, 4096]) {
                    assert_tag([key, u128::MAX], &vec![octet; count * BLOCK]);
                }
            }
        }
    }
}
