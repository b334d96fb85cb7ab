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

/// What the node of an overlay does with packets for elsewhere. Those of its own bridge are translated wherever they go,
/// since nobody else knows the way back to it; those of networks, if it has a part of any.
pub fn outward(view: &ClusterView, overlay: &NodeOverlay) -> Vec<Outward> {
    let mut rules = vec![Outward::TranslateFrom(Subnet::NODE_BRIDGE)];
    if overlay.own.is_empty() {
        return rules;
    }
    let ranges = view.networks.values().flat_map(|network| network.ipv4.iter().chain(&network.ipv6));
    rules.push(Outward::KeepThroughTunnel);
    rules.extend(ranges.map(|range| Outward::KeepTo(range.subnet)));
    rules.extend(overlay.own.iter().map(|part| Outward::TranslateFrom(*part)));
    rules
}
