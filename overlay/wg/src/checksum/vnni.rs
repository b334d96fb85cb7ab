//! Sums by products of octets with 1 and 0, which take two instructions for 64 octets. Encryption, also that by a thread
//! with which a core is shared, needs the same units of the processor.

use std::arch::x86_64::*;

use super::BLOCK;

/// Whether the processor has all that is used.
#[inline]
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// As the function of that name for all processors.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn add(sum: u64, octets: &[u8]) -> u64 {
    let (blocks, rest) = octets.as_chunks::<BLOCK>();
    let (pairs, last) = blocks.as_chunks::<2>();
    let mut sums = [Sums::new(); 2];
    for [one, other] in pairs {
        sums[0].add(load(one));
        sums[1].add(load(other));
    }
    for block in last {
        sums[0].add(load(block));
    }
    // SAFETY: only as many octets are loaded as there are.
    sums[1].add(unsafe { _mm512_maskz_loadu_epi8(mask(rest), rest.as_ptr().cast()) });
    sum + total(sums)
}

/// As the function of that name for all processors.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn copy(sum: u64, from: &[u8], to: &mut [u8]) -> u64 {
    let (blocks, rest) = from.as_chunks::<BLOCK>();
    let (to_blocks, to_rest) = to.as_chunks_mut::<BLOCK>();
    let (pairs, last) = blocks.as_chunks::<2>();
    let (to_pairs, to_last) = to_blocks.as_chunks_mut::<2>();
    let mut sums = [Sums::new(); 2];
    for ([one, other], [to_one, to_other]) in pairs.iter().zip(to_pairs) {
        sums[0].add(moved(one, to_one));
        sums[1].add(moved(other, to_other));
    }
    for (block, to) in last.iter().zip(to_last) {
        sums[0].add(moved(block, to));
    }
    let is_there = mask(rest) & mask(to_rest);
    // SAFETY: only as many octets are loaded and stored as there are at both places.
    unsafe {
        let octets = _mm512_maskz_loadu_epi8(is_there, rest.as_ptr().cast());
        _mm512_mask_storeu_epi8(to_rest.as_mut_ptr().cast(), is_there, octets);
        sums[1].add(octets);
    }
    sum + total(sums)
}

/// Sums of the first octets of pairs and of the second ones, in 16 lanes. Every other block has its own, so that one need
/// not wait for the other.
///
/// A packet of 64 KiB adds 2^10 times less than 2^9 to a lane. That times 2^8, of 16 lanes, is less than 2^31.
#[derive(Clone, Copy)]
struct Sums {
    first: __m512i,
    second: __m512i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self { first: _mm512_setzero_si512(), second: _mm512_setzero_si512() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add(&mut self, block: __m512i) {
        self.first = _mm512_dpbusd_epi32(self.first, block, _mm512_set1_epi16(0x0001));
        self.second = _mm512_dpbusd_epi32(self.second, block, _mm512_set1_epi16(0x0100));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn total([one, other]: [Sums; 2]) -> u64 {
    let first = _mm512_add_epi32(one.first, other.first);
    let second = _mm512_add_epi32(one.second, other.second);
    let lanes = _mm512_add_epi32(first, _mm512_slli_epi32::<8>(second));
    u64::from(_mm512_reduce_add_epi32(lanes).cast_unsigned())
}

/// A bit for each octet of less than a block.
#[inline]
fn mask(rest: &[u8]) -> u64 {
    (1 << rest.len()) - 1
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(block: &[u8; BLOCK]) -> __m512i {
    // SAFETY: a block has the octets of a register; loads need no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

/// Copies a block, and gives it.
#[inline]
#[target_feature(enable = "avx512f")]
fn moved(block: &[u8; BLOCK], to: &mut [u8; BLOCK]) -> __m512i {
    let octets = load(block);
    // SAFETY: a block has the octets of a register; stores need no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), octets) };
    octets
}
