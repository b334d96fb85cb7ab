//! The master's end of the bus for nodes elsewhere.
//!
//! Tasks: one that accepts connections, one per connection, one that remembers views, one that carries commands to
//! agents, one that looks after certificates. All end with the server.

mod admission;
mod connection;
mod registry;
mod stats;
mod view_frames;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId, AgentReport};
use quinn::{Endpoint, Incoming, VarInt};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::pki::{self, CertificateError, Holder, TlsError};
use crate::reason::Reason;
use crate::wire::FromMaster;
use crate::{Authority, AuthorityError, Feed, NodeName, Role, clock, transport};
use registry::Registry;
use stats::Counters;
use view_frames::ViewFrames;

pub use stats::ServerStats;

/// Connections that have not said who they are. Beyond, new ones are refused and try again: a thousand nodes that
/// come back at once are let in within seconds.
pub const NEWCOMERS_MAX: usize = 512;

/// Nodes that join at the same time; each costs a signature and a few writes.
pub const JOINING_MAX: usize = 16;

/// Commands that wait for one agent to take them. An agent that lets so many gather is cut off; when it comes back,
/// the master repeats what counts.
pub const COMMANDS_MAX: usize = 4096;

/// How often it is looked whether certificates are revoked or have expired.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(1);

/// The server's settings.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Where nodes connect, UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The master's name in its certificate.
    pub name: NodeName,
    /// A node that is silent for so long is lost. Nodes speak at least four times in that time.
    pub idle_timeout: Duration,
    /// How long a certificate is valid. Nodes renew theirs after two thirds.
    pub certificate_lifetime: Duration,
}

/// What the server joins nodes to.
#[derive(Debug)]
pub struct MasterEnds {
    /// Where views come from and planes' reports go.
    pub feed: Feed,
    /// Where agents' reports go.
    pub reports: mpsc::Sender<AgentReport>,
    /// What agents are told. A command for an agent that is not connected is dropped.
    pub commands: mpsc::Receiver<(AgentId, AgentCommand)>,
}

/// The server cannot start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The authority cannot give the master a certificate.
    #[error("cannot make the master's certificate")]
    Authority(#[from] AuthorityError),
    /// The certificate cannot be used.
    #[error("the master's certificate cannot be used")]
    Certificate(#[from] CertificateError),
    /// The certificate cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be used.
    #[error("cannot listen on {address} (UDP) for nodes")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
}

/// A running server. Dropping it ends every connection.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    address: SocketAddr,
    hall: Arc<Hall>,
    tasks: JoinSet<()>,
}

/// What all connections share.
#[derive(Debug)]
struct Hall {
    settings: ServerSettings,
    authority: Authority,
    feed: Feed,
    reports: mpsc::Sender<AgentReport>,
    frames: ViewFrames,
    registry: Mutex<Registry>,
    counters: Counters,
    newcomers: Arc<Semaphore>,
    joining: Semaphore,
}

impl Server {
    /// Listens and serves. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be used, or the authority's files cannot.
    pub fn start(
        settings: ServerSettings,
        authority: Authority,
        ends: MasterEnds,
    ) -> Result<Self, ServerError> {
        let (config, renew_at) = server_config(&settings, &authority)?;
        let listen = |source| ServerError::Listen { address: settings.listen, source };
        let endpoint = Endpoint::server(config, settings.listen).map_err(listen)?;
        let address = endpoint.local_addr().map_err(listen)?;
        let mut registry = Registry::default();
        for node in authority.nodes()? {
            if let Some(agent) = &node.agent {
                registry.bind(agent, &node.name);
            }
        }
        let hall = Arc::new(Hall {
            settings,
            authority,
            feed: ends.feed,
            reports: ends.reports,
            frames: ViewFrames::new(),
            registry: Mutex::new(registry),
            counters: Counters::default(),
            newcomers: Arc::new(Semaphore::new(NEWCOMERS_MAX)),
            joining: Semaphore::new(JOINING_MAX),
        });
        let revocations = hall.authority.revocations()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(hall.clone(), endpoint.clone()));
        tasks.spawn(carry_commands(hall.clone(), ends.commands));
        tasks.spawn(look_after_certificates(hall.clone(), endpoint.clone(), revocations, renew_at));
        let views = hall.clone();
        tasks.spawn(async move { views.frames.follow(views.feed.clone()).await });
        Ok(Self { endpoint, address, hall, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters.
    pub fn stats(&self) -> ServerStats {
        let mut stats = self.hall.counters.read();
        for (_, role) in self.connected() {
            *stats.connections.entry(role).or_default() += 1;
        }
        stats.newcomers = (NEWCOMERS_MAX - self.hall.newcomers.available_permits()) as u64;
        stats.encodings = self.hall.frames.encodings();
        stats
    }

    /// The nodes that are connected, and as what.
    pub fn connected(&self) -> Vec<(NodeName, Role)> {
        self.hall.registry().links().into_iter().map(|(node, role, _)| (node, role)).collect()
    }

    /// Ends every connection and tells the nodes.
    pub async fn close(mut self) {
        self.end();
        self.endpoint.wait_idle().await;
        self.tasks.shutdown().await;
    }

    fn end(&self) {
        self.endpoint.close(VarInt::from_u32(Reason::Closing.code()), b"the master ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

impl Hall {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A configuration with a new certificate, and when that is to be replaced.
fn server_config(
    settings: &ServerSettings,
    authority: &Authority,
) -> Result<(quinn::ServerConfig, mesonet_model::Timestamp), ServerError> {
    let (certificate, key) = authority.certify_master(&settings.name, settings.certificate_lifetime)?;
    let renew_at = Holder::of(&certificate)?.renew_at();
    let tls = pki::server_config(authority.certificate(), certificate, key)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport::of_master(settings.idle_timeout)));
    Ok((config, renew_at))
}

async fn accept(hall: Arc<Hall>, endpoint: Endpoint) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(&hall, incoming, &mut connections),
                None => return,
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "BUG: a connection's task has failed");
                }
            }
        }
    }
}

fn admit(hall: &Arc<Hall>, incoming: Incoming, connections: &mut JoinSet<()>) {
    let Ok(newcomer) = hall.newcomers.clone().try_acquire_owned() else {
        hall.counters.refused(Reason::Busy);
        return incoming.refuse();
    };
    // Under pressure a peer must first show that its address is its own.
    let is_crowded = hall.newcomers.available_permits() < NEWCOMERS_MAX / 2;
    if is_crowded && !incoming.remote_address_validated() {
        // Only fails for addresses that are validated.
        let _ = incoming.retry();
        return;
    }
    connections.spawn(connection::serve(hall.clone(), incoming, newcomer));
}

async fn carry_commands(hall: Arc<Hall>, mut commands: mpsc::Receiver<(AgentId, AgentCommand)>) {
    while let Some((agent, command)) = commands.recv().await {
        let is_registration = matches!(command, AgentCommand::Registered { .. });
        if is_registration {
            note_registration(&hall, &agent);
        }
        let link = hall.registry().agent_link(&agent);
        match link {
            Some(link) => {
                if link.commands.try_send(FromMaster::Command(command)).is_err() {
                    connection::cut(&hall, &link.connection, Reason::TooSlow, "the agent takes no commands");
                }
            }
            None => {
                hall.counters.count(|stats| stats.undeliverable += 1);
                if is_registration {
                    tell_loss(&hall, agent);
                }
            }
        }
    }
}

/// Finds out on which node a newly registered agent runs, and keeps that.
fn note_registration(hall: &Arc<Hall>, agent: &AgentId) {
    let view = hall.feed.newest();
    let Some(node) = hall.registry().registered(agent, view.as_deref()) else { return };
    let (hall, agent) = (hall.clone(), agent.clone());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = hall.authority.bind_agent(&node, &agent) {
            tracing::error!(%error, %node, "Cannot keep which agent runs on a node");
        }
    });
}

/// An agent has gone before it was registered: the master must know that it is not there.
fn tell_loss(hall: &Arc<Hall>, agent: AgentId) {
    let Some(turn) = hall.registry().agent_turn(&agent) else { return };
    // If it is back, its own connection tells the rest.
    let Ok(turn) = turn.try_lock_owned() else { return };
    let hall = hall.clone();
    tokio::spawn(async move {
        // Fails only when the control plane has ended.
        let _ = hall.reports.send(AgentReport::Disconnected { agent }).await;
        drop(turn);
    });
}

async fn look_after_certificates(
    hall: Arc<Hall>,
    endpoint: Endpoint,
    mut revocations: Option<String>,
    mut renew_at: mesonet_model::Timestamp,
) {
    let mut interval = tokio::time::interval(CERTIFICATES_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = clock::now();
        if renew_at <= now {
            match server_config(&hall.settings, &hall.authority) {
                Ok((config, at)) => {
                    endpoint.set_server_config(Some(config));
                    renew_at = at;
                }
                Err(error) => tracing::error!(%error, "Cannot renew the master's certificate"),
            }
        }
        match hall.authority.revocations() {
            Ok(newest) if newest != revocations => {
                revocations = newest;
                admission::cut_revoked(&hall).await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "Cannot read which nodes are revoked"),
        }
        admission::cut_expired(&hall, now);
    }
}
