//! Packet balancing in the kernel: packets for virtual addresses that come in through the interfaces that the operator
//! names get an endpoint's address, and the replies get the virtual one back.
//!
//! It stands beside whatever else balances: that serves the processes of this node, this serves everybody else who
//! sends packets to it. The kernel does everything that happens per packet; this side keeps its maps equal to the
//! table of routes and reads what is counted.

mod answers;
mod drains;
mod following;
mod interfaces;
mod ledger;
mod maps;
mod nodes;
mod older_form;
mod owners;
mod programs;
mod run;
mod sources;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::maps::xdp::XdpMapError;
use aya::programs::ProgramError;
use mesonet_ebpf_abi::{Frontend, PacketEndpoint, Place, Track};
use mesonet_lb_plan::{
    Algorithm, PacketCandidate, PacketSpec, PacketTable, PacketTableError, PacketWrite, RouteState,
    RouteTable, ServicePolicy, ServiceSpec,
};
use mesonet_model::{Protocol, ServiceKey, TaskKey};
use thiserror::Error;
use tokio::sync::watch;

use crate::PinningError;
use crate::pins::Pins;
use drains::{Drain, Draining, Drains, Served};
use ledger::Ledger;
use maps::{Counters, FlowTable, Maps, OlderPrograms};
use nodes::Nodes;
use owners::Owners;
use programs::Loaded;
use sources::Sources;
use starts::Starts;

pub use run::{PacketAnswer, PacketQuestion, PacketRun};

/// Where packets are balanced, and how.
#[derive(Debug, Clone)]
pub struct PacketSettings {
    /// Names of interfaces.
    pub interfaces: Vec<String>,
    /// Which hooks of them.
    pub mode: PacketMode,
    /// Whether the node's address stands for the clients' where endpoints are elsewhere. If not, replies must come
    /// back through this node by themselves.
    pub masquerade: bool,
    /// Where a BPF file system is mounted.
    pub bpffs: PathBuf,
}

/// Where a program meets the packets that come in through an interface. Those that go out are always met by tc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketMode {
    /// XDP in the driver of network cards that take it, tc elsewhere.
    Auto,
    /// Before the driver hands them to the kernel.
    Xdp,
    /// Just after that, with any driver.
    XdpGeneric,
    /// Where the kernel has received them.
    Tc,
}

/// The programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketHook {
    /// Packets that come in, at the driver.
    Xdp,
    /// Packets that come in, with headers of Ethernet.
    In,
    /// Packets that go out, with headers of Ethernet.
    Out,
    /// Packets that come in, without link headers.
    TunnelIn,
    /// Packets that go out, without link headers.
    TunnelOut,
}

/// The kernel does not take the programs.
#[derive(Debug, Error)]
pub enum PacketError {
    /// There is no such interface.
    #[error("cannot balance packets of interface {name}")]
    Interface {
        /// The interface.
        name: String,
        /// The system's words.
        source: io::Error,
    },
    /// Packets of loopback are not from outside.
    #[error("cannot balance packets of interface {0}: it leads nowhere")]
    Loopback(String),
    /// The interface was there.
    #[error("there is no interface {0} any more; its packets are balanced again once it is back")]
    Gone(String),
    /// Nothing can be kept in the kernel.
    #[error(transparent)]
    Pinning(#[from] PinningError),
    /// The object or its maps are refused.
    #[error(
        "cannot load the eBPF programs for packets (they need CAP_BPF and CAP_NET_ADMIN, and Linux 6.6 or later)"
    )]
    Load(#[source] aya::EbpfError),
    /// A program is refused.
    #[error("cannot load the eBPF program {hook}")]
    Program {
        /// Which.
        hook: &'static str,
        /// The kernel's words.
        source: ProgramError,
    },
    /// A program cannot be attached.
    #[error("cannot attach the eBPF program {hook} to interface {name}")]
    Attach {
        /// Which.
        hook: &'static str,
        /// The interface.
        name: String,
        /// The kernel's words.
        source: ProgramError,
    },
    /// A program cannot be asked.
    #[error("cannot run the eBPF program {hook}")]
    Run {
        /// Which.
        hook: &'static str,
        /// The kernel's words.
        source: ProgramError,
    },
    /// Nobody could look at what drains.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A map cannot be used.
    #[error("cannot use an eBPF map")]
    Map(#[source] MapError),
    /// A map cannot be read or written.
    #[error("cannot read or write an eBPF map")]
    Words(#[source] io::Error),
    /// An interface's driver takes no packets from XDP.
    #[error("cannot hand packets to an interface")]
    Device(#[source] XdpMapError),
    /// The object lacks a map.
    #[error("BUG: the eBPF object for packets has no map {0}")]
    NoMap(&'static str),
    /// The object lacks a program.
    #[error("BUG: the eBPF object for packets has no program {0}")]
    NoProgram(&'static str),
}

/// An interface whose packets are balanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// Its number; 0 while it is gone, which no interface has.
    pub index: u32,
    /// Where its packets are met; never [`PacketMode::Auto`].
    pub mode: PacketMode,
    /// Why there, or why not at the moment.
    pub reason: String,
    /// Whether XDP sends packets on through it, without the rest of the kernel.
    pub is_way_of_xdp: bool,
}

impl Attached {
    /// Whether the interface is there.
    pub fn is_present(&self) -> bool {
        self.index != 0
    }

    /// The reason, and what XDP cannot do there.
    pub fn why(&self) -> String {
        let lacks = self.is_present() && self.mode == PacketMode::Xdp && !self.is_way_of_xdp;
        let rest = if lacks {
            "; tc sends on what leaves through it: its driver takes nothing from XDP"
        } else {
            ""
        };
        format!("{}{rest}", self.reason)
    }
}

/// Balances packets. A restart of the process goes unnoticed: programs and maps stay in the kernel.
#[derive(Debug)]
pub struct PacketBalancer {
    ebpf: aya::Ebpf,
    /// Open for as long as the programs are in use.
    hold: File,
    maps: Maps,
    flows: FlowTable,
    ledger: Ledger,
    drains: Drains,
    starts: Starts,
    table: PacketTable,
    attached: Vec<Attached>,
    /// Where programs are pinned, and what is wanted of interfaces that come back.
    directory: PathBuf,
    pins: Pins,
    mode: PacketMode,
    masquerade: bool,
    /// The addresses of the cluster's nodes.
    nodes: Nodes,
    /// Which service each virtual address leads to.
    owners: Owners,
    /// The node's own addresses on the way to endpoints.
    sources: Sources,
    /// Services with endpoints that no way leads to, and which.
    unreached: BTreeMap<ServiceKey, String>,
    /// Virtual addresses of a former process that are not accounted for yet.
    found: BTreeSet<Frontend>,
    /// The flows that were found, by number and stamp.
    found_flows: BTreeMap<(u32, u32), u64>,
    /// Whether virtual addresses of a former process may be left in the maps.
    has_leftovers: bool,
    /// What other versions have left, whose programs go on until the first services are in effect.
    older: Vec<PathBuf>,
    older_programs: OlderPrograms,
}

impl PacketBalancer {
    /// Loads the programs, or takes over those of a former process. What its maps hold stays in effect until
    /// [`PacketBalancer::settle`] is called first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(settings: &PacketSettings) -> Result<Self, PacketError> {
        let Loaded { mut ebpf, directory, hold } = programs::load(&settings.bpffs)?;
        let mut maps = Maps::new(&mut ebpf)?;
        let flows = FlowTable::new(&mut ebpf)?;
        let ledger = Ledger::new(Counters::new(&mut ebpf)?);
        let drains = Drains::start(flows.clone(), ledger.clone()).map_err(PacketError::Thread)?;
        let (table, garbage) = maps.read(first_stamp()).map_err(PacketError::Words)?;
        for write in &garbage {
            maps.write(write).map_err(PacketError::Words)?;
        }
        let older = programs::older(&settings.bpffs);
        let older_programs = OlderPrograms::new(&mut ebpf)?;
        let found: BTreeSet<Frontend> = table.frontends().copied().collect();
        let has_leftovers = !found.is_empty();
        let found_flows = if has_leftovers { count_open(&flows) } else { BTreeMap::new() };
        older_form::leave(&older, &older_programs, has_leftovers).map_err(PacketError::Words)?;
        let (attached, pins) = programs::attach(&mut ebpf, &directory, &older, settings)?;
        maps.set_devices(&following::devices(&attached))?;
        attached.iter().for_each(following::log);
        let starts = Starts::start(!has_leftovers).map_err(PacketError::Thread)?;
        let masquerade = settings.masquerade;
        let nodes = maps.nodes().map_err(PacketError::Words)?.into_iter().map(ip).collect();
        let sources = Sources::new(sources_of(&table));
        Ok(Self {
            ebpf,
            hold,
            maps,
            flows,
            ledger,
            drains,
            starts,
            table,
            attached,
            directory,
            pins,
            mode: settings.mode,
            masquerade,
            nodes: Nodes::new(nodes),
            owners: Owners::default(),
            sources,
            unreached: BTreeMap::new(),
            found,
            found_flows,
            has_leftovers,
            older,
            older_programs,
        })
    }

    /// Exports what is counted.
    ///
    /// # Errors
    /// When the registry has it already.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        self.ledger.register(registry)
    }

    /// Takes the programs away from all interfaces of a BPF file system's user.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn cleanup(bpffs: &Path) -> io::Result<()> {
        programs::remove_all(bpffs)
    }

    /// The same, unless a process balances packets with them. For whoever starts and is to balance none.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_unused(bpffs: &Path) -> io::Result<()> {
        programs::remove_unused(bpffs)
    }

    /// Which interfaces' packets are balanced.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// The tasks whose endpoints drain and still have flows from outside: connections that neither side has reset and
    /// the endpoint has not ended, and datagrams within the last second.
    pub fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.drains.busy()
    }

    /// Changes when [`PacketBalancer::take_started`] has something to tell.
    pub fn started(&self) -> watch::Receiver<()> {
        self.starts.news()
    }

    /// The services with endpoints that listen since a moment ago. They get no flows before the services are settled again.
    pub fn take_started(&mut self) -> BTreeSet<ServiceKey> {
        self.starts.take().iter().filter_map(|frontend| self.owners.get(frontend).cloned()).collect()
    }

    /// The services whose endpoints are reached from another address of the node than before, or reached at last: interfaces
    /// have been given addresses or routes. Call it from time to time; they are to be settled again.
    pub fn take_rerouted(&mut self) -> BTreeSet<ServiceKey> {
        let table = &self.table;
        let changed = self.sources.ask_again(|| sources_of(table).into_keys().collect());
        if changed.is_empty() {
            return BTreeSet::new();
        }
        let is_matter = |frontend: &&Frontend| {
            table.members(frontend).any(|(_, each)| changed.contains(&ip(each.place.address)))
        };
        table.frontends().filter(is_matter).filter_map(|each| self.owners.get(each).cloned()).collect()
    }

    /// The services with endpoints that get no flows because no way leads to them, and which.
    pub fn unreached(&self) -> &BTreeMap<ServiceKey, String> {
        &self.unreached
    }

    /// Takes packets in tunnels from these nodes, and sends them to endpoints there if their services want it. Returns
    /// whether that is a change, so that services are to be settled again.
    pub fn set_nodes(&mut self, nodes: BTreeSet<IpAddr>) -> bool {
        let is_change = self.nodes.want(nodes);
        self.follow_nodes();
        is_change
    }

    /// Makes services what a table says. Returns those that could not be put into effect, and why.
    pub fn settle(
        &mut self,
        services: &BTreeSet<ServiceKey>,
        routes: &RouteTable,
    ) -> BTreeMap<ServiceKey, String> {
        let mut ways =
            Ways { sources: &mut self.sources, masquerade: self.masquerade, nodes: self.nodes.wanted() };
        let mut failures = BTreeMap::new();
        let nothing = ServiceSpec::default();
        let mut specs = BTreeMap::new();
        // Addresses that a service has lost may be another one's.
        for key in services {
            let spec = routes.service(key).unwrap_or(&nothing);
            let wanted: BTreeSet<Frontend> =
                spec.listeners.iter().map(|address| frontend(key.protocol, *address)).collect();
            let lost: Vec<Frontend> = self.owners.of(key).filter(|each| !wanted.contains(each)).collect();
            for frontend in lost {
                self.owners.remove(&frontend);
                specs.insert(frontend, None);
            }
            let (spec, lacking) = packet_spec(spec, &mut ways);
            self.unreached.remove(key);
            for frontend in wanted {
                let is_of_family = |at: &&SocketAddr| at.is_ipv4() == frontend.place.is_ipv4();
                if let Some(at) = lacking.iter().find(is_of_family) {
                    self.unreached.insert(key.clone(), lack_of_way(at));
                }
                self.owners.insert(frontend, key);
                specs.insert(frontend, Some(spec.clone()));
            }
        }
        if self.has_leftovers {
            let left = self.table.frontends().filter(|frontend| self.owners.get(frontend).is_none());
            specs.extend(left.map(|frontend| (*frontend, None)).collect::<Vec<_>>());
            self.has_leftovers = false;
        }
        for (frontend, spec) in specs {
            if let Err(error) = self.put(frontend, spec.as_ref()) {
                let reason = failure(&frontend, &error);
                match self.owners.get(&frontend) {
                    Some(key) => drop(failures.insert(key.clone(), reason)),
                    None => {
                        tracing::warn!(reason, "Cannot remove a virtual address");
                        self.has_leftovers = true;
                    }
                }
            }
        }
        self.starts.end_first();
        self.take_over();
        let draining = services.iter().map(|key| (key.clone(), self.draining_of(key, routes))).collect();
        self.drains.change(draining);
        failures
    }

    /// What drains in a service, by the numbers that its flows have.
    fn draining_of(&self, key: &ServiceKey, routes: &RouteTable) -> Draining {
        let mut draining = Draining::new();
        let Some(spec) = routes.service(key) else { return draining };
        let frontends: Vec<Frontend> =
            spec.listeners.iter().map(|address| frontend(key.protocol, *address)).collect();
        let members: BTreeMap<Place, Vec<(Served, bool)>> = frontends
            .iter()
            .flat_map(|frontend| self.table.members(frontend))
            .fold(BTreeMap::new(), |mut members, (number, endpoint)| {
                let served = Served { number, stamp: endpoint.stamp, protocol: key.protocol };
                let is_ready = endpoint.flags & PacketEndpoint::READY != 0;
                members.entry(endpoint.place).or_insert_with(Vec::new).push((served, is_ready));
                members
            });
        for (id, _) in spec.endpoints.iter().filter(|(_, each)| each.state == RouteState::Draining) {
            let drain: &mut Drain = draining.entry(id.task.clone()).or_default();
            for (served, is_ready) in members.get(&Place::from(id.address)).into_iter().flatten() {
                drain.served.insert(*served);
                drain.stands_in |= is_ready;
            }
        }
        draining
    }

    fn put(&mut self, frontend: Frontend, spec: Option<&PacketSpec>) -> Result<(), PutError> {
        let writes = match spec {
            Some(spec) => {
                let is_ready = |each: &PacketEndpoint| each.flags & PacketEndpoint::READY != 0;
                let members = self.table.members(&frontend).map(|(_, each)| each);
                let served = members.filter(|each| is_ready(each)).map(|each| each.place).collect();
                self.table.put(frontend, &self.starts.follow(frontend, spec, &served))?
            }
            None => {
                self.starts.forget(&frontend);
                self.table.remove(&frontend)
            }
        };
        for write in &writes {
            match (write, self.owners.get(&frontend)) {
                (PacketWrite::PutMember(member, number), Some(key)) => {
                    self.ledger.open(*number, key, member.place.into(), 0);
                }
                (PacketWrite::RemoveEndpoint(number), _) => self.ledger.close(*number),
                _ => {}
            }
        }
        self.open_found(&frontend);
        let written = writes.iter().try_for_each(|write| self.maps.write(write));
        if written.is_err() {
            self.read_again();
        }
        written.map_err(PutError::Map)
    }

    /// Endpoints that a former process has left are counted for their service from now on.
    fn open_found(&mut self, frontend: &Frontend) {
        if !self.found.remove(frontend) {
            return;
        }
        if let Some(key) = self.owners.get(frontend) {
            for (number, each) in self.table.members(frontend) {
                let flows = self.found_flows.get(&(number, each.stamp)).copied().unwrap_or_default();
                self.ledger.open(number, key, each.place.into(), flows);
            }
        }
        if self.found.is_empty() {
            self.found_flows.clear();
        }
    }

    /// After a write that failed, the maps are asked what they hold.
    fn read_again(&mut self) {
        match self.maps.read(first_stamp()) {
            Ok((table, garbage)) => {
                self.table = table;
                for write in &garbage {
                    self.remove_garbage(write);
                }
            }
            Err(error) => tracing::warn!(%error, "Cannot read the maps of the eBPF programs for packets"),
        }
    }

    fn remove_garbage(&mut self, write: &PacketWrite) {
        if let Err(error) = self.maps.write(write) {
            tracing::warn!(%error, ?write, "Cannot remove what no service needs");
        }
    }
}

/// A virtual address cannot be put into effect.
#[derive(Debug, Error)]
enum PutError {
    #[error(transparent)]
    Table(#[from] PacketTableError),
    #[error("{0}")]
    Map(io::Error),
}

/// For who reads why a service is not in effect.
fn failure(frontend: &Frontend, error: &dyn std::error::Error) -> String {
    format!("cannot balance packets for {}: {error}", SocketAddr::from(frontend.place))
}

/// For who reads why a service is not in effect for clients elsewhere.
fn lack_of_way(at: &SocketAddr) -> String {
    format!("cannot send packets to {at}: no route leads there; it gets them once one does")
}

/// How many connections of each endpoint are open, by its number and stamp.
fn count_open(flows: &FlowTable) -> BTreeMap<(u32, u32), u64> {
    let mut open = BTreeMap::new();
    let counted = flows.for_each(|track| {
        if track.direction == Track::FROM_CLIENT && track.seen & Track::OVER == 0 {
            *open.entry((track.endpoint, track.stamp)).or_default() += 1;
        }
    });
    if let Err(error) = counted {
        tracing::warn!(%error, "Cannot read which flows there are; those from before are not counted");
    }
    open
}

/// Another number at each start.
fn first_stamp() -> u32 {
    // The seed of a hasher is random; its lower half is as good.
    RandomState::new().build_hasher().finish() as u32
}

/// How endpoints are reached.
struct Ways<'a> {
    sources: &'a mut Sources,
    masquerade: bool,
    /// Addresses of the cluster's nodes, which take packets in tunnels.
    nodes: &'a BTreeSet<IpAddr>,
}

/// An address as it is in the maps.
fn address(ip: IpAddr) -> [u32; 4] {
    Place::from(SocketAddr::new(ip, 0)).address
}

fn ip(address: [u32; 4]) -> IpAddr {
    SocketAddr::from(Place { address, port: 0 }).ip()
}

/// What packets need to know of a service, and the endpoints that would get flows if a way led to them.
fn packet_spec(spec: &ServiceSpec, ways: &mut Ways<'_>) -> (PacketSpec, BTreeSet<SocketAddr>) {
    let ServicePolicy { algorithm, affinity, direct_return, .. } = spec.policy;
    let mut lacking = BTreeSet::new();
    let mut candidate = |at: SocketAddr, weight: Option<u32>| {
        let source = ways.sources.towards(at.ip());
        let is_here = source == Some(at.ip());
        let replies_pass = !ways.masquerade || is_here;
        let is_direct = direct_return && !is_here && ways.nodes.contains(&at.ip());
        // With the client's own address, replies would go past this node.
        let lacks_source = source.is_none() && (is_direct || !replies_pass);
        if lacks_source && weight.is_some() {
            lacking.insert(at);
        }
        let weight = weight.filter(|_| !lacks_source);
        PacketCandidate {
            place: Place::from(at),
            weight,
            source: source.map(address),
            replies_pass,
            is_direct,
        }
    };
    let candidates = spec
        .endpoints
        .iter()
        .map(|(id, each)| candidate(id.address, (each.state == RouteState::Ready).then_some(each.weight)))
        .collect();
    let is_by_source = algorithm == Algorithm::Maglev || affinity.is_some();
    (PacketSpec { candidates, is_by_source }, lacking)
}

/// The addresses of endpoints, with the node's own on the way to each.
fn sources_of(table: &PacketTable) -> BTreeMap<IpAddr, Option<IpAddr>> {
    let members = table.frontends().flat_map(|frontend| table.members(frontend)).map(|(_, each)| each);
    let source = |each: &PacketEndpoint| (each.source != [0; 4]).then(|| ip(each.source));
    members.map(|each| (ip(each.place.address), source(each))).collect()
}

fn frontend(protocol: Protocol, address: SocketAddr) -> Frontend {
    let protocol = match protocol {
        Protocol::Tcp => mesonet_ebpf_abi::TCP,
        Protocol::Udp => mesonet_ebpf_abi::UDP,
    };
    Frontend { place: Place::from(address), protocol: protocol.into() }
}

// === impl PacketMode ===

impl PacketMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Xdp, Self::XdpGeneric, Self::Tc];

    /// The name that users know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        }
    }
}

// === impl PacketHook ===

impl PacketHook {
    /// Every program.
    pub const ALL: [Self; 5] = [Self::Xdp, Self::In, Self::Out, Self::TunnelIn, Self::TunnelOut];

    /// Its name in the object.
    pub fn program(self) -> &'static str {
        match self {
            Self::Xdp => "mesonet_xdp",
            Self::In => "mesonet_in",
            Self::Out => "mesonet_out",
            Self::TunnelIn => "mesonet_tunnel_in",
            Self::TunnelOut => "mesonet_tunnel_out",
        }
    }
}
