//! Containers of other runtimes that have joined virtual networks, and who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, ClusterView, NetworkName, NodeSubnets, ServiceKey, Subnet, Task, TaskKey, gateway_of, room_of,
};

/// The most containers of one node that are told. A machine that runs more of them has not been seen; further ones are
/// neither counted nor shown.
pub const JOINED_MAX: usize = 4096;

/// An interface of a container that another runtime runs, in a virtual network by CNI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JoinedContainer {
    /// The agent of its node.
    pub agent: AgentId,
    /// The network.
    pub network: NetworkName,
    /// The container, as its runtime calls it.
    pub container: String,
    /// The interface in the container.
    pub interface: String,
    /// Its addresses, one of each range of the network.
    pub addresses: Vec<IpAddr>,
}

/// How much of a node's part of a network is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartUse {
    /// Tasks with addresses from it.
    pub tasks: u64,
    /// Interfaces of containers with addresses from it.
    pub containers: u64,
    /// How many more there is room for.
    pub free: u64,
}

/// Who or what has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AddressHolder {
    /// A node is reached there.
    Node {
        /// Its agent.
        agent: AgentId,
    },
    /// A node has it on the bridge of a network.
    Gateway {
        /// The node's agent.
        agent: AgentId,
        /// The network.
        network: NetworkName,
    },
    /// A task.
    Task {
        /// The node's agent.
        agent: AgentId,
        /// The task.
        task: TaskKey,
        /// The network; absent on the node's own bridge, whose addresses every node has.
        network: Option<NetworkName>,
    },
    /// A container that has joined by CNI.
    Container {
        /// The node's agent.
        agent: AgentId,
        /// The container, as its runtime calls it.
        container: String,
        /// The interface in the container.
        interface: String,
        /// The network.
        network: NetworkName,
    },
    /// A virtual address of a service.
    Service {
        /// The service.
        service: ServiceKey,
    },
    /// Nobody; a node gives it when it is its turn.
    Free {
        /// The node's agent.
        agent: AgentId,
        /// The network.
        network: NetworkName,
    },
    /// Nobody; it is in no node's part of the network.
    Unassigned {
        /// The network.
        network: NetworkName,
    },
}

impl AddressHolder {
    /// The agent of the node that it is on, if it is on one.
    pub fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Node { agent }
            | Self::Gateway { agent, .. }
            | Self::Task { agent, .. }
            | Self::Container { agent, .. }
            | Self::Free { agent, .. } => Some(agent),
            Self::Service { .. } | Self::Unassigned { .. } => None,
        }
    }
}

impl ClusterView {
    /// Who has an address: nobody that the cluster knows, one, or, where it means something else on each node, several.
    /// Costs as much as there are tasks, containers and services.
    pub fn holders_of(&self, address: IpAddr) -> Vec<AddressHolder> {
        let part = self.part_with(address);
        let network = part.map(|(_, network, _)| network.clone());
        let nodes = self.agents.values().filter(|agent| agent.info.address == address);
        let nodes = nodes.map(|agent| AddressHolder::Node { agent: agent.id.clone() });
        let tasks = self.tasks.values().filter(|task| task.addresses.contains(&address));
        let tasks = tasks.map(|task| AddressHolder::Task {
            agent: task.agent.clone(),
            task: task.key.clone(),
            network: network.clone(),
        });
        let joined = self.joined.values().filter(|each| each.addresses.contains(&address));
        let joined = joined.map(|each| AddressHolder::Container {
            agent: each.agent.clone(),
            container: each.container.clone(),
            interface: each.interface.clone(),
            network: each.network.clone(),
        });
        let services = self.services.values().filter(|service| {
            service.ipv4.map(IpAddr::V4) == Some(address) || service.ipv6.map(IpAddr::V6) == Some(address)
        });
        let services = services.map(|service| AddressHolder::Service { service: service.key.clone() });
        let found: Vec<AddressHolder> = nodes.chain(tasks).chain(joined).chain(services).collect();
        if found.is_empty() { self.nobody(address, part).into_iter().collect() } else { found }
    }

    /// What an address is that nobody has been given.
    fn nobody(
        &self,
        address: IpAddr,
        part: Option<(&AgentId, &NetworkName, &Subnet)>,
    ) -> Option<AddressHolder> {
        if let Some((agent, network, part)) = part {
            let (agent, network) = (agent.clone(), network.clone());
            return Some(if gateway_of(part) == Some(address) {
                AddressHolder::Gateway { agent, network }
            } else {
                AddressHolder::Free { agent, network }
            });
        }
        let network = self.networks.values().find(|network| network.contains(address))?;
        Some(AddressHolder::Unassigned { network: network.name.clone() })
    }

    /// The node's part that an address is in.
    fn part_with(&self, address: IpAddr) -> Option<(&AgentId, &NetworkName, &Subnet)> {
        self.subnets.iter().find_map(|(agent, subnets)| {
            let (network, part) = subnets.part_with(address)?;
            Some((agent, network, part))
        })
    }

    /// How much of the nodes' parts of networks is in use. Costs as much as there are tasks and containers.
    pub fn part_uses(&self) -> BTreeMap<(NetworkName, AgentId), PartUse> {
        let mut uses = BTreeMap::new();
        for (agent, subnets) in &self.subnets {
            for (network, parts) in &subnets.0 {
                let free = parts.iter().map(room_of).min().unwrap_or(0);
                uses.insert((network.clone(), agent.clone()), PartUse { free, ..PartUse::default() });
            }
        }
        let mut take = |network: &NetworkName, agent: &AgentId, count: fn(&mut PartUse) -> &mut u64| {
            if let Some(part) = uses.get_mut(&(network.clone(), agent.clone())) {
                *count(part) += 1;
                part.free = part.free.saturating_sub(1);
            }
        };
        for task in self.tasks.values().filter(|task| !task.addresses.is_empty()) {
            let Some(subnets) = self.subnets.get(&task.agent) else { continue };
            networks_of(task, subnets).into_iter().for_each(|network| {
                take(network, &task.agent, |part| &mut part.tasks);
            });
        }
        for each in self.joined.values() {
            take(&each.network, &each.agent, |part| &mut part.containers);
        }
        uses
    }
}

/// The networks that a task is in, by its addresses.
fn networks_of<'subnets>(task: &Task, subnets: &'subnets NodeSubnets) -> BTreeSet<&'subnets NetworkName> {
    let networks = task.addresses.iter().filter_map(|address| subnets.part_with(*address));
    networks.map(|(network, _)| network).collect()
}
