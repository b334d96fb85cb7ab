//! Containers of other runtimes in virtual networks, as the agents of their nodes tell of them.
//!
//! They take addresses that tasks cannot have. A node is believed only about its own parts of networks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_model::{AgentId, AgentState, JOINED_MAX, JoinedContainer, NodeSubnets, Subnet};

use crate::machine::Master;

impl Master {
    /// An agent tells of all containers on its node. Costs as much as there are before and after.
    pub(crate) fn agent_containers(&mut self, agent: &AgentId, told: Vec<JoinedContainer>) {
        if self.view.agents.get(agent).is_none_or(|agent| agent.state != AgentState::Active) {
            return;
        }
        let Some(subnets) = self.view.subnets.get(agent).cloned() else { return };
        let wanted: BTreeMap<IpAddr, JoinedContainer> = told
            .into_iter()
            .take(JOINED_MAX)
            .filter(|each| is_of_parts(each, &subnets))
            .filter_map(|each| {
                Some((*each.addresses.first()?, JoinedContainer { agent: agent.clone(), ..each }))
            })
            .collect();
        for address in self.joined_in(subnets.all()) {
            if !wanted.contains_key(&address) {
                self.set_joined(address, None);
            }
        }
        for (address, container) in wanted {
            if self.view.joined.get(&address).map(Arc::as_ref) != Some(&container) {
                self.set_joined(address, Some(container));
            }
        }
    }

    /// The containers with addresses of an agent's parts are none of the cluster's any more.
    pub(crate) fn forget_joined(&mut self, subnets: &NodeSubnets) {
        for address in self.joined_in(subnets.all()) {
            self.set_joined(address, None);
        }
    }

    /// The first addresses of containers in parts of networks.
    pub(crate) fn joined_in<'parts>(&self, parts: impl IntoIterator<Item = &'parts Subnet>) -> Vec<IpAddr> {
        let of_part = |part: &Subnet| self.view.joined.range(part.first()..=part.last());
        parts.into_iter().flat_map(of_part).map(|(address, _)| *address).collect()
    }

    fn set_joined(&mut self, address: IpAddr, container: Option<JoinedContainer>) {
        self.out.view_changed = true;
        self.out.dirty.joined.insert(address);
        match container {
            Some(container) => self.view.joined.insert(address, Arc::new(container)),
            None => self.view.joined.remove(&address),
        };
    }
}

fn is_of_parts(container: &JoinedContainer, subnets: &NodeSubnets) -> bool {
    let parts = subnets.of(&container.network);
    container.addresses.iter().all(|address| parts.iter().any(|part| part.contains(*address)))
}
