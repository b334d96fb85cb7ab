//! What programs in the kernel and their user side share: where fields are, what hashes lead to, and checksums.

use std::mem::{offset_of, size_of};

use mesonet_ebpf_abi::{
    Affinity, Count, Difference, Hop, PacketCount, PacketEndpoint, PacketMember, PacketService, Place, Row,
    Slot, Track, Tuple, Words, hash_slot,
};
use proptest::prelude::*;

/// Fields follow each other as they are written, which must be where the compiler has them for the programs.
macro_rules! assert_layout {
    ($name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        let mut end = 0;
        $(
            assert_eq!(offset_of!($name, $field), end, concat!(stringify!($name), ".", stringify!($field)));
            end += <$kind as Words>::SIZE;
        )+
        assert_eq!([size_of::<$name>(), <$name as Words>::SIZE], [end, end], stringify!($name));
    };
}

#[test]
fn fields_of_packets_maps_are_where_the_compiler_puts_them() {
    assert_layout!(Tuple { from: [u32; 4], to: [u32; 4], ports: u32, protocol: u32 });
    assert_layout!(Track { tuple: Tuple, endpoint: u32, stamp: u32, seen: u32, direction: u32, hop: Hop });
    assert_layout!(Hop { since: u32, place: u32, interface: u32, mtu: u32, addresses: [u32; 3] });
    assert_layout!(PacketService { id: u32, row: u32, slots: u32, flags: u32, fingerprint: u32 });
    assert_layout!(PacketMember { service: u32, place: Place });
    assert_layout!(Row { endpoints: [u32; 16] });
    assert_layout!(PacketEndpoint { place: Place, service: u32, stamp: u32, flags: u32, source: [u32; 4] });
    assert_layout!(PacketCount {
        flows: u64,
        ended: u64,
        packets_in: u64,
        bytes_in: u64,
        packets_out: u64,
        bytes_out: u64,
    });
    // Programs that stay in the kernel go on with maps of these; another size needs another directory for pins.
    assert_eq!([Tuple::SIZE, Track::SIZE, PacketEndpoint::SIZE, PacketCount::SIZE], [40, 84, 48, 48]);
}

fn there_and_back<T: Words>(octets: &[u8]) {
    let octets = &octets[..T::SIZE];
    let mut written = vec![0; T::SIZE];
    T::read(octets).write(&mut written);
    assert_eq!(written, octets);
}

/// The checksum of words, one half after the other (RFC 1071).
fn summed(words: &[u32]) -> u16 {
    let halves = words.iter().flat_map(|word| [word & 0xffff, word >> 16]);
    let sum = halves.fold(0, |sum, half| ((sum + half) & 0xffff) + ((sum + half) >> 16));
    !(sum as u16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any octets are a value, and the value is these octets.
    #[test]
    fn octets_come_back(octets in prop::collection::vec(any::<u8>(), Row::SIZE)) {
        there_and_back::<Tuple>(&octets);
        there_and_back::<Track>(&[&octets[..], &octets].concat());
        there_and_back::<Hop>(&octets);
        there_and_back::<PacketService>(&octets);
        there_and_back::<PacketMember>(&octets);
        there_and_back::<PacketEndpoint>(&octets);
        there_and_back::<PacketCount>(&octets);
        there_and_back::<Row>(&octets);
        there_and_back::<Count>(&octets);
        there_and_back::<Slot>(&octets);
        there_and_back::<Affinity>(&octets);
    }

    #[test]
    fn what_is_flipped_twice_is_as_before(from: [u32; 4], to: [u32; 4], ports: [u16; 2], protocol: u8) {
        let place = |address, port: u16| Place { address, port: port.to_be().into() };
        let (from, to) = (place(from, ports[0]), place(to, ports[1]));
        let tuple = Tuple::between(&from, &to, protocol.into());
        prop_assert_eq!((tuple.source(), tuple.destination()), (from, to));
        prop_assert_eq!(tuple.flip(), Tuple::between(&to, &from, protocol.into()));
        prop_assert_eq!(tuple.flip().flip(), tuple);
    }

    #[test]
    fn hashes_are_spread_over_all_slots_in_order(slots in 1..70_000_u32, hash: u32) {
        prop_assert!(hash_slot(hash, slots) < slots);
        prop_assert_eq!((hash_slot(0, slots), hash_slot(u32::MAX, slots)), (0, slots - 1));
        prop_assert!(hash_slot(hash, slots) <= hash_slot(hash.saturating_add(1), slots));
    }

    /// A checksum that follows the changes of a packet is that of the changed packet.
    #[test]
    fn checksums_follow_what_changes(
        words in prop::collection::vec(any::<u32>(), 1..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 0..8),
    ) {
        let before = summed(&words);
        let mut changed = words.clone();
        let mut difference = Difference::default();
        for (at, new) in changes {
            let word = at.get_mut(&mut changed);
            difference = difference.replace(*word, new);
            *word = new;
        }
        let after = difference.apply(before);
        // Zero has two forms; a packet whose checksum is right sums up to either.
        let total = !summed(&changed);
        let sum = u32::from(total) + u32::from(after);
        prop_assert!(matches!((sum & 0xffff) + (sum >> 16), 0 | 0xffff));
        prop_assert_eq!(Difference::default().add(difference.bits()).apply(before), after);
    }
}
