//! What the maps of the eBPF data plane hold, and how they are changed so that no moment in between misroutes.
//!
//! The slots of a service are never changed in place: a new generation is written beside the old one, the service is
//! switched to it by one write, and then the old generation is removed. A program that looks at the service in between
//! finds either all of the old or all of the new.

mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mesonet_ebpf_abi::{
    Frontend, MAGLEV_CHUNK, MaglevChunk, MaglevKey, Member, MemberState, Place, REFUSALS,
    SOCKET_MAGLEV_SLOTS, Service, Share, Slot, SlotKey, TCP, refusals,
};

use crate::{Algorithm, MaglevTable, ServicePolicy, SortedMap};

pub use room::{Entries, KernelMap, NoRoom};

/// An endpoint behind a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Where it is.
    pub place: Place,
    /// Its share of new connections; `None` if it gets none, because it drains.
    pub weight: Option<u32>,
}

/// One write to a map. Every write can be repeated without harm. Writes for different virtual addresses may be made in
/// any order; those for one in the order of the variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapWrite {
    /// A client may stay with an endpoint, which is ready or drains; its connections are counted under a number.
    PutMember(Member, MemberState),
    /// A slot of a generation that no service has yet.
    PutSlot(SlotKey, Slot),
    /// Positions of a generation that no service has yet.
    PutChunk(MaglevKey, Box<MaglevChunk>),
    /// A service has this generation from now on.
    PutService(Frontend, Service),
    /// A virtual address is none any more.
    RemoveService(Frontend),
    /// A slot of a generation that no service has any more.
    RemoveSlot(SlotKey),
    /// Positions of a generation that no service has any more.
    RemoveChunk(MaglevKey),
    /// An endpoint is gone.
    RemoveMember(Member),
}

/// What was found in the maps.
#[derive(Debug, Default)]
pub struct FoundMaps {
    /// Virtual addresses.
    pub services: Vec<(Frontend, Service)>,
    /// Endpoints that take new connections.
    pub slots: Vec<(SlotKey, Slot)>,
    /// Which positions there are.
    pub chunks: Vec<MaglevKey>,
    /// Endpoints that drain or that clients stay with.
    pub members: Vec<(Member, MemberState)>,
}

/// What the maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelTable {
    services: BTreeMap<Frontend, Programmed>,
    next_service: u32,
    next_counter: u32,
    /// Entries that belong to services.
    used: Entries,
    /// Entries that writes remove which are not made yet.
    unreleased: Entries,
}

/// One virtual address in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programmed {
    service: Service,
    slots: Vec<Slot>,
    /// Endpoints, ready or draining.
    members: SortedMap<Place, MemberState>,
    /// Those that are in the map of members. Programs look there only for whoever may stay with an endpoint; elsewhere
    /// a slot says all of an endpoint that is ready, and loading many services costs less.
    mapped: BTreeSet<Place>,
}

// === impl KernelTable ===

impl KernelTable {
    /// The table as it is in the maps, and the writes that remove what belongs to no service: left-overs of a process
    /// that ended in the middle of a change.
    pub fn read(found: FoundMaps) -> (Self, Vec<MapWrite>) {
        let mut table = Self::default();
        let mut frontends = BTreeMap::new();
        for (frontend, service) in found.services {
            frontends.insert(service.id, frontend);
            table.services.insert(frontend, Programmed::new(service));
            table.next_service = table.next_service.max(service.id.wrapping_add(1));
        }
        let mut garbage = Vec::new();
        let slots: BTreeMap<SlotKey, Slot> = found.slots.into_iter().collect();
        for (key, slot) in slots {
            table.next_counter = table.next_counter.max(slot.counter.wrapping_add(1));
            let of = frontends.get(&key.service).and_then(|frontend| table.services.get_mut(frontend));
            match of {
                Some(of) if of.service.generation == key.generation && key.index < of.service.slots => {
                    // Where no endpoint has a weight, no slot is without.
                    let flags = flags(Some(slot.weight), true);
                    let state = MemberState { counter: slot.counter, flags };
                    of.members.insert(slot.place, state);
                    of.slots.push(slot);
                }
                _ => garbage.push(MapWrite::RemoveSlot(key)),
            }
        }
        for key in found.chunks {
            let of = frontends.get(&key.service).and_then(|frontend| table.services.get(frontend));
            if !of.is_some_and(|of| {
                of.service.generation == key.generation && key.chunk < chunks(of.service.points)
            }) {
                garbage.push(MapWrite::RemoveChunk(key));
            }
        }
        for (member, state) in found.members {
            table.next_counter = table.next_counter.max(state.counter.wrapping_add(1));
            match frontends.get(&member.service).and_then(|frontend| table.services.get_mut(frontend)) {
                Some(of) => {
                    of.members.insert(member.place, state);
                    of.mapped.insert(member.place);
                }
                None => garbage.push(MapWrite::RemoveMember(member)),
            }
        }
        table.services.values().for_each(|each| table.used += each.entries());
        (table, garbage)
    }

    /// Every virtual address.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.services.keys()
    }

    /// Where an endpoint's connections are counted.
    pub fn counter(&self, frontend: &Frontend, endpoint: &Place) -> Option<u32> {
        self.services.get(frontend)?.members.get(endpoint).map(|state| state.counter)
    }

    /// The first number that no endpoint had so far.
    pub const fn next_counter(&self) -> u32 {
        self.next_counter
    }

    /// Numbers below are not given to endpoints: connections may still be counted under them.
    pub fn skip_counters(&mut self, next: u32) {
        self.next_counter = self.next_counter.max(next & !REFUSALS);
    }

    /// The counters of a virtual address: of its endpoints, ready or draining, and of clients that are refused.
    pub fn counters(&self, frontend: &Frontend) -> impl Iterator<Item = (u32, Option<Place>)> {
        self.services.get(frontend).into_iter().flat_map(|programmed| {
            let members = programmed.members.iter().map(|(place, state)| (state.counter, Some(*place)));
            members.chain([(refusals(programmed.service.id), None)])
        })
    }

    /// The endpoints behind a virtual address that get new connections.
    pub fn ready(&self, frontend: &Frontend) -> impl Iterator<Item = Place> {
        let members =
            self.services.get(frontend).into_iter().flat_map(|programmed| programmed.members.iter());
        let ready = members.filter(|(_, state)| state.flags & MemberState::READY != 0);
        ready.map(|(place, _)| *place)
    }

    /// Whether it has a virtual address.
    pub fn contains(&self, frontend: &Frontend) -> bool {
        self.services.contains_key(frontend)
    }

    /// How many entries belong to virtual addresses.
    pub const fn used(&self) -> Entries {
        self.used
    }

    /// All writes so far are made, or will be before those that follow, so that there is room for what they remove.
    pub fn release(&mut self) {
        self.unreleased = Entries::default();
    }

    /// Whether [`KernelTable::release`] would make room in a map.
    pub fn awaits_release(&self, map: KernelMap) -> bool {
        self.unreleased.of(map) > 0
    }

    /// Makes a virtual address lead to endpoints, or to nobody, which refuses connections. Returns the writes that do
    /// it, in their order; none if it is so already.
    ///
    /// # Errors
    /// When a map has no room for it. It leads where it did before.
    pub fn put(
        &mut self,
        frontend: Frontend,
        candidates: &BTreeSet<Candidate>,
        policy: ServicePolicy,
    ) -> Result<Vec<MapWrite>, NoRoom> {
        let old = self.services.remove(&frontend);
        let before = old.as_ref().map(Programmed::entries).unwrap_or_default();
        let (service, old_slots, old_members, old_mapped) = match old {
            Some(Programmed { service, slots, members, mapped }) => (Some(service), slots, members, mapped),
            None => (None, Vec::new(), SortedMap::new(), BTreeSet::new()),
        };
        let id = service.map_or(self.next_service, |service| service.id);
        let next_counter = self.next_counter;
        let is_weighed = candidates.iter().any(|each| each.weight.is_some_and(|weight| weight > 0));
        let mut member = |each: &Candidate| MemberState {
            counter: self.counter_of(old_members.get(&each.place)),
            flags: flags(each.weight, is_weighed),
        };
        let members: SortedMap<Place, MemberState> =
            candidates.iter().map(|each| (each.place, member(each))).collect();
        let slots = slots(candidates, &members);
        let new = |generation| service_of(id, generation, slots.len(), policy);
        let mut writes = Vec::with_capacity(slots.len() + 1);
        let may_stay = frontend.protocol != u32::from(TCP) || policy.affinity.is_some();
        let mut mapped = BTreeSet::new();
        let mut added = 0;
        for (place, state) in members.iter() {
            let is_mapped = old_mapped.contains(place);
            if !may_stay && !is_mapped && state.flags & MemberState::READY != 0 {
                continue;
            }
            mapped.insert(*place);
            added += usize::from(!is_mapped);
            if !is_mapped || old_members.get(place) != Some(state) {
                writes.push(MapWrite::PutMember(Member { service: id, place: *place }, *state));
            }
        }
        let kept = service.filter(|old| *old == new(old.generation) && slots == old_slots);
        let next =
            kept.unwrap_or_else(|| new(service.map_or(0, |service| service.generation.wrapping_add(1))));
        let mut wanted = Entries::new(usize::from(service.is_none()), 0, 0, added);
        if kept.is_none() {
            wanted += Entries::of_generation(next);
        }
        if let Err(no_room) = self.occupied().check(wanted, service.is_none()) {
            let old = service.map(|service| Programmed {
                service,
                slots: old_slots,
                members: old_members,
                mapped: old_mapped,
            });
            self.services.extend(old.map(|old| (frontend, old)));
            // Else tries in vain would use them up.
            self.next_counter = next_counter;
            return Err(no_room);
        }
        if kept.is_none() {
            self.switch(frontend, service, next, &slots, &mut writes);
            self.unreleased += service.map(Entries::of_generation).unwrap_or_default();
        }
        for place in old_mapped.difference(&mapped) {
            writes.push(MapWrite::RemoveMember(Member { service: id, place: *place }));
        }
        self.unreleased += Entries::new(0, 0, 0, old_mapped.difference(&mapped).count());
        let programmed = Programmed { service: next, slots, members, mapped };
        self.used += programmed.entries();
        self.used -= before;
        self.services.insert(frontend, programmed);
        Ok(writes)
    }

    /// Entries that are in the maps when all writes so far are made but those that remove.
    fn occupied(&self) -> Entries {
        let mut all = self.used;
        all += self.unreleased;
        all
    }

    /// Ends a virtual address. Returns the writes that do it, in their order.
    pub fn remove(&mut self, frontend: &Frontend) -> Vec<MapWrite> {
        let Some(programmed) = self.services.remove(frontend) else { return Vec::new() };
        self.used -= programmed.entries();
        self.unreleased += programmed.entries();
        let Programmed { service, mapped, .. } = programmed;
        let mut writes = vec![MapWrite::RemoveService(*frontend)];
        writes.extend(removals(service));
        writes.extend(
            mapped.into_iter().map(|place| MapWrite::RemoveMember(Member { service: service.id, place })),
        );
        writes
    }

    /// Writes a new generation of slots, switches to it and removes the one before.
    fn switch(
        &mut self,
        frontend: Frontend,
        old: Option<Service>,
        new: Service,
        slots: &[Slot],
        writes: &mut Vec<MapWrite>,
    ) {
        if old.is_none() {
            self.next_service = self.next_service.wrapping_add(1);
        }
        writes.extend(slot_keys(new).zip(slots).map(|(key, slot)| MapWrite::PutSlot(key, *slot)));
        if new.points > 0 {
            let chunks = chunk_keys(new).zip(maglev_chunks(slots));
            writes.extend(chunks.map(|(key, chunk)| MapWrite::PutChunk(key, Box::new(chunk))));
        }
        writes.push(MapWrite::PutService(frontend, new));
        writes.extend(old.into_iter().flat_map(removals));
    }

    /// An endpoint keeps its counter for as long as it is a member.
    fn counter_of(&mut self, old: Option<&MemberState>) -> u32 {
        old.map_or_else(|| self.count(), |old| old.counter)
    }

    fn count(&mut self) -> u32 {
        let counter = self.next_counter;
        self.next_counter = counter.wrapping_add(1) & !REFUSALS;
        counter
    }
}

impl Programmed {
    fn new(service: Service) -> Self {
        Self { service, slots: Vec::new(), members: SortedMap::new(), mapped: BTreeSet::new() }
    }

    fn entries(&self) -> Entries {
        let mut entries = Entries::new(1, 0, 0, self.mapped.len());
        entries += Entries::of_generation(self.service);
        entries
    }
}

/// What is known of a member with this weight, where some have one or none has.
fn flags(weight: Option<u32>, is_weighed: bool) -> u32 {
    match weight {
        Some(0) if is_weighed => MemberState::READY | MemberState::WEIGHTLESS,
        Some(_) => MemberState::READY,
        None => 0,
    }
}

/// A service as a policy wants it.
fn service_of(id: u32, generation: u32, slots: usize, policy: ServicePolicy) -> Service {
    // A service has fewer endpoints than there are tasks in a cluster.
    let slots = slots as u32;
    let (algorithm, points) = match policy.algorithm {
        Algorithm::WeightedRandom => (Service::WEIGHTED_RANDOM, 0),
        Algorithm::LeastConnections => (Service::LEAST_CONNECTIONS, 0),
        // Slots are named by half a word.
        Algorithm::Maglev if slots > 0 && slots <= u32::from(u16::MAX) => {
            (Service::MAGLEV, SOCKET_MAGLEV_SLOTS)
        }
        Algorithm::Maglev => (Service::WEIGHTED_RANDOM, 0),
    };
    let affinity = policy.affinity.map_or(0, |time| u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX));
    Service { id, generation, slots, algorithm, affinity_seconds: affinity, points }
}

fn removals(service: Service) -> impl Iterator<Item = MapWrite> {
    let chunks = chunk_keys(service).map(MapWrite::RemoveChunk);
    slot_keys(service).map(MapWrite::RemoveSlot).chain(chunks)
}

fn chunks(points: u32) -> u32 {
    points.div_ceil(MAGLEV_CHUNK)
}

fn chunk_keys(service: Service) -> impl Iterator<Item = MaglevKey> {
    (0..chunks(service.points)).map(move |chunk| MaglevKey {
        service: service.id,
        generation: service.generation,
        chunk,
    })
}

/// Which slot each position leads to.
fn maglev_chunks(slots: &[Slot]) -> Vec<MaglevChunk> {
    let endpoints: Vec<(SocketAddr, u32)> =
        slots.iter().map(|slot| (slot.place.into(), slot.weight)).collect();
    let table = MaglevTable::with_slots(&endpoints, SOCKET_MAGLEV_SLOTS);
    table.slots().chunks(MAGLEV_CHUNK as usize).map(chunk).collect()
}

fn chunk(slots: &[u32]) -> MaglevChunk {
    let mut pairs = [0; (MAGLEV_CHUNK / 2) as usize];
    for (pair, slots) in pairs.iter_mut().zip(slots.chunks(2)) {
        let half = |at: usize| slots.get(at).map_or([0, 0], |slot| (*slot as u16).to_ne_bytes());
        let ([a, b], [c, d]) = (half(0), half(1));
        *pair = u32::from_ne_bytes([a, b, c, d]);
    }
    MaglevChunk { pairs }
}

fn slot_keys(service: Service) -> impl Iterator<Item = SlotKey> {
    (0..service.slots).map(move |index| SlotKey {
        service: service.id,
        generation: service.generation,
        index,
    })
}

fn slots(candidates: &BTreeSet<Candidate>, members: &SortedMap<Place, MemberState>) -> Vec<Slot> {
    let ready: Vec<(Place, u32)> =
        candidates.iter().filter_map(|each| Some((each.place, each.weight?))).collect();
    let weights: Vec<u32> = ready.iter().map(|(_, weight)| *weight).collect();
    let shares = shares(&weights);
    let counter = |place| members.get(place).map_or(0, |state| state.counter);
    let is_weighed = weights.iter().any(|weight| *weight > 0);
    // Where no endpoint has a weight, all are equal.
    let weight = |weight: u32| if is_weighed { weight } else { 1 };
    ready
        .iter()
        .zip(shares)
        .map(|((place, own), share)| Slot {
            place: *place,
            counter: counter(place),
            share,
            weight: weight(*own),
        })
        .collect()
}

/// The shares that draw each position as often as its weight says; where no position has one, all are equal.
///
/// Vose's alias method in integers: every position has `total` drawings of `total * count`; those that want fewer give
/// the rest to those that want more.
pub fn shares(weights: &[u32]) -> Vec<Share> {
    // Each keeps all of its drawings, unless it wants fewer.
    let mut shares: Vec<Share> =
        (0..weights.len()).map(|at| Share { own: u32::MAX, alias: at as u32 }).collect();
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return shares;
    }
    let count = weights.len() as u128;
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let mut left: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count).collect();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|at| left[*at] < total);
    while let (Some(small), Some(large)) = (poor.pop(), rich.last().copied()) {
        // Below one, so that the quotient fits.
        let own = (left[small] << 32) / total;
        shares[small] = Share { own: own as u32, alias: large as u32 };
        left[large] -= total - left[small];
        if left[large] < total {
            rich.pop();
            poor.push(large);
        }
    }
    shares
}

#[cfg(test)]
mod tests;
