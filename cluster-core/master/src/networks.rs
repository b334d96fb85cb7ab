//! Virtual networks, and which part of each gives addresses on which agent.
//!
//! Every agent that can give tasks addresses of their own has a part of every network, from when it first registers
//! until it is gone for good. The parts are in the view and in the store, so that all nodes agree on where an address
//! is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_model::{
    AgentId, AttachmentRefusal, NetworkName, NetworkRefusal, NetworkRoom, NodeSubnets, Subnet,
    TaskNetworking, TaskSpec, VirtualNetwork, room_of,
};

use crate::machine::{Effect, Master};

/// The most networks. Each is a bridge on every node, and a part of it is in the view for every agent.
const NETWORKS_MAX: usize = 64;

/// What is not in the view of networks.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    /// The parts given away, by network.
    pools: BTreeMap<NetworkName, Vec<Pool>>,
    /// How many tasks are in a network, by agent. There are no zeros.
    tasks: BTreeMap<(AgentId, NetworkName), u64>,
    /// Whether the cluster has had its first networks.
    pub(crate) are_made: bool,
}

/// The parts of one range.
#[derive(Debug)]
struct Pool {
    subnet: Subnet,
    node_prefix: u8,
    taken: BTreeSet<u128>,
    /// None below it is free.
    first_free: u128,
}

impl Networks {
    /// A network as the store has it.
    pub(crate) fn restore(&mut self, network: &VirtualNetwork) {
        let pools = network.ranges().map(|range| Pool::new(range.subnet, range.node_prefix)).collect();
        self.pools.insert(network.name.clone(), pools);
    }

    /// An agent's parts as the store has them.
    pub(crate) fn restore_subnets(&mut self, subnets: &NodeSubnets) {
        for (network, parts) in &subnets.0 {
            for pool in self.pools.get_mut(network).into_iter().flatten() {
                parts.iter().for_each(|part| pool.take(part));
            }
        }
    }

    /// A task is in its networks.
    pub(crate) fn enter(&mut self, agent: &AgentId, spec: &TaskSpec) {
        for network in spec.networking.iter().flat_map(TaskNetworking::networks) {
            *self.tasks.entry((agent.clone(), network.clone())).or_default() += 1;
        }
    }

    /// The end of one [`Networks::enter`].
    pub(crate) fn leave(&mut self, agent: &AgentId, spec: &TaskSpec) {
        for network in spec.networking.iter().flat_map(TaskNetworking::networks) {
            let key = (agent.clone(), network.clone());
            if let Some(count) = self.tasks.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.tasks.remove(&key);
                }
            }
        }
    }

    /// How many tasks are in a network.
    fn tasks_in(&self, name: &NetworkName) -> usize {
        let of_network = self.tasks.iter().filter(|((_, network), _)| network == name);
        of_network.map(|(_, count)| usize::try_from(*count).unwrap_or(usize::MAX)).sum()
    }

    /// Takes a part of every range of a network that does not have the agent's own address. `None` if there is none
    /// left of one of them, so that a network of both families never has tasks with one.
    fn take_parts(&mut self, name: &NetworkName) -> Option<Vec<Subnet>> {
        let pools = self.pools.get_mut(name)?;
        let parts: Vec<Subnet> = pools.iter_mut().filter_map(Pool::choose).collect();
        if parts.len() == pools.len() {
            return Some(parts);
        }
        parts.iter().for_each(|part| pools.iter_mut().for_each(|pool| pool.free(part)));
        None
    }

    fn free_parts(&mut self, subnets: &NodeSubnets) {
        for (network, parts) in &subnets.0 {
            for pool in self.pools.get_mut(network).into_iter().flatten() {
                parts.iter().for_each(|part| pool.free(part));
            }
        }
    }
}

// === impl Pool ===

impl Pool {
    fn new(subnet: Subnet, node_prefix: u8) -> Self {
        Self { subnet, node_prefix, taken: BTreeSet::new(), first_free: 0 }
    }

    /// Takes the first free part, as in DC/OS.
    fn choose(&mut self) -> Option<Subnet> {
        let mut index = self.first_free;
        for taken in self.taken.range(index..) {
            if *taken != index {
                break;
            }
            index = index.checked_add(1)?;
        }
        let part = self.subnet.part(self.node_prefix, index)?;
        self.taken.insert(index);
        self.first_free = index.saturating_add(1);
        Some(part)
    }

    fn take(&mut self, part: &Subnet) {
        if let Some(index) = self.subnet.index_of_part(part) {
            self.taken.insert(index);
        }
    }

    fn free(&mut self, part: &Subnet) {
        if let Some(index) = self.subnet.index_of_part(part)
            && self.taken.remove(&index)
        {
            self.first_free = self.first_free.min(index);
        }
    }
}

// === impl Master ===

impl Master {
    /// Makes the first networks of a cluster that has never had any.
    pub(crate) fn make_first_networks(&mut self) {
        if std::mem::replace(&mut self.networks.are_made, true) {
            return;
        }
        self.out.dirty.counters = true;
        for network in VirtualNetwork::defaults() {
            // One that is in the way of something else, such as the address of a node, is left out.
            let _ = self.try_create_network(network);
        }
    }

    /// Makes a network, and gives every agent its part. A refusal names the order's number.
    pub(crate) fn create_network(&mut self, number: u64, network: VirtualNetwork) {
        if let Err(refusal) = self.try_create_network(network) {
            self.out.effect(Effect::Refused { number, refusal });
        }
    }

    /// Removes a network that no task is in. A refusal names the order's number.
    pub(crate) fn remove_network(&mut self, number: u64, name: &NetworkName) {
        if let Err(refusal) = self.try_remove_network(name) {
            self.out.effect(Effect::Refused { number, refusal });
        }
    }

    fn try_create_network(&mut self, network: VirtualNetwork) -> Result<(), NetworkRefusal> {
        network.check()?;
        if self.view.networks.contains_key(&network.name) {
            return Err(NetworkRefusal::Exists(network.name));
        }
        if self.view.networks.len() >= NETWORKS_MAX {
            return Err(NetworkRefusal::TooMany(NETWORKS_MAX));
        }
        self.check_overlaps(&network)?;
        self.networks.restore(&network);
        let name = network.name.clone();
        self.out.view_changed = true;
        self.out.dirty.networks.insert(name.clone());
        self.view.networks.insert(name, Arc::new(network));
        let agents: Vec<AgentId> = self.view.agents.keys().cloned().collect();
        agents.iter().for_each(|agent| self.give_parts(agent));
        Ok(())
    }

    fn try_remove_network(&mut self, name: &NetworkName) -> Result<(), NetworkRefusal> {
        if !self.view.networks.contains_key(name) {
            return Err(NetworkRefusal::Unknown(name.clone()));
        }
        let tasks = self.networks.tasks_in(name);
        let parts: Vec<Subnet> =
            self.view.subnets.values().flat_map(|subnets| subnets.of(name).to_vec()).collect();
        let containers = self.joined_in(&parts).len();
        if tasks > 0 || containers > 0 {
            return Err(NetworkRefusal::InUse { name: name.clone(), tasks, containers });
        }
        self.out.view_changed = true;
        self.out.dirty.networks.insert(name.clone());
        self.view.networks.remove(name);
        self.networks.pools.remove(name);
        let agents: Vec<AgentId> = self.view.subnets.keys().cloned().collect();
        for agent in agents {
            let Some(subnets) = self.view.subnets.get(&agent) else { continue };
            let mut subnets = subnets.as_ref().clone();
            if subnets.0.remove(name).is_some() {
                self.set_subnets(&agent, subnets);
            }
        }
        Ok(())
    }

    /// Refuses addresses that mean something else: those of other networks, of VIPs and of nodes.
    fn check_overlaps(&self, network: &VirtualNetwork) -> Result<(), NetworkRefusal> {
        for range in network.ranges() {
            let subnet = range.subnet;
            let overlap = |other: Subnet, what: String| Err(NetworkRefusal::Overlap { subnet, other, what });
            for other in self.view.networks.values() {
                if let Some(taken) = other.ranges().find(|taken| taken.subnet.overlaps(&subnet)) {
                    return overlap(taken.subnet, format!("which network '{}' has", other.name));
                }
            }
            let (first, last): (IpAddr, IpAddr) = if subnet.is_ipv4() {
                (self.config.vip_range_v4.0.into(), self.config.vip_range_v4.1.into())
            } else {
                (self.config.vip_range_v6.0.into(), self.config.vip_range_v6.1.into())
            };
            if first <= subnet.last() && subnet.first() <= last {
                return overlap(Subnet::host(first), format!("from where on to {last} VIPs are given"));
            }
            let agent = self.view.agents.values().find(|agent| subnet.contains(agent.info.address));
            if let Some(agent) = agent {
                let own = Subnet::host(agent.info.address);
                return overlap(own, format!("the address of node {}", agent.node_name()));
            }
        }
        Ok(())
    }

    /// Gives an agent a part of every network that it has none of, if it can use them and its own address is not
    /// in it.
    pub(crate) fn give_parts(&mut self, id: &AgentId) {
        let Some(agent) = self.view.agents.get(id) else { return };
        if !agent.info.container_networks {
            return;
        }
        let before = self.view.subnets.get(id).map(|subnets| subnets.as_ref().clone()).unwrap_or_default();
        let mut subnets = before.clone();
        for (name, network) in &self.view.networks {
            if subnets.0.contains_key(name) || network.contains(agent.info.address) {
                continue;
            }
            match self.networks.take_parts(name) {
                Some(parts) => {
                    subnets.0.insert(name.clone(), parts);
                }
                None => {
                    self.out.effect(Effect::NetworkExhausted { network: name.clone(), agent: id.clone() })
                }
            }
        }
        if subnets != before {
            self.set_subnets(id, subnets);
        }
    }

    /// An agent is gone for good: its parts are free for others, of which those without any are the first.
    pub(crate) fn take_parts_back(&mut self, id: &AgentId) {
        let Some(subnets) = self.view.subnets.get(id).cloned() else { return };
        self.networks.free_parts(&subnets);
        self.forget_joined(&subnets);
        self.set_subnets(id, NodeSubnets::default());
        let networks = &self.view.networks;
        let is_short = |agent: &AgentId| {
            self.view.subnets.get(agent).map_or(0, |subnets| subnets.0.len()) < networks.len()
        };
        let short: Vec<AgentId> =
            self.view.agents.keys().filter(|agent| *agent != id && is_short(agent)).cloned().collect();
        short.iter().for_each(|agent| self.give_parts(agent));
    }

    fn set_subnets(&mut self, id: &AgentId, subnets: NodeSubnets) {
        self.out.view_changed = true;
        self.out.dirty.subnets.insert(id.clone());
        if subnets.0.is_empty() {
            self.view.subnets.remove(id);
        } else {
            self.view.subnets.insert(id.clone(), Arc::new(subnets));
        }
    }

    /// How many more tasks there is room for in each network on an agent.
    pub(crate) fn network_room(&self, id: &AgentId) -> NetworkRoom {
        let parts = self.view.subnets.get(id).into_iter().flat_map(|subnets| &subnets.0);
        let room = parts.filter_map(|(name, parts)| {
            let all = parts.iter().map(room_of).min()?;
            let tasks = self.networks.tasks.get(&(id.clone(), name.clone())).copied().unwrap_or(0);
            let containers = u64::try_from(self.joined_in(parts).len()).unwrap_or(u64::MAX);
            Some((name.clone(), all.saturating_sub(tasks).saturating_sub(containers)))
        });
        room.collect()
    }

    /// Fills in the parts that a task's addresses are given from, or says why there are none.
    pub(crate) fn attach(&self, spec: &mut TaskSpec) -> Result<(), AttachmentRefusal> {
        let agent = spec.agent.clone();
        let Some(networking) = &mut spec.networking else { return Ok(()) };
        if !self.view.agents.get(&agent).is_some_and(|agent| agent.info.container_networks) {
            return Err(AttachmentRefusal::Agent(agent));
        }
        let room = self.network_room(&agent);
        for attachment in &mut networking.attachments {
            let Some(network) = attachment.network.clone() else { continue };
            let parts = self.view.subnets.get(&agent).map_or(&[][..], |subnets| subnets.of(&network));
            if parts.is_empty() {
                return Err(AttachmentRefusal::NoPart { agent, network });
            }
            if room.get(&network).is_none_or(|left| *left == 0) {
                return Err(AttachmentRefusal::Exhausted { agent, network });
            }
            attachment.subnets = parts.to_vec();
        }
        Ok(())
    }
}
