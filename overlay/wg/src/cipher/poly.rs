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

/// The limbs of a number of each message.
type Limbs = [__m512i; 3];

/// The state: a sum so far, and what it is multiplied by after each block.
pub(super) struct Poly {
    sum: Limbs,
    by: Limbs,
    /// The upper two of these, times 20: three limbs are 132 bits, and 2^130 is 5.
    wrapped: [__m512i; 2],
    /// What is added at the end.
    last: [__m512i; 2],
}

impl Poly {
    /// By the words of keys that are for one message each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(keys: &[__m256i; 8]) -> Self {
        let pair = |word: usize| {
            let high = _mm512_slli_epi64::<32>(_mm512_cvtepu32_epi64(keys[word + 1]));
            _mm512_or_si512(_mm512_cvtepu32_epi64(keys[word]), high)
        };
        let low = _mm512_and_si512(pair(0), everywhere(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(pair(2), everywhere(0x0fff_fffc_0fff_fffc));
        let by = limbs(low, high, _mm512_setzero_si512());
        let twentyfold = |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
        Self {
            sum: [_mm512_setzero_si512(); 3],
            by,
            wrapped: [twentyfold(by[1]), twentyfold(by[2])],
            last: [pair(4), pair(6)],
        }
    }

    /// Takes up to four blocks of each message, a register for each message. What is above `octets` must be 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn add(&mut self, rows: [__m512i; LANES], octets: usize) {
        let words = transposed(&rows);
        let end = everywhere(END);
        for pair in words.chunks_exact(2).take(octets.div_ceil(BLOCK)) {
            self.add_block(limbs(pair[0], pair[1], end));
        }
    }

    /// The tags of messages of a length, without additional data.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn tags(mut self, length: usize) -> [u128; LANES] {
        self.add_block(limbs(_mm512_setzero_si512(), everywhere(length as u64), everywhere(END)));
        let [first, second, third] = [to_array(self.sum[0]), to_array(self.sum[1]), to_array(self.sum[2])];
        let [low, high] = [to_array(self.last[0]), to_array(self.last[1])];
        std::array::from_fn(|lane| {
            let last = u128::from(low[lane]) | u128::from(high[lane]) << 64;
            reduced(first[lane], second[lane], third[lane]).wrapping_add(last)
        })
    }

    /// Adds a block, and multiplies.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn add_block(&mut self, block: Limbs) {
        let a = [
            _mm512_add_epi64(self.sum[0], block[0]),
            _mm512_add_epi64(self.sum[1], block[1]),
            _mm512_add_epi64(self.sum[2], block[2]),
        ];
        let ([r0, r1, r2], [s1, s2]) = (self.by, self.wrapped);
        let [low_0, high_0] = dot(a, [r0, s2, s1]);
        let [low_1, high_1] = dot(a, [r1, r0, s2]);
        let [low_2, high_2] = dot(a, [r2, r1, r0]);
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
        self.sum = [_mm512_and_si512(first, low_44), second, _mm512_and_si512(third, everywhere(LOW_42))];
    }
}

/// The sum of three products: the sum of their lower 52 bits, and that of what is above.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn dot(a: Limbs, b: Limbs) -> [__m512i; 2] {
    let zero = _mm512_setzero_si512();
    let low = _mm512_madd52lo_epu64(zero, a[2], b[2]);
    let high = _mm512_madd52hi_epu64(zero, a[2], b[2]);
    let low = _mm512_madd52lo_epu64(low, a[1], b[1]);
    let high = _mm512_madd52hi_epu64(high, a[1], b[1]);
    [_mm512_madd52lo_epu64(low, a[0], b[0]), _mm512_madd52hi_epu64(high, a[0], b[0])]
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
