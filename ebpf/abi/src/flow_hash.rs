//! A number that is the same for all packets of a flow, on every node.
//!
//! Multiplications and shifts of 32-bit words in straight lines, so that the kernel's verifier has nothing to follow.
//! It spreads addresses that differ in a few bits; it withstands nobody who chooses addresses to collide, and need not,
//! since such a client only meets its own connections at one endpoint.

use crate::Place;

/// A hash of words, in their order.
#[inline(always)]
pub fn hash_words<const N: usize>(words: &[u32; N], seed: u32) -> u32 {
    let mut hash = seed ^ (N as u32).wrapping_mul(ODD[0]);
    let mut at = 0;
    while at < N {
        hash = (hash ^ words[at].wrapping_mul(ODD[0])).rotate_left(13).wrapping_mul(ODD[1]);
        at += 1;
    }
    hash = (hash ^ (hash >> 16)).wrapping_mul(ODD[2]);
    hash = (hash ^ (hash >> 15)).wrapping_mul(ODD[3]);
    hash ^ (hash >> 16)
}

/// What Maglev by the client's address looks up: the same for all connections of a client, whatever their ports.
#[inline(always)]
pub fn source_hash(client: &Place) -> u32 {
    hash_words(&client.address, SOURCE_SEED)
}

/// A hash of a flow with its ports: connections of one client differ.
#[inline(always)]
pub fn flow_hash(client: &Place, service: &Place, protocol: u32) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (client.address, service.address);
    hash_words(&[a, b, c, d, client.port, e, f, g, h, service.port, protocol], FLOW_SEED)
}

/// The position from 0 to `slots` that a hash leads to.
#[inline(always)]
pub fn hash_slot(hash: u32, slots: u32) -> u32 {
    // The upper half of the product maps the hash to the range without a division.
    ((hash as u64 * slots as u64) >> 32) as u32
}

/// Odd, with about as many ones as zeros, so that a multiplication carries every bit upwards.
const ODD: [u32; 4] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d, 0x27d4_eb2f];

const SOURCE_SEED: u32 = 0x6d65_736f;

const FLOW_SEED: u32 = 0x6e65_7400;
