use std::net::SocketAddr;

use mesonet_ebpf_abi::choose_slot;
use proptest::prelude::*;

use super::*;

/// The maps as the kernel has them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Maps {
    services: BTreeMap<Frontend, Service>,
    slots: BTreeMap<SlotKey, Place>,
    chunks: BTreeMap<MaglevKey, MaglevChunk>,
    members: BTreeSet<Member>,
}

impl Maps {
    fn write(&mut self, write: MapWrite) {
        match write {
            MapWrite::PutMember(member, _) => drop(self.members.insert(member)),
            MapWrite::PutSlot(key, slot) => drop(self.slots.insert(key, slot.place)),
            MapWrite::PutChunk(key, chunk) => drop(self.chunks.insert(key, *chunk)),
            MapWrite::PutService(frontend, service) => drop(self.services.insert(frontend, service)),
            MapWrite::RemoveService(frontend) => drop(self.services.remove(&frontend)),
            MapWrite::RemoveSlot(key) => drop(self.slots.remove(&key)),
            MapWrite::RemoveChunk(key) => drop(self.chunks.remove(&key)),
            MapWrite::RemoveMember(member) => drop(self.members.remove(&member)),
        }
    }

    /// The places that a connection to an address may go to; `None` if the address is not virtual.
    fn reachable(&self, frontend: &Frontend) -> Option<BTreeSet<Place>> {
        let service = *self.services.get(frontend)?;
        for key in chunk_keys(service) {
            let MaglevChunk { pairs } = self.chunks.get(&key).expect("every position is there");
            let named = pairs.iter().flat_map(|pair| [pair & 0xffff, pair >> 16]);
            assert!(named.max().is_some_and(|slot| slot < service.slots));
        }
        let place = |key| *self.slots.get(&key).expect("every slot is there");
        Some(slot_keys(service).map(place).collect())
    }
}

fn frontend(number: u8) -> Frontend {
    let address: SocketAddr = ([11, 0, 0, number], 80).into();
    Frontend { place: address.into(), protocol: TCP.into() }
}

fn candidates(numbers: &[(u8, Option<u32>)]) -> BTreeSet<Candidate> {
    let place = |number| Place::from(SocketAddr::from(([10, 0, 0, number], 31_000)));
    let by_place: BTreeMap<u8, Option<u32>> = numbers.iter().copied().collect();
    by_place.into_iter().map(|(number, weight)| Candidate { place: place(number), weight }).collect()
}

fn ready(candidates: &BTreeSet<Candidate>) -> BTreeSet<Place> {
    candidates.iter().filter(|each| each.weight.is_some()).map(|each| each.place).collect()
}

#[test]
fn weights_are_drawn_exactly() {
    for (weights, expected) in [
        (&[1][..], &[1.0][..]),
        (&[1, 1], &[0.5, 0.5]),
        (&[0, 0, 0, 0], &[0.25, 0.25, 0.25, 0.25]),
        (&[1, 3], &[0.25, 0.75]),
        (&[0, 1, 1], &[0.0, 0.5, 0.5]),
        (&[100, 1, 1, 2], &[100.0 / 104.0, 1.0 / 104.0, 1.0 / 104.0, 2.0 / 104.0]),
        (&[u32::MAX, u32::MAX, 0], &[0.5, 0.5, 0.0]),
    ] {
        let shares = shares(weights);
        let mut chances = vec![0.0; weights.len()];
        for (at, share) in shares.iter().enumerate() {
            let kept = f64::from(share.own) / 4_294_967_296.0;
            chances[at] += kept / weights.len() as f64;
            chances[share.alias as usize] += (1.0 - kept) / weights.len() as f64;
        }
        let is_near = chances.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 1e-9);
        assert!(is_near, "{weights:?}: {chances:?}");
    }
}

#[test]
fn a_weight_of_zero_is_never_drawn_while_others_have_one() {
    let shares = shares(&[0, 5, 0, 7]);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..10_000 {
        let drawn = choose_slot(4, random.u32(..), random.u32(..), |at| Some(shares[at as usize]));
        assert!(matches!(drawn, Some(1 | 3)), "{drawn:?}");
    }
}

#[test]
fn what_is_so_already_is_not_written() {
    let mut table = KernelTable::default();
    let wanted = candidates(&[(1, Some(1)), (2, None)]);
    let policy = ServicePolicy::default();
    assert_eq!(table.put(frontend(1), &wanted, policy).expect("room").len(), 3);
    assert_eq!(table.put(frontend(1), &wanted, policy), Ok(vec![]));
    // An endpoint that begins to drain keeps its place among the members.
    let drained = table.put(frontend(1), &candidates(&[(1, None), (2, None)]), policy).expect("room");
    let switched = matches!(
        drained[..],
        [
            MapWrite::PutMember(_, MemberState { flags: 0, .. }),
            MapWrite::PutService(_, Service { slots: 0, .. }),
            MapWrite::RemoveSlot(_)
        ]
    );
    assert!(switched, "{drained:?}");
}

#[test]
fn a_policy_is_in_effect_with_its_table() {
    let mut table = KernelTable::default();
    let mut maps = Maps::default();
    let wanted = candidates(&[(1, Some(1)), (2, Some(3)), (3, None)]);
    let maglev = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    table.put(frontend(1), &wanted, maglev).expect("room").into_iter().for_each(|write| maps.write(write));
    let service = maps.services[&frontend(1)];
    assert_eq!((service.algorithm, service.points), (Service::MAGLEV, SOCKET_MAGLEV_SLOTS));
    let slot = |at: u32| {
        let key = MaglevKey { service: service.id, generation: 0, chunk: at / MAGLEV_CHUNK };
        let half = at % MAGLEV_CHUNK;
        let pair = maps.chunks[&key].pairs[half as usize / 2].to_ne_bytes();
        u16::from_ne_bytes(if half.is_multiple_of(2) { [pair[0], pair[1]] } else { [pair[2], pair[3]] })
    };
    let second = (0..SOCKET_MAGLEV_SLOTS).filter(|at| slot(*at) == 1).count();
    assert!((2800..3350).contains(&second), "{second} of 4093, not three quarters");

    let affinity = Some(std::time::Duration::from_secs(30));
    let least =
        ServicePolicy { algorithm: Algorithm::LeastConnections, affinity, ..ServicePolicy::default() };
    table.put(frontend(1), &wanted, least).expect("room").into_iter().for_each(|write| maps.write(write));
    let service = maps.services[&frontend(1)];
    assert_eq!((service.algorithm, service.affinity_seconds), (Service::LEAST_CONNECTIONS, 30));
    assert_eq!(maps.chunks, BTreeMap::new());
}

#[test]
fn what_does_not_fit_leaves_everything_as_it_was() {
    let mut table = KernelTable::default();
    let maglev = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    let address = |number: usize| {
        let ip = std::net::Ipv4Addr::from(0x0b00_0000 + number as u32);
        Frontend { place: SocketAddr::from((ip, 80)).into(), protocol: TCP.into() }
    };
    let one = candidates(&[(1, Some(1))]);
    let fitting = (0..).take_while(|number| table.put(address(*number), &one, maglev).is_ok()).count();
    let max = KernelMap::Positions.entries_max();
    assert_eq!(fitting, max / 16 * 15 / 64);
    let no_room = table.put(address(fitting), &one, maglev).expect_err("full");
    assert_eq!((no_room.map, no_room.wanted), (KernelMap::Positions, 64));
    assert!(!table.contains(&address(fitting)));
    assert!(table.put(address(fitting), &one, ServicePolicy::default()).is_ok(), "others fit");

    // Those that are there change, until nothing is released for very long.
    let two = candidates(&[(2, Some(1))]);
    let changed = (0..fitting).take_while(|number| table.put(address(*number), &two, maglev).is_ok()).count();
    assert_eq!(changed, max / 64 - fitting);
    assert_eq!(table.ready(&address(changed)).collect::<BTreeSet<_>>(), ready(&one));
    table.release();
    assert!(table.put(address(changed), &two, maglev).is_ok());
    table.remove(&address(0));
    table.release();
    assert!(table.put(address(fitting + 1), &one, maglev).is_ok(), "there is room again");
}

#[test]
fn clients_stay_where_there_is_a_weight_or_none_has_any() {
    let affinity = Some(std::time::Duration::from_secs(30));
    let policy = ServicePolicy { affinity, ..ServicePolicy::default() };
    let mut table = KernelTable::default();
    let mut writes = Vec::new();
    let mut put = |wanted: &[(u8, Option<u32>)]| {
        let new = table.put(frontend(1), &candidates(wanted), policy).expect("there is room");
        let states = new.iter().filter_map(|write| match write {
            MapWrite::PutMember(_, state) => Some((state.counter, state.keeps_clients())),
            _ => None,
        });
        let states: Vec<(u32, bool)> = states.collect();
        writes.extend(new);
        states
    };
    assert_eq!(put(&[(1, Some(3)), (2, Some(0)), (3, None)]), [(0, true), (1, false), (2, false)]);
    assert_eq!(put(&[(1, Some(3)), (2, Some(2)), (3, None)]), [(1, true)]);
    assert_eq!(put(&[(1, Some(0)), (2, Some(2)), (3, None)]), [(0, false)]);
    assert_eq!(put(&[(1, Some(0)), (2, Some(0)), (3, None)]), [(0, true)]);
    let last = candidates(&[(1, Some(0)), (2, Some(5)), (3, None)]);
    assert_eq!(put(&[(1, Some(0)), (2, Some(5)), (3, None)]), [(0, false)]);
    let (_, mut taken, _) = take_over(&writes);
    assert_eq!(taken.put(frontend(1), &last, policy), Ok(vec![]));
}

type Step = (u8, Option<Vec<(u8, Option<u32>)>>, Algorithm);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let candidate = (0..8_u8, prop::option::weighted(0.7, 0..4_u32));
    let wanted = prop::option::weighted(0.8, prop::collection::vec(candidate, 0..6));
    let algorithm = prop::sample::select(&Algorithm::ALL[..]);
    prop::collection::vec((0..4_u8, wanted, algorithm), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// After each single write, an address leads to its old endpoints or to its new ones, and to nothing else;
    /// a process that ends at any point leaves maps from which the next one goes on.
    #[test]
    fn every_moment_is_right(steps in steps(), end: prop::sample::Index) {
        let mut table = KernelTable::default();
        let mut maps = Maps::default();
        let mut current: BTreeMap<Frontend, BTreeSet<Place>> = BTreeMap::new();
        let mut last = BTreeMap::new();
        let mut all: Vec<MapWrite> = Vec::new();
        for (number, wanted, algorithm) in steps {
            let frontend = frontend(number);
            let wanted = wanted.map(|wanted| candidates(&wanted));
            let writes = match &wanted {
                Some(wanted) => {
                    table.put(frontend, wanted, ServicePolicy { algorithm, ..ServicePolicy::default() }).expect("room")
                }
                None => table.remove(&frontend),
            };
            let new = wanted.as_ref().map(ready);
            for write in writes {
                maps.write(write.clone());
                all.push(write);
                let found = maps.reachable(&frontend);
                prop_assert!(found == new || found == current.get(&frontend).cloned());
            }
            prop_assert_eq!(maps.reachable(&frontend), new.clone());
            match new {
                Some(new) => drop(current.insert(frontend, new)),
                None => drop(current.remove(&frontend)),
            }
            match wanted {
                Some(wanted) => drop(last.insert(frontend, (wanted, algorithm))),
                None => drop(last.remove(&frontend)),
            }
        }
        check_takeover(&all, &table, &last)?;
        let used: usize = current.values().map(BTreeSet::len).sum();
        prop_assert_eq!(maps.slots.len(), used);
        let found = [maps.services.len(), maps.slots.len(), maps.chunks.len(), maps.members.len()];
        prop_assert_eq!(KernelMap::ALL.map(|map| table.used().of(map)), found);
        check_recovery(&all[..end.index(all.len() + 1)])?;
    }
}

/// Starts from what complete changes have left: everything is known, and nothing is to be written.
fn check_takeover(
    writes: &[MapWrite],
    table: &KernelTable,
    last: &BTreeMap<Frontend, (BTreeSet<Candidate>, Algorithm)>,
) -> Result<(), TestCaseError> {
    let (_, mut taken, garbage) = take_over(writes);
    prop_assert_eq!(garbage, []);
    prop_assert_eq!(taken.frontends().collect::<Vec<_>>(), table.frontends().collect::<Vec<_>>());
    for (frontend, (wanted, algorithm)) in last {
        let counters = |table: &KernelTable| table.counters(frontend).collect::<Vec<_>>();
        prop_assert_eq!(counters(&taken), counters(table));
        let ready = |table: &KernelTable| table.ready(frontend).collect::<Vec<_>>();
        prop_assert_eq!(ready(&taken), ready(table));
        let policy = ServicePolicy { algorithm: *algorithm, ..ServicePolicy::default() };
        prop_assert_eq!(taken.put(*frontend, wanted, policy), Ok(vec![]));
        // A new endpoint has a counter that no other has.
        let more = wanted.iter().copied().chain(candidates(&[(200, Some(1))])).collect();
        taken.put(*frontend, &more, policy).expect("room");
    }
    let all: Vec<u32> =
        last.keys().flat_map(|frontend| taken.counters(frontend)).map(|(counter, _)| counter).collect();
    prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    Ok(())
}

/// Starts from what some writes have left, and makes everything empty.
fn check_recovery(writes: &[MapWrite]) -> Result<(), TestCaseError> {
    let (mut maps, mut table, garbage) = take_over(writes);
    let before: Vec<_> = table.frontends().map(|frontend| (*frontend, maps.reachable(frontend))).collect();
    garbage.into_iter().for_each(|write| maps.write(write));
    for (frontend, reachable) in before {
        prop_assert_eq!(maps.reachable(&frontend), reachable);
        table.remove(&frontend).into_iter().for_each(|write| maps.write(write));
    }
    prop_assert_eq!(maps, Maps::default());
    Ok(())
}

/// What some writes leave, the table that is read from it, and what is to be removed.
fn take_over(writes: &[MapWrite]) -> (Maps, KernelTable, Vec<MapWrite>) {
    let mut slots = BTreeMap::new();
    let mut members = BTreeMap::new();
    let mut maps = Maps::default();
    for write in writes {
        maps.write(write.clone());
        match write {
            MapWrite::PutMember(member, state) => drop(members.insert(*member, *state)),
            MapWrite::PutSlot(key, slot) => drop(slots.insert(*key, *slot)),
            MapWrite::RemoveSlot(key) => drop(slots.remove(key)),
            MapWrite::RemoveMember(member) => drop(members.remove(member)),
            _ => {}
        }
    }
    let (table, garbage) = KernelTable::read(FoundMaps {
        services: maps.services.iter().map(|(frontend, service)| (*frontend, *service)).collect(),
        slots: slots.into_iter().collect(),
        chunks: maps.chunks.keys().copied().collect(),
        members: members.into_iter().collect(),
    });
    (maps, table, garbage)
}
