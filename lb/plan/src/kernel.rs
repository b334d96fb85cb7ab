//! What the maps of the eBPF data plane hold, and how they are changed so that no moment in between misroutes.
//!
//! The slots of a service are never changed in place: a new generation is written beside the old one, the service is
//! switched to it by one write, and then the old generation is removed. A program that looks at the service in between
//! finds either all of the old or all of the new.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_ebpf_abi::{Frontend, Member, Place, Service, Share, Slot, SlotKey};

/// An endpoint behind a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Where it is.
    pub place: Place,
    /// Its share of new connections; `None` if it gets none, because it drains.
    pub weight: Option<u32>,
}

/// One write to a map. Every write can be repeated without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapWrite {
    /// A datagram flow may stay with an endpoint; its connections are counted under a number.
    PutMember(Member, u32),
    /// A slot of a generation that no service has yet.
    PutSlot(SlotKey, Slot),
    /// A service has this generation from now on.
    PutService(Frontend, Service),
    /// A virtual address is none any more.
    RemoveService(Frontend),
    /// A slot of a generation that no service has any more.
    RemoveSlot(SlotKey),
    /// An endpoint is gone.
    RemoveMember(Member),
}

/// What the maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelTable {
    services: BTreeMap<Frontend, Programmed>,
    next_service: u32,
    next_counter: u32,
}

/// One virtual address in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programmed {
    service: Service,
    slots: Vec<Slot>,
    /// Endpoints, ready or draining, with the numbers of their counters.
    members: BTreeMap<Place, u32>,
}

// === impl KernelTable ===

impl KernelTable {
    /// The table as it is in the maps, and the writes that remove what belongs to no service: left-overs of a process
    /// that ended in the middle of a change.
    pub fn read(
        services: impl IntoIterator<Item = (Frontend, Service)>,
        slots: impl IntoIterator<Item = (SlotKey, Slot)>,
        members: impl IntoIterator<Item = (Member, u32)>,
    ) -> (Self, Vec<MapWrite>) {
        let mut table = Self::default();
        let mut frontends = BTreeMap::new();
        for (frontend, service) in services {
            frontends.insert(service.id, frontend);
            let programmed = Programmed { service, slots: Vec::new(), members: BTreeMap::new() };
            table.services.insert(frontend, programmed);
            table.next_service = table.next_service.max(service.id.wrapping_add(1));
        }
        let mut garbage = Vec::new();
        let slots: BTreeMap<SlotKey, Slot> = slots.into_iter().collect();
        for (key, slot) in slots {
            let of = frontends.get(&key.service).and_then(|frontend| table.services.get_mut(frontend));
            match of {
                Some(of) if of.service.generation == key.generation && key.index < of.service.slots => {
                    of.slots.push(slot);
                }
                _ => garbage.push(MapWrite::RemoveSlot(key)),
            }
        }
        for (member, counter) in members {
            table.next_counter = table.next_counter.max(counter.wrapping_add(1));
            match frontends.get(&member.service).and_then(|frontend| table.services.get_mut(frontend)) {
                Some(of) => drop(of.members.insert(member.place, counter)),
                None => garbage.push(MapWrite::RemoveMember(member)),
            }
        }
        (table, garbage)
    }

    /// Every virtual address.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.services.keys()
    }

    /// Where an endpoint's connections are counted.
    pub fn counter(&self, frontend: &Frontend, endpoint: &Place) -> Option<u32> {
        self.services.get(frontend)?.members.get(endpoint).copied()
    }

    /// Makes a virtual address lead to endpoints, or to nobody, which refuses connections. Returns the writes that do
    /// it, in their order; none if it is so already.
    pub fn put(&mut self, frontend: Frontend, candidates: &BTreeSet<Candidate>) -> Vec<MapWrite> {
        let (service, old_slots, old_members) = match self.services.remove(&frontend) {
            Some(Programmed { service, slots, members }) => (Some(service), slots, members),
            None => (None, Vec::new(), BTreeMap::new()),
        };
        let id = service.map_or(self.next_service, |service| service.id);
        let members: BTreeMap<Place, u32> = candidates
            .iter()
            .map(|each| (each.place, old_members.get(&each.place).copied().unwrap_or_else(|| self.count())))
            .collect();
        let slots = slots(candidates, &members);
        let is_same =
            service.is_some_and(|service| service.slots as usize == old_slots.len()) && slots == old_slots;
        let mut writes = Vec::new();
        for (place, counter) in members.iter().filter(|(place, _)| !old_members.contains_key(place)) {
            writes.push(MapWrite::PutMember(Member { service: id, place: *place }, *counter));
        }
        let service = match service {
            Some(service) if is_same => service,
            old => self.switch(frontend, id, old, &slots, &mut writes),
        };
        for place in old_members.keys().filter(|place| !members.contains_key(place)) {
            writes.push(MapWrite::RemoveMember(Member { service: id, place: *place }));
        }
        self.services.insert(frontend, Programmed { service, slots, members });
        writes
    }

    /// Ends a virtual address. Returns the writes that do it, in their order.
    pub fn remove(&mut self, frontend: &Frontend) -> Vec<MapWrite> {
        let Some(Programmed { service, members, .. }) = self.services.remove(frontend) else {
            return Vec::new();
        };
        let mut writes = vec![MapWrite::RemoveService(*frontend)];
        writes.extend(slot_keys(service).map(MapWrite::RemoveSlot));
        writes.extend(
            members.keys().map(|place| MapWrite::RemoveMember(Member { service: service.id, place: *place })),
        );
        writes
    }

    /// Writes a new generation of slots, switches to it and removes the one before.
    fn switch(
        &mut self,
        frontend: Frontend,
        id: u32,
        old: Option<Service>,
        slots: &[Slot],
        writes: &mut Vec<MapWrite>,
    ) -> Service {
        if old.is_none() {
            self.next_service = self.next_service.wrapping_add(1);
        }
        let generation = old.map_or(0, |old| old.generation.wrapping_add(1));
        // A service has fewer endpoints than there are tasks in a cluster.
        let service = Service { id, generation, slots: slots.len() as u32 };
        writes.extend(slot_keys(service).zip(slots).map(|(key, slot)| MapWrite::PutSlot(key, *slot)));
        writes.push(MapWrite::PutService(frontend, service));
        writes.extend(old.into_iter().flat_map(slot_keys).map(MapWrite::RemoveSlot));
        service
    }

    fn count(&mut self) -> u32 {
        let counter = self.next_counter;
        self.next_counter = counter.wrapping_add(1);
        counter
    }
}

fn slot_keys(service: Service) -> impl Iterator<Item = SlotKey> {
    (0..service.slots).map(move |index| SlotKey {
        service: service.id,
        generation: service.generation,
        index,
    })
}

fn slots(candidates: &BTreeSet<Candidate>, members: &BTreeMap<Place, u32>) -> Vec<Slot> {
    let ready: Vec<(Place, u32)> =
        candidates.iter().filter_map(|each| Some((each.place, each.weight?))).collect();
    let weights: Vec<u32> = ready.iter().map(|(_, weight)| *weight).collect();
    let shares = shares(&weights);
    let counter = |place| members.get(place).copied().unwrap_or_default();
    ready
        .iter()
        .zip(shares)
        .map(|((place, _), share)| Slot { place: *place, counter: counter(place), share })
        .collect()
}

/// The shares that draw each position as often as its weight says; where no position has one, all are equal.
///
/// Vose's alias method in integers: every position has `total` drawings of `total * count`; those that want fewer give
/// the rest to those that want more.
pub fn shares(weights: &[u32]) -> Vec<Share> {
    let count = weights.len() as u128;
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let wants: Vec<u128> = if total == 0 {
        vec![1; weights.len()]
    } else {
        weights.iter().map(|weight| u128::from(*weight) * count).collect()
    };
    let full = if total == 0 { 1 } else { total };
    let mut left = wants;
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|at| left[*at] < full);
    let mut shares: Vec<Share> =
        (0..left.len()).map(|at| Share { own: u32::MAX, alias: at as u32 }).collect();
    while let (Some(small), Some(large)) = (poor.pop(), rich.last().copied()) {
        // Below one, so that the quotient fits.
        let own = (left[small] << 32) / full;
        shares[small] = Share { own: own as u32, alias: large as u32 };
        left[large] -= full - left[small];
        if left[large] < full {
            rich.pop();
            poor.push(large);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesonet_ebpf_abi::{TCP, choose_slot};
    use proptest::prelude::*;

    use super::*;

    /// The maps as the kernel has them.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Maps {
        services: BTreeMap<Frontend, (u32, u32, u32)>,
        slots: BTreeMap<SlotKey, Place>,
        members: BTreeSet<Member>,
    }

    impl Maps {
        fn write(&mut self, write: MapWrite) {
            match write {
                MapWrite::PutMember(member, _) => drop(self.members.insert(member)),
                MapWrite::PutSlot(key, slot) => drop(self.slots.insert(key, slot.place)),
                MapWrite::PutService(frontend, Service { id, generation, slots }) => {
                    self.services.insert(frontend, (id, generation, slots));
                }
                MapWrite::RemoveService(frontend) => drop(self.services.remove(&frontend)),
                MapWrite::RemoveSlot(key) => drop(self.slots.remove(&key)),
                MapWrite::RemoveMember(member) => drop(self.members.remove(&member)),
            }
        }

        /// The places that a connection to an address may go to; `None` if the address is not virtual.
        fn reachable(&self, frontend: &Frontend) -> Option<BTreeSet<Place>> {
            let (service, generation, slots) = *self.services.get(frontend)?;
            let key = |index| SlotKey { service, generation, index };
            Some((0..slots).map(|index| *self.slots.get(&key(index)).expect("every slot is there")).collect())
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
        assert_eq!(table.put(frontend(1), &wanted).len(), 4);
        assert_eq!(table.put(frontend(1), &wanted), []);
        // An endpoint that begins to drain keeps its place among the members.
        let drained = table.put(frontend(1), &candidates(&[(1, None), (2, None)]));
        let switched = matches!(
            drained[..],
            [MapWrite::PutService(_, Service { slots: 0, .. }), MapWrite::RemoveSlot(_)]
        );
        assert!(switched, "{drained:?}");
    }

    type Step = (u8, Option<Vec<(u8, Option<u32>)>>);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let candidate = (0..8_u8, prop::option::weighted(0.7, 0..4_u32));
        let wanted = prop::option::weighted(0.8, prop::collection::vec(candidate, 0..6));
        prop::collection::vec((0..4_u8, wanted), 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// After each single write, an address leads to its old endpoints or to its new ones, and to nothing else;
        /// a process that ends at any point leaves maps from which the next one goes on.
        #[test]
        fn every_moment_is_right(steps in steps(), end: prop::sample::Index) {
            let mut table = KernelTable::default();
            let mut maps = Maps::default();
            let mut current: BTreeMap<Frontend, BTreeSet<Place>> = BTreeMap::new();
            let mut all: Vec<(MapWrite, u32)> = Vec::new();
            for (number, wanted) in steps {
                let frontend = frontend(number);
                let wanted = wanted.map(|wanted| candidates(&wanted));
                let writes = match &wanted {
                    Some(wanted) => table.put(frontend, wanted),
                    None => table.remove(&frontend),
                };
                let new = wanted.as_ref().map(ready);
                for write in writes {
                    maps.write(write);
                    all.push((write, 0));
                    let found = maps.reachable(&frontend);
                    prop_assert!(found == new || found == current.get(&frontend).cloned());
                }
                prop_assert_eq!(maps.reachable(&frontend), new.clone());
                match new {
                    Some(new) => drop(current.insert(frontend, new)),
                    None => drop(current.remove(&frontend)),
                }
            }
            let used: usize = current.values().map(BTreeSet::len).sum();
            prop_assert_eq!(maps.slots.len(), used);
            check_recovery(&all[..end.index(all.len() + 1)])?;
        }
    }

    /// Starts from what some writes have left, and makes everything empty.
    fn check_recovery(writes: &[(MapWrite, u32)]) -> Result<(), TestCaseError> {
        let mut services = BTreeMap::new();
        let mut slots = BTreeMap::new();
        let mut members = BTreeMap::new();
        let mut maps = Maps::default();
        for (write, _) in writes {
            maps.write(*write);
            match *write {
                MapWrite::PutMember(member, counter) => drop(members.insert(member, counter)),
                MapWrite::PutSlot(key, slot) => drop(slots.insert(key, slot)),
                MapWrite::PutService(frontend, service) => drop(services.insert(frontend, service)),
                MapWrite::RemoveService(frontend) => drop(services.remove(&frontend)),
                MapWrite::RemoveSlot(key) => drop(slots.remove(&key)),
                MapWrite::RemoveMember(member) => drop(members.remove(&member)),
            }
        }
        let (mut table, garbage) = KernelTable::read(services, slots, members);
        let before: Vec<_> =
            table.frontends().map(|frontend| (*frontend, maps.reachable(frontend))).collect();
        garbage.into_iter().for_each(|write| maps.write(write));
        for (frontend, reachable) in before {
            prop_assert_eq!(maps.reachable(&frontend), reachable);
            table.remove(&frontend).into_iter().for_each(|write| maps.write(write));
        }
        prop_assert_eq!(maps, Maps::default());
        Ok(())
    }
}
