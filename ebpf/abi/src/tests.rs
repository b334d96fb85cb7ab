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
            size_of::<Member>(),
            size_of::<Flow>(),
            size_of::<Count>(),
        ],
        [
            Place::SIZE,
            Frontend::SIZE,
            Service::SIZE,
            SlotKey::SIZE,
            Slot::SIZE,
            Member::SIZE,
            Flow::SIZE,
            Count::SIZE,
        ]
    );
    assert_eq!([Frontend::SIZE, Slot::SIZE, Flow::SIZE], [24, 32, 28]);
}

#[test]
fn fields_are_where_the_compiler_puts_them() {
    use core::mem::offset_of;
    let mut octets = [0; Slot::SIZE];
    let share = Share { own: 0x0a0b_0c0d, alias: 9 };
    let place = Place { address: [1, 2, 3, 4], port: 5 };
    Slot { place, counter: 7, share }.write(&mut octets);
    let word = |at: usize| u32::read(&octets[at..]);
    assert_eq!(word(offset_of!(Slot, place) + offset_of!(Place, port)), 5);
    assert_eq!(word(offset_of!(Slot, counter)), 7);
    assert_eq!(word(offset_of!(Slot, share) + offset_of!(Share, own)), 0x0a0b_0c0d);
    assert_eq!(word(offset_of!(Slot, share) + offset_of!(Share, alias)), 9);
    let mut octets = [0; Flow::SIZE];
    Flow { socket: [1, 2], place }.write(&mut octets);
    assert_eq!(u32::read(&octets[offset_of!(Flow, place)..]), 1);
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
        round_trip(&Service { id: a, generation: b, slots: c });
        round_trip(&SlotKey { service: a, generation: b, index: c });
        round_trip(&Slot { place, counter: f, share: Share { own: g, alias: a } });
        round_trip(&Member { service: g, place });
        round_trip(&Flow { socket: [f, g], place });
        round_trip(&Count { connections: u64::from(a) << 32 | u64::from(b) });
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
