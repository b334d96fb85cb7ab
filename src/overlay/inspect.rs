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

/// Omissions that are named, at most: a host that refuses the route to one node is likely to refuse those to all. Of further
/// ones their number is said.
const NAMED_MAX: usize = 8;

/// What the kernel has not got.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedOmissions(Arc<Mutex<BTreeSet<Omission>>>);

impl SharedOmissions {
    /// Puts others in their place, which are returned.
    pub(super) fn replace(&self, omissions: BTreeSet<Omission>) -> BTreeSet<Omission> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), omissions)
    }

    /// What they are, for people.
    pub(super) fn in_words(&self) -> Vec<String> {
        in_words(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter())
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

/// Omissions for people.
pub(super) fn in_words<'all>(mut omissions: impl Iterator<Item = &'all Omission>) -> Vec<String> {
    let mut words: Vec<String> = omissions.by_ref().take(NAMED_MAX).map(Omission::to_string).collect();
    let further = omissions.count();
    if further > 0 {
        words.push(format!("{further} more"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_a_host_goes_without_little_is_said() {
        let refused = |number: usize| Omission::Refused { part: None, why: format!("{number:02}") };
        let words = |count: usize| in_words((0..count).map(refused).collect::<Vec<_>>().iter());
        assert_eq!(words(0), [""; 0]);
        assert_eq!(words(1), ["what the kernel refuses: 00"]);
        assert_eq!(words(NAMED_MAX).last().map(String::as_str), Some("what the kernel refuses: 07"));
        let many = words(NAMED_MAX + 3);
        assert_eq!((many.len(), many.last().map(String::as_str)), (NAMED_MAX + 1, Some("3 more")));
    }
}
