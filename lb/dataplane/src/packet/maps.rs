//! The maps of the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::AsFd as _;

use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, MapData, MapError, PerCpuArray};
use aya::{Ebpf, maps::Map};
use mesonet_ebpf_abi::{
    Frontend, PacketCount, PacketEndpoint, PacketEvent, PacketMember, PacketService, Row, Track, Tuple, Words,
};
use mesonet_lb_plan::{PacketTable, PacketWrite};

use super::PacketError;
use super::word_map::{WordMap, octets};
use crate::ebpf::bpf_call;

/// What outlives this process. Programs of two processes go on with each other while one takes over, so that they share
/// what they have in between, too.
pub(super) const NAMES: [&str; 11] = [
    "SERVICES",
    "MEMBERS",
    "ENDPOINTS",
    "TABLE",
    "FLOWS",
    "COUNTS",
    "EVENTS",
    "DEVICES",
    "NODES",
    "PROGRAMS",
    "SCRATCH",
];

/// What the user side writes.
pub(super) struct Maps {
    services: WordMap<{ Frontend::SIZE }, { PacketService::SIZE }>,
    members: WordMap<{ PacketMember::SIZE }, { u32::SIZE }>,
    endpoints: Array<MapData, [u8; PacketEndpoint::SIZE]>,
    table: Array<MapData, [u8; Row::SIZE]>,
    devices: DevMapHash<MapData>,
    nodes: WordMap<NODE, { u32::SIZE }>,
}

/// Octets of a node's address.
const NODE: usize = <[u32; 4]>::SIZE;

/// The flows that the programs have noted.
pub(super) struct FlowTable(MapData);

/// What the programs count.
pub(super) struct Counters {
    counts: PerCpuArray<MapData, [u8; PacketCount::SIZE]>,
    events: PerCpuArray<MapData, [u8; u64::SIZE]>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable").finish_non_exhaustive()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Maps {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, PacketError> {
        Ok(Self {
            services: WordMap::new(take(ebpf, "SERVICES")?).map_err(PacketError::Map)?,
            members: WordMap::new(take(ebpf, "MEMBERS")?).map_err(PacketError::Map)?,
            endpoints: take(ebpf, "ENDPOINTS")?.try_into().map_err(PacketError::Map)?,
            table: take(ebpf, "TABLE")?.try_into().map_err(PacketError::Map)?,
            devices: take(ebpf, "DEVICES")?.try_into().map_err(PacketError::Map)?,
            nodes: WordMap::new(take(ebpf, "NODES")?).map_err(PacketError::Map)?,
        })
    }

    /// The nodes from which packets in tunnels are taken.
    pub(super) fn nodes(&self) -> Result<BTreeSet<[u32; 4]>, MapError> {
        Ok(self.nodes.all::<_, u32>()?.into_iter().map(|(node, _)| node).collect())
    }

    /// Takes such packets from another node, too.
    pub(super) fn add_node(&mut self, node: &[u32; 4]) -> Result<(), MapError> {
        self.nodes.put(node, &0_u32)
    }

    /// Takes no more such packets from a node.
    pub(super) fn remove_node(&mut self, node: &[u32; 4]) -> Result<(), MapError> {
        self.nodes.remove(node)
    }

    /// What they hold, and what to remove from them.
    pub(super) fn read(&self, first_stamp: u32) -> Result<(PacketTable, Vec<PacketWrite>), MapError> {
        let services: Vec<(Frontend, PacketService)> = self.services.all()?;
        let members: Vec<(PacketMember, u32)> = self.members.all()?;
        let endpoint =
            |number: u32| self.endpoints.get(&number, 0).ok().map(|octets| PacketEndpoint::read(&octets));
        Ok(PacketTable::read(first_stamp, services, members, endpoint))
    }

    /// Makes one write.
    pub(super) fn write(&mut self, write: &PacketWrite) -> Result<(), MapError> {
        match write {
            PacketWrite::PutEndpoint(number, endpoint) => self.endpoints.set(*number, octets(endpoint), 0),
            PacketWrite::PutMember(member, number) => self.members.put(member, number),
            PacketWrite::PutRow(at, row) => self.table.set(*at, octets(row), 0),
            PacketWrite::PutService(frontend, service) => self.services.put(frontend, service),
            PacketWrite::RemoveService(frontend) => self.services.remove(frontend),
            PacketWrite::RemoveEndpoint(number) => self.endpoints.set(*number, [0; PacketEndpoint::SIZE], 0),
            PacketWrite::RemoveMember(member) => self.members.remove(member),
        }
    }

    /// Packets may be handed to these interfaces' drivers, and to no others.
    pub(super) fn set_devices(&mut self, devices: &[u32]) -> Result<(), PacketError> {
        let known: Vec<u32> = self.devices.keys().filter_map(Result::ok).collect();
        for index in known.iter().filter(|index| !devices.contains(index)) {
            self.devices.remove(*index).map_err(PacketError::Map)?;
        }
        for index in devices {
            self.devices.insert(*index, *index, None, 0).map_err(PacketError::Device)?;
        }
        Ok(())
    }
}

impl Counters {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, PacketError> {
        Ok(Self {
            counts: take(ebpf, "COUNTS")?.try_into().map_err(PacketError::Map)?,
            events: take(ebpf, "EVENTS")?.try_into().map_err(PacketError::Map)?,
        })
    }

    /// What all processors have counted of an endpoint.
    pub(super) fn of(&self, number: u32) -> PacketCount {
        let Ok(values) = self.counts.get(&number, 0) else { return PacketCount::default() };
        values.iter().map(|octets| PacketCount::read(octets)).fold(PacketCount::default(), |sum, each| {
            PacketCount {
                flows: sum.flows.wrapping_add(each.flows),
                ended: sum.ended.wrapping_add(each.ended),
                packets_in: sum.packets_in.wrapping_add(each.packets_in),
                bytes_in: sum.bytes_in.wrapping_add(each.bytes_in),
                packets_out: sum.packets_out.wrapping_add(each.packets_out),
                bytes_out: sum.bytes_out.wrapping_add(each.bytes_out),
            }
        })
    }

    /// How often each event was met.
    pub(super) fn events(&self) -> BTreeMap<PacketEvent, u64> {
        let total = |event: PacketEvent| {
            let values = self.events.get(&(event as u32), 0).ok()?;
            Some((event, values.iter().map(|octets| u64::read(octets)).sum()))
        };
        PacketEvent::ALL.into_iter().filter_map(total).collect()
    }
}

impl FlowTable {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, PacketError> {
        match take(ebpf, "FLOWS")? {
            Map::LruHashMap(map) => Ok(Self(map)),
            _ => Err(PacketError::NoMap("FLOWS")),
        }
    }

    /// Shows every entry. Those that are made or removed meanwhile may be missed.
    pub(super) fn for_each(&self, mut each: impl FnMut(Track)) -> io::Result<()> {
        bpf_call::lookup_all(self.0.fd().as_fd(), (Tuple::SIZE, Track::SIZE), |_, tracks| {
            tracks.chunks_exact(Track::SIZE).map(Track::read).for_each(&mut each);
        })
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, PacketError> {
    ebpf.take_map(name).ok_or(PacketError::NoMap(name))
}
