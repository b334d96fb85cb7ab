//! The data plane that needs no rights: it accepts at the virtual addresses and copies bytes.
//!
//! A few threads, the workers, each run one epoll loop. A worker has a socket of its own at each address (SO_REUSEPORT), its
//! copy of the table and its connections, so that choosing an endpoint takes no lock, and a change of the table is
//! a message that the worker acknowledges: when all have, no connection made from then on follows the old table.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | caller of [`Proxy::apply`] | opens sockets, sends operations, waits for acknowledgements; may be cancelled | |
//! | worker | accepts, connects, copies; carries out operations between two rounds of events | when the proxy is dropped |

mod affinity;
mod connection;
mod descriptor_budget;
mod direction;
mod http_close;
mod introduction;
mod listener;
mod local_tcp;
mod pace;
mod patience;
mod pause_trial;
mod pipe_pool;
mod refusals;
mod routes;
mod shortage;
mod slots;
mod stalls;
mod tcp;
mod token;
mod udp;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use mesonet_lb_plan::{EndpointCount, EndpointId, Op, RouteTable, plan};
use mesonet_model::{Protocol, ServiceKey, TaskKey};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{oneshot, watch};
use tracing::warn;

use self::affinity::Affinities;
use self::descriptor_budget::DescriptorBudget;
use self::listener::{Listener, ListenerSocket};
use self::local_tcp::LocalTcp;
use self::patience::Patience;
use self::worker::{Command, Worker, WorkerSettings};
use crate::busy::Busy;
use crate::ledger::Ledger;
use crate::tracked_table::TrackedTable;
use crate::{Dataplane, Metrics};

pub(crate) use self::listener::ListenError;
pub(crate) use self::refusals::Refusals;

/// More workers than this share the load no better on the machines that the proxy is meant for; the data planes in
/// the kernel serve larger ones.
const WORKERS_MAX: usize = 4;

/// Messages under way to one worker. A caller waits for the answer to one before it sends the next, so only cancelled
/// calls can leave some behind; when the queue is full, the caller blocks until the worker's next round.
const COMMANDS_MAX: usize = 16;

/// Accepts at the virtual addresses and copies bytes between clients and endpoints.
#[derive(Debug)]
pub struct Proxy {
    table: TrackedTable,
    workers: Vec<WorkerHandle>,
    /// The worker of the next UDP service.
    next_worker: usize,
    busy: Busy,
    local_tcp: LocalTcp,
    ledger: Ledger,
    refusals: Refusals,
}

#[derive(Debug)]
struct WorkerHandle {
    commands: Option<mpsc::SyncSender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts the workers.
    ///
    /// # Panics
    /// When the process cannot start threads or open descriptors.
    pub fn start(metrics: &Metrics) -> Self {
        let count = thread::available_parallelism().map_or(1, |count| count.get().min(WORKERS_MAX));
        let budget = DescriptorBudget::of_process().per_worker(count);
        Self::start_workers(metrics, count, budget, Patience::STANDARD)
    }

    fn start_workers(metrics: &Metrics, count: usize, budget: DescriptorBudget, patience: Patience) -> Self {
        let busy = Busy::new();
        let local_tcp = LocalTcp::of_system();
        let affinities = Affinities::default();
        let start = |number| {
            let (metrics, busy, affinities) = (metrics.clone(), busy.clone(), affinities.clone());
            let settings = WorkerSettings { metrics, busy, budget, patience, local_tcp, affinities };
            WorkerHandle::start(number, settings).expect("the proxy's workers can start")
        };
        let workers = (0..count).map(start).collect();
        let ledger = metrics.ledger.clone();
        let table = TrackedTable::new(metrics);
        Self { table, workers, next_worker: 0, busy, local_tcp, ledger, refusals: Refusals::default() }
    }

    /// Makes services what a table says, as far as it can listen for them.
    pub(crate) async fn settle(&mut self, services: &BTreeSet<ServiceKey>, wanted: &RouteTable) {
        let ops = plan(services, wanted, self.table.read());
        self.refusals.forget(services);
        // What fails is in the refusals.
        drop(self.apply(&ops).await);
    }

    /// Where it cannot listen.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The same proxy with another empty table, before it has applied anything.
    pub(crate) fn with_table(self, table: TrackedTable) -> Self {
        Self { table, ..self }
    }

    /// Sends operations to every worker and waits until all have carried them out.
    async fn send(&self, batch: &mut Vec<WorkerOp>) {
        let batch: Arc<[WorkerOp]> = std::mem::take(batch).into();
        if batch.is_empty() {
            return;
        }
        let done: Vec<_> = self.workers.iter().map(|worker| worker.send(batch.clone())).collect();
        for done in done {
            done.await.expect("BUG: a worker of the proxy has ended");
        }
    }

    fn open(&mut self, service: &ServiceKey, address: SocketAddr) -> Result<Listener, ListenError> {
        let socket = match service.protocol {
            Protocol::Tcp => ListenerSocket::tcp(address, self.workers.len(), self.local_tcp)?,
            Protocol::Udp => {
                // One worker has all sessions of a UDP service, or two would answer the same client.
                let worker = self.next_worker;
                self.next_worker = (worker + 1) % self.workers.len();
                ListenerSocket::udp(address, worker)?
            }
        };
        Ok(Listener { service: service.clone(), address, socket: Arc::new(socket) })
    }
}

/// What a worker is told to do.
#[derive(Debug)]
enum WorkerOp {
    /// An operation on an endpoint, or the closing of a listener.
    Route(Op),
    /// Accept at a socket.
    Open(Listener),
}

impl Dataplane for Proxy {
    fn read(&self) -> &RouteTable {
        self.table.read()
    }

    /// A listener is closed by all workers before the next one opens, because that may be at the same address.
    async fn apply(&mut self, ops: &[Op]) -> BTreeMap<ServiceKey, String> {
        let mut failures = BTreeMap::new();
        let mut batch = Vec::new();
        let mut closes = false;
        for op in ops {
            if let Op::OpenListener { service, address } = op {
                if std::mem::take(&mut closes) {
                    self.send(&mut batch).await;
                }
                match self.open(service, *address) {
                    Ok(listener) => batch.push(WorkerOp::Open(listener)),
                    Err(error) => {
                        failures.insert(service.clone(), error.to_string());
                        self.refusals.note(service, *address, error);
                        continue;
                    }
                }
            } else {
                closes |= matches!(op, Op::CloseListener { .. });
                batch.push(WorkerOp::Route(op.clone()));
            }
            self.table.apply(op);
        }
        self.send(&mut batch).await;
        failures
    }

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.busy.watch()
    }

    fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        self.ledger.count(service, endpoint)
    }

    fn take_failed(&mut self) -> BTreeSet<(ServiceKey, EndpointId)> {
        self.ledger.take_failed()
    }
}

impl WorkerHandle {
    fn start(number: usize, settings: WorkerSettings) -> io::Result<Self> {
        let (commands, commands_out) = mpsc::sync_channel(COMMANDS_MAX);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let worker = Worker::new(number, wake.clone(), commands_out, settings)?;
        let thread = thread::Builder::new().name(format!("lb-proxy-{number}")).spawn(move || worker.run())?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    fn send(&self, ops: Arc<[WorkerOp]>) -> oneshot::Receiver<()> {
        let (done, done_out) = oneshot::channel();
        if let Some(commands) = &self.commands
            && commands.send(Command { ops, done }).is_ok()
        {
            self.wake();
        }
        done_out
    }

    fn wake(&self) {
        // The counter being full means that the worker is about to wake up anyway.
        let _already_awake = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Ends the worker with its connections.
impl Drop for WorkerHandle {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("A worker of the proxy has panicked");
        }
    }
}

#[cfg(test)]
mod tests;
