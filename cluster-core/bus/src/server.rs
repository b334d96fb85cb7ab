//! The master's end of the bus for nodes elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId, AgentReport};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::{Authority, AuthorityError, Feed, NodeName, Role};

/// The server's settings.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Where nodes connect, UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The master's name in its certificate.
    pub name: NodeName,
    /// A node that is silent for so long is lost. Nodes speak at least once a second.
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
}

/// Counters since the start, and what is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Nodes that are connected.
    pub connections: BTreeMap<Role, u64>,
    /// Connections that have not proved who they are.
    pub unauthenticated: u64,
    /// Bytes of views handed to connections.
    pub view_bytes: u64,
    /// Snapshots sent.
    pub snapshots: u64,
    /// Deltas sent.
    pub deltas: u64,
    /// Views and deltas encoded; all subscribers at the same revision share one.
    pub encodings: u64,
    /// Connections and requests refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Nodes enrolled.
    pub enrolled: u64,
    /// Certificates renewed.
    pub renewed: u64,
    /// Commands dropped because their agent was not connected.
    pub undeliverable: u64,
}

/// A running server. Dropping it ends every connection.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Listens and serves. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be used, or the authority's files cannot.
    pub fn start(
        _settings: ServerSettings,
        _authority: Authority,
        _ends: MasterEnds,
    ) -> Result<Self, ServerError> {
        todo!()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        todo!()
    }

    /// Counters.
    pub fn stats(&self) -> ServerStats {
        todo!()
    }

    /// The nodes that are connected, and as what.
    pub fn connected(&self) -> Vec<(NodeName, Role)> {
        todo!()
    }

    /// Ends every connection and tells the nodes.
    pub async fn close(self) {
        todo!()
    }
}
