//! Handshakes, keys and bad input, between two ends on virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use crate::drops::Drop;
use crate::fuzzing::packet_entry;
use crate::key::PrivateKey;
use crate::message::{COOKIE_REPLY_LENGTH, INITIATION_LENGTH};
use crate::noise::{Initiated, Stamp};
use crate::pair::Pair;
use crate::sample::udp;
use crate::settings::{Limits, OwnKeys, Peers};
use crate::tables::HANDSHAKES_MAX;

fn packet(from: [u8; 4], to: [u8; 4], text: &str) -> Vec<u8> {
    udp(SocketAddrV4::new(from.into(), 7), SocketAddrV4::new(to.into(), 8), text.as_bytes())
}

pub(crate) fn there(text: &str) -> Vec<u8> {
    packet([9, 0, 1, 5], [9, 0, 2, 5], text)
}

fn back(text: &str) -> Vec<u8> {
    packet([9, 0, 2, 5], [9, 0, 1, 5], text)
}

pub(crate) fn connected() -> Pair {
    let mut pair = Pair::new(Limits::default());
    pair.send(0, &there("first"));
    assert_eq!(pair.ends[1].delivered, [there("first")]);
    pair.ends[1].delivered.clear();
    pair
}

/// All drops of an end, whoever they are counted with.
fn drops(pair: &Pair, end: usize) -> BTreeMap<Drop, u64> {
    let tables = &pair.ends[end].tables;
    let mut all = tables.drops.read();
    for peer in tables.peers.load().values() {
        for (reason, count) in peer.drops.read() {
            *all.entry(reason).or_default() += count;
        }
    }
    all
}

fn sessions(pair: &Pair, end: usize) -> Vec<u32> {
    let mut indices: Vec<_> = pair.ends[end].tables.sessions.load().keys().copied().collect();
    indices.sort_unstable();
    indices
}

/// A handshake by somebody whom nobody knows, with the right first proof.
fn stranger(pair: &Pair, number: u8) -> Vec<u8> {
    let key = PrivateKey::from([100 + number % 100; 32]);
    let peer = pair.ends[1].key.public();
    let stamp = Stamp::of(std::time::SystemTime::now());
    let (_, mut message) = Initiated::new(&key, &peer, 7, stamp).expect("a handshake");
    crate::cookies::Prover::new(&peer).sign(&mut message, pair.now);
    message.to_vec()
}

#[test]
fn packets_that_wait_for_a_handshake_arrive_and_are_answered() {
    let mut pair = connected();
    pair.send(1, &back("second"));
    assert_eq!(pair.ends[0].delivered, [back("second")]);
    assert_eq!(drops(&pair, 0), BTreeMap::new());
    assert_eq!(drops(&pair, 1), BTreeMap::new());
}

#[test]
fn the_path_is_measured_through_the_tunnel() {
    let mut pair = connected();
    pair.pass(Duration::from_millis(300));
    for end in &pair.ends {
        let mtu = end.tables.peers.load()["other"].mtu.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(mtu, 1420);
    }
}

#[test]
fn what_is_cut_off_at_any_length_is_dropped_and_counted() {
    let mut pair = connected();
    pair.ends[0].send(&there("cut me"), pair.now);
    let message = pair.ends[0].wire.pop().expect("a message");
    let handshake = stranger(&pair, 0);
    let from = pair.ends[0].address;
    let mut expected = 0;
    for whole in [&message, &handshake] {
        for length in 1..whole.len() {
            pair.ends[1].receive(&whole[..length], length, from, pair.now);
            expected += 1;
            assert_eq!(drops(&pair, 1).values().sum::<u64>(), expected, "{length} octets");
        }
    }
    assert!(pair.ends[1].delivered.is_empty());
    pair.ends[1].receive(&message, message.len(), from, pair.now);
    assert_eq!(pair.ends[1].delivered, [there("cut me")]);
}

#[test]
fn what_was_heard_before_is_dropped() {
    let mut pair = Pair::new(Limits::default());
    pair.ends[0].send(&there("once"), pair.now);
    let carried = pair.exchange();
    pair.ends[1].delivered.clear();
    pair.now += Duration::from_secs(1);
    let (from, before) = (pair.ends[0].address, sessions(&pair, 1));
    for (_, datagram) in carried.iter().filter(|(end, _)| *end == 0) {
        pair.ends[1].receive(datagram, datagram.len(), from, pair.now);
    }
    pair.exchange();
    assert!(pair.ends[1].delivered.is_empty());
    assert_eq!(sessions(&pair, 1), before);
    assert!(drops(&pair, 1)[&Drop::Replayed] >= 2, "{:?}", drops(&pair, 1));
}

#[test]
fn a_peer_sends_only_from_its_own_addresses() {
    let mut pair = connected();
    for forged in [packet([9, 0, 3, 5], [9, 0, 2, 5], "forged"), packet([9, 0, 2, 6], [9, 0, 2, 5], "forged")]
    {
        pair.send(0, &forged);
    }
    assert!(pair.ends[1].delivered.is_empty());
    assert_eq!(drops(&pair, 1), [(Drop::WrongSource, 2)].into());
}

#[test]
fn whom_nobody_knows_gets_no_session() {
    let mut pair = connected();
    let (from, before) = (([198, 51, 100, 7], 7).into(), sessions(&pair, 1));
    let handshake = stranger(&pair, 0);
    pair.ends[1].receive(&handshake, handshake.len(), from, pair.now);
    let mut unproven = handshake.clone();
    unproven[120] ^= 1;
    pair.ends[1].receive(&unproven, unproven.len(), from, pair.now);
    assert_eq!(pair.exchange(), []);
    assert_eq!(sessions(&pair, 1), before);
    assert_eq!(drops(&pair, 1), [(Drop::UnknownKey, 1), (Drop::WrongMac, 1)].into());
}

#[test]
fn a_flood_of_handshakes_is_bounded_and_a_peer_gets_through() {
    let mut pair = Pair::new(Limits::default());
    let (flood, handshake) = (2 * HANDSHAKES_MAX, stranger(&pair, 0));
    for number in 0..flood {
        let from = ([198, 51, 100, number as u8], number as u16).into();
        pair.ends[1].receive(&handshake, handshake.len(), from, pair.now);
    }
    pair.ends[1].settle(pair.now);
    let answers = std::mem::take(&mut pair.ends[1].wire);
    assert!(answers.len() <= HANDSHAKES_MAX);
    assert!(answers.iter().all(|answer| answer.len() == COOKIE_REPLY_LENGTH));
    assert!(sessions(&pair, 1).is_empty());
    assert!(drops(&pair, 1)[&Drop::HandshakeFlood] >= (flood - HANDSHAKES_MAX) as u64);

    // While the load lasts, a peer is given a cookie, and is answered at its next try.
    pair.ends[0].send(&there("through"), pair.now);
    let carried = pair.exchange();
    assert!(carried.iter().any(|(end, datagram)| *end == 1 && datagram.len() == COOKIE_REPLY_LENGTH));
    pair.pass(Limits::default().handshake_retry + Duration::from_millis(200));
    assert_eq!(pair.ends[1].delivered, [there("through")]);
}

#[test]
fn sessions_are_renewed_by_time_while_packets_pass() {
    let limits = Limits { rekey_after: Duration::from_secs(2), ..Limits::default() };
    let mut pair = Pair::new(limits);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..40 {
        pair.send(0, &there(&number.to_string()));
        pair.send(1, &back(&number.to_string()));
        pair.pass(Duration::from_millis(250));
        seen.extend(sessions(&pair, 0));
    }
    assert_eq!((pair.ends[0].delivered.len(), pair.ends[1].delivered.len()), (40, 40));
    assert!((4..=8).contains(&seen.len()), "{} sessions in 10 s", seen.len());
    assert!(sessions(&pair, 0).len() <= 3);
}

#[test]
fn sessions_are_renewed_by_messages_while_packets_pass() {
    let limits = Limits { rekey_after_messages: 20, ..Limits::default() };
    let mut pair = Pair::new(limits);
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..100 {
        pair.now += Duration::from_millis(30);
        pair.send(0, &there(&number.to_string()));
        seen.extend(sessions(&pair, 0));
    }
    assert_eq!(pair.ends[1].delivered.len(), 100);
    assert!(seen.len() >= 4, "{} sessions for 100 packets", seen.len());
}

#[test]
fn nobody_uses_an_old_session() {
    let mut pair = connected();
    pair.now += Limits::default().reject_after;
    pair.ends[0].send(&there("late"), pair.now);
    let late = pair.ends[0].wire.pop().expect("a message");
    let from = pair.ends[0].address;
    pair.ends[1].receive(&late, late.len(), from, pair.now);
    assert!(pair.ends[1].delivered.is_empty());
    assert_eq!(drops(&pair, 1), [(Drop::UnknownSession, 1)].into());
    pair.ends[1].settle(pair.now);
    assert!(sessions(&pair, 1).is_empty());
}

#[test]
fn an_end_that_forgot_its_sessions_begins_another() {
    let mut pair = connected();
    restart(&mut pair, 1);
    pair.send(0, &there("lost"));
    pair.send(0, &there("found"));
    assert_eq!(pair.ends[1].delivered, [there("found")]);
}

/// Makes an end forget its sessions, as a restart does.
fn restart(pair: &mut Pair, end: usize) {
    let settings = pair.ends[1 - end].settings();
    pair.ends[end].control.set_peers(Peers::new(), pair.now);
    pair.ends[end].control.set_peers([("other".to_owned(), settings)].into(), pair.now);
    pair.now += Duration::from_secs(1);
}

/// Carries what one end has sent to the other one, whose answers stay on the wire.
fn carry(pair: &mut Pair, from: usize) {
    pair.ends[from].settle(pair.now);
    let address = pair.ends[from].address;
    for datagram in std::mem::take(&mut pair.ends[from].wire) {
        pair.ends[1 - from].receive(&datagram, datagram.len(), address, pair.now);
    }
    pair.ends[1 - from].settle(pair.now);
}

#[test]
fn a_restarted_end_that_greets_loses_nothing_of_what_is_sent_to_it_then() {
    let mut pair = connected();
    restart(&mut pair, 1);
    pair.ends[1].control.greet(pair.now);
    pair.exchange();
    pair.send(0, &there("not lost"));
    assert_eq!(pair.ends[1].delivered, [there("not lost")]);
    pair.ends[1].control.greet(pair.now);
    assert_eq!(pair.exchange(), [], "who has a session is not greeted");
}

#[test]
fn a_session_whose_first_message_was_lost_is_used_once_the_peer_sends() {
    let mut pair = connected();
    restart(&mut pair, 1);
    pair.ends[1].control.greet(pair.now);
    carry(&mut pair, 1);
    carry(&mut pair, 0);
    assert!(!pair.ends[1].wire.is_empty());
    pair.ends[1].wire.clear();
    pair.send(0, &there("lost"));
    pair.send(0, &there("found"));
    assert_eq!(pair.ends[1].delivered, [there("found")]);
}

#[test]
fn a_lost_handshake_is_begun_again_at_once_and_then_ever_more_seldom() {
    let mut pair = Pair::new(Limits::default());
    pair.ends[0].send(&there("patient"), pair.now);
    let mut tries = Vec::new();
    for tenths in 0..300 {
        pair.ends[0].settle(pair.now);
        if !std::mem::take(&mut pair.ends[0].wire).is_empty() {
            tries.push(tenths);
        }
        pair.now += Duration::from_millis(100);
    }
    assert_eq!(tries, [0, 3, 8, 18, 38, 78, 128, 178, 228, 278]);
    pair.pass(Limits::default().handshake_retry);
    assert_eq!(pair.ends[1].delivered, [there("patient")]);
}

#[test]
fn what_is_told_again_does_not_disturb_a_handshake() {
    let mut pair = connected();
    let (old, new) = (pair.ends[0].key.clone(), PrivateKey::from([9; 32]));
    let mut known = pair.ends[0].settings();
    known.other_key = Some(new.public());
    pair.ends[1].control.set_peers([("other".to_owned(), known)].into(), pair.now);
    pair.exchange();
    pair.now += Duration::from_secs(1);
    pair.ends[0].control.set_keys(&OwnKeys { primary: new.clone(), other: Some(old) }, pair.now);
    let peers = Peers::from([("other".to_owned(), pair.ends[1].settings())]);
    for _ in 0..5 {
        pair.ends[0].control.set_peers(peers.clone(), pair.now);
    }
    pair.exchange();
    let used = pair.ends[0].tables.peers.load()["other"].session.load_full().expect("a session");
    assert_eq!(used.keys.own, new.public());
}

#[test]
fn a_peer_may_begin_several_handshakes_at_once_but_not_any_number() {
    let mut pair = connected();
    pair.pass(Duration::from_secs(1));
    let (from, peer) = (pair.ends[0].address, pair.ends[1].key.public());
    let mut answers = Vec::new();
    for number in 1..=50 {
        let stamp = Stamp::of(std::time::SystemTime::now() + Duration::from_secs(number));
        let (_, mut message) = Initiated::new(&pair.ends[0].key, &peer, 7, stamp).expect("a handshake");
        crate::cookies::Prover::new(&peer).sign(&mut message, pair.now);
        pair.ends[1].receive(&message, message.len(), from, pair.now);
        pair.ends[1].settle(pair.now);
        answers.push(std::mem::take(&mut pair.ends[1].wire).len());
        pair.now += Duration::from_millis(1);
    }
    assert_eq!(answers[..5], [1; 5]);
    assert!(answers.iter().sum::<usize>() <= 8 + 50 / 20 + 1, "{answers:?}");
}

#[test]
fn a_quiet_peer_is_answered_so_that_it_knows() {
    let mut pair = connected();
    pair.pass(Duration::from_secs(2));
    pair.ends[0].send(&there("anybody?"), pair.now);
    pair.exchange();
    let times = |pair: &Pair| {
        let peers = pair.ends[0].tables.peers.load();
        peers["other"].times.received.load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = times(&pair);
    pair.pass(Limits::default().keepalive + Duration::from_secs(1));
    assert!(times(&pair) > before);
}

#[test]
fn a_peer_that_is_gone_is_neither_heard_nor_sent_to() {
    let mut pair = connected();
    pair.ends[0].send(&there("too late"), pair.now);
    pair.ends[1].control.set_peers(Peers::new(), pair.now);
    pair.exchange();
    assert!(pair.ends[1].delivered.is_empty());
    assert!(sessions(&pair, 1).is_empty());
}

#[test]
fn a_peer_may_move() {
    let mut pair = connected();
    let moved = ([192, 0, 2, 99], 4321).into();
    pair.ends[0].address = moved;
    pair.send(0, &there("from elsewhere"));
    assert_eq!(pair.ends[1].delivered, [there("from elsewhere")]);
    let endpoint = pair.ends[1].tables.peers.load()["other"].endpoint.load_full();
    assert_eq!(endpoint.as_deref(), Some(&moved));
}

#[test]
fn keys_change_without_a_lost_packet() {
    let mut pair = connected();
    for round in 10..30_u8 {
        let (old, new) = (pair.ends[0].key.clone(), PrivateKey::from([round; 32]));
        let mut settings = pair.ends[0].settings();
        let keys = |primary: &PrivateKey, other: Option<&PrivateKey>| OwnKeys {
            primary: primary.clone(),
            other: other.cloned(),
        };
        let tell = |pair: &mut Pair, settings: &crate::settings::PeerSettings| {
            let peers = Peers::from([("other".to_owned(), settings.clone())]);
            pair.ends[1].control.set_peers(peers, pair.now);
        };
        pair.ends[0].control.set_keys(&keys(&old, Some(&new)), pair.now);
        settings.other_key = Some(new.public());
        tell(&mut pair, &settings);
        pair.send(0, &there("both are known"));
        pair.now += Duration::from_millis(50);

        pair.ends[0].control.set_keys(&keys(&new, Some(&old)), pair.now);
        (settings.key, settings.other_key) = (new.public(), Some(old.public()));
        pair.exchange();
        pair.now += Duration::from_millis(50);
        tell(&mut pair, &settings);
        pair.send(1, &back("the new one is used"));
        pair.now += Duration::from_millis(50);

        pair.ends[0].control.set_keys(&keys(&new, None), pair.now);
        settings.other_key = None;
        tell(&mut pair, &settings);
        pair.send(0, &there("the old one is gone"));
        pair.now += Duration::from_millis(50);
        pair.ends[0].key = new;
    }
    assert_eq!((pair.ends[0].delivered.len(), pair.ends[1].delivered.len()), (20, 40));
    let current = pair.ends[0].key.public();
    let used = pair.ends[0].tables.peers.load()["other"].session.load_full().expect("a session");
    assert_eq!(used.keys.own, current);
}

#[test]
fn what_a_peer_sends_by_a_key_that_was_just_given_up_arrives() {
    let mut pair = connected();
    pair.now += Duration::from_secs(1);
    let (old, new) = (pair.ends[0].key.clone(), PrivateKey::from([9; 32]));
    let mut known = pair.ends[0].settings();
    known.other_key = Some(new.public());
    pair.ends[1].control.set_peers([("other".to_owned(), known)].into(), pair.now);
    pair.ends[0].control.set_keys(&OwnKeys { primary: new.clone(), other: Some(old) }, pair.now);
    // The peer answers, and what says that its answer has come is late.
    carry(&mut pair, 0);
    carry(&mut pair, 1);
    let late = std::mem::take(&mut pair.ends[0].wire);
    pair.ends[0].control.set_keys(&OwnKeys { primary: new, other: None }, pair.now);
    pair.ends[1].send(&back("by the old one"), pair.now);
    carry(&mut pair, 1);
    assert_eq!(pair.ends[0].delivered, [back("by the old one")]);
    assert!(!late.is_empty());
}

#[test]
fn packets_that_wait_are_bounded() {
    let mut pair = Pair::new(Limits::default());
    for number in 0..2000 {
        pair.ends[0].send(&there(&number.to_string()), pair.now);
    }
    pair.exchange();
    assert!(!pair.ends[1].delivered.is_empty());
    assert!(drops(&pair, 0)[&Drop::QueueFull] > 1000);
}

#[test]
fn the_corpus_of_the_fuzzer_is_harmless() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packet_entry");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus") {
        packet_entry(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
        seen += 1;
    }
    assert!(seen > 0, "no corpus in {}", folder.display());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn octets_by_nobody_change_nothing(
        datagrams in proptest::collection::vec(any::<u8>(), 1..600),
        kind in 1_u8..5,
        segment in 1_usize..200,
    ) {
        let mut octets = datagrams;
        octets[0] = kind;
        octets.iter_mut().skip(1).take(3).for_each(|octet| *octet = 0);
        packet_entry(&[&[segment as u8], octets.as_slice()].concat());
    }

    #[test]
    fn a_message_that_was_changed_is_dropped(place in 0_usize..10_000, bit in 0_u8..8) {
        let mut pair = connected();
        pair.ends[0].send(&there("change me"), pair.now);
        let mut message = pair.ends[0].wire.pop().expect("a message");
        let place = place % message.len();
        message[place] ^= 1 << bit;
        let from = pair.ends[0].address;
        pair.ends[1].receive(&message, message.len(), from, pair.now);
        pair.exchange();
        prop_assert!(pair.ends[1].delivered.is_empty());
        prop_assert_eq!(drops(&pair, 1).values().sum::<u64>(), 1);
    }

    #[test]
    fn of_messages_that_came_together_only_those_that_were_changed_are_dropped(
        are_changed in proptest::collection::vec(any::<bool>(), 1..30),
        last in 0_usize..20,
        place in 0_usize..10_000,
    ) {
        let mut pair = connected();
        // Of various senders, so that they are not joined.
        let text = |number: usize| if number + 1 == are_changed.len() { "x".repeat(last) } else { "x".repeat(20) };
        let packets = (0..are_changed.len())
            .map(|number| packet([9, 0, 1, number as u8], [9, 0, 2, 5], &text(number)));
        let packets: Vec<_> = packets.collect();
        for packet in &packets {
            pair.ends[0].send(packet, pair.now);
        }
        let mut messages = std::mem::take(&mut pair.ends[0].wire);
        let segment = messages[0].len();
        for (message, _) in messages.iter_mut().zip(&are_changed).filter(|(_, is_changed)| **is_changed) {
            let place = place % message.len();
            message[place] ^= 1;
        }
        let from = pair.ends[0].address;
        pair.ends[1].receive(&messages.concat(), segment, from, pair.now);
        pair.exchange();
        let intact = packets.iter().zip(&are_changed).filter(|(_, is_changed)| !**is_changed);
        let intact: Vec<_> = intact.map(|(packet, _)| packet.clone()).collect();
        prop_assert_eq!(&pair.ends[1].delivered, &intact);
    }
}

#[test]
fn a_handshake_that_was_changed_is_dropped() {
    for place in [0, 4, 8, 40, 88, 116, 132] {
        let mut pair = Pair::new(Limits::default());
        pair.ends[0].send(&there("hello"), pair.now);
        pair.ends[0].settle(pair.now);
        let mut message = pair.ends[0].wire.pop().expect("a handshake");
        assert_eq!(message.len(), INITIATION_LENGTH);
        message[place] ^= 1;
        let from = pair.ends[0].address;
        pair.ends[1].receive(&message, message.len(), from, pair.now);
        pair.ends[1].settle(pair.now);
        // The second proof is only looked at under load.
        assert_eq!(pair.ends[1].wire.len(), usize::from(place == 132), "octet {place}");
    }
}
