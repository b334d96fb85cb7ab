//! Peers that do not answer for a while, on virtual time.

use std::sync::Arc;
use std::time::Duration;

use crate::control::Output;
use crate::pair::Pair;
use crate::protocol_tests::{connected, there};
use crate::settings::Limits;

/// Lets time pass in which all that is sent is lost.
fn pass_apart(pair: &mut Pair, time: Duration) {
    let until = pair.now + time;
    while pair.now < until {
        pair.now += Duration::from_millis(100);
        for end in &mut pair.ends {
            end.settle(pair.now);
            end.wire.clear();
        }
    }
}

#[test]
fn a_path_that_is_whole_again_needs_one_handshake() {
    let mut pair = connected();
    pair.pass(Duration::from_secs(1));
    pair.ends[0].send(&there("lost"), pair.now);
    pair.ends[0].wire.clear();
    pass_apart(&mut pair, Duration::from_secs(30));
    let count = |pair: &Pair| pair.ends[0].control.peers["other"].session_count;
    let before = count(&pair);
    pair.pass(Duration::from_secs(10));
    let begun = count(&pair) - before;
    assert!((1..=2).contains(&begun), "{begun} sessions");
}

#[test]
fn a_peer_that_was_elsewhere_last_is_also_looked_for_where_it_is_said_to_be() {
    let mut pair = connected();
    let (gone, said) = (([198, 51, 100, 7], 7).into(), pair.ends[1].address);
    let end = &mut pair.ends[0];
    let peer = end.tables.peers.load()["other"].clone();
    peer.endpoint.store(Some(Arc::new(gone)));
    end.tables.want_handshake(&peer);
    let mut asked = Vec::new();
    for _ in 0..40 {
        while let Some((event, waiting)) = end.tables.events.pop() {
            end.control.handle(event, waiting, pair.now);
        }
        end.control.tick(pair.now);
        for output in std::mem::take(&mut end.control.outbox) {
            if let Output::Message { to, .. } = output {
                asked.push(to);
            }
        }
        pair.now += Duration::from_millis(100);
    }
    assert_eq!(asked[..4], [gone, said, gone, said]);
}

#[test]
fn who_has_not_been_asked_for_long_is_not_taken_to_be_silent() {
    let mut pair = connected();
    pair.pass(Duration::from_secs(1));
    pair.ends[0].send(&there("lost"), pair.now);
    pair.ends[0].wire.clear();
    let is_silent = |pair: &Pair| pair.ends[0].control.peers["other"].silent_since.is_some();
    pass_apart(&mut pair, Duration::from_secs(60));
    assert!(is_silent(&pair));
    pass_apart(&mut pair, Duration::from_secs(60));
    assert!(!is_silent(&pair));
    pass_apart(&mut pair, Limits::default().reject_after);
    assert_eq!(pair.ends[0].control.tick(pair.now), None, "nothing is waited for");
}
