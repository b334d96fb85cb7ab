//! What others may ask of a node's overlay.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use mesonet_model::{AgentId, ClusterView};
use mesonet_overlay_plan::{RouteScope, plan};
use serde::Serialize;

use super::SharedTunnel;
use super::kernel::Omission;

/// Says which way packets take.
#[derive(Debug, Clone)]
pub struct OverlayInspector {
    pub(super) tunnel: SharedTunnel,
    pub(super) omissions: SharedOmissions,
}

/// What the kernel has not got.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedOmissions(Arc<Mutex<BTreeSet<Omission>>>);

impl SharedOmissions {
    /// Puts others in their place, which are returned.
    pub(super) fn replace(&self, omissions: BTreeSet<Omission>) -> BTreeSet<Omission> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), omissions)
    }

    fn are_about(&self, to: IpAddr) -> bool {
        let omissions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        omissions.iter().any(|omission| omission.is_about(to))
    }
}

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
        if self.omissions.are_about(to) {
            return None;
        }
        let overlay = plan(view, node);
        let is_for = |scope: RouteScope| scope == RouteScope::All;
        overlay.routes.iter().find(|route| is_for(route.scope) && route.destination.contains(to))?;
        let (node, peer) = overlay
            .peers
            .into_iter()
            .find(|(_, peer)| peer.addresses.iter().any(|part| part.contains(to)))?;
        let stats = self.tunnel.stats()?;
        let stats = stats.peers.get(node.as_str())?;
        let endpoint = stats.endpoint.unwrap_or(peer.endpoint);
        Some(TunnelWay { node, endpoint, mtu: stats.path_mtu })
    }
}
