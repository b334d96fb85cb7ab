//! What both sides rely on.

extern crate std;

use core::fmt::Debug;
use core::mem::size_of;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn types_have_no_gaps() {
    assert_eq!(
        [
            size_of::<Place>(),
            size_of::<Frontend>(),
            size_of::<Service>(),
            size_of::<SlotKey>(),
            size_of::<Slot>(),
            size_of::<MaglevKey>(),
            size_of::<MaglevChunk>(),
            size_of::<Member>(),
            size_of::<MemberState>(),
            size_of::<AffinityKey>(),
            size_of::<Affinity>(),
            size_of::<Flow>(),
            size_of::<Origin>(),
            size_of::<Connection>(),
            size_of::<SocketFields>(),
            size_of::<Count>(),
            size_of::<Load>(),
            size_of::<Track>(),
            size_of::<Hop>(),
        ],
        [
            Place::SIZE,
            Frontend::SIZE,
            Service::SIZE,
            SlotKey::SIZE,
            Slot::SIZE,
            MaglevKey::SIZE,
            MaglevChunk::SIZE,
            Member::SIZE,
            MemberState::SIZE,
            AffinityKey::SIZE,
            Affinity::SIZE,
            Flow::SIZE,
            Origin::SIZE,
            Connection::SIZE,
            SocketFields::SIZE,
            Count::SIZE,
            Load::SIZE,
            Track::SIZE,
            Hop::SIZE,
        ]
    );
    assert_eq!([Frontend::SIZE, Slot::SIZE, Flow::SIZE, Origin::SIZE], [24, 36, 28, 36]);
    // One line of a processor's nearest memory.
    assert_eq!(Connection::SIZE, 64);
    assert_eq!(SocketFields::SIZE, (1 + SocketFields::NAMES.len()) * u32::SIZE);
}

#[test]
fn fields_are_where_the_compiler_puts_them() {
    use core::mem::offset_of;
    let mut octets = [0; Slot::SIZE];
    let share = Share { own: 0x0a0b_0c0d, alias: 9 };
    let place = Place { address: [1, 2, 3, 4], port: 5 };
    Slot { place, counter: 7, share, weight: 11 }.write(&mut octets);
    let word = |at: usize| u32::read(&octets[at..]);
    assert_eq!(word(offset_of!(Slot, place) + offset_of!(Place, port)), 5);
    assert_eq!(word(offset_of!(Slot, counter)), 7);
    assert_eq!(word(offset_of!(Slot, share) + offset_of!(Share, own)), 0x0a0b_0c0d);
    assert_eq!(word(offset_of!(Slot, share) + offset_of!(Share, alias)), 9);
    assert_eq!(word(offset_of!(Slot, weight)), 11);
    let mut octets = [0; Flow::SIZE];
    Flow { socket: [1, 2], place }.write(&mut octets);
    assert_eq!(u32::read(&octets[offset_of!(Flow, place)..]), 1);
    let mut octets = [0; Origin::SIZE];
    Origin { place, counter: 7, flags: 8, netns: [9, 10] }.write(&mut octets);
    assert_eq!(u32::read(&octets[offset_of!(Origin, counter)..]), 7);
    assert_eq!(u32::read(&octets[offset_of!(Origin, flags)..]), 8);
    assert_eq!(u32::read(&octets[offset_of!(Origin, netns)..]), 9);
    let mut octets = [0; Connection::SIZE];
    let origin = Origin { place, counter: 7, flags: 8, netns: [9, 10] };
    Connection { socket: 11, endpoint: place, origin }.write(&mut octets);
    assert_eq!(u32::read(&octets[offset_of!(Connection, endpoint)..]), 1);
    assert_eq!(u32::read(&octets[offset_of!(Connection, origin) + offset_of!(Origin, counter)..]), 7);
    let mut octets = [0; SocketFields::SIZE];
    SocketFields { next_read: 12, ..SocketFields::default() }.write(&mut octets);
    assert_eq!(u32::read(&octets[offset_of!(SocketFields, next_read)..]), 12);
    let mut octets = [0; Count::SIZE];
    Count { failures: 3, packets_in: 9, ..Count::default() }.write(&mut octets);
    assert_eq!(u64::read(&octets[offset_of!(Count, failures)..]), 3);
    assert_eq!(u64::read(&octets[offset_of!(Count, packets_in)..]), 9);
}

#[test]
fn octets_are_in_network_order() {
    let place = Place::from("1.2.3.4:80".parse::<SocketAddr>().expect("address"));
    let mut octets = vec![0; Place::SIZE];
    place.write(&mut octets);
    assert_eq!(octets, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4, 0, 80, 0, 0]);
    assert!(place.is_ipv4());
    assert_eq!(Place::ipv4(place.address[3], place.port), place);
    assert!(!Place::from("[fd01::1]:80".parse::<SocketAddr>().expect("address")).is_ipv4());
}

fn round_trip<T: Words + Debug + PartialEq>(value: &T) {
    let mut octets = vec![0; T::SIZE];
    value.write(&mut octets);
    assert_eq!(T::read(&octets), *value);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn addresses_come_back(ip: [u8; 16], is_short: bool, port: u16) {
        let ip = if is_short { IpAddr::V4([ip[0], ip[1], ip[2], ip[3]].into()) } else { IpAddr::V6(ip.into()) };
        prop_assume!(!matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()));
        let address = SocketAddr::new(ip, port);
        prop_assert_eq!(SocketAddr::from(Place::from(address)), address);
    }

    #[test]
    fn values_come_back(words: [u32; 7]) {
        let [a, b, c, d, e, f, g] = words;
        let place = Place { address: [a, b, c, d], port: e };
        round_trip(&Frontend { place, protocol: f });
        round_trip(&Service { id: a, generation: b, slots: c, algorithm: d, affinity_seconds: e, points: f });
        round_trip(&SlotKey { service: a, generation: b, index: c });
        let slot = Slot { place, counter: f, share: Share { own: g, alias: a }, weight: b };
        round_trip(&slot);
        round_trip(&MaglevKey { service: a, generation: b, chunk: c });
        round_trip(&MaglevChunk { pairs: core::array::from_fn(|at| words[at % 7]) });
        round_trip(&MemberState { counter: f, flags: g });
        round_trip(&AffinityKey { service: a, netns: [b, c] });
        round_trip(&Affinity { slot, used: c });
        round_trip(&Origin { place, counter: f, flags: g, netns: [a, b] });
        let origin = Origin { place, counter: f, flags: g, netns: [a, b] };
        round_trip(&Connection { socket: u64::from(a) << 32 | u64::from(b), endpoint: place, origin });
        round_trip(&SocketFields { of_call: a, next_read: b, ..SocketFields::default() });
        round_trip(&Load { connections: a });
        round_trip(&Member { service: g, place });
        round_trip(&Flow { socket: [f, g], place });
        round_trip(&Count { resets: u64::from(a) << 32 | u64::from(b), ..Count::default() });
    }

    #[test]
    fn a_slot_below_the_number_of_slots_is_drawn(slots in 1..5000_u32, first: u32, second: u32) {
        let seen: core::cell::RefCell<Vec<u32>> = core::cell::RefCell::default();
        let chosen = choose_slot(slots, first, second, |at| {
            seen.borrow_mut().push(at);
            Some(Share { own: 1 << 31, alias: slots - 1 })
        });
        prop_assert!(chosen.is_some_and(|chosen| chosen < slots));
        prop_assert!(seen.borrow().iter().all(|at| *at < slots));
        prop_assert_eq!(choose_slot(slots, first, second, |_| None), None);
    }
}

fn place(address: SocketAddr) -> Place {
    Place::from(address)
}

/// The greatest count of a spread over slots, relative to the mean.
fn peak(hashes: impl Iterator<Item = u32>, slots: u32) -> f64 {
    let mut counts = vec![0_u32; slots as usize];
    let mut total = 0;
    for hash in hashes {
        counts[hash_slot(hash, slots) as usize] += 1;
        total += 1;
    }
    f64::from(counts.into_iter().max().unwrap_or(0)) * f64::from(slots) / f64::from(total)
}

#[test]
fn addresses_that_hardly_differ_are_spread() {
    let hosts = (0..100_000_u32).map(|n| SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + n), 1)));
    assert!(peak(hosts.map(|host| source_hash(&place(host))), 100) < 1.15);
    let nets = (0..60_000_u32).map(|n| SocketAddr::from((Ipv4Addr::from_bits(n << 16 | 1), 1)));
    assert!(peak(nets.map(|host| source_hash(&place(host))), 100) < 1.2);
    let hosts = (0..60_000_u16).map(|n| SocketAddr::from((Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, n, 1), 1)));
    assert!(peak(hosts.map(|host| source_hash(&place(host))), 100) < 1.15);
    let service = place(([11, 0, 0, 1], 80).into());
    let ports = (1024..65_000_u16).map(|port| place(([10, 0, 0, 1], port).into()));
    assert!(peak(ports.map(|client| flow_hash(&client, &service, TCP.into())), 100) < 1.2);
}

#[test]
fn the_source_hash_ignores_the_port_and_the_flow_hash_does_not() {
    let [first, second] = [1, 2].map(|port| place(([10, 0, 0, 1], port).into()));
    assert_eq!(source_hash(&first), source_hash(&second));
    let service = place(([11, 0, 0, 1], 80).into());
    assert_ne!(flow_hash(&first, &service, 6), flow_hash(&second, &service, 6));
}

#[test]
fn hashes_stay_what_they_are() {
    // Nodes of different versions choose alike, and programs that stay in the kernel go on with new tables.
    let client = place(([10, 1, 2, 3], 4567).into());
    let service = place(([11, 0, 0, 1], 80).into());
    assert_eq!((source_hash(&client), flow_hash(&client, &service, 6)), (3_840_912_583, 60_595_639));
}

#[test]
fn loads_are_weighed() {
    let place = Place { address: [1, 2, 3, 4], port: 5 };
    let slot = |weight| Slot { place, counter: 0, share: Share::default(), weight };
    for (own, weight, others, other_weight, is_fewer) in [
        (0, 1, 1, 1, true),
        (1, 1, 1, 1, false),
        (2, 3, 1, 1, true),
        (3, 3, 1, 1, false),
        (u32::MAX, u32::MAX, u32::MAX, u32::MAX - 1, true),
    ] {
        assert_eq!(slot(weight).has_fewer(own, &slot(other_weight), others), is_fewer);
    }
}

#[test]
fn the_end_of_a_connection_is_judged_by_what_the_kernel_keeps() {
    let open = TcpEnd {
        state: 1,
        segments_out: 5,
        segments_in: 4,
        data_segments_in: 1,
        bytes_sent: 300,
        bytes_resent: 100,
        bytes_received: 70,
        next_written: 1201,
        next_sent: 1201,
        next_received: 171,
        next_read: 171,
        ..TcpEnd::default()
    };
    let over = TcpEnd { is_done: true, bytes_received: 71, ..open };
    let silent = TcpEnd {
        state: 7,
        segments_in: 2,
        data_segments_in: 0,
        bytes_received: 0,
        next_received: 101,
        next_read: 101,
        ..open
    };
    // What it is, then failures, resets, octets out and in.
    let cases = [
        ("open", open, [0, 0, 200, 70]),
        ("ended by the endpoint", TcpEnd { state: 8, ..over }, [0, 0, 200, 70]),
        ("ended by both", TcpEnd { state: 7, ..over }, [0, 0, 200, 70]),
        ("reset", TcpEnd { state: 7, ..open }, [0, 1, 200, 70]),
        ("not read to its end", TcpEnd { next_read: 170, ..open }, [0, 1, 200, 70]),
        ("abortive", TcpEnd { is_abortive: true, next_written: 1299, ..open }, [0, 1, 200, 70]),
        ("with more to send", TcpEnd { next_written: 1211, ..open }, [0, 0, 210, 70]),
        ("with more to send, then its end", TcpEnd { state: 4, next_written: 1212, ..open }, [0, 0, 210, 70]),
        ("lost with more to send", TcpEnd { state: 7, next_written: 1211, ..open }, [0, 1, 200, 70]),
        ("numbers that begin anew", TcpEnd { next_written: 9, next_sent: u32::MAX, ..open }, [0, 0, 210, 70]),
        ("reset without a word", silent, [1, 1, 200, 0]),
        ("told what the client would not hear", TcpEnd { data_segments_in: 1, ..silent }, [0, 1, 200, 0]),
        ("ended on this side", TcpEnd { segments_in: 1, ..silent }, [0, 1, 200, 0]),
        ("taken back", TcpEnd { segments_in: 0, bytes_sent: 0, bytes_resent: 0, ..silent }, [0, 1, 0, 0]),
        (
            "closed by its client without a word",
            TcpEnd { state: 1, is_abortive: true, ..silent },
            [0, 1, 200, 0],
        ),
        ("in vain", TcpEnd { state: 2, next_written: 1, ..TcpEnd::default() }, [1, 0, 0, 0]),
        ("refused", TcpEnd { state: 7, next_written: 1, ..TcpEnd::default() }, [1, 0, 0, 0]),
        ("given up and forgotten", TcpEnd { state: 7, ..TcpEnd::default() }, [1, 0, 0, 0]),
    ];
    for (what, end, [failures, resets, bytes_out, bytes_in]) in cases {
        let packets = (u64::from(end.segments_out), u64::from(end.segments_in));
        let (packets_out, packets_in) = packets;
        let expected = Count {
            connections: 0,
            ended: 1,
            failures,
            resets,
            bytes_out,
            bytes_in,
            packets_out,
            packets_in,
        };
        assert_eq!(end.count(), expected, "{what}");
    }
}
