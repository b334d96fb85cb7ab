//! Poly1305 of eight messages at a time.
//!
//! Numbers are cut into limbs of 52, 52 and 26 bits, because the processor multiplies 52 bits at a time.

use std::arch::x86_64::*;

use super::wide::LANES;

/// Octets of a block.
pub(super) const BLOCK: usize = 16;

/// Blocks whose products are summed up before they are carried.
pub(super) const POLY_STEP: usize = 8;

const LOW_52: u64 = (1 << 52) - 1;
const LOW_26: u64 = (1 << 26) - 1;

/// The limbs of a number of each message. Products are of the lower 52 bits of a register, so what is above them need
/// not be cleared in what is only multiplied.
pub(super) type Limbs = [__m512i; 3];

/// The state: a sum so far, and what it is multiplied by.
pub(super) struct Poly {
    /// The first limb is up to 2^36 above its 52 bits.
    sum: Limbs,
    /// The key, its square and so on: what a block is multiplied by if none, one and so on follow it in a step.
    powers: [Limbs; POLY_STEP],
    /// What is added at the end.
    last: [__m512i; 2],
}

/// A sum of products, not carried: a column for each 52 bits of it.
pub(super) struct Sums([__m512i; 6]);

impl Poly {
    /// By the words of keys that are for one message each, and how many blocks are taken at once at most.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn new(keys: &[__m256i; 8], blocks_at_once: usize) -> Self {
        let pair = |word: usize| {
            let high = _mm512_slli_epi64::<32>(_mm512_cvtepu32_epi64(keys[word + 1]));
            _mm512_or_si512(_mm512_cvtepu32_epi64(keys[word]), high)
        };
        let low = _mm512_and_si512(pair(0), everywhere(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(pair(2), everywhere(0x0fff_fffc_0fff_fffc));
        let mut powers = [limbs([low, high], _mm512_setzero_si512()); POLY_STEP];
        for power in 1..blocks_at_once {
            // Of the two nearest to half of it, so that not each waits for the one before.
            let half = power / 2;
            let mut product = Sums::none();
            product.add(&powers[half], &powers[power - half - 1]);
            powers[power] = carried(product.reduced());
        }
        Self { sum: [_mm512_setzero_si512(); 3], powers, last: [pair(4), pair(6)] }
    }

    /// Takes up to four blocks of each message, a register for each message. What is above `octets` must be 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn add(&mut self, rows: &[__m512i; LANES], octets: usize) {
        self.add_blocks(&mut blocks(rows)[..octets.div_ceil(BLOCK)]);
    }

    /// The tags of messages of a length, without additional data.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn tags(mut self, length: usize) -> [u128; LANES] {
        let length = limbs([_mm512_setzero_si512(), everywhere(length as u64)], everywhere(1));
        self.add_blocks(&mut [length]);
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

    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    fn add_blocks(&mut self, blocks: &mut [Limbs]) {
        if let Some(first) = blocks.first_mut() {
            self.add_sum(first);
        }
        let mut sums = Sums::none();
        for (block, power) in blocks.iter().rev().zip(&self.powers) {
            sums.add(block, power);
        }
        self.set_sum(sums);
    }

    /// What a block is multiplied by that so many follow among those that are taken at once.
    #[inline]
    pub(super) fn power(&self, following: usize) -> &Limbs {
        &self.powers[following]
    }

    /// Adds the sum so far to the first of the blocks that are taken at once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    pub(super) fn add_sum(&self, block: &mut Limbs) {
        let low_52 = everywhere(LOW_52);
        *block = carried([
            _mm512_add_epi64(_mm512_and_si512(block[0], low_52), self.sum[0]),
            _mm512_add_epi64(_mm512_and_si512(block[1], low_52), self.sum[1]),
            _mm512_add_epi64(block[2], self.sum[2]),
        ]);
    }

    /// Replaces the sum so far, which the products contain.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn set_sum(&mut self, sums: Sums) {
        self.sum = sums.reduced();
    }
}

impl Sums {
    /// Of no products.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn none() -> Self {
        Self([_mm512_setzero_si512(); 6])
    }

    /// Adds the product of a block and a power.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn add(&mut self, block: &Limbs, power: &Limbs) {
        for limb in 0..block.len() {
            self.add_limb(limb, block, power);
        }
    }

    /// Adds what one limb of a block contributes to the product with a power.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn add_limb(&mut self, limb: usize, block: &Limbs, power: &Limbs) {
        for (place, other) in power.iter().enumerate() {
            let column = limb + place;
            self.0[column] = _mm512_madd52lo_epu64(self.0[column], block[limb], *other);
            self.0[column + 1] = _mm512_madd52hi_epu64(self.0[column + 1], block[limb], *other);
        }
    }

    /// Brings what is above 130 bits down: 2^130 is 5, so 2^156, where the fourth column begins, is 5 * 2^26.
    ///
    /// Nothing overflows: a column has at most 40 numbers below 2^52, so it is below 2^58. Third limbs are below 2^27, so
    /// the last column has at most eight numbers below 2^2.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn reduced(self) -> Limbs {
        let Self([c0, c1, c2, c3, c4, c5]) = self;
        let [low_52, low_26] = [everywhere(LOW_52), everywhere(LOW_26)];
        let down = everywhere(5 << 26);
        let c4 = _mm512_add_epi64(c4, _mm512_srli_epi64::<52>(c3));
        let c5 = _mm512_add_epi64(c5, _mm512_srli_epi64::<52>(c4));
        let first = _mm512_madd52lo_epu64(c0, c3, down);
        let second = _mm512_madd52lo_epu64(_mm512_madd52hi_epu64(c1, c3, down), c4, down);
        let third = _mm512_madd52lo_epu64(_mm512_madd52hi_epu64(c2, c4, down), c5, down);
        let [first, second, third] = {
            let second = _mm512_add_epi64(second, _mm512_srli_epi64::<52>(first));
            [first, second, _mm512_add_epi64(third, _mm512_srli_epi64::<52>(second))]
        };
        // Below 2^33, so that five times it is less than 2^36.
        let above = _mm512_srli_epi64::<26>(third);
        [
            _mm512_madd52lo_epu64(_mm512_and_si512(first, low_52), above, everywhere(5)),
            _mm512_and_si512(second, low_52),
            _mm512_and_si512(third, low_26),
        ]
    }
}

/// Carries what is above 52 bits to the next limb, where it stays as well: nothing but products of it are made.
#[inline]
#[target_feature(enable = "avx512f")]
fn carried([first, second, third]: Limbs) -> Limbs {
    let second = _mm512_add_epi64(second, _mm512_srli_epi64::<52>(first));
    [first, second, _mm512_add_epi64(third, _mm512_srli_epi64::<52>(second))]
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

/// Blocks of each message, in their order, from a register for each message.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
pub(super) fn blocks(rows: &[__m512i; LANES]) -> [Limbs; 4] {
    let [a, b, c, d] = transposed(rows);
    let end = everywhere(1);
    [limbs(a, end), limbs(b, end), limbs(c, end), limbs(d, end)]
}

/// Cuts three words into limbs.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn limbs([low, high]: [__m512i; 2], highest: __m512i) -> Limbs {
    [low, _mm512_shrdi_epi64::<52>(low, high), _mm512_shrdi_epi64::<40>(high, highest)]
}

/// From a register for each message to two registers, a word each, for each block.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: &[__m512i; LANES]) -> [[__m512i; 2]; 4] {
    let mut pairs = [_mm512_setzero_si512(); 8];
    for row in 0..4 {
        let [a, b] = [rows[2 * row], rows[2 * row + 1]];
        // Words 0, 2, 4 and 6 of two messages, and the others.
        pairs[row] = _mm512_unpacklo_epi64(a, b);
        pairs[4 + row] = _mm512_unpackhi_epi64(a, b);
    }
    let mut words = [[_mm512_setzero_si512(); 2]; 4];
    for odd in 0..2 {
        let [a, b, c, d] = [pairs[4 * odd], pairs[4 * odd + 1], pairs[4 * odd + 2], pairs[4 * odd + 3]];
        let [ab, cd] = [_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0x44>(c, d)];
        let [ab_high, cd_high] = [_mm512_shuffle_i64x2::<0xee>(a, b), _mm512_shuffle_i64x2::<0xee>(c, d)];
        words[0][odd] = _mm512_shuffle_i64x2::<0x88>(ab, cd);
        words[1][odd] = _mm512_shuffle_i64x2::<0xdd>(ab, cd);
        words[2][odd] = _mm512_shuffle_i64x2::<0x88>(ab_high, cd_high);
        words[3][odd] = _mm512_shuffle_i64x2::<0xdd>(ab_high, cd_high);
    }
    words
}

/// The number below 2^130 - 5 that the limbs are, without what is above 128 bits.
#[inline]
fn reduced(first: u64, second: u64, third: u64) -> u128 {
    let second = second + (first >> 52);
    let third = third + (second >> 52);
    let first = (first & LOW_52) + (third >> 26) * 5;
    let second = (second & LOW_52) + (first >> 52);
    let third = (third & LOW_26) + (second >> 52);
    let [first, second] = [first & LOW_52, second & LOW_52];
    // 1 if it is not below, and 5 more reach 2^130.
    let is_above = (third + ((second + ((first + 5) >> 52)) >> 52)) >> 26;
    u128::from(first + 5 * is_above)
        .wrapping_add(u128::from(second) << 52)
        .wrapping_add(u128::from(third) << 104)
}

#[cfg(test)]
mod tests {
    use super::super::is_wide;
    use super::*;

    /// Octets of a register.
    const ROW: usize = 64;

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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
    fn wide(key: [u128; 2], message: &[u8]) -> [u128; LANES] {
        let word = |at: usize| (key[at / 4] >> (32 * (at % 4))) as u32;
        let keys = std::array::from_fn(|at| _mm256_set1_epi32(word(at).cast_signed()));
        let mut poly = Poly::new(&keys, POLY_STEP);
        let row = |octets: &[u8]| {
            let mut block = [0; ROW];
            block[..octets.len()].copy_from_slice(octets);
            // SAFETY: the array has the octets of a register; loads need no alignment.
            unsafe { [_mm512_loadu_si512(block.as_ptr().cast()); LANES] }
        };
        let (steps, rest) = message.as_chunks::<{ 2 * ROW }>();
        for step in steps {
            let [mut first, second] = [blocks(&row(&step[..ROW])), blocks(&row(&step[ROW..]))];
            poly.add_sum(&mut first[0]);
            let mut sums = Sums::none();
            for (place, block) in first.iter().chain(&second).enumerate() {
                sums.add(block, poly.power(POLY_STEP - 1 - place));
            }
            poly.set_sum(sums);
        }
        for octets in rest.chunks(ROW) {
            poly.add(&row(octets), octets.len());
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

    fn octets_of(blocks: &[u128]) -> Vec<u8> {
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
            assert_eq!(assert_tag(key, &octets_of(message)), tag);
        }
    }

    #[test]
    fn the_largest_keys_and_messages_overflow_nothing() {
        for key in [u128::MAX, 0x0fff_fffc_0fff_fffc_0fff_fffc_0000_0000, 0x0fff_ffff, 1 << 44, 1 << 88] {
            for octet in [0xff, 0xfe, 0x80, 0x01, 0x00] {
                for count in (0..34).chain([88, 4096]) {
                    assert_tag([key, u128::MAX], &vec![octet; count * BLOCK]);
                }
            }
        }
    }
}
