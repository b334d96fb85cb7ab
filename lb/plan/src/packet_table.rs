//! What the maps of packet balancing hold, and how they are changed so that no moment in between misroutes.
//!
//! The slots of a service are never changed in place: they are written to rows of the table of choices that nobody
//! uses, the service is switched to them by one write, and then the rows before are free. A program that has looked at
//! the service before the switch may find rows that another service has taken meanwhile; it sees that their endpoint is
//! not one of its service, and looks again.
//!
//! Flows stay with their endpoint while its number has the same stamp. Numbers are used again as late as possible.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use mesonet_ebpf_abi::{
    Frontend, PACKET_ENDPOINTS_MAX, PacketEndpoint, PacketMember, PacketService, Place, ROW_SLOTS, ROWS_MAX,
    Row, hash_words,
};
use thiserror::Error;

use crate::MaglevTable;
use crate::packet_rows::FreeRows;

/// Sizes of a service's part of the table, primes. The smallest is taken that has a hundred slots for each endpoint, so
/// that each has its share within about a percent; more than some 650 endpoints have fewer slots each.
const SIZES: [u32; 5] = [251, 1_021, 4_093, 16_381, 65_537];

const SLOTS_PER_ENDPOINT: u64 = 100;

/// An endpoint behind a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketCandidate {
    /// Where it is.
    pub place: Place,
    /// Its share of new flows; `None` if it gets none, because it drains.
    pub weight: Option<u32>,
    /// The node's own address on the way to it, if there is a way.
    pub source: Option<[u32; 4]>,
    /// Whether its replies pass this node by themselves.
    pub replies_pass: bool,
    /// Whether it is on another node, which takes packets in a tunnel, and answers clients directly.
    pub is_direct: bool,
}

/// What a virtual address should lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketSpec {
    /// The endpoints, whatever their family: those of another one than the address are left out.
    pub candidates: BTreeSet<PacketCandidate>,
    /// All flows of a client's address go to one endpoint.
    pub is_by_source: bool,
}

/// One write to a map. Every write can be repeated without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketWrite {
    /// An endpoint is there, or takes part differently.
    PutEndpoint(u32, PacketEndpoint),
    /// A service has an endpoint, by its number.
    PutMember(PacketMember, u32),
    /// A row that no service uses.
    PutRow(u32, Row),
    /// A service uses these rows from now on.
    PutService(Frontend, PacketService),
    /// A virtual address is none any more.
    RemoveService(Frontend),
    /// An endpoint is gone, and its flows with it.
    RemoveEndpoint(u32),
    /// A service has an endpoint no more.
    RemoveMember(PacketMember),
}

/// A virtual address cannot be put into the maps. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketTableError {
    /// There are too many endpoints.
    #[error("packets can be sent to at most {PACKET_ENDPOINTS_MAX} endpoints")]
    Endpoints,
    /// The table of choices is full.
    #[error("the table of choices is full: it has {} slots for all services", ROWS_MAX * ROW_SLOTS)]
    Rows,
}

/// What the maps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketTable {
    services: BTreeMap<Frontend, Programmed>,
    free_rows: FreeRows,
    /// Numbers of endpoints that were used before, those that are unused for the longest time first.
    free_numbers: VecDeque<u32>,
    next_number: u32,
    next_service: u32,
    next_stamp: u32,
}

/// One virtual address in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programmed {
    service: PacketService,
    members: BTreeMap<Place, (u32, PacketEndpoint)>,
}

/// An endpoint that takes new flows, by its number.
#[derive(Debug, Clone, Copy)]
struct Taker {
    place: Place,
    number: u32,
    weight: u32,
}

// === impl PacketTable ===

impl PacketTable {
    /// Nothing. Stamps begin with `first_stamp`, which should be another one at each start.
    pub fn new(first_stamp: u32) -> Self {
        Self {
            services: BTreeMap::new(),
            free_rows: FreeRows::new(ROWS_MAX),
            free_numbers: VecDeque::new(),
            next_number: 0,
            next_service: 0,
            next_stamp: first_stamp,
        }
    }

    /// The table as it is in the maps, and the writes that remove what belongs to no service: left-overs of a process
    /// that ended in the middle of a change.
    pub fn read(
        first_stamp: u32,
        services: impl IntoIterator<Item = (Frontend, PacketService)>,
        members: impl IntoIterator<Item = (PacketMember, u32)>,
        endpoint: impl Fn(u32) -> Option<PacketEndpoint>,
    ) -> (Self, Vec<PacketWrite>) {
        let mut table = Self::new(first_stamp);
        let mut frontends = BTreeMap::new();
        for (frontend, service) in services {
            frontends.insert(service.id, frontend);
            table.next_service = table.next_service.max(service.id.wrapping_add(1));
            table.free_rows.reserve(service.row, rows(service.slots));
            table.services.insert(frontend, Programmed { service, members: BTreeMap::new() });
        }
        let mut garbage = Vec::new();
        let mut used = BTreeSet::new();
        let members: BTreeMap<PacketMember, u32> = members.into_iter().collect();
        for (member, number) in members {
            let of = frontends.get(&member.service).and_then(|frontend| table.services.get_mut(frontend));
            let found = endpoint(number).filter(|each| {
                each.flags != 0 && each.place == member.place && each.service == member.service
            });
            match (of, found) {
                (Some(of), Some(found)) if used.insert(number) => {
                    of.members.insert(member.place, (number, found));
                }
                (_, Some(_)) if !used.contains(&number) => {
                    garbage.extend([PacketWrite::RemoveEndpoint(number), PacketWrite::RemoveMember(member)]);
                }
                (_, _) => garbage.push(PacketWrite::RemoveMember(member)),
            }
        }
        table.next_number = used.last().map_or(0, |last| last + 1);
        table.free_numbers = (0..table.next_number).filter(|number| !used.contains(number)).collect();
        (table, garbage)
    }

    /// Every virtual address.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.services.keys()
    }

    /// The endpoints of a virtual address, with their numbers.
    pub fn members(&self, frontend: &Frontend) -> impl Iterator<Item = (u32, &PacketEndpoint)> {
        let programmed = self.services.get(frontend);
        programmed.into_iter().flat_map(|each| each.members.values().map(|(number, each)| (*number, each)))
    }

    /// An endpoint of a virtual address, with its number.
    pub fn member(&self, frontend: &Frontend, place: &Place) -> Option<(u32, &PacketEndpoint)> {
        let (number, endpoint) = self.services.get(frontend)?.members.get(place)?;
        Some((*number, endpoint))
    }

    /// The endpoint with a number.
    pub fn endpoint(&self, number: u32) -> Option<(&Frontend, &PacketEndpoint)> {
        self.services.iter().find_map(|(frontend, each)| {
            let found = each.members.values().find(|(each, _)| *each == number)?;
            Some((frontend, &found.1))
        })
    }

    /// Makes a virtual address lead to endpoints, or to nobody. Returns the writes that do it, in their order; none if
    /// it is so already.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put(
        &mut self,
        frontend: Frontend,
        spec: &PacketSpec,
    ) -> Result<Vec<PacketWrite>, PacketTableError> {
        let old = self.services.get(&frontend).cloned();
        let id = old.as_ref().map_or(self.next_service, |old| old.service.id);
        let old_members = old.as_ref().map(|old| old.members.clone()).unwrap_or_default();
        let candidates: Vec<PacketCandidate> = spec.usable(&frontend).copied().collect();
        let added = candidates.iter().filter(|each| !old_members.contains_key(&each.place)).count();
        let left = (PACKET_ENDPOINTS_MAX - self.next_number) as usize + self.free_numbers.len();
        if added > left {
            return Err(PacketTableError::Endpoints);
        }
        let plan = self.place(old.as_ref().map(|old| old.service), &candidates, &old_members, id, spec)?;
        let mut writes = Vec::new();
        let mut later = Vec::new();
        for (place, (number, endpoint)) in &plan.members {
            match old_members.get(place) {
                Some((_, old)) if old == endpoint => {}
                Some((_, old)) if old.flags & !endpoint.flags & PacketEndpoint::READY != 0 => {
                    later.push(PacketWrite::PutEndpoint(*number, *endpoint));
                }
                Some(_) => writes.push(PacketWrite::PutEndpoint(*number, *endpoint)),
                None => {
                    writes.push(PacketWrite::PutEndpoint(*number, *endpoint));
                    writes.push(PacketWrite::PutMember(PacketMember { service: id, place: *place }, *number));
                }
            }
        }
        if old.as_ref().is_none_or(|old| old.service != plan.service) {
            writes.extend(plan.rows);
            writes.push(PacketWrite::PutService(frontend, plan.service));
        }
        writes.extend(later);
        for (place, (number, _)) in old_members.iter().filter(|(place, _)| !plan.members.contains_key(place))
        {
            self.drop_member(id, place, *number, &mut writes);
        }
        if old.is_none() {
            self.next_service = self.next_service.wrapping_add(1);
        }
        // A service without slots has no rows, whatever its first one is said to be.
        let place = |service: &PacketService| (service.row, service.slots);
        if let Some(old) = old.filter(|old| place(&old.service) != place(&plan.service)) {
            self.free_rows.free(old.service.row, rows(old.service.slots));
        }
        self.services.insert(frontend, Programmed { service: plan.service, members: plan.members });
        Ok(writes)
    }

    /// Ends a virtual address. Returns the writes that do it, in their order.
    pub fn remove(&mut self, frontend: &Frontend) -> Vec<PacketWrite> {
        let Some(Programmed { service, members }) = self.services.remove(frontend) else {
            return Vec::new();
        };
        let mut writes = vec![PacketWrite::RemoveService(*frontend)];
        for (place, (number, _)) in &members {
            self.drop_member(service.id, place, *number, &mut writes);
        }
        self.free_rows.free(service.row, rows(service.slots));
        writes
    }

    fn drop_member(&mut self, service: u32, place: &Place, number: u32, writes: &mut Vec<PacketWrite>) {
        writes.push(PacketWrite::RemoveEndpoint(number));
        writes.push(PacketWrite::RemoveMember(PacketMember { service, place: *place }));
        self.free_numbers.push_back(number);
    }

    /// Gives endpoints numbers and rows. Takes them only if there are enough.
    fn place(
        &mut self,
        old: Option<PacketService>,
        candidates: &[PacketCandidate],
        old_members: &BTreeMap<Place, (u32, PacketEndpoint)>,
        id: u32,
        spec: &PacketSpec,
    ) -> Result<Placed, PacketTableError> {
        let (numbers, next_number, next_stamp) =
            (self.free_numbers.clone(), self.next_number, self.next_stamp);
        let mut members = BTreeMap::new();
        let mut takers = Vec::new();
        for each in candidates {
            let (number, stamp) = match old_members.get(&each.place) {
                Some((number, endpoint)) => (*number, endpoint.stamp),
                None => self.number(),
            };
            let endpoint = PacketEndpoint {
                place: each.place,
                service: id,
                stamp,
                flags: flags(each),
                source: each.source.unwrap_or_default(),
            };
            members.insert(each.place, (number, endpoint));
            takers.extend(each.weight.map(|weight| Taker { place: each.place, number, weight }));
        }
        let fingerprint = fingerprint(&takers);
        let flags = if spec.is_by_source { PacketService::BY_SOURCE } else { 0 };
        let is_same = old.is_some_and(|old| old.fingerprint == fingerprint && old.flags == flags);
        if let Some(service) = old.filter(|_| is_same) {
            return Ok(Placed { service, members, rows: Vec::new() });
        }
        let Some((row, slots)) = self.take_rows(&takers) else {
            (self.free_numbers, self.next_number, self.next_stamp) = (numbers, next_number, next_stamp);
            return Err(PacketTableError::Rows);
        };
        let slots: Vec<u32> = slots_of(&takers, slots);
        // A part of the table has at most 65,537 slots.
        let service = PacketService { id, row, slots: slots.len() as u32, flags, fingerprint };
        let rows = (row..).zip(slots.chunks(ROW_SLOTS as usize)).map(|(row, chunk)| {
            let mut endpoints = [0; ROW_SLOTS as usize];
            endpoints[..chunk.len()].copy_from_slice(chunk);
            PacketWrite::PutRow(row, Row { endpoints })
        });
        Ok(Placed { service, members, rows: rows.collect() })
    }

    fn number(&mut self) -> (u32, u32) {
        let stamp = self.next_stamp;
        self.next_stamp = stamp.wrapping_add(1);
        // The caller has seen that there are enough.
        let number = self.free_numbers.pop_front().unwrap_or_else(|| {
            self.next_number += 1;
            self.next_number - 1
        });
        (number, stamp)
    }

    /// Rows of the size that is best for the endpoints, or of a smaller one that still has a slot for each.
    fn take_rows(&mut self, takers: &[Taker]) -> Option<(u32, u32)> {
        let count = takers.len() as u64;
        if count <= 1 {
            let slots = count as u32;
            return if slots == 0 { Some((0, 0)) } else { Some((self.free_rows.take(1)?, slots)) };
        }
        let best = SIZES.iter().position(|size| u64::from(*size) >= wanted_slots(takers));
        let best = best.unwrap_or(SIZES.len() - 1);
        let sizes = SIZES[..=best].iter().rev().filter(|size| u64::from(**size) >= count);
        sizes.into_iter().find_map(|size| Some((self.free_rows.take(rows(*size))?, *size)))
    }
}

/// What a virtual address will be.
struct Placed {
    service: PacketService,
    members: BTreeMap<Place, (u32, PacketEndpoint)>,
    rows: Vec<PacketWrite>,
}

impl PacketSpec {
    /// Those of an address' family, and no addresses of loopback: the kernel takes no packets for them from outside.
    pub fn usable(&self, frontend: &Frontend) -> impl Iterator<Item = &PacketCandidate> {
        let is_ipv4 = frontend.place.is_ipv4();
        self.candidates.iter().filter(move |each| {
            each.place.is_ipv4() == is_ipv4 && !SocketAddr::from(each.place).ip().is_loopback()
        })
    }
}

fn flags(candidate: &PacketCandidate) -> u32 {
    let mut flags = PacketEndpoint::PRESENT;
    if candidate.weight.is_some() {
        flags |= PacketEndpoint::READY;
    }
    if candidate.is_direct && candidate.source.is_some() {
        flags |= PacketEndpoint::DIRECT;
    } else if !candidate.replies_pass && candidate.source.is_some() {
        flags |= PacketEndpoint::MASQUERADE;
    }
    flags
}

/// A hundred slots for each endpoint, and for each part of an endpoint's weight that is the least.
fn wanted_slots(takers: &[Taker]) -> u64 {
    let weights = takers.iter().map(|taker| u64::from(taker.weight)).filter(|weight| *weight > 0);
    let least = weights.clone().min().unwrap_or(1);
    let parts = (weights.sum::<u64>() / least).max(takers.len() as u64);
    parts.saturating_mul(SLOTS_PER_ENDPOINT)
}

fn rows(slots: u32) -> u32 {
    slots.div_ceil(ROW_SLOTS)
}

/// Every slot's endpoint, by its number.
fn slots_of(takers: &[Taker], slots: u32) -> Vec<u32> {
    match takers {
        [] => Vec::new(),
        [only] => vec![only.number],
        takers => {
            let endpoints: Vec<(SocketAddr, u32)> =
                takers.iter().map(|taker| (taker.place.into(), taker.weight)).collect();
            let table = MaglevTable::with_slots(&endpoints, slots);
            table.slots().iter().map(|at| takers[*at as usize].number).collect()
        }
    }
}

fn fingerprint(takers: &[Taker]) -> u32 {
    takers.iter().fold(takers.len() as u32, |hash, taker| {
        let Place { address: [a, b, c, d], port } = taker.place;
        hash_words(&[a, b, c, d, port, taker.number, taker.weight], hash)
    })
}

#[cfg(test)]
mod tests;
