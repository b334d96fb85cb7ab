//! Serves the zone over UDP and TCP.

use std::net::SocketAddr;

use mesonet_model::{ClusterView, Delta};
use thiserror::Error;

/// The server's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The zone.
    pub zone: mesonet_dns_zone::Config,
}

/// The server cannot start.
#[derive(Debug, Error)]
pub enum StartError {}

/// A running server.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Binds all sockets and starts to answer: SERVFAIL until the first view is applied.
    pub async fn start(_config: Config, _metrics: &prometheus::Registry) -> Result<Self, StartError> {
        Ok(Self {})
    }

    /// The addresses that are served, with the ports that were chosen for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &[]
    }

    /// Serves a view from now on. `delta` leads to it from the view applied before (from an empty one the first time).
    pub fn apply(&mut self, _view: &ClusterView, _delta: &Delta) {}
}
