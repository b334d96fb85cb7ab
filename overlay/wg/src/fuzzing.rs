//! What a fuzzer may do with a tunnel: send it anything.

use crate::pair::Pair;
use crate::settings::Limits;

/// Feeds octets to an end that has a session, as datagrams of the size that the first octet says. They are by nobody,
/// so nothing may come of them: no packet is delivered, and the session goes on.
///
/// # Panics
///
/// If something comes of them.
pub fn packet_entry(octets: &[u8]) {
    let Some((segment, datagrams)) = octets.split_first() else {
        return;
    };
    let datagrams = &datagrams[..datagrams.len().min(65_535)];
    let mut pair = Pair::new(Limits::default());
    pair.send(0, crate::pair::HELLO);
    let index = pair.ends[1].tables.sessions.load().keys().copied().next();
    assert_eq!(pair.ends[1].delivered.len(), 1, "the tunnel works");
    // Data messages go to the session that there is, or they would not get far.
    let mut datagrams = datagrams.to_vec();
    let segment = usize::from(*segment).max(1);
    if let Some(index) = index {
        for datagram in
            datagrams.chunks_mut(segment).filter(|datagram| datagram.len() >= 8 && datagram[0] == 4)
        {
            datagram[4..8].copy_from_slice(&index.to_le_bytes());
        }
    }
    let from = ([198, 51, 100, 7], 7).into();
    pair.ends[1].receive(&datagrams, segment, from, pair.now);
    pair.exchange();
    assert_eq!(pair.ends[1].delivered.len(), 1, "only what a peer sent is delivered");
    pair.send(0, crate::pair::HELLO);
    assert_eq!(pair.ends[1].delivered.len(), 2, "the session goes on");
}
