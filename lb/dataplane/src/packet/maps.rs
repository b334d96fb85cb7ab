//! The maps of the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use aya::maps::xdp::DevMapHash;
use aya::maps::{MapData, PerCpuArray};
use aya::{Ebpf, maps::Map};
use mesonet_ebpf_abi::{
    Frontend, OlderVersion, PacketCount, PacketEndpoint, PacketEvent, PacketMember, PacketService, Place,
    Row, Track, Tuple, Words,
};
use mesonet_lb_plan::{PacketTable, PacketWrite};

use super::PacketError;
use crate::bpf_call;
use crate::word_map::{self, WordMap, octets};

/// What says which services are in effect.
pub(super) const SERVICES: &str = "SERVICES";

/// What outlives this process. Programs of two processes go on with each other while one takes over, so that they share
/// what they have in between, too.
pub(super) const NAMES: [&str; 11] = [
    SERVICES,
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
    services: WordMap<Frontend, PacketService>,
    members: WordMap<PacketMember, u32>,
    endpoints: WordMap<u32, PacketEndpoint>,
    table: WordMap<u32, Row>,
    devices: DevMapHash<MapData>,
    nodes: WordMap<[u32; 4], u32>,
}

/// The flows that the programs have noted. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct FlowTable(Arc<WordMap<Tuple, Track>>);

/// What is left to the programs of another version.
pub(super) struct OlderPrograms {
    share: WordMap<u32, u32>,
    /// One place for the map of their flows.
    flows: MapData,
}

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

impl fmt::Debug for OlderPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OlderPrograms").finish_non_exhaustive()
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
            services: words(ebpf, SERVICES)?,
            members: words(ebpf, "MEMBERS")?,
            endpoints: words(ebpf, "ENDPOINTS")?,
            table: words(ebpf, "TABLE")?,
            devices: take(ebpf, "DEVICES")?.try_into().map_err(PacketError::Map)?,
            nodes: words(ebpf, "NODES")?,
        })
    }

    /// The nodes from which packets in tunnels are taken.
    pub(super) fn nodes(&self) -> io::Result<BTreeSet<[u32; 4]>> {
        Ok(self.nodes.all()?.into_iter().map(|(node, _)| node).collect())
    }

    /// Takes such packets from another node, too.
    pub(super) fn add_node(&self, node: &[u32; 4]) -> io::Result<()> {
        self.nodes.put(node, &0)
    }

    /// Takes no more such packets from a node.
    pub(super) fn remove_node(&self, node: &[u32; 4]) -> io::Result<()> {
        self.nodes.remove(node)
    }

    /// What they hold, and what to remove from them.
    pub(super) fn read(&self, first_stamp: u32) -> io::Result<(PacketTable, Vec<PacketWrite>)> {
        let endpoints: BTreeMap<u32, PacketEndpoint> = self.endpoints.all()?.into_iter().collect();
        let endpoint = |number: u32| endpoints.get(&number).copied();
        Ok(PacketTable::read(first_stamp, self.services.all()?, self.members.all()?, endpoint))
    }

    /// Makes one write.
    pub(super) fn write(&self, write: &PacketWrite) -> io::Result<()> {
        const NOBODY: PacketEndpoint = PacketEndpoint {
            place: Place { address: [0; 4], port: 0 },
            service: 0,
            stamp: 0,
            flags: 0,
            source: [0; 4],
        };
        match write {
            PacketWrite::PutEndpoint(number, endpoint) => self.endpoints.put(number, endpoint),
            PacketWrite::PutMember(member, number) => self.members.put(member, number),
            PacketWrite::PutRow(at, row) => self.table.put(at, row),
            PacketWrite::PutService(frontend, service) => self.services.put(frontend, service),
            PacketWrite::RemoveService(frontend) => self.services.remove(frontend),
            PacketWrite::RemoveEndpoint(number) => self.endpoints.put(number, &NOBODY),
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
        words(ebpf, "FLOWS").map(Arc::new).map(Self)
    }

    /// Shows every entry. Those that are made or removed meanwhile may be missed.
    pub(super) fn for_each(&self, mut each: impl FnMut(Track)) -> io::Result<()> {
        self.0.for_each(|_, track| each(Track::read(track)))
    }

    /// Notes a flow's packets, unless they are known. Returns whether they were not.
    pub(super) fn put_new(&self, tuple: &Tuple, track: &Track) -> io::Result<bool> {
        self.0.put_new(tuple, track)
    }

    /// Changes what is noted.
    pub(super) fn put(&self, tuple: &Tuple, track: &Track) -> io::Result<()> {
        self.0.put(tuple, track)
    }

    /// What is noted.
    pub(super) fn get(&self, tuple: &Tuple) -> io::Result<Option<Track>> {
        self.0.get(tuple)
    }
}

impl OlderPrograms {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, PacketError> {
        let Map::ArrayOfMaps(flows) = take(ebpf, "OLDER_FLOWS")? else {
            return Err(PacketError::NoMap("OLDER_FLOWS"));
        };
        Ok(Self { share: words(ebpf, "OLDER")?, flows })
    }

    /// Leaves everything to them that these programs do not know.
    pub(super) fn leave_all(&self) -> io::Result<()> {
        self.share.put(&0, &OlderVersion::ALL)
    }

    /// Leaves the flows to them that they know, and no new ones. Returns when no program runs that has begun before. A map of
    /// another kind is of no use to these programs.
    pub(super) fn leave_flows(&self, flows: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(flows) = flows else { return self.share.put(&0, &OlderVersion::NOTHING) };
        match self.set_flows(flows) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return self.leave_flows(None),
            result => result?,
        }
        self.share.put(&0, &OlderVersion::KNOWN_FLOWS)?;
        // The kernel waits for all programs that run whenever a map of maps is written.
        self.set_flows(flows)
    }

    /// Leaves nothing to them.
    pub(super) fn end(&self) -> io::Result<()> {
        self.share.put(&0, &OlderVersion::NOTHING)?;
        match bpf_call::delete(self.flows.fd().as_fd(), &octets(&0_u32)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn set_flows(&self, flows: BorrowedFd<'_>) -> io::Result<()> {
        let flows = flows.as_raw_fd().to_ne_bytes();
        bpf_call::update(self.flows.fd().as_fd(), &octets(&0_u32), &flows, false)
    }
}

fn words<K: Words, V: Words>(ebpf: &mut Ebpf, name: &'static str) -> Result<WordMap<K, V>, PacketError> {
    let data = word_map::data(take(ebpf, name)?).ok_or(PacketError::NoMap(name))?;
    WordMap::new(data).map_err(PacketError::Map)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, PacketError> {
    ebpf.take_map(name).ok_or(PacketError::NoMap(name))
}
