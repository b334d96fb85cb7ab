//! Socket balancing in the kernel: hooks of a cgroup choose an endpoint once per connection, and no packet is touched.
//!
//! The kernel does everything that happens per connection; this side keeps its maps equal to the table, ends
//! connections to dead endpoints, tells which draining ones are still in use, and exports what has been counted.

mod drain;
mod kernel;
mod kernel_types;
mod ledger;
mod maps;
mod namespaces;
mod older_layout;
mod programs;
mod sockets;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use aya::maps::MapError;
use aya::programs::ProgramError;
use mesonet_ebpf_abi::{Flow, Frontend, Origin, Place, TCP, UDP};
use mesonet_lb_plan::{
    Candidate, Deviation, EndpointCount, EndpointId, KernelTable, MapWrite, NoRoom, Op, RouteState,
    ServiceSpec,
};
use mesonet_model::{Protocol, ServiceKey, TaskKey};
use thiserror::Error;
use tokio::sync::watch;

use crate::pins::Pins;
use crate::tracked_table::TrackedTable;
use crate::word_map::WordMap;
use crate::{Dataplane, Metrics, Missing, PinningError};
use kernel::{Kernel, SharedKernel, Unwritten, Writer};
use ledger::{Account, Ledger};
use maps::{Connections, Counts, Maps, Memory, take};
use programs::Attached;
use usage::{Dead, Draining, Usage};

pub use kernel_types::KernelTypesError;
pub use programs::{cleanup, remove_hooks};

/// Virtual addresses whose writes are made while those of the next ones are found.
const PART: usize = 4096;

/// How soon addresses that could not be written are tried again, at a look or with a view: views may come fast, and to try
/// each of many takes some microseconds.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Writes of one virtual address, as far as memory is made ready for them: some endpoints, and the service.
const WRITES_EACH: usize = 4;

/// A virtual address, and what it leads to.
type Owned<'a> = (Frontend, Option<(&'a Arc<ServiceKey>, &'a ServiceSpec)>);

/// Where the programs go.
#[derive(Debug, Clone)]
pub struct EbpfSettings {
    /// The cgroup (version 2) whose processes see virtual addresses, with all below it.
    pub cgroup: PathBuf,
    /// Where a BPF file system is mounted.
    pub bpffs: PathBuf,
}

/// The kernel does not take the programs.
#[derive(Debug, Error)]
pub enum EbpfError {
    /// The cgroup cannot be opened.
    #[error("cannot open cgroup {} (it must be a directory of a cgroup2 mount)", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The path is somewhere else.
    #[error("{} is no cgroup: expected a directory of a cgroup2 mount", .0.display())]
    NoCgroup(PathBuf),
    /// Nothing can be kept in the kernel.
    #[error(transparent)]
    Pinning(#[from] PinningError),
    /// The object or its maps are refused.
    #[error(
        "cannot load the eBPF programs (they need CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux 5.18 or later)"
    )]
    Load(#[source] aya::EbpfError),
    /// It is not known where this kernel keeps what is counted.
    #[error(transparent)]
    Types(#[from] KernelTypesError),
    /// A program is refused.
    #[error("cannot attach the eBPF program {hook}")]
    Attach {
        /// Which.
        hook: &'static str,
        /// The kernel's words.
        source: ProgramError,
    },
    /// A map cannot be used.
    #[error("cannot use an eBPF map")]
    Map(#[source] MapError),
    /// A map has entries of another form.
    #[error("BUG: the eBPF map {0} has another form")]
    Shape(&'static str),
    /// The machine does not say how many processors it has.
    #[error("cannot read {file}")]
    Processors {
        /// Where it should say so.
        file: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// The maps cannot be read.
    #[error("cannot read the eBPF maps")]
    Read(#[source] io::Error),
    /// The object lacks a map.
    #[error("BUG: the eBPF object has no map {0}")]
    NoMap(&'static str),
    /// The object lacks a program.
    #[error("BUG: the eBPF object has no program {0}")]
    NoHook(&'static str),
}

/// The data plane of cgroup hooks.
#[derive(Debug)]
pub struct Ebpf {
    kernel: SharedKernel,
    table: TrackedTable,
    /// Which service each virtual address leads to.
    owners: BTreeMap<Frontend, Arc<ServiceKey>>,
    /// Draining tasks, by service.
    draining: BTreeMap<ServiceKey, Draining>,
    /// Endpoints that a service has lost, and that could not be taken from an address of it.
    lost: BTreeSet<SocketAddr>,
    /// When addresses that could not be written were tried last.
    tried_at: Instant,
    metrics: Metrics,
    usage: Arc<Usage>,
    /// Whether virtual addresses of a former process may be left in the maps.
    has_leftovers: bool,
    /// What other versions have left in the kernel, until the first view is in effect.
    older: Vec<PathBuf>,
    settings: EbpfSettings,
    pins: Pins,
}

/// A virtual address, and the counters that it had.
type Before = (Frontend, BTreeMap<u32, Option<Place>>);

/// What becomes of the maps and of connections.
#[derive(Debug, Default)]
struct Change {
    /// Virtual addresses, in their order.
    touched: Vec<Frontend>,
    /// Endpoints that some service has lost.
    gone: BTreeSet<SocketAddr>,
    writes: Vec<MapWrite>,
    /// Counters that the services have.
    accounts: Vec<(u32, Account)>,
    /// Endpoints that are to be asked whether they have started.
    starting: Vec<(Frontend, Place)>,
    dead: Dead,
}

impl Ebpf {
    /// Loads the programs, or takes over those of a former process. What its maps hold stays in effect until the
    /// first view is applied. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(settings: &EbpfSettings, metrics: &Metrics) -> Result<Self, EbpfError> {
        let Attached { mut ebpf, older } = programs::attach(settings)?;
        let mut pins = Pins::new(&programs::directory(&settings.bpffs));
        programs::keep(&mut pins)?;
        let connections = Connections::take(&mut ebpf)?;
        let open = connections.all().map_err(EbpfError::Read)?;
        let kernel = SharedKernel::new(Maps::take(&mut ebpf)?, &open).map_err(EbpfError::Read)?;
        let found = kernel.lock().table.frontends().count();
        tracing::info!(
            cgroup = %settings.cgroup.display(), found, "Balancing sockets in the kernel"
        );
        let (counts, loads) = (Counts::take(&mut ebpf, "COUNTS")?, take(&mut ebpf, "LOADS")?);
        let ledger = Ledger::new(counts, loads, metrics, &all_counters(&kernel.lock().table))
            .map_err(EbpfError::Read)?;
        let origins = take(&mut ebpf, "ORIGINS")?;
        // A process before may have copied some from another layout.
        let has_uncounted = has_connections(&origins, &kernel.lock().table).map_err(EbpfError::Read)?;
        let flows = take(&mut ebpf, "FLOWS")?;
        let memory = Memory { connections, origins, flows, has_uncounted: AtomicBool::new(has_uncounted) };
        let usage = Usage::start(kernel.clone(), ledger, memory, metrics);
        Ok(Self {
            kernel,
            table: TrackedTable::new(metrics),
            owners: BTreeMap::new(),
            draining: BTreeMap::new(),
            lost: BTreeSet::new(),
            tried_at: Instant::now(),
            metrics: metrics.clone(),
            usage,
            has_leftovers: found > 0,
            older,
            settings: settings.clone(),
            pins,
        })
    }

    /// Services with an address that does not lead where it should, because something could not be written. They are tried
    /// again whenever operations are applied.
    pub(crate) fn unwritten(&self) -> BTreeSet<ServiceKey> {
        let kernel = self.kernel.lock();
        let owners = kernel.unwritten().keys().filter_map(|frontend| self.owners.get(frontend));
        owners.map(|owner| owner.as_ref().clone()).collect()
    }

    /// The endpoints behind a virtual address that take part otherwise than their weights say.
    pub(crate) fn deviations(
        &self,
        protocol: Protocol,
        address: SocketAddr,
    ) -> BTreeMap<SocketAddr, Deviation> {
        let found = self.kernel.lock().deviations(&frontend(protocol, address));
        found.into_iter().map(|(place, deviation)| (place.into(), deviation)).collect()
    }

    /// What somebody has taken away.
    pub(crate) fn missing(&self) -> Missing {
        let hooks = programs::detached(&self.pins, &self.settings.cgroup);
        Missing { hooks, pins: self.pins.missing().len(), ..Missing::default() }
    }

    /// Puts it back. Where hooks are not attached any more, all are attached anew, with the maps as they are.
    ///
    /// # Errors
    /// When the kernel refuses, or the cgroup is gone.
    pub(crate) fn restore(&mut self) -> Result<(), EbpfError> {
        self.pins.restore()?;
        if programs::detached(&self.pins, &self.settings.cgroup) > 0 {
            programs::attach(&self.settings)?;
            programs::keep(&mut self.pins)?;
        }
        Ok(())
    }

    /// Takes operations into the table.
    fn note(&mut self, ops: &[Op], change: &mut Change) {
        // Those for one service come side by side.
        for ops in ops.chunk_by(|one, next| one.service() == next.service()) {
            let key = ops[0].service();
            let touched = &mut change.touched;
            self.table.apply_all(key, ops, |spec| {
                touched.extend(spec.listeners.iter().map(|address| frontend(key.protocol, *address)));
            });
            ops.iter().for_each(|op| self.note_one(op, change));
        }
        change.touched.sort_unstable();
        change.touched.dedup();
    }

    fn note_one(&mut self, op: &Op, change: &mut Change) {
        let key = op.service();
        match op {
            Op::RemoveEndpoint { endpoint, .. } => drop(change.gone.insert(endpoint.address)),
            Op::OpenListener { address, .. } => {
                self.owners.insert(frontend(key.protocol, *address), Arc::new(key.clone()));
            }
            Op::CloseListener { address, .. } => {
                let closed = frontend(key.protocol, *address);
                if self.owners.get(&closed).is_some_and(|owner| **owner == *key) {
                    self.owners.remove(&closed);
                }
                change.touched.push(closed);
            }
            Op::AddEndpoint { .. } | Op::SetEndpoint { .. } | Op::SetPolicy { .. } => {}
        }
    }

    /// Makes the maps equal to the table. Nobody else changes them meanwhile, so that no write is undone by an older one.
    fn settle_all(&mut self, change: &mut Change) -> BTreeMap<ServiceKey, String> {
        let shared = self.kernel.clone();
        let mut kernel = shared.lock();
        let is_known = kernel.know();
        change.gone.extend(self.lost.iter().copied());
        let mut unwritten = kernel.take_unwritten();
        if self.tried_at.elapsed() >= RETRY_INTERVAL {
            self.tried_at = Instant::now();
            self.lost.clear();
            change.touched.extend(std::mem::take(&mut unwritten).into_keys());
        }
        if self.has_leftovers {
            let known = kernel.table.frontends();
            change.touched.extend(known.filter(|each| !self.owners.contains_key(each)));
        }
        change.touched.sort_unstable();
        change.touched.dedup();
        let mut owned = self.owned(&change.touched);
        // Addresses that are none any more go first, and leave room for others.
        owned.sort_by_key(|(_, owner)| owner.is_some());
        let before = owned.iter().filter(|(frontend, _)| kernel.table.contains(frontend));
        let before: Vec<Before> =
            before.map(|(frontend, _)| (*frontend, kernel.table.counters(frontend).collect())).collect();
        let refused = if is_known {
            self.write(&mut kernel, &owned, change)
        } else {
            let unknown = io::Error::other("it is not known what the maps hold");
            owned.iter().map(|(frontend, _)| (*frontend, kernel::failure(frontend, &unknown))).collect()
        };
        kernel.end_first();
        for (frontend, owner) in &owned {
            let Some((key, _)) = owner else { continue };
            let counters = kernel.table.counters(frontend);
            let account = |(counter, place)| (counter, Account::new((*key).clone(), place));
            change.accounts.extend(counters.map(account));
        }
        let lost = before.into_iter().flat_map(|each| {
            let is_refused = refused.contains_key(&each.0);
            self.close_accounts(&kernel.table, each, is_refused, change)
        });
        let lost: Vec<SocketAddr> = lost.collect();
        owned.iter().for_each(|(frontend, _)| drop(unwritten.remove(frontend)));
        unwritten.extend(refused);
        let failures = unwritten.iter().filter_map(|(frontend, reason)| {
            Some((self.owners.get(frontend)?.as_ref().clone(), reason.clone()))
        });
        let failures = failures.collect();
        kernel.set_unwritten(unwritten);
        self.metrics.set_kernel_entries(kernel.table.used());
        drop(kernel);
        self.lost.extend(lost);
        self.usage.ledger().open(std::mem::take(&mut change.accounts));
        for (frontend, place) in change.starting.drain(..) {
            shared.ask(frontend, place);
        }
        failures
    }

    /// Writes addresses. Returns those that could not be written, and why.
    fn write(&self, kernel: &mut Kernel, owned: &[Owned<'_>], change: &mut Change) -> Unwritten {
        let mut refused = Unwritten::new();
        let written = kernel.change(|kernel, writer| {
            for part in owned.chunks(PART) {
                change.writes.reserve(WRITES_EACH * part.len());
                part.iter().for_each(|each| self.settle(kernel, writer, *each, change, &mut refused));
                writer.write(std::mem::take(&mut change.writes));
                kernel.table.release();
            }
        });
        let Err(error) = written else { return refused };
        tracing::debug!(%error, "A write of many entries has failed, trying address after address");
        refused.clear();
        if !kernel.know() {
            return owned.iter().map(|(each, _)| (*each, kernel::failure(each, &error))).collect();
        }
        for each in owned {
            let written = kernel.change(|kernel, writer| {
                self.settle(kernel, writer, *each, change, &mut refused);
                writer.write(std::mem::take(&mut change.writes));
            });
            if let Err(error) = written {
                refused.insert(each.0, kernel::failure(&each.0, &error));
            }
        }
        // Once for all that have failed.
        kernel.know();
        refused
    }

    /// Virtual addresses with the services that they lead to. Where there are many, the table is read in its own order: to
    /// look for one after another in the order of addresses takes longer.
    fn owned(&self, frontends: &[Frontend]) -> Vec<Owned<'_>> {
        if frontends.len() >= PART {
            return self.many_owned(frontends);
        }
        let owner = |frontend: &Frontend| {
            let key = self.owners.get(frontend)?;
            Some((key, self.table.read().service(key)?))
        };
        frontends.iter().map(|frontend| (*frontend, owner(frontend))).collect()
    }

    fn many_owned(&self, frontends: &[Frontend]) -> Vec<Owned<'_>> {
        let mut listed: Vec<(Frontend, &ServiceKey, &ServiceSpec)> = Vec::with_capacity(frontends.len());
        for (key, spec) in self.table.read().services() {
            let listeners = spec.listeners.iter();
            listed.extend(listeners.map(|address| (frontend(key.protocol, *address), key, spec)));
        }
        listed.sort_unstable_by_key(|(each, ..)| *each);
        let owner = |frontend: &Frontend| {
            let owner = self.owners.get(frontend)?;
            let first = listed.partition_point(|(each, ..)| each < frontend);
            let at_address = listed[first..].iter().take_while(|(each, ..)| each == frontend);
            let (_, _, spec) = at_address.into_iter().find(|(_, key, _)| **key == **owner)?;
            Some((owner, *spec))
        };
        frontends.iter().map(|frontend| (*frontend, owner(frontend))).collect()
    }

    /// Makes an address lead where its service says, or nowhere.
    fn settle(
        &self,
        kernel: &mut Kernel,
        writer: &mut Writer<'_, '_>,
        (frontend, owner): Owned<'_>,
        change: &mut Change,
        refused: &mut Unwritten,
    ) {
        let Some((_, spec)) = owner else {
            change.writes.extend(kernel.remove(&frontend));
            return;
        };
        let mut put = |kernel: &mut Kernel| -> Result<Vec<MapWrite>, NoRoom> {
            let (writes, new) = kernel.put(frontend, candidates(&frontend, spec), spec.policy);
            change.starting.extend(new.into_iter().map(|place| (frontend, place)));
            writes
        };
        let writes = put(kernel).or_else(|no_room| {
            if !kernel.table.awaits_release(no_room.map) {
                return Err(no_room);
            }
            // What the writes so far remove makes room once they are made.
            writer.write(std::mem::take(&mut change.writes));
            kernel.table.release();
            put(kernel)
        });
        match writes {
            Ok(writes) => change.writes.extend(writes),
            Err(no_room) => drop(refused.insert(frontend, kernel::failure(&frontend, &no_room))),
        }
    }

    /// Closes the counters of an address whose endpoints are gone. Returns the endpoints that are gone and could not be taken
    /// away.
    fn close_accounts(
        &self,
        table: &KernelTable,
        (frontend, mut before): Before,
        is_refused: bool,
        change: &mut Change,
    ) -> Vec<SocketAddr> {
        let mut lost = Vec::new();
        for (counter, place) in table.counters(&frontend) {
            let is_gone = |place: &Place| is_refused && change.gone.contains(&SocketAddr::from(*place));
            lost.extend(place.filter(is_gone).map(SocketAddr::from));
            before.remove(&counter);
        }
        for (counter, place) in before {
            self.usage.ledger().close(counter);
            let Some(place) = place else { continue };
            // With an address of a former process goes whoever is behind it.
            if self.has_leftovers || change.gone.contains(&place.into()) {
                change.dead.insert((frontend, place), counter);
            }
        }
        lost
    }

    /// What a former process or another version has left goes when the first view is in effect.
    fn remove_leftovers(&mut self, has_failures: bool) {
        self.has_leftovers &= has_failures;
        let memory = self.usage.memory();
        let kernel = self.kernel.lock();
        self.older.retain(|layout| match older_layout::replace(layout, memory, &kernel.table) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, path = %layout.display(), "Cannot replace the programs of another version");
                true
            }
        });
    }

    /// Finds what drains in the services that operations were for.
    fn find_draining(&mut self, ops: &[Op]) {
        let begins = |op: &Op| match op {
            Op::AddEndpoint { spec, .. } | Op::SetEndpoint { spec, .. } => spec.state == RouteState::Draining,
            _ => false,
        };
        let services: BTreeSet<&ServiceKey> = ops
            .iter()
            .filter(|op| begins(op) || self.draining.contains_key(op.service()))
            .map(Op::service)
            .collect();
        for key in services {
            let draining = self.table.read().service(key).map(|spec| self.draining_of(key, spec));
            match draining.filter(|draining| !draining.is_empty()) {
                Some(draining) => drop(self.draining.insert(key.clone(), draining)),
                None => drop(self.draining.remove(key)),
            }
        }
    }

    fn draining_of(&self, key: &ServiceKey, spec: &ServiceSpec) -> Draining {
        let mut draining = Draining::new();
        for (id, _) in spec.endpoints.iter().filter(|(_, each)| each.state == RouteState::Draining) {
            let counter = |address: &SocketAddr| {
                self.kernel.lock().table.counter(&frontend(key.protocol, *address), &id.address.into())
            };
            let counters = spec.listeners.iter().filter_map(counter);
            draining.entry(id.task.clone()).or_default().extend(counters);
        }
        draining
    }
}

impl Dataplane for Ebpf {
    fn read(&self) -> &mesonet_lb_plan::RouteTable {
        self.table.read()
    }

    async fn apply(&mut self, ops: &[Op]) -> BTreeMap<ServiceKey, String> {
        let mut change = Change::default();
        self.note(ops, &mut change);
        let failures = self.settle_all(&mut change);
        self.remove_leftovers(!failures.is_empty());
        self.find_draining(ops);
        let draining = self.draining.values().flatten();
        let mut tasks = Draining::new();
        for (task, counters) in draining {
            tasks.entry(task.clone()).or_default().extend(counters);
        }
        self.usage.watch(tasks);
        if !change.dead.is_empty() {
            self.usage.end(change.dead).await;
        }
        failures
    }

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.usage.busy()
    }

    fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        let listeners = self.table.read().service(service).map(|spec| &spec.listeners).into_iter().flatten();
        let place = Place::from(endpoint.address);
        let frontends = listeners.map(|address| frontend(service.protocol, *address));
        let kernel = self.kernel.lock();
        let counters: Vec<u32> =
            frontends.filter_map(|frontend| kernel.table.counter(&frontend, &place)).collect();
        drop(kernel);
        let ledger = self.usage.ledger();
        counters.into_iter().fold(EndpointCount::default(), |total, counter| {
            let count = ledger.count(counter);
            EndpointCount {
                connections: total.connections + count.connections.saturating_sub(count.failures),
                active: total.active + count.connections.saturating_sub(count.ended),
                failures: total.failures + count.failures,
            }
        })
    }

    fn take_failed(&mut self) -> BTreeSet<(ServiceKey, EndpointId)> {
        let failed = self.usage.ledger().take_failed();
        let table = self.table.read();
        let ids = failed.iter().flat_map(|(service, address)| {
            let endpoints = table.service(service).into_iter().flat_map(|spec| spec.endpoints.keys());
            let of_address = endpoints.filter(move |id| id.address == *address);
            of_address.map(move |id| (service.as_ref().clone(), id.clone()))
        });
        ids.collect()
    }
}

fn all_counters(kernel: &KernelTable) -> BTreeSet<u32> {
    kernel.frontends().flat_map(|frontend| kernel.counters(frontend)).map(|(counter, _)| counter).collect()
}

/// Whether any of these may be of a connection rather than of datagrams.
fn has_connections(origins: &WordMap<Flow, Origin>, table: &KernelTable) -> io::Result<bool> {
    let places: BTreeSet<Place> =
        table.frontends().filter(|each| each.protocol == u32::from(TCP)).map(|each| each.place).collect();
    Ok(!places.is_empty() && origins.all()?.iter().any(|(_, origin)| places.contains(&origin.place)))
}

fn frontend(protocol: Protocol, address: SocketAddr) -> Frontend {
    Frontend { place: Place::from(address), protocol: number(protocol) }
}

/// The number of the protocol in the maps.
fn number(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => TCP.into(),
        Protocol::Udp => UDP.into(),
    }
}

/// The endpoints that clients of an address can reach: one that is connected to an IPv4 address has no way to IPv6.
fn candidates(frontend: &Frontend, spec: &ServiceSpec) -> BTreeSet<Candidate> {
    let weight = |state, weight| (state == RouteState::Ready).then_some(weight);
    let is_reachable = |id: &EndpointId| id.address.is_ipv4() || !frontend.place.is_ipv4();
    spec.endpoints
        .iter()
        .filter(|(id, _)| is_reachable(id))
        .map(|(id, each)| Candidate { place: id.address.into(), weight: weight(each.state, each.weight) })
        .collect()
}
