//! Socket balancing in the kernel: hooks of a cgroup choose an endpoint once per connection, and no packet is touched.
//!
//! The kernel does everything that happens per connection; this side keeps its maps equal to the table, ends
//! connections to dead endpoints, and tells which draining ones are still in use.

mod bpf_call;
mod maps;
mod programs;
mod sockets;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use mesonet_ebpf_abi::{Frontend, Place};
use mesonet_lb_plan::{Candidate, KernelTable, Op, RouteState, ServiceSpec};
use mesonet_model::{Protocol, ServiceKey, TaskKey};
use thiserror::Error;
use tokio::sync::watch;

use crate::tracked_table::TrackedTable;
use crate::{Dataplane, Metrics};
use maps::Maps;
use usage::Usage;

pub use programs::cleanup;

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
    /// Nothing can be pinned there.
    #[error("cannot use {} to pin programs (mount it with: mount -t bpf bpf DIR)", path.display())]
    Pins {
        /// The path.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Something cannot be pinned.
    #[error("cannot pin {} (is a BPF file system mounted there? mount -t bpf bpf DIR)", path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// The kernel's words.
        source: PinError,
    },
    /// The object or its maps are refused.
    #[error("cannot load the eBPF programs (they need CAP_BPF and CAP_NET_ADMIN, and Linux 5.8 or later)")]
    Load(#[source] aya::EbpfError),
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
    maps: Maps,
    kernel: KernelTable,
    table: TrackedTable,
    /// Which service each virtual address leads to.
    owners: BTreeMap<Frontend, ServiceKey>,
    usage: Arc<Usage>,
    /// Whether virtual addresses of a former process may be left in the maps.
    has_leftovers: bool,
}

impl Ebpf {
    /// Loads the programs, or takes over those of a former process. What its maps hold stays in effect until the
    /// first view is applied. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(settings: &EbpfSettings, metrics: &Metrics) -> Result<Self, EbpfError> {
        let (mut maps, origins) = programs::attach(&settings.bpffs, &settings.cgroup)?;
        let (kernel, garbage) = maps.read().map_err(EbpfError::Map)?;
        for write in &garbage {
            maps.write(write).map_err(EbpfError::Map)?;
        }
        let found = kernel.frontends().count();
        tracing::info!(
            cgroup = %settings.cgroup.display(), found, "Balancing sockets in the kernel"
        );
        let usage = Usage::start(origins);
        let has_leftovers = found > 0;
        let table = TrackedTable::new(metrics);
        Ok(Self { maps, kernel, table, owners: BTreeMap::new(), usage, has_leftovers })
    }

    /// Makes an address lead where its service says, or nowhere.
    fn settle(&mut self, frontend: Frontend) -> Result<(), MapError> {
        let service = self.owners.get(&frontend).and_then(|key| self.table.read().service(key));
        let writes = match service {
            Some(spec) => self.kernel.put(frontend, &candidates(spec)),
            None => self.kernel.remove(&frontend),
        };
        let written = writes.iter().try_for_each(|write| self.maps.write(write));
        if written.is_err() {
            self.read_again();
        }
        written
    }

    /// After a write that failed, the maps are asked what they hold.
    fn read_again(&mut self) {
        match self.maps.read() {
            Ok((kernel, garbage)) => {
                self.kernel = kernel;
                for write in &garbage {
                    if let Err(error) = self.maps.write(write) {
                        tracing::warn!(%error, ?write, "Cannot remove what no service needs");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "Cannot read the maps of the eBPF programs"),
        }
    }

    /// Addresses of a former process that no service has any more.
    fn remove_leftovers(&mut self) {
        self.has_leftovers = false;
        let left: Vec<Frontend> =
            self.kernel.frontends().filter(|frontend| !self.owners.contains_key(frontend)).copied().collect();
        for frontend in left {
            if let Err(error) = self.settle(frontend) {
                tracing::warn!(%error, "Cannot remove a virtual address of a former process");
                self.has_leftovers = true;
            }
        }
    }

    fn draining(&self) -> BTreeMap<SocketAddr, BTreeSet<TaskKey>> {
        let mut draining: BTreeMap<SocketAddr, BTreeSet<TaskKey>> = BTreeMap::new();
        for (_, spec) in self.table.read().services() {
            for (id, _) in spec.endpoints.iter().filter(|(_, spec)| spec.state == RouteState::Draining) {
                draining.entry(id.address).or_default().insert(id.task.clone());
            }
        }
        draining
    }
}

impl Dataplane for Ebpf {
    fn read(&self) -> &mesonet_lb_plan::RouteTable {
        self.table.read()
    }

    async fn apply(&mut self, ops: &[Op]) -> BTreeMap<ServiceKey, String> {
        let mut touched: BTreeSet<Frontend> = BTreeSet::new();
        let mut dead: BTreeSet<SocketAddr> = BTreeSet::new();
        for op in ops {
            let key = op.service();
            if let Some(spec) = self.table.read().service(key) {
                touched.extend(spec.listeners.iter().map(|address| frontend(key.protocol, *address)));
            }
            match op {
                Op::RemoveEndpoint { endpoint, .. } => drop(dead.insert(endpoint.address)),
                Op::OpenListener { address, .. } => {
                    touched.insert(frontend(key.protocol, *address));
                    self.owners.insert(frontend(key.protocol, *address), key.clone());
                }
                Op::CloseListener { address, .. } => {
                    let closed = frontend(key.protocol, *address);
                    if self.owners.get(&closed) == Some(key) {
                        self.owners.remove(&closed);
                    }
                }
                Op::AddEndpoint { .. } | Op::SetEndpoint { .. } | Op::SetPolicy { .. } => {}
            }
            self.table.apply(op);
        }
        let mut failures = BTreeMap::new();
        for frontend in touched {
            if let Err(error) = self.settle(frontend)
                && let Some(key) = self.owners.get(&frontend)
            {
                failures.insert(
                    key.clone(),
                    format!("cannot write {}: {error}", SocketAddr::from(frontend.place)),
                );
            }
        }
        if self.has_leftovers {
            self.remove_leftovers();
        }
        self.usage.watch(self.draining());
        if !dead.is_empty() {
            self.usage.end(dead).await;
        }
        failures
    }

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.usage.busy()
    }
}

fn frontend(protocol: Protocol, address: SocketAddr) -> Frontend {
    let protocol = match protocol {
        Protocol::Tcp => mesonet_ebpf_abi::TCP,
        Protocol::Udp => mesonet_ebpf_abi::UDP,
    };
    Frontend { place: Place::from(address), protocol: protocol.into() }
}

fn candidates(spec: &ServiceSpec) -> BTreeSet<Candidate> {
    let weight = |state, weight| (state == RouteState::Ready).then_some(weight);
    spec.endpoints
        .iter()
        .map(|(id, each)| Candidate { place: id.address.into(), weight: weight(each.state, each.weight) })
        .collect()
}
