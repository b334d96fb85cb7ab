//! A node's end of the bus.
//!
//! One task keeps one connection to one of the masters. When it ends, the next master is tried after a wait that grows
//! and differs from node to node.

mod attempt;
pub(crate) mod dial;
mod ends;
mod join;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesonet_model::{AgentCommand, AgentReport, ClusterView};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::pki::NoRandomness;
use crate::{Identity, IdentityError, PlaneNews, Publisher, Role};
use ends::Ends;

pub use dial::LinkError;
pub use join::{JoinError, join};

/// The first wait after a connection has ended.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The longest wait between attempts, which is also the longest that a node is away after a master has come back.
pub const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// A connection that has held for so long was a good one: the waits begin anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// How a node reaches the masters.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// `HOST:PORT` of each master, tried in turn.
    pub masters: Vec<String>,
    /// The directory with the node's identity, shared by the node's daemons.
    pub identity: PathBuf,
    /// A master that is silent for so long is lost.
    pub idle_timeout: Duration,
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
    task: JoinHandle<()>,
}

/// What a client's task works with.
struct Keeper {
    settings: ClientSettings,
    role: Role,
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
        Self::start(settings, Role::Agent, Ends::agent(commands, reports))
    }

    /// Connects a network daemon: what the master publishes is published here, and what planes report here is
    /// reported there. `known` is what the node has from before and was published here already.
    ///
    /// # Errors
    /// When the node has no usable identity.
    pub fn start_net(
        settings: ClientSettings,
        known: Option<ClusterView>,
        views: Publisher,
        reports: mpsc::Receiver<PlaneNews>,
    ) -> Result<Self, IdentityError> {
        Self::start(settings, Role::Net, Ends::net(known, views, reports))
    }

    fn start(settings: ClientSettings, role: Role, ends: Ends) -> Result<Self, IdentityError> {
        Identity::load(&settings.identity)?;
        let seed = crate::pki::seed().map_err(|NoRandomness| IdentityError::Unusable {
            path: settings.identity.clone(),
            reason: NoRandomness.to_string(),
        })?;
        let (state_in, state) =
            watch::channel(LinkState::Disconnected { since: Instant::now(), error: None });
        let stats = Arc::<Mutex<ClientStats>>::default();
        let random = fastrand::Rng::with_seed(seed);
        let keeper = Keeper { settings, role, state: state_in, stats: stats.clone(), random };
        Ok(Self { state, stats, task: tokio::spawn(keeper.keep(ends)) })
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
        self.task.abort();
    }
}

impl Keeper {
    async fn keep(mut self, mut ends: Ends) {
        let mut wait = BACKOFF_FIRST;
        let mut next_master = self.random.usize(..);
        loop {
            let masters = self.settings.masters.len().max(1);
            let master = self.settings.masters.get(next_master % masters).cloned().unwrap_or_default();
            next_master = next_master.wrapping_add(1);
            let began = Instant::now();
            let error = attempt::connect_and_serve(&mut self, &master, &mut ends).await;
            self.disconnected(&master, &error);
            if began.elapsed() >= GOOD_AFTER {
                wait = BACKOFF_FIRST;
            }
            // Nodes that have lost the same master do not come back all at once.
            let pause = wait.mul_f64(0.5 + self.random.f64());
            if ends.idle(pause).await.is_err() {
                return;
            }
            wait = if error.is_permanent() { BACKOFF_LAST } else { (wait * 2).min(BACKOFF_LAST) };
        }
    }

    fn connected(&self, master: &str) {
        tracing::info!(master, role = %self.role, "Connected to a master");
        self.count(|stats| stats.connections += 1);
        self.state.send_replace(LinkState::Connected { master: master.to_owned(), since: Instant::now() });
    }

    fn disconnected(&self, master: &str, error: &LinkError) {
        let text = describe(error);
        tracing::warn!(master, role = %self.role, error = text, "Not connected to a master");
        self.count(|stats| stats.failures += 1);
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
