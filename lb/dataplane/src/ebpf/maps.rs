//! The maps of the programs, read and written as octets.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use aya::Ebpf;
use aya::maps::MapData;
use mesonet_ebpf_abi::{
    Connection, Count, Flow, Frontend, Load, MaglevChunk, MaglevKey, Member, MemberState, Origin, Service,
    Slot, SlotKey, Words,
};
use mesonet_lb_plan::{FoundMaps, KernelTable, MapWrite};

use super::EbpfError;
use crate::bpf_call;
use crate::mapped_array::MappedArray;
use crate::word_map::{self, WordMap, octets, remove_all};

/// A map of counts, of which each processor has its own.
#[derive(Debug)]
pub(super) struct Counts {
    data: MapData,
    processors: usize,
}

/// What says where connections go.
#[derive(Debug)]
pub(super) struct Maps {
    services: WordMap<Frontend, Service>,
    slots: WordMap<SlotKey, Slot>,
    chunks: WordMap<MaglevKey, MaglevChunk>,
    members: WordMap<Member, MemberState>,
}

/// What the programs remember of sockets.
#[derive(Debug)]
pub(super) struct Memory {
    /// Sockets that are connected.
    pub(super) connections: Connections,
    /// From a socket and the endpoint of its datagrams to the virtual address that the client knows. Connections that
    /// programs of an older layout have made are here, too, and are in no counter.
    pub(super) origins: WordMap<Flow, Origin>,
    /// From a socket and a virtual address to the endpoint of its datagrams.
    pub(super) flows: WordMap<Flow, Slot>,
    /// Whether there are such connections.
    pub(super) has_uncounted: AtomicBool,
}

/// The connections of sockets that are open.
#[derive(Debug)]
pub(super) struct Connections {
    near: MappedArray<Connection>,
    more: WordMap<u64, Connection>,
    more_count: WordMap<u32, u64>,
}

// === impl Connections ===

impl Connections {
    const NEAR: &str = "CONNECTIONS";
    const MORE: &str = "MORE_CONNECTIONS";

    const MORE_COUNT: &str = "MORE_COUNT";

    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        let near = take_data(ebpf, Self::NEAR)?;
        Ok(Self {
            near: MappedArray::new(&near).map_err(EbpfError::Map)?,
            more: take(ebpf, Self::MORE)?,
            more_count: take(ebpf, Self::MORE_COUNT)?,
        })
    }

    /// Those of another layout, if their form is this version's.
    pub(super) fn open(layout: &Path) -> Option<Self> {
        let near = MapData::from_pin(layout.join(Self::NEAR)).ok()?;
        Some(Self {
            near: MappedArray::new(&near).ok()?,
            more: WordMap::open(&layout.join(Self::MORE)).ok()?,
            more_count: WordMap::open(&layout.join(Self::MORE_COUNT)).ok()?,
        })
    }

    /// All that are there. One that is made meanwhile may have the endpoint of the one before it at its position.
    pub(super) fn all(&self) -> io::Result<Vec<Connection>> {
        let mut all = self.near.used();
        // To look through an empty map takes longer than all else.
        if self.more_count.all()?.iter().any(|(_, count)| *count > 0) {
            all.extend(self.more.all()?.into_iter().map(|(_, connection)| connection));
        }
        Ok(all)
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, EbpfError> {
        let data = take_data(ebpf, name)?;
        let processors =
            aya::util::nr_cpus().map_err(|(file, source)| EbpfError::Processors { file, source })?;
        Ok(Self { data, processors })
    }

    /// What all processors have counted under a number.
    pub(super) fn get(&self, counter: u32) -> Count {
        let mut value = vec![0; self.value()];
        match bpf_call::lookup(self.data.fd().as_fd(), &octets(&counter), &mut value) {
            Ok(()) => sum(&value),
            // Nothing has been counted yet.
            Err(_) => Count::default(),
        }
    }

    /// Everything that has been counted.
    pub(super) fn all(&self) -> io::Result<Vec<(u32, Count)>> {
        let mut all = Vec::new();
        let sizes = (u32::SIZE, self.value());
        bpf_call::lookup_all(self.data.fd().as_fd(), sizes, |keys, values| {
            let pairs = keys.chunks_exact(u32::SIZE).zip(values.chunks_exact(sizes.1));
            all.extend(pairs.map(|(key, value)| (u32::read(key), sum(value))));
        })?;
        Ok(all)
    }

    pub(super) fn remove_many(&self, counters: &BTreeSet<u32>) -> io::Result<()> {
        let mut packed = vec![0; u32::SIZE * counters.len()];
        for (at, counter) in counters.iter().enumerate() {
            counter.write(&mut packed[at * u32::SIZE..]);
        }
        remove_all(self.data.fd().as_fd(), &packed, u32::SIZE)
    }

    fn value(&self) -> usize {
        // The kernel rounds each processor's value up to eight octets, of which it is made.
        Count::SIZE * self.processors
    }
}

// === impl Maps ===

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            services: take(ebpf, "SERVICES")?,
            slots: take(ebpf, "SLOTS")?,
            chunks: take(ebpf, "MAGLEV")?,
            members: take(ebpf, "MEMBERS")?,
        })
    }

    /// What they hold, and what to remove from them.
    pub(super) fn read(&self) -> io::Result<(KernelTable, Vec<MapWrite>)> {
        Ok(KernelTable::read(FoundMaps {
            services: self.services.all()?,
            slots: self.slots.all()?,
            chunks: self.chunks.all()?.into_iter().map(|(key, _)| key).collect(),
            members: self.members.all()?,
        }))
    }

    /// Makes writes for any number of virtual addresses, kind after kind, so that each address sees its own in order.
    pub(super) fn write(&self, writes: &[MapWrite]) -> io::Result<()> {
        let mut kinds = Kinds::default();
        writes.iter().for_each(|write| kinds.add(write));
        self.members.put_many(&kinds.put_members)?;
        self.slots.put_many(&kinds.put_slots)?;
        self.chunks.put_many(&kinds.put_chunks)?;
        self.services.put_many(&kinds.put_services)?;
        self.services.remove_many(&kinds.remove_services)?;
        self.slots.remove_many(&kinds.remove_slots)?;
        self.chunks.remove_many(&kinds.remove_chunks)?;
        self.members.remove_many(&kinds.remove_members)
    }
}

/// Writes by kind.
#[derive(Default)]
struct Kinds<'a> {
    put_members: Vec<(&'a Member, &'a MemberState)>,
    put_slots: Vec<(&'a SlotKey, &'a Slot)>,
    put_chunks: Vec<(&'a MaglevKey, &'a MaglevChunk)>,
    put_services: Vec<(&'a Frontend, &'a Service)>,
    remove_services: Vec<&'a Frontend>,
    remove_slots: Vec<&'a SlotKey>,
    remove_chunks: Vec<&'a MaglevKey>,
    remove_members: Vec<&'a Member>,
}

impl<'a> Kinds<'a> {
    fn add(&mut self, write: &'a MapWrite) {
        match write {
            MapWrite::PutMember(member, state) => self.put_members.push((member, state)),
            MapWrite::PutSlot(key, slot) => self.put_slots.push((key, slot)),
            MapWrite::PutChunk(key, chunk) => self.put_chunks.push((key, chunk)),
            MapWrite::PutService(frontend, service) => self.put_services.push((frontend, service)),
            MapWrite::RemoveService(frontend) => self.remove_services.push(frontend),
            MapWrite::RemoveSlot(key) => self.remove_slots.push(key),
            MapWrite::RemoveChunk(key) => self.remove_chunks.push(key),
            MapWrite::RemoveMember(member) => self.remove_members.push(member),
        }
    }
}

/// Open connections by endpoint, of services that choose by them.
pub(super) type Loads = WordMap<u32, Load>;

/// A map of the object.
pub(super) fn take<K: Words, V: Words>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<WordMap<K, V>, EbpfError> {
    WordMap::new(take_data(ebpf, name)?).map_err(EbpfError::Map)
}

fn take_data(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, EbpfError> {
    let map = ebpf.take_map(name).ok_or(EbpfError::NoMap(name))?;
    word_map::data(map).ok_or(EbpfError::Shape(name))
}

fn sum(values: &[u8]) -> Count {
    let mut sum = Count::default();
    for each in values.chunks_exact(Count::SIZE).map(Count::read) {
        sum.connections += each.connections;
        sum.ended += each.ended;
        sum.failures += each.failures;
        sum.resets += each.resets;
        sum.bytes_out += each.bytes_out;
        sum.bytes_in += each.bytes_in;
        sum.packets_out += each.packets_out;
        sum.packets_in += each.packets_in;
    }
    sum
}
