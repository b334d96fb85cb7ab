//! ChaCha20-Poly1305 (RFC 8439) of eight messages at a time.
//!
//! A lane of a register is a message: a word of a state, or a number of Poly1305, of all messages is in one register.
//! So nothing is summed up at the end. Two blocks of key stream of each message are made at once. While they are made,
//! as many octets, which were encrypted before or are decrypted afterwards, are taken for the tags.
//!
//! No branch and no address depends on a key or on a message.

use std::arch::x86_64::*;
use std::ops::Range;

use super::chacha::{BLOCK, KeyStream, PAIRS_LEFT};
use super::poly::{self, POLY_STEP, Poly, Sums};

/// How many messages.
pub(super) const LANES: usize = 8;

/// Octets of two blocks.
const STEP: usize = 2 * BLOCK;

/// What is done with messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Tags are of what is written.
    Sealing,
    /// Tags are of what is read.
    Opening,
}

/// Encrypts or decrypts up to eight packets of one length where they are, the first `length` octets of each.
/// Gives the tag that belongs to each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
pub(super) fn crypt(
    direction: Direction,
    key: &[u32; 8],
    numbers: &[u64; LANES],
    packets: &mut [&mut [u8]],
    length: usize,
) -> [u128; LANES] {
    // Up to where tags can be made when the key stream of some octets is.
    let takeable = |start: usize, octets: usize| match direction {
        Direction::Sealing => start,
        Direction::Opening => length.min(start + octets),
    };
    let stream = KeyStream::new(key, numbers);
    let (one_time_keys, block) = stream.first();
    let blocks_at_once = if length < BLOCK + STEP { POLY_STEP / 2 } else { POLY_STEP };
    let mut poly = Poly::new(&one_time_keys, blocks_at_once);
    let mut taken = takeable(0, BLOCK);
    take(&mut poly, packets, 0..taken);
    add(packets, 0..length, &block);
    let mut start = BLOCK;
    while start < length {
        let (number, end) = ((start / BLOCK + 1) as u32, takeable(start, STEP));
        let [first, second] = if end - taken == STEP {
            blocks_beside_sums(&stream, number, &mut poly, packets, taken)
        } else {
            take(&mut poly, packets, taken..end);
            stream.blocks(number)
        };
        taken = end;
        add(packets, start..length, &first);
        if start + BLOCK < length {
            add(packets, start + BLOCK..length, &second);
        }
        start += STEP;
    }
    take(&mut poly, packets, taken..length);
    poly.tags(length)
}

/// Makes two blocks of key stream, and takes as many octets, from a place on, for the tags. Both alternate, because a
/// processor does not look far enough ahead to do one while it waits for products of the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
fn blocks_beside_sums(
    stream: &KeyStream,
    number: u32,
    poly: &mut Poly,
    packets: &[&mut [u8]],
    start: usize,
) -> [[__m512i; LANES]; 2] {
    let mut rounds = stream.begun(number);
    rounds.columns();
    rounds.diagonals();
    let mut sums = Sums::none();
    let mut following = POLY_STEP;
    for half in 0..2 {
        let mut blocks = poly::blocks(&rows(packets, start + half * BLOCK));
        if half == 0 {
            poly.add_sum(&mut blocks[0]);
        }
        for block in &blocks {
            following -= 1;
            let power = poly.power(following);
            rounds.columns();
            sums.add_limb(0, block, power);
            rounds.diagonals();
            sums.add_limb(1, block, power);
            sums.add_limb(2, block, power);
        }
    }
    poly.set_sum(sums);
    rounds.blocks()
}

/// Takes octets of each packet for the tags.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
fn take(poly: &mut Poly, packets: &[&mut [u8]], range: Range<usize>) {
    let mut start = range.start;
    while start < range.end {
        let octets = BLOCK.min(range.end - start);
        if octets == BLOCK {
            poly.add(&rows(packets, start), octets);
        } else {
            poly.add(&last_rows(packets, start..range.end), octets);
        }
        start += BLOCK;
    }
}

/// A block of each packet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rows(packets: &[&mut [u8]], start: usize) -> [__m512i; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (packet, row) in packets.iter().zip(&mut rows) {
        // SAFETY: as many octets are loaded as the block has; they need no alignment.
        *row = unsafe { _mm512_loadu_si512(packet[start..start + BLOCK].as_ptr().cast()) };
    }
    rows
}

/// The beginning of a block of each packet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn last_rows(packets: &[&mut [u8]], range: Range<usize>) -> [__m512i; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (packet, row) in packets.iter().zip(&mut rows) {
        // SAFETY: only the octets of the range are loaded, whose bits are set.
        *row =
            unsafe { _mm512_maskz_loadu_epi8((1 << range.len()) - 1, packet[range.clone()].as_ptr().cast()) };
    }
    rows
}

/// Adds a block of key stream to a block of each packet, the one at the range's start.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add(packets: &mut [&mut [u8]], range: Range<usize>, stream: &[__m512i; LANES]) {
    if range.len() < BLOCK {
        let is_there = (1 << range.len()) - 1;
        for (packet, stream) in packets.iter_mut().zip(stream) {
            let octets = &mut packet[range.clone()];
            // SAFETY: only the octets of the range are loaded and stored, whose bits are set.
            unsafe {
                let read = _mm512_maskz_loadu_epi8(is_there, octets.as_ptr().cast());
                let written = _mm512_xor_si512(read, *stream);
                _mm512_mask_storeu_epi8(octets.as_mut_ptr().cast(), is_there, written);
            }
        }
        return;
    }
    for (packet, stream) in packets.iter_mut().zip(stream) {
        let octets = &mut packet[range.start..range.start + BLOCK];
        // SAFETY: as many octets are loaded and stored as the block has; they need no alignment.
        unsafe {
            let written = _mm512_xor_si512(_mm512_loadu_si512(octets.as_ptr().cast()), *stream);
            _mm512_storeu_si512(octets.as_mut_ptr().cast(), written);
        }
    }
}

const _: () = assert!(STEP == POLY_STEP * poly::BLOCK && POLY_STEP == PAIRS_LEFT - 1);
