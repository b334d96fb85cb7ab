//! A node's end of the bus.
//!
//! One task keeps one connection to one of the masters. When it ends, the other masters are tried at once, and then
//! again after a wait that grows and differs from node to node. Where several masters are, agents are sent on to the
//! one that leads; network daemons stay where they are let in.

mod attempt;
mod credentials;
pub(crate) mod dial;
mod ends;
mod itinerary;
mod join;
mod peer_socket;
mod relay;
mod terms;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesonet_model::{AgentCommand, AgentReport, ClusterView};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::pki::NoRandomness;
use crate::{Files, Identity, IdentityError, PlaneNews, Publisher, Role};
use credentials::Credentials;
use ends::Ends;
use itinerary::{Itinerary, Outcome};
use terms::Terms;

pub use dial::LinkError;
pub use join::{JoinError, join};
pub(crate) use relay::{RelaySettings, start_relay};

/// The first wait after a connection has ended.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The longest wait between attempts, which is also the longest that a node is away after a master has come back.
pub const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// A connection that has held for so long was a good one: the waits begin anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// How a node reaches the masters.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// `HOST:PORT` of each master, tried in turn, beginning with any.
    pub masters: Vec<String>,
    /// The directory with the node's identity, shared by the node's daemons.
    pub identity: PathBuf,
    /// A master that is silent for so long is lost.
    pub idle_timeout: Duration,
}

/// What a node has from before it connects for the first time.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownView {
    /// The view.
    pub view: ClusterView,
    /// When a master confirmed it for the last time, or a little later.
    pub confirmed: SystemTime,
}

/// Whether the node is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// To this master.
    Connected {
        /// `HOST:PORT`.
        master: String,
        /// Since when.
        since: Instant,
    },
    /// To none.
    Disconnected {
        /// Since when.
        since: Instant,
        /// Why the last attempt failed, or how the last connection ended.
        error: Option<String>,
    },
}

/// What a node's end counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Connections made.
    pub connections: u64,
    /// Attempts that failed, and connections that ended.
    pub failures: u64,
    /// Times that a master that stands by has named the leader, or none.
    pub redirects: u64,
    /// Snapshots received.
    pub snapshots: u64,
    /// Deltas received.
    pub deltas: u64,
    /// Certificates renewed.
    pub renewed: u64,
}

/// A connection that is kept up in the background. Dropping it ends it.
#[derive(Debug)]
pub struct Client {
    state: watch::Receiver<LinkState>,
    stats: Arc<Mutex<ClientStats>>,
    task: Option<JoinHandle<()>>,
}

/// What a client's task works with.
struct Keeper {
    credentials: Credentials,
    role: Role,
    /// A master that is silent for so long is lost.
    idle_timeout: Duration,
    terms: Terms,
    state: watch::Sender<LinkState>,
    stats: Arc<Mutex<ClientStats>>,
    random: fastrand::Rng,
}

impl Client {
    /// Connects an agent. The channels are the other ends of those that the agent is started with; on each connection
    /// but the first the agent is asked to register again.
    ///
    /// # Errors
    /// When the node has no usable identity.
    pub fn start_agent(
        settings: ClientSettings,
        commands: mpsc::Sender<AgentCommand>,
        reports: mpsc::Receiver<AgentReport>,
    ) -> Result<Self, IdentityError> {
        Self::start(settings, Role::Agent, Ends::agent(commands, reports, None))
    }

    /// The same for an agent whose tasks' files the master may ask for.
    ///
    /// # Errors
    /// As [`Client::start_agent`].
    pub fn start_agent_with_files(
        settings: ClientSettings,
        commands: mpsc::Sender<AgentCommand>,
        reports: mpsc::Receiver<AgentReport>,
        files: Arc<dyn Files>,
    ) -> Result<Self, IdentityError> {
        Self::start(settings, Role::Agent, Ends::agent(commands, reports, Some(files)))
    }

    /// Connects a network daemon: what the master publishes is published here, and what planes report here is
    /// reported there. `known` is what the node has from before and was published here already.
    ///
    /// # Errors
    /// When the node has no usable identity.
    pub fn start_net(
        settings: ClientSettings,
        known: Option<KnownView>,
        views: Publisher,
        reports: mpsc::Receiver<PlaneNews>,
    ) -> Result<Self, IdentityError> {
        Self::start(settings, Role::Net, Ends::net(known, views, reports))
    }

    fn start(settings: ClientSettings, role: Role, ends: Ends) -> Result<Self, IdentityError> {
        let ClientSettings { masters, identity, idle_timeout } = settings;
        Identity::load(&identity)?;
        let (keeper, mut client) = Keeper::new(Credentials::Node { dir: identity }, role, idle_timeout)?;
        client.task = Some(tokio::spawn(keeper.keep(masters, ends)));
        Ok(client)
    }

    /// Whether it is connected; changes can be awaited.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Counters.
    pub fn stats(&self) -> ClientStats {
        lock(&self.stats).clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Keeper {
    /// With the client that shows what it does and has yet to be given its task.
    fn new(
        credentials: Credentials,
        role: Role,
        idle_timeout: Duration,
    ) -> Result<(Self, Client), IdentityError> {
        let seed = crate::pki::seed().map_err(|NoRandomness| IdentityError::Unusable {
            path: credentials.dir(),
            reason: NoRandomness.to_string(),
        })?;
        let (state_in, state) =
            watch::channel(LinkState::Disconnected { since: Instant::now(), error: None });
        let stats = Arc::<Mutex<ClientStats>>::default();
        let random = fastrand::Rng::with_seed(seed);
        let terms = Terms::default();
        let keeper =
            Self { credentials, role, idle_timeout, terms, state: state_in, stats: stats.clone(), random };
        Ok((keeper, Client { state, stats, task: None }))
    }

    async fn keep(mut self, masters: Vec<String>, mut ends: Ends) {
        let mut itinerary = Itinerary::new(masters, self.random.usize(..));
        loop {
            let leg = itinerary.leg();
            // Nodes that have lost the same master do not come back all at once.
            let pause = leg.wait.mul_f64(0.5 + self.random.f64());
            if !pause.is_zero() && ends.idle(tokio::time::sleep(pause)).await.is_err() {
                return;
            }
            let began = Instant::now();
            let error = attempt::connect_and_serve(&mut self, &leg.master, leg.handshake, &mut ends).await;
            if matches!(error, LinkError::Closed) {
                return;
            }
            self.disconnected(&leg.master, &error);
            itinerary.ended(outcome(error, began.elapsed()));
        }
    }

    fn connected(&self, master: &str) {
        tracing::info!(master, role = %self.role, "Connected to a master");
        self.count(|stats| stats.connections += 1);
        self.state.send_replace(LinkState::Connected { master: master.to_owned(), since: Instant::now() });
    }

    fn disconnected(&self, master: &str, error: &LinkError) {
        let text = describe(error);
        if matches!(error, LinkError::NotLeader { .. }) {
            tracing::debug!(master, role = %self.role, error = text, "The master stands by");
            self.count(|stats| stats.redirects += 1);
        } else {
            tracing::warn!(master, role = %self.role, error = text, "Not connected to a master");
            self.count(|stats| stats.failures += 1);
        }
        self.state.send_modify(|state| {
            let since = match state {
                LinkState::Connected { .. } => Instant::now(),
                LinkState::Disconnected { since, .. } => *since,
            };
            *state = LinkState::Disconnected { since, error: Some(text) };
        });
    }

    fn count(&self, change: impl FnOnce(&mut ClientStats)) {
        change(&mut lock(&self.stats));
    }
}

/// What the end of an attempt means for the next one.
fn outcome(error: LinkError, lasted: Duration) -> Outcome {
    let is_permanent = error.is_permanent();
    match error {
        LinkError::NotLeader { leader: Some(leader) } => Outcome::Redirected(leader),
        _ if lasted >= GOOD_AFTER => Outcome::Served,
        _ => Outcome::Failed { is_permanent },
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn lock(stats: &Mutex<ClientStats>) -> MutexGuard<'_, ClientStats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
