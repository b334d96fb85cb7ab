//! The master's end of the bus for nodes elsewhere.
//!
//! Tasks: one that accepts connections and one that looks after certificates, which end with the server; and for as
//! long as the master leads or stands by, one per connection, one that remembers views, and one that carries commands
//! to agents. When that changes, every connection ends, and nodes connect anew to whom they are sent.

mod admission;
mod connection;
mod duty;
mod registry;
mod standbys;
mod stats;
mod view_frames;

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId, AgentReport};
use quinn::{Endpoint, Incoming, VarInt};
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::client::{Client, RelaySettings, start_relay};
use crate::pki::{self, CertificateError, Holder, TlsError};
use crate::plane_paths::PlanePaths;
use crate::reason::Reason;
use crate::wire::FromMaster;
use crate::{
    Authority, AuthorityError, Feed, FileFailure, FilePiece, FileQuestion, IdentityError, NodeName, Role,
    clock, files, transport,
};
use duty::{Duty, Standing};
use registry::{Newcomer, Registry};
use standbys::Standbys;
use stats::Counters;
use view_frames::ViewFrames;

pub use duty::LeaderAddress;
pub use standbys::StandbyState;
pub use stats::ServerStats;

/// Connections that have not said who they are. Beyond, new ones are refused and try again: a thousand nodes that
/// come back at once are let in within seconds.
pub const NEWCOMERS_MAX: usize = 512;

/// Nodes that join at the same time; each costs a signature and a few writes.
pub const JOINING_MAX: usize = 16;

/// Commands that wait for one agent to take them. An agent that lets so many gather is cut off; when it comes back,
/// the master repeats what counts.
pub const COMMANDS_MAX: usize = 4096;

/// How many times a leader's control plane is told which nodes are revoked: what they have said until they were cut off
/// may come after the first time.
const REVOCATION_TIMES: u32 = 3;

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
    /// The leader cannot be followed.
    #[error("cannot follow the leader")]
    Relay(#[from] IdentityError),
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
    house: Arc<House>,
    hall: watch::Sender<Arc<Hall>>,
    /// What lasts as long as the present duty.
    shift: Mutex<Shift>,
    tasks: JoinSet<()>,
}

/// What outlasts each duty.
#[derive(Debug)]
struct House {
    settings: ServerSettings,
    authority: Authority,
    /// Views are the same whoever has published them, so that a node that connects anew gets what has changed.
    frames: ViewFrames,
    counters: Counters,
    newcomers: Arc<Semaphore>,
    joining: Semaphore,
}

/// What all connections of one duty share.
#[derive(Debug)]
struct Hall {
    house: Arc<House>,
    duty: Duty,
    feed: Feed,
    registry: Mutex<Registry>,
    /// What is known of planes by each connection, of their node or of a master that stands by. Held until what follows
    /// is on its way to the control plane, so that it gets there in its order.
    paths: AsyncMutex<PlanePaths<usize>>,
    standbys: Standbys,
    /// Set when the duty is over: where nodes are sent, if anywhere.
    over: watch::Sender<Option<Option<String>>>,
}

/// The tasks of one duty.
#[derive(Debug)]
struct Shift {
    _tasks: JoinSet<()>,
    /// Of a master that stands by, its connection to the leader.
    _relay: Option<Client>,
}

impl Server {
    /// Listens and serves as a leader. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be used, or the authority's files cannot.
    pub fn start(
        settings: ServerSettings,
        authority: Authority,
        ends: MasterEnds,
    ) -> Result<Self, ServerError> {
        let house = House::new(settings, authority);
        let (hall, shift) = house.lead(None, ends)?;
        Self::open(house, hall, shift)
    }

    /// Listens and serves as a master that stands by. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_standing(
        settings: ServerSettings,
        authority: Authority,
        leader: watch::Receiver<Option<LeaderAddress>>,
    ) -> Result<Self, ServerError> {
        let house = House::new(settings, authority);
        let (hall, shift) = house.stand_by(leader)?;
        Self::open(house, hall, shift)
    }

    fn open(house: Arc<House>, hall: Arc<Hall>, shift: Shift) -> Result<Self, ServerError> {
        let settings = &house.settings;
        let (config, renew_at) = server_config(settings, &house.authority)?;
        let listen = |source| ServerError::Listen { address: settings.listen, source };
        let endpoint = Endpoint::server(config, settings.listen).map_err(listen)?;
        let address = endpoint.local_addr().map_err(listen)?;
        let revocations = house.authority.revocations()?;
        let (hall, current) = watch::channel(hall);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(current.clone(), endpoint.clone()));
        tasks.spawn(look_after_certificates(current, endpoint.clone(), revocations, renew_at));
        Ok(Self { endpoint, address, house, hall, shift: Mutex::new(shift), tasks })
    }

    /// From now on this master leads. Every connection ends; its node is sent here again.
    ///
    /// # Errors
    /// When the authority's files cannot be used.
    pub fn lead(&self, term: u64, ends: MasterEnds, own: &LeaderAddress) -> Result<(), ServerError> {
        let (hall, shift) = self.house.lead(Some(term), ends)?;
        self.change(hall, shift, Some(own.bus.clone()));
        Ok(())
    }

    /// From now on another master leads, which is followed as soon as it is known. Every connection ends.
    ///
    /// # Errors
    /// When the leader cannot be followed.
    pub fn stand_by(&self, leader: watch::Receiver<Option<LeaderAddress>>) -> Result<(), ServerError> {
        let (hall, shift) = self.house.stand_by(leader)?;
        self.change(hall, shift, None);
        Ok(())
    }

    fn change(&self, hall: Arc<Hall>, shift: Shift, elsewhere: Option<String>) {
        let before = self.hall.send_replace(hall);
        *self.shift.lock().unwrap_or_else(PoisonError::into_inner) = shift;
        before.over.send_replace(Some(elsewhere));
    }

    fn hall(&self) -> Arc<Hall> {
        self.hall.borrow().clone()
    }

    /// The masters that stand by and are connected here.
    pub fn standbys(&self) -> Vec<StandbyState> {
        self.hall().standbys.list()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters.
    pub fn stats(&self) -> ServerStats {
        let mut stats = self.house.counters.read();
        for (_, role) in self.connected() {
            *stats.connections.entry(role).or_default() += 1;
        }
        stats.relayed_planes = self.standbys().iter().map(|standby| standby.planes as u64).sum();
        stats.newcomers = (NEWCOMERS_MAX - self.house.newcomers.available_permits()) as u64;
        stats.encodings = self.house.frames.encodings();
        stats
    }

    /// The nodes that are connected, and as what.
    pub fn connected(&self) -> Vec<(NodeName, Role)> {
        self.hall().registry().links().into_iter().map(|(node, role, _)| (node, role)).collect()
    }

    /// Has an agent read a file of one of its tasks.
    ///
    /// # Errors
    /// When there is no such file, or the agent is not connected here or does not answer.
    pub async fn read_file(
        &self,
        agent: &AgentId,
        question: &FileQuestion,
    ) -> Result<FilePiece, FileFailure> {
        let link = self.hall().registry().agent_link(agent);
        match link {
            Some(link) => files::ask(&link.connection, question).await,
            None => Err(FileFailure::Away),
        }
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

impl House {
    fn new(settings: ServerSettings, authority: Authority) -> Arc<Self> {
        Arc::new(Self {
            settings,
            authority,
            frames: ViewFrames::new(),
            counters: Counters::default(),
            newcomers: Arc::new(Semaphore::new(NEWCOMERS_MAX)),
            joining: Semaphore::new(JOINING_MAX),
        })
    }

    fn hall(self: &Arc<Self>, duty: Duty, feed: Feed) -> Result<Arc<Hall>, ServerError> {
        let mut registry = Registry::default();
        // Another master may have led meanwhile, and written who runs where.
        for node in self.authority.nodes()? {
            if let Some(agent) = &node.agent {
                registry.bind(agent, &node.name);
            }
        }
        Ok(Arc::new(Hall {
            house: self.clone(),
            duty,
            feed,
            registry: Mutex::new(registry),
            paths: AsyncMutex::default(),
            standbys: Standbys::default(),
            over: watch::Sender::new(None),
        }))
    }

    fn lead(
        self: &Arc<Self>,
        term: Option<u64>,
        ends: MasterEnds,
    ) -> Result<(Arc<Hall>, Shift), ServerError> {
        let hall = self.hall(Duty::Leading { term, reports: ends.reports }, ends.feed)?;
        let mut tasks = self.follow(&hall.feed);
        tasks.spawn(carry_commands(hall.clone(), ends.commands));
        Ok((hall, Shift { _tasks: tasks, _relay: None }))
    }

    fn stand_by(
        self: &Arc<Self>,
        mut leader: watch::Receiver<Option<LeaderAddress>>,
    ) -> Result<(Arc<Hall>, Shift), ServerError> {
        let (views, feed, reports) = crate::channel();
        let known = self.frames.newest().map(|view| view.as_ref().clone());
        if let Some(known) = &known {
            views.publish(known.clone());
        }
        let bus = |leader: &Option<LeaderAddress>| leader.as_ref().map(|leader| leader.bus.clone());
        let (address_in, address) = watch::channel(bus(&leader.borrow_and_update()));
        let settings = RelaySettings {
            authority: self.authority.clone(),
            name: self.settings.name.clone(),
            certificate_lifetime: self.settings.certificate_lifetime,
            idle_timeout: self.settings.idle_timeout,
            leader: address,
        };
        let relay = start_relay(settings, known, views, reports)?;
        let standing =
            Standing { leader: leader.clone(), link: relay.state(), patience: self.settings.idle_timeout };
        let hall = self.hall(Duty::Standing(standing), feed)?;
        let mut tasks = self.follow(&hall.feed);
        tasks.spawn(async move {
            while leader.changed().await.is_ok() {
                address_in.send_replace(bus(&leader.borrow_and_update()));
            }
        });
        Ok((hall, Shift { _tasks: tasks, _relay: Some(relay) }))
    }

    fn follow(self: &Arc<Self>, feed: &Feed) -> JoinSet<()> {
        let (house, feed) = (self.clone(), feed.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { house.frames.follow(feed).await });
        tasks
    }
}

impl Hall {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the duty is over. Returns where nodes are sent.
    async fn over(&self) -> Option<String> {
        let mut over = self.over.subscribe();
        let over = over.wait_for(Option::is_some).await;
        over.ok().and_then(|elsewhere| elsewhere.clone().flatten())
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

async fn accept(hall: watch::Receiver<Arc<Hall>>, endpoint: Endpoint) {
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

fn admit(hall: &watch::Receiver<Arc<Hall>>, incoming: Incoming, connections: &mut JoinSet<()>) {
    let hall = hall.borrow().clone();
    let house = &hall.house;
    let Ok(newcomer) = house.newcomers.clone().try_acquire_owned() else {
        house.counters.refused(Reason::Busy);
        return incoming.refuse();
    };
    // Under pressure a peer must first show that its address is its own.
    let is_crowded = house.newcomers.available_permits() < NEWCOMERS_MAX / 2;
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
        let is_outdated = is_registration && note_registration(&hall, &agent);
        let link = hall.registry().agent_link(&agent);
        match link {
            Some(link) => {
                // What it has said meanwhile was not passed on.
                let again = is_outdated.then_some(AgentCommand::Reregister);
                let mut commands = iter::once(command).chain(again).map(FromMaster::Command);
                if commands.any(|command| link.commands.try_send(command).is_err()) {
                    connection::cut(&hall, &link.connection, Reason::TooSlow, "the agent takes no commands");
                }
            }
            None => {
                hall.house.counters.count(|stats| stats.undeliverable += 1);
                if is_registration {
                    tell_loss(&hall, agent);
                }
            }
        }
    }
}

/// Finds out on which node a newly registered agent runs, and keeps that. Returns whether the agent is to register again.
fn note_registration(hall: &Arc<Hall>, agent: &AgentId) -> bool {
    let view = hall.feed.newest();
    let Some(newcomer) = hall.registry().registered(agent, view.as_deref()) else { return false };
    let Newcomer { node, is_outdated } = newcomer;
    let (hall, agent) = (hall.clone(), agent.clone());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = hall.house.authority.bind_agent(&node, &agent) {
            tracing::error!(%error, %node, "Cannot keep which agent runs on a node");
        }
    });
    is_outdated
}

/// An agent has gone before it was registered: the master must know that it is not there.
fn tell_loss(hall: &Arc<Hall>, agent: AgentId) {
    let Some(turn) = hall.registry().agent_turn(&agent) else { return };
    // If it is back, its own connection tells the rest.
    let Ok(turn) = turn.try_lock_owned() else { return };
    let Duty::Leading { reports, .. } = &hall.duty else { return };
    let reports = reports.clone();
    tokio::spawn(async move {
        // Fails only when the control plane has ended.
        let _ = reports.send(AgentReport::Disconnected { agent }).await;
        drop(turn);
    });
}

async fn look_after_certificates(
    hall: watch::Receiver<Arc<Hall>>,
    endpoint: Endpoint,
    mut revocations: Option<String>,
    mut renew_at: mesonet_model::Timestamp,
) {
    let mut interval = tokio::time::interval(CERTIFICATES_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut told_of, mut times) = (Weak::new(), None, 0);
    loop {
        interval.tick().await;
        let hall = hall.borrow().clone();
        let house = &hall.house;
        let now = clock::now();
        if renew_at <= now {
            match server_config(&house.settings, &house.authority) {
                Ok((config, at)) => {
                    endpoint.set_server_config(Some(config));
                    renew_at = at;
                }
                Err(error) => tracing::error!(%error, "Cannot renew the master's certificate"),
            }
        }
        match house.authority.revocations() {
            Ok(newest) if newest != revocations => {
                revocations = newest;
                admission::cut_revoked(&hall).await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "Cannot read which nodes are revoked"),
        }
        if !told.ptr_eq(&Arc::downgrade(&hall)) || told_of != revocations {
            // Nothing else can be in its place while there is this reference to it.
            told = Arc::downgrade(&hall);
            told_of.clone_from(&revocations);
            times = REVOCATION_TIMES;
        }
        if times > 0 {
            times -= 1;
            admission::tell_revoked(&hall).await;
        }
        admission::cut_expired(&hall, now);
        connection::cut_unfed(&hall);
    }
}
