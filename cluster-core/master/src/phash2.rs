//! The hashes from which addresses of named VIPs are chosen.
//!
//! Source: spec/dcos-networking.md §2.3.2. `phash2` is Erlang's portable hash of a binary, built on Bob Jenkins' mix of
//! 1996 (<https://burtleburtle.net/bob/hash/evahash.html>).

use sha1::{Digest, Sha1};

const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// How many bytes are mixed at a time.
const BLOCK: usize = 12;

/// Erlang's `erlang:phash2/1` of a binary, before it is reduced to a range.
pub(crate) fn phash2(bytes: &[u8]) -> u32 {
    let mut state = [GOLDEN_RATIO, GOLDEN_RATIO, GOLDEN_RATIO.wrapping_mul(13)];
    if bytes.is_empty() {
        return state[2];
    }
    let blocks = bytes.chunks_exact(BLOCK);
    let rest = blocks.remainder();
    for block in blocks {
        for (word, part) in state.iter_mut().zip(block.chunks(4)) {
            *word = word.wrapping_add(little_endian(part));
        }
        mix(&mut state);
    }
    // The length takes the lowest byte of the last word, so that at most three bytes of the rest are left for it.
    state[2] = state[2].wrapping_add(bytes.len() as u32);
    for (index, part) in rest.chunks(4).enumerate() {
        let shift = if index == 2 { 8 } else { 0 };
        state[index] = state[index].wrapping_add(little_endian(part) << shift);
    }
    mix(&mut state);
    state[2]
}

/// SHA-1 of the bytes, read as a big-endian integer of 160 bits, modulo `modulus`. 0 if the modulus is 0.
pub(crate) fn sha1_modulo(bytes: &[u8], modulus: u128) -> u128 {
    if modulus == 0 {
        return 0;
    }
    let digest = Sha1::digest(bytes);
    let bits = digest.iter().flat_map(|byte| (0..8).rev().map(move |bit| u128::from(byte >> bit & 1)));
    bits.fold(0, |rest, bit| {
        // Twice a rest below the modulus may need 129 bits; the bit shifted out says that the modulus fits once.
        let overflows = rest >> 127 == 1;
        let doubled = rest << 1 | bit;
        if overflows || doubled >= modulus { doubled.wrapping_sub(modulus) } else { doubled }
    })
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn mix(state: &mut [u32; 3]) {
    let [mut a, mut b, mut c] = *state;
    for [first, second, third] in [[13, 8, 13], [12, 16, 5], [3, 10, 15]] {
        a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> first);
        b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << second);
        c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> third);
    }
    *state = [a, b, c];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_erlang() {
        for (text, expected) in [
            ("foo.bar", 1_166_686_807),
            ("baz.qux", 2_489_270_397),
            ("app.marathon", 246_131_777),
            ("web.marathon", 3_470_861_299),
            ("api.hello-world.marathon", 3_794_667_057),
            ("mygroupmyapp.marathon", 3_049_688_975),
            ("overlay-vip.hello-world", 1_750_522_510),
            ("de8b9dc86.marathon", 1_932_802_930),
            ("a", 1_589_197_455),
            ("abcdefghijkl", 686_521_495),
            ("abcdefghijklm", 3_501_102_500),
            ("", 147_926_629),
        ] {
            assert_eq!(phash2(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_rest_of_a_long_integer_is_exact() {
        // SHA-1 of nothing is da39a3ee5e6b4b0d3255bfef95601890afd80709.
        for (modulus, expected) in [
            (0, 0),
            (1, 0),
            (1 << 16, 0x0709),
            (1 << 127, 0x5e6b_4b0d_3255_bfef_9560_1890_afd8_0709),
            // Modulo 2^128 − 1, the part above 2^128 is added.
            (u128::MAX, 0x5e6b_4b0d_3255_bfef_9560_1890_afd8_0709 + 0xda39_a3ee),
        ] {
            assert_eq!(sha1_modulo(b"", modulus), expected, "{modulus}");
        }
    }
}
