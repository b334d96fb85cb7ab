//! What others may ask of a node's overlay.

use std::net::{IpAddr, SocketAddr};

use mesonet_model::{AgentId, ClusterView};
use mesonet_overlay_plan::{RouteScope, plan};
use serde::Serialize;

use super::SharedTunnel;

/// Says which way packets take.
#[derive(Debug, Clone)]
pub struct OverlayInspector(pub(super) SharedTunnel);

/// A way through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelWay {
    /// The node at its other end.
    pub node: AgentId,
    /// Where that is.
    pub endpoint: SocketAddr,
    /// Octets of the longest packet that passes.
    pub mtu: u16,
}

impl OverlayInspector {
    /// The tunnel that packets from a node to an address take, if they take one.
    pub fn way(&self, view: &ClusterView, node: &AgentId, to: IpAddr) -> Option<TunnelWay> {
        let overlay = plan(view, node);
        let is_for = |scope: RouteScope| scope == RouteScope::All;
        overlay.routes.iter().find(|route| is_for(route.scope) && route.destination.contains(to))?;
        let (node, peer) = overlay
            .peers
            .into_iter()
            .find(|(_, peer)| peer.addresses.iter().any(|part| part.contains(to)))?;
        let stats = self.0.stats()?;
        let stats = stats.peers.get(node.as_str())?;
        let endpoint = stats.endpoint.unwrap_or(peer.endpoint);
        Some(TunnelWay { node, endpoint, mtu: stats.path_mtu })
    }
}
