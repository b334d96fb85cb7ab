//! Every moment of a change is right.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesonet_ebpf_abi::{TCP, flow_hash, hash_slot};
use proptest::prelude::*;

use super::*;

/// The maps as the kernel has them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Maps {
    services: BTreeMap<Frontend, PacketService>,
    members: BTreeMap<PacketMember, u32>,
    endpoints: BTreeMap<u32, PacketEndpoint>,
    rows: BTreeMap<u32, Row>,
}

/// An entry of the map of flows.
#[derive(Debug, Clone, Copy)]
struct Flow {
    frontend: Frontend,
    place: Place,
    number: u32,
    stamp: u32,
}

impl Maps {
    fn write(&mut self, write: PacketWrite) {
        match write {
            PacketWrite::PutEndpoint(number, endpoint) => drop(self.endpoints.insert(number, endpoint)),
            PacketWrite::PutMember(member, number) => drop(self.members.insert(member, number)),
            PacketWrite::PutRow(at, row) => drop(self.rows.insert(at, row)),
            PacketWrite::PutService(frontend, service) => drop(self.services.insert(frontend, service)),
            PacketWrite::RemoveService(frontend) => drop(self.services.remove(&frontend)),
            PacketWrite::RemoveEndpoint(number) => drop(self.endpoints.remove(&number)),
            PacketWrite::RemoveMember(member) => drop(self.members.remove(&member)),
        }
    }

    fn all(&mut self, writes: Vec<PacketWrite>) {
        writes.into_iter().for_each(|write| self.write(write));
    }

    fn read(&self) -> (PacketTable, Vec<PacketWrite>) {
        PacketTable::read(1 << 20, self.services.clone(), self.members.clone(), |number| {
            self.endpoints.get(&number).copied()
        })
    }

    /// What the program does with a new flow: nothing where the address is not virtual, nobody where none is ready.
    fn choose(&self, frontend: &Frontend, client: Place) -> Option<Option<Flow>> {
        let service = self.services.get(frontend)?;
        if service.slots == 0 {
            return Some(None);
        }
        let slot = hash_slot(flow_hash(&client, &frontend.place, frontend.protocol), service.slots);
        let row = self.rows.get(&(service.row + slot / ROW_SLOTS)).expect("every row is there");
        let number = row.endpoints[(slot % ROW_SLOTS) as usize];
        let endpoint = self.endpoints.get(&number).expect("every endpoint of a row is there");
        assert_eq!(endpoint.service, service.id, "rows of another service");
        assert_ne!(endpoint.flags & PacketEndpoint::READY, 0, "a row leads to one that is not ready");
        Some(Some(Flow { frontend: *frontend, place: endpoint.place, number, stamp: endpoint.stamp }))
    }

    fn keeps(&self, flow: &Flow) -> bool {
        self.endpoints.get(&flow.number).is_some_and(|each| each.stamp == flow.stamp)
    }
}

fn frontend(number: u8) -> Frontend {
    let address: SocketAddr = ([11, 0, 0, number], 80).into();
    Frontend { place: address.into(), protocol: TCP.into() }
}

fn place(number: u8) -> Place {
    SocketAddr::from(([10, 0, 0, number], 31_000)).into()
}

fn client(number: u16) -> Place {
    SocketAddr::from(([192, 168, 0, 1], number)).into()
}

fn spec(candidates: &[(u8, Option<u32>)]) -> PacketSpec {
    let by_number: BTreeMap<u8, Option<u32>> = candidates.iter().copied().collect();
    let candidate = |(number, weight)| PacketCandidate {
        place: place(number),
        weight,
        source: Some([0, 0, 0, 1]),
        replies_pass: number % 2 == 0,
        is_direct: false,
    };
    PacketSpec { candidates: by_number.into_iter().map(candidate).collect(), ..PacketSpec::default() }
}

#[test]
fn what_is_so_already_is_not_written() {
    let mut table = PacketTable::new(0);
    let mut maps = Maps::default();
    let wanted = spec(&[(1, Some(1)), (2, None)]);
    maps.all(table.put(frontend(1), &wanted).expect("room"));
    assert_eq!(table.put(frontend(1), &wanted), Ok(Vec::new()));
    // Nor by the process that follows.
    let (mut table, garbage) = maps.read();
    assert_eq!(garbage, []);
    assert_eq!(table.put(frontend(1), &wanted), Ok(Vec::new()));
    // An endpoint that begins to drain keeps its number and its flows, and gets no new ones.
    let flow = maps.choose(&frontend(1), client(1)).flatten().expect("an endpoint");
    maps.all(table.put(frontend(1), &spec(&[(1, None), (2, None)])).expect("room"));
    assert!(maps.keeps(&flow) && maps.choose(&frontend(1), client(1)).expect("virtual").is_none());
}

#[test]
fn another_policy_takes_effect() {
    let mut table = PacketTable::new(0);
    table.put(frontend(1), &spec(&[(1, Some(1)), (2, Some(1))])).expect("room");
    let by_source = PacketSpec { is_by_source: true, ..spec(&[(1, Some(1)), (2, Some(1))]) };
    let writes = table.put(frontend(1), &by_source).expect("room");
    let service = writes.iter().find_map(|write| match write {
        PacketWrite::PutService(_, service) => Some(*service),
        _ => None,
    });
    assert_eq!(service.map(|service| service.flags), Some(PacketService::BY_SOURCE));
    // Endpoints elsewhere that answer clients themselves, whether or not their replies would pass.
    let is_direct = |each: PacketCandidate| PacketCandidate { is_direct: true, ..each };
    let direct =
        PacketSpec { candidates: by_source.candidates.into_iter().map(is_direct).collect(), ..by_source };
    let writes = table.put(frontend(1), &direct).expect("room");
    const ELSEWHERE: u32 = PacketEndpoint::DIRECT | PacketEndpoint::MASQUERADE;
    let is_put = |write: &PacketWrite| match write {
        PacketWrite::PutEndpoint(_, endpoint) => endpoint.flags & ELSEWHERE == PacketEndpoint::DIRECT,
        _ => false,
    };
    assert_eq!((writes.len(), writes.iter().all(is_put)), (2, true), "{writes:?}");
}

#[test]
fn sizes_follow_endpoints_and_weights() {
    for (candidates, slots) in [
        (vec![], 0),
        (vec![(1, None)], 0),
        (vec![(1, Some(5))], 1),
        (vec![(1, Some(1)), (2, Some(1))], 251),
        (vec![(1, Some(1)), (2, Some(9))], 1_021),
        (vec![(1, Some(1)), (2, Some(0))], 251),
        (vec![(1, Some(1)), (2, Some(100_000))], 65_537),
        ((1..=20).map(|number| (number, Some(1))).collect(), 4_093),
        ((1..=120).map(|number| (number, Some(1))).collect(), 16_381),
        ((1..=250).map(|number| (number, Some(1))).collect(), 65_537),
    ] {
        let mut table = PacketTable::new(0);
        table.put(frontend(1), &spec(&candidates)).expect("room");
        assert_eq!(table.services[&frontend(1)].service.slots, slots, "{candidates:?}");
    }
}

#[test]
fn a_full_table_makes_do_with_fewer_slots_and_then_says_so() {
    let mut table = PacketTable { free_rows: FreeRows::new(6_000), ..PacketTable::new(0) };
    let many: Vec<(u8, Option<u32>)> = (1..=250).map(|number| (number, Some(1))).collect();
    let mut sizes = BTreeSet::new();
    let full = (0..=u8::MAX).find_map(|number| {
        let before = table.clone();
        match table.put(frontend(number), &spec(&many)) {
            Ok(_) => {
                sizes.insert(table.services[&frontend(number)].service.slots);
                None
            }
            Err(error) => Some((error, table == before)),
        }
    });
    assert_eq!(full, Some((PacketTableError::Rows, true)));
    assert!(sizes.contains(&65_537) && sizes.contains(&251), "{sizes:?}");
    table.remove(&frontend(0));
    table.put(frontend(0), &spec(&[(1, Some(1)), (2, Some(1))])).expect("there is room again");
}

#[test]
fn a_service_that_nobody_takes_flows_of_gives_its_slots_back() {
    let mut table = PacketTable::new(0);
    let free = table.free_rows.clone();
    let (ready, draining) = (spec(&[(1, Some(1)), (2, Some(1))]), spec(&[(1, None), (2, None)]));
    for number in [1, 2] {
        table.put(frontend(number), &ready).expect("room");
    }
    for number in [1, 2] {
        table.put(frontend(number), &draining).expect("room");
    }
    assert_eq!(table.free_rows, free);
    table.put(frontend(1), &ready).expect("room");
    table.remove(&frontend(1));
    assert_eq!(table.free_rows, free);
}

#[test]
fn addresses_that_cannot_be_reached_from_outside_are_left_out() {
    let mut table = PacketTable::new(0);
    let mut wanted = spec(&[(1, Some(1))]);
    for text in ["127.0.0.1:80", "[fd01::1]:80"] {
        let address: SocketAddr = text.parse().expect(text);
        wanted.candidates.insert(PacketCandidate {
            place: address.into(),
            weight: Some(1),
            source: None,
            replies_pass: true,
            is_direct: false,
        });
    }
    table.put(frontend(1), &wanted).expect("room");
    let places: Vec<Place> = table.members(&frontend(1)).map(|(_, each)| each.place).collect();
    assert_eq!(places, [place(1)]);
}

type Step = (u8, Option<Vec<(u8, Option<u32>)>>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let candidate = (0..8_u8, prop::option::weighted(0.7, 0..4_u32));
    let wanted = prop::option::weighted(0.8, prop::collection::vec(candidate, 0..6));
    prop::collection::vec((0..4_u8, wanted), 1..14)
}

/// The places that new flows may go to; all of them if none has a weight.
fn takers(wanted: &[(u8, Option<u32>)]) -> BTreeSet<Place> {
    let by_number: BTreeMap<u8, Option<u32>> = wanted.iter().copied().collect();
    let all_zero = by_number.values().flatten().all(|weight| *weight == 0);
    let taking =
        by_number.into_iter().filter(|(_, weight)| weight.is_some_and(|weight| all_zero || weight > 0));
    taking.map(|(number, _)| place(number)).collect()
}

fn flows(maps: &Maps, frontend: &Frontend) -> Option<BTreeSet<Place>> {
    let mut found = BTreeSet::new();
    for port in 1..24 {
        found.extend(maps.choose(frontend, client(port))?.map(|flow| flow.place));
    }
    Some(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// After each single write new flows go to old endpoints or to new ones, and flows stay exactly as long as their
    /// endpoints; a process that ends at any point leaves maps from which the next one goes on.
    #[test]
    fn every_moment_is_right(steps in steps(), end: prop::sample::Index) {
        let mut table = PacketTable::new(7);
        let mut maps = Maps::default();
        let mut current: BTreeMap<Frontend, BTreeSet<Place>> = BTreeMap::new();
        let mut known: Vec<Flow> = Vec::new();
        let mut history: Vec<Maps> = vec![maps.clone()];
        for (number, wanted) in steps {
            let frontend = frontend(number);
            let writes = match &wanted {
                Some(wanted) => table.put(frontend, &spec(wanted)).expect("room"),
                None => table.remove(&frontend),
            };
            let new = wanted.as_ref().map(|wanted| takers(wanted));
            let old = current.get(&frontend).cloned();
            for write in writes {
                maps.write(write);
                history.push(maps.clone());
                let is_within = |set: &Option<BTreeSet<Place>>| match (flows(&maps, &frontend), set) {
                    (Some(found), Some(set)) => found.is_subset(set) && found.is_empty() == set.is_empty(),
                    (None, None) => true,
                    (_, _) => false,
                };
                prop_assert!(is_within(&old) || is_within(&new), "{old:?} {new:?}");
            }
            let places: BTreeSet<Place> =
                wanted.iter().flatten().map(|(number, _)| place(*number)).collect();
            known.retain(|flow| flow.frontend != frontend || places.contains(&flow.place));
            prop_assert!(known.iter().all(|flow| maps.keeps(flow)), "a flow is lost");
            match new {
                Some(new) => drop(current.insert(frontend, new)),
                None => drop(current.remove(&frontend)),
            }
            known.extend((1..5).filter_map(|port| maps.choose(&frontend, client(port)).flatten()));
        }
        check_recovery(&history[end.index(history.len())])?;
    }
}

/// Starts from what a process has left, and makes everything empty.
fn check_recovery(maps: &Maps) -> Result<(), TestCaseError> {
    let mut maps = maps.clone();
    let (mut table, garbage) = maps.read();
    let before: Vec<_> = table.frontends().map(|frontend| (*frontend, flows(&maps, frontend))).collect();
    maps.all(garbage);
    for (frontend, found) in before {
        prop_assert_eq!(flows(&maps, &frontend), found);
        let wanted = spec(&[(1, Some(1)), (9, Some(1))]);
        maps.all(table.put(frontend, &wanted).expect("room"));
        let expected = Some(BTreeSet::from([place(1), place(9)]));
        prop_assert_eq!(flows(&maps, &frontend), expected);
        maps.all(table.remove(&frontend));
    }
    maps.rows.clear();
    // A number that no member names is used anew, whatever is written there.
    maps.endpoints.clear();
    prop_assert_eq!(maps, Maps::default());
    prop_assert_eq!(&table.free_rows, &FreeRows::new(ROWS_MAX));
    Ok(())
}
