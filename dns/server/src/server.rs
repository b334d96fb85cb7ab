//! The running server.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use mesonet_dns_zone::{ConfigError, Zone, ZoneFollower};
use mesonet_model::{ClusterView, Delta};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::connections::Connections;
use crate::datagram::DatagramSocket;
use crate::encrypted::{Encrypted, EncryptedAddresses, EncryptedConfig, EncryptedError};
use crate::fast::{self, FastZone, FastZones};
use crate::forward::{ForwardConfig, ForwardError, Forwarder};
use crate::guard::{Guard, GuardError};
use crate::interfaces::server_addresses;
use crate::limiter::Allowance;
use crate::listener::Listener;
use crate::metrics::{CodeLabel, ConnectionMetrics, ForwardMetrics, KindLabel, Metrics, Transport};
use crate::policy::{FastRights, PolicyConfig};
use crate::query_metrics::ZoneLabel;
use crate::responder::{self, Freshness, Outcome, Sources, Step};
use crate::tcp::{self, Carried};
use crate::{own_address, udp, wire};

/// Most UDP sockets per address. More than there are cores do not help, and each has its receive buffer.
const UDP_WORKERS_MAX: usize = 16;

/// The server's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, UDP and TCP. With port 0 the system chooses one that is free for both.
    pub listen: Vec<SocketAddr>,
    /// The zone.
    pub zone: mesonet_dns_zone::Config,
    /// What becomes of names outside the zone.
    pub forward: ForwardConfig,
    /// Where encrypted connections are accepted.
    pub encrypted: EncryptedConfig,
    /// What clients may ask.
    pub policy: PolicyConfig,
}

impl Config {
    /// The default settings for one address: nothing but the zone is served.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            listen: vec![address],
            zone: mesonet_dns_zone::Config::default(),
            forward: ForwardConfig::default(),
            encrypted: EncryptedConfig::default(),
            policy: PolicyConfig::default(),
        }
    }
}

/// The server cannot start. Nothing is left bound.
#[derive(Debug, Error)]
pub enum StartError {
    /// There is no address to listen on.
    #[error("no address to listen on is configured")]
    NoAddress,
    /// The zone's settings are wrong.
    #[error("the zone's settings are wrong")]
    Zone(#[source] ConfigError),
    /// A socket cannot be bound.
    #[error("cannot listen on {address} ({protocol})")]
    Bind {
        /// The address as configured, or with the port that was tried for port 0.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The settings of forwarding are wrong.
    #[error("names outside the zone cannot be forwarded")]
    Forward(#[source] ForwardError),
    /// The system starts no further thread.
    #[error("cannot start a DNS thread")]
    Thread(#[source] std::io::Error),
    /// Encrypted connections cannot be accepted.
    #[error("cannot serve DNS over TLS, HTTPS or QUIC")]
    Encrypted(#[from] EncryptedError),
    /// The rules for clients cannot be used.
    #[error("the rules for clients cannot be used")]
    Policy(#[source] GuardError),
    /// The registry has metrics of these names already.
    #[error("cannot register the DNS metrics")]
    Metrics(#[source] prometheus::Error),
}

/// A running server. Stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    encrypted: EncryptedAddresses,
    follower: ZoneFollower,
    fast: FastZones,
    shared: Arc<Shared>,
    /// Every task watches it and ends when it is gone.
    _running: watch::Sender<()>,
    _threads: Threads,
}

/// The zone that is served at any time.
#[derive(Debug, Clone)]
pub struct ServedZone(Arc<Shared>);

impl ServedZone {
    /// As of now.
    pub fn now(&self) -> Arc<Zone> {
        self.0.zone.load_full()
    }
}

/// What all tasks read.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) zone: ArcSwap<Zone>,
    pub(crate) fast: ArcSwap<FastZone>,
    stopping: AtomicBool,
    pub(crate) stale: AtomicBool,
    pub(crate) forwarder: Option<Arc<Forwarder>>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) guard: Guard,
    /// What every client may ask on the fast path, if that is the same for all.
    pub(crate) fast_for_all: Option<FastRights>,
    pub(crate) metrics: Metrics,
}

/// What the metrics have to know of a query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    zone: ZoneLabel,
    client: IpAddr,
    transport: Transport,
    received: Instant,
}

/// What goes back to the client.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// This.
    Send(Vec<u8>),
    /// This, and then nothing else: who sends such messages is not understood.
    SendAndClose(Vec<u8>),
    /// Nothing.
    Close,
}

impl Shared {
    /// Answers a message, if that needs no waiting.
    pub(crate) fn respond(&self, packet: &[u8], client: IpAddr, transport: Transport) -> Step {
        let zone = self.zone.load();
        let sources = Sources {
            zone: &zone,
            freshness: self.freshness(),
            forwarder: self.forwarder.as_ref(),
            guard: &self.guard,
            client,
        };
        responder::respond(&sources, packet, transport)
    }

    /// Whether names that do not exist may be those of a search list.
    pub(crate) fn collapses(&self) -> bool {
        self.forwarder.as_ref().is_some_and(|forwarder| !forwarder.search().is_empty())
    }

    /// What the metrics have to know of a query.
    pub(crate) fn asked(
        &self,
        packet: &[u8],
        client: IpAddr,
        transport: Transport,
        received: Instant,
    ) -> Asked {
        Asked { zone: self.fast.load().label_of(packet), client, transport, received }
    }

    /// Counts what was done about a message, and says what goes back.
    pub(crate) fn counted(&self, outcome: Outcome, asked: Asked) -> Verdict {
        match outcome {
            Outcome::Answer { message, kind, code, is_proven } => {
                let Asked { zone, client, transport, received } = asked;
                self.metrics.queries.answered(zone, kind, code, transport, received.elapsed());
                if transport != Transport::Udp || is_proven {
                    return Verdict::Send(message);
                }
                self.limited(message, client, code, received)
            }
            Outcome::Malformed(reply) => {
                self.metrics.malformed();
                reply.map_or(Verdict::Close, Verdict::SendAndClose)
            }
            Outcome::Ignore => Verdict::Close,
        }
    }

    /// Counts a zone that was transferred.
    pub(crate) fn transferred(&self, asked: Asked) {
        let Asked { zone, transport, received, .. } = asked;
        let (kind, code) = (KindLabel::Axfr, CodeLabel::NoError);
        self.metrics.queries.answered(zone, kind, code, transport, received.elapsed());
    }

    /// What of an answer over UDP may go back.
    fn limited(&self, message: Vec<u8>, client: IpAddr, code: CodeLabel, now: Instant) -> Verdict {
        let Some(limiter) = &self.guard.limiter else {
            return Verdict::Send(message);
        };
        let allowance = limiter.allow(client, code, now);
        self.metrics.limited(allowance);
        match allowance {
            Allowance::Send => Verdict::Send(message),
            Allowance::Cut => wire::cut(&message).map_or(Verdict::Close, Verdict::Send),
            Allowance::Drop => Verdict::Close,
        }
    }

    /// How old what is served is.
    fn freshness(&self) -> Freshness {
        if self.is_stale() { Freshness::Stale } else { Freshness::Current }
    }

    /// Whether what is served may be out of date.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Whether the threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Server {
    /// Binds all sockets and starts to answer: SERVFAIL until the first view is applied.
    pub async fn start(config: Config, metrics: &prometheus::Registry) -> Result<Self, StartError> {
        if config.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        let own = server_addresses(&config.listen);
        let follower = ZoneFollower::new(&config.zone, &own).map_err(StartError::Zone)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let listeners = config
            .listen
            .iter()
            .map(|address| Listener::bind(*address, cores.min(UDP_WORKERS_MAX)))
            .collect::<Result<Vec<Listener>, StartError>>()?;
        let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address).collect();
        own_address::refuse_loops(&config.forward, &addresses).map_err(StartError::Forward)?;
        let forward_metrics = ForwardMetrics::register(metrics).map_err(StartError::Metrics)?;
        let forwarder = Forwarder::new(&config.forward, forward_metrics).map_err(StartError::Forward)?;
        let encrypted = Encrypted::bind(&config.encrypted)?;
        let connection_metrics = ConnectionMetrics::register(metrics).map_err(StartError::Metrics)?;
        let metrics = Metrics::register(metrics).map_err(StartError::Metrics)?;
        let mut policy = config.policy;
        if forwarder.is_none() {
            // Without upstream servers all clients are alike, which spares the fast path from looking.
            policy.recursion.clear();
        }
        let guard = Guard::new(&policy).map_err(StartError::Policy)?;
        let shared = Arc::new(Shared {
            zone: ArcSwap::from_pointee(follower.zone()),
            fast: ArcSwap::from_pointee(FastZone::new()),
            stopping: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            forwarder: forwarder.map(Arc::new),
            connections: Connections::new(connection_metrics),
            fast_for_all: guard.policy.fast_for_all(),
            guard,
            metrics,
        });
        let (running, stop) = watch::channel(());
        let mut threads = Threads { shared: shared.clone(), running: Vec::new() };
        for listener in listeners {
            info!(address = %listener.address, workers = listener.udp.len(), "DNS is served");
            for socket in listener.udp {
                let socket = Arc::new(socket);
                let (handed, queue) = mpsc::channel(udp::QUEUE_LENGTH_MAX);
                threads.start(socket.clone(), handed)?;
                tokio::spawn(udp::serve(socket, queue, shared.clone(), stop.clone()));
            }
            tokio::spawn(tcp::serve(listener.tcp, Carried::Plain, shared.clone(), stop.clone()));
        }
        let encrypted_addresses = encrypted.addresses;
        encrypted.serve(&shared, &stop);
        Ok(Self {
            addresses,
            encrypted: encrypted_addresses,
            follower,
            fast: FastZones::new(),
            shared,
            _running: running,
            _threads: threads,
        })
    }

    /// The addresses that are served, with the ports that were chosen for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where encrypted connections are accepted.
    pub fn encrypted_addresses(&self) -> EncryptedAddresses {
        self.encrypted
    }

    /// What is served, for who shows it otherwise than over DNS.
    pub fn served(&self) -> ServedZone {
        ServedZone(self.shared.clone())
    }

    /// How many names have answers that are encoded ahead of time.
    pub fn fast_name_count(&self) -> usize {
        self.fast.served().name_count()
    }

    /// About how much memory these answers take, in octets.
    pub fn fast_octet_count(&self) -> usize {
        self.fast.octet_count()
    }

    /// From now on says with each answer whether it may be out of date (RFC 8914, extended errors 3 and 19).
    pub fn set_stale(&self, stale: bool) {
        self.shared.stale.store(stale, Ordering::Relaxed);
    }

    /// Serves a view from now on. `delta` leads to it from the view applied before (from an empty one the first time).
    ///
    /// Costs as much as what the delta changes. Queries are answered meanwhile.
    pub fn apply(&mut self, view: &ClusterView, delta: &Delta) {
        let started = Instant::now();
        let changed = self.follower.apply(view, delta);
        let zone = self.follower.zone();
        let records = zone.record_count();
        let metrics = &self.shared.metrics;
        self.shared.zone.store(Arc::new(zone.clone()));
        self.fast.follow(&zone, &changed, |apex| metrics.queries.zone(apex), &self.shared.fast);
        metrics.applied(started.elapsed(), records, self.follower.skipped(), &self.fast);
    }
}

/// The threads of the fast path. They end when this is dropped.
#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    running: Vec<(Arc<DatagramSocket>, JoinHandle<()>)>,
}

impl Threads {
    fn start(
        &mut self,
        socket: Arc<DatagramSocket>,
        handed: mpsc::Sender<udp::Handed>,
    ) -> Result<(), StartError> {
        let thread = fast::spawn(socket.clone(), self.shared.clone(), handed).map_err(StartError::Thread)?;
        self.running.push((socket, thread));
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        for (socket, _) in &self.running {
            socket.stop();
        }
        for (_, thread) in self.running.drain(..) {
            // They finish their batches, which takes some microseconds.
            if thread.join().is_err() {
                error!("A DNS thread had panicked");
            }
        }
    }
}
