//! What becomes of the source of packets that leave the cluster's networks.

use mesonet_model::{ClusterView, Subnet};

use crate::nodes::NodeOverlay;

/// What happens to packets that leave the node. The first that a packet fits decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outward {
    /// Through the tunnel they stay as they are: its other end knows the way back, and takes no other sources.
    KeepThroughTunnel,
    /// Within the networks they do, too.
    KeepTo(Subnet),
    /// From the node's own parts they go out in the name of the node.
    TranslateFrom(Subnet),
}

/// What the node of an overlay does with packets for elsewhere. Nothing, if it has no part of any network.
pub fn outward(view: &ClusterView, overlay: &NodeOverlay) -> Vec<Outward> {
    if overlay.own.is_empty() {
        return Vec::new();
    }
    let ranges = view.networks.values().flat_map(|network| network.ipv4.iter().chain(&network.ipv6));
    std::iter::once(Outward::KeepThroughTunnel)
        .chain(ranges.map(|range| Outward::KeepTo(range.subnet)))
        .chain(overlay.own.iter().map(|part| Outward::TranslateFrom(*part)))
        .collect()
}
