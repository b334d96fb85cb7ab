//! A node's end of the bus.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesonet_model::{AgentCommand, AgentReport, ClusterView};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::{Identity, IdentityError, JoinToken, NodeName, PlaneNews, Publisher};

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
        /// Why the last attempt failed, if there was one.
        error: Option<String>,
    },
}

/// Why a node cannot join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The node's files cannot be used.
    #[error("cannot keep the node's identity")]
    Identity(#[from] IdentityError),
}

/// A connection that is kept up in the background. Dropping it ends it.
#[derive(Debug)]
pub struct Client {}

/// Joins a cluster: makes a key, has it certified and keeps both in a new identity directory. The first master that
/// answers decides.
///
/// # Errors
/// When no master can be reached, the token is refused, or the files cannot be written. Nothing is kept then.
pub async fn join(
    _masters: &[String],
    _token: &JoinToken,
    _name: &NodeName,
    _dir: &std::path::Path,
) -> Result<Identity, JoinError> {
    todo!()
}

impl Client {
    /// Connects an agent. The channels are those of [`mesonet_agent::start`]; on each connection but the first the
    /// agent is asked to register again.
    ///
    /// # Errors
    /// When the node has no usable identity.
    pub fn start_agent(
        _settings: ClientSettings,
        _commands: mpsc::Sender<AgentCommand>,
        _reports: mpsc::Receiver<AgentReport>,
    ) -> Result<Self, IdentityError> {
        todo!()
    }

    /// Connects a network daemon: what the master publishes is published here, and what planes report here is
    /// reported there. `known` is what the node has from before and was published here already.
    ///
    /// # Errors
    /// When the node has no usable identity.
    pub fn start_net(
        _settings: ClientSettings,
        _known: Option<ClusterView>,
        _views: Publisher,
        _reports: mpsc::Receiver<PlaneNews>,
    ) -> Result<Self, IdentityError> {
        todo!()
    }

    /// Whether it is connected; changes can be awaited.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        todo!()
    }
}
