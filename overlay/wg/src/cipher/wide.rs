//! ChaCha20-Poly1305 (RFC 8439) of eight messages at a time.
//!
//! A lane of a register is a message: a word of a state, or a number of Poly1305, of all messages is in one register.
//! So nothing has to be made of a key in advance, as powers of Poly1305's, and nothing is summed up at the end. Two
//! blocks of key stream of each message are made at once, which are added to the messages and, while they are there,
//! to what the tags are made of.
//!
//! No branch and no address depends on a key or on a message.

use std::arch::x86_64::*;

use super::chacha::{BLOCK, KeyStream};
use super::poly::Poly;

/// How many messages.
pub(super) const LANES: usize = 8;

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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn crypt(
    direction: Direction,
    key: &[u32; 8],
    numbers: &[u64; LANES],
    packets: &mut [&mut [u8]],
    length: usize,
) -> [u128; LANES] {
    let stream = KeyStream::new(key, numbers);
    let (one_time_keys, blocks) = stream.first();
    let mut poly = Poly::new(&one_time_keys);
    add(direction, packets, 0..length, &blocks, &mut poly);
    let mut start = BLOCK;
    while start < length {
        let [first, second] = stream.blocks((start / BLOCK + 1) as u32);
        add(direction, packets, start..length, &first, &mut poly);
        if start + BLOCK < length {
            add(direction, packets, start + BLOCK..length, &second, &mut poly);
        }
        start += 2 * BLOCK;
    }
    poly.tags(length)
}

/// Adds a block of key stream to a block of each packet, the one at the range's start.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add(
    direction: Direction,
    packets: &mut [&mut [u8]],
    range: std::ops::Range<usize>,
    stream: &[__m512i; LANES],
    poly: &mut Poly,
) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    if range.len() < BLOCK {
        let is_there = (1 << range.len()) - 1;
        for ((packet, stream), row) in packets.iter_mut().zip(stream).zip(&mut rows) {
            let octets = &mut packet[range.clone()];
            // SAFETY: only the octets of the range are loaded and stored, whose bits are set.
            unsafe {
                let read = _mm512_maskz_loadu_epi8(is_there, octets.as_ptr().cast());
                let written = _mm512_maskz_mov_epi8(is_there, _mm512_xor_si512(read, *stream));
                _mm512_mask_storeu_epi8(octets.as_mut_ptr().cast(), is_there, written);
                *row = if direction == Direction::Sealing { written } else { read };
            }
        }
        poly.add_last(&rows, range.len());
        return;
    }
    for ((packet, stream), row) in packets.iter_mut().zip(stream).zip(&mut rows) {
        let octets = &mut packet[range.start..range.start + BLOCK];
        // SAFETY: as many octets are loaded and stored as the block has; they need no alignment.
        unsafe {
            let read = _mm512_loadu_si512(octets.as_ptr().cast());
            let written = _mm512_xor_si512(read, *stream);
            _mm512_storeu_si512(octets.as_mut_ptr().cast(), written);
            *row = if direction == Direction::Sealing { written } else { read };
        }
    }
    poly.add(&rows);
}
