//! The overlay of one node, as it follows from the view: whom it has tunnels to, and which way packets go.
//!
//! Packets for another node's part of a network go through the tunnel; those for tasks on the same node never do, since
//! their part is on a bridge. So do packets of tasks for the addresses of other nodes themselves: the answer of a task
//! on a node's own network comes back the same way, and no address has to be translated. What a node itself sends to
//! another node, the encrypted packets among it, goes the ordinary way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesonet_model::{Agent, AgentId, AgentState, ClusterView, Subnet, gateway_of};

/// What a node's overlay is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeOverlay {
    /// The other nodes, by name.
    pub peers: BTreeMap<AgentId, PlannedPeer>,
    /// What goes through the tunnel.
    pub routes: BTreeSet<PlannedRoute>,
    /// The node's own parts of networks; routes to other nodes themselves are for packets from these only.
    pub own: BTreeSet<Subnet>,
}

/// A tunnel to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPeer {
    /// Its key.
    pub key: String,
    /// Another key that is its own as well, while its keys change.
    pub other_key: Option<String>,
    /// Where it is.
    pub endpoint: SocketAddr,
    /// The addresses behind it; it may send from no others.
    pub addresses: Vec<Subnet>,
}

/// A way through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedRoute {
    /// For whose packets.
    pub scope: RouteScope,
    /// Where to.
    pub destination: Subnet,
    /// The address from which the node itself sends there: one of its own part, since others are not let through.
    pub source: Option<IpAddr>,
}

/// Whose packets take a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteScope {
    /// Everybody's.
    All,
    /// Those from the node's own parts of networks.
    Tasks,
}

/// What leads from what is there to what is to be: first what goes, then what comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference<T> {
    /// What is too much.
    pub remove: Vec<T>,
    /// What is missing.
    pub add: Vec<T>,
}

/// One node of the view: its agents, of which there is one but for the time after its directory was lost.
#[derive(Debug, Default)]
struct Node {
    address: Option<IpAddr>,
    parts: BTreeSet<Subnet>,
}

/// The overlay of a node of this name.
pub fn plan(view: &ClusterView, own_name: &AgentId) -> NodeOverlay {
    let mut nodes = nodes_of(view);
    let own = nodes.remove(own_name).unwrap_or_default().parts;
    let mut overlay = NodeOverlay { own, ..NodeOverlay::default() };
    for (name, end) in view.tunnels.iter().filter(|(name, _)| *name != own_name) {
        let Some(Node { address: Some(address), parts }) = nodes.remove(name) else { continue };
        for part in &parts {
            let source = overlay.own.iter().find(|own| own.is_ipv4() == part.is_ipv4()).and_then(gateway_of);
            overlay.routes.insert(PlannedRoute { scope: RouteScope::All, destination: *part, source });
        }
        let itself = Subnet::host(address);
        if overlay.own.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
            let route = PlannedRoute { scope: RouteScope::Tasks, destination: itself, source: None };
            overlay.routes.insert(route);
        }
        let peer = PlannedPeer {
            key: end.key.clone(),
            other_key: end.other_key.clone(),
            endpoint: SocketAddr::new(address, end.port),
            addresses: parts.into_iter().chain([itself]).collect(),
        };
        overlay.peers.insert(name.clone(), peer);
    }
    overlay
}

fn nodes_of(view: &ClusterView) -> BTreeMap<AgentId, Node> {
    let mut nodes: BTreeMap<AgentId, Node> = BTreeMap::new();
    for agent in view.agents.values() {
        let node = nodes.entry(AgentId::new(agent.node_name())).or_default();
        let is_better = node.address.is_none() || agent.state == AgentState::Active;
        node.address = if is_better { address_of(agent) } else { node.address };
        node.parts.extend(view.subnets.get(&agent.id).into_iter().flat_map(|subnets| subnets.all().copied()));
    }
    nodes
}

fn address_of(agent: &Agent) -> Option<IpAddr> {
    Some(agent.info.address).filter(|address| !address.is_unspecified())
}

/// The least that has to be done.
pub fn difference<T: Ord + Clone>(desired: &BTreeSet<T>, actual: &BTreeSet<T>) -> Difference<T> {
    Difference {
        remove: actual.difference(desired).cloned().collect(),
        add: desired.difference(actual).cloned().collect(),
    }
}
