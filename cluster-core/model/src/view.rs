//! The immutable picture of a cluster that every plane works from.

use std::net::IpAddr;
use std::ops::Bound;
use std::sync::{Arc, LazyLock};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{
    Agent, AgentId, ClusterId, Endpoint, EndpointKey, Framework, FrameworkId, JoinedContainer, Master,
    MasterId, NetworkName, NodeSubnets, Revision, Service, ServiceKey, Task, TaskKey, TunnelEnd,
    VirtualNetwork,
};

/// Snapshot of everything that names, addresses and routes follow from, at one revision.
///
/// The maps share structure between snapshots, so a clone costs a few pointer copies whatever the cluster's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster.
    pub cluster: ClusterId,
    /// The newest change that it contains.
    pub revision: Revision,
    /// Masters.
    pub masters: OrdMap<MasterId, Arc<Master>>,
    /// Frameworks, subscribed or not.
    pub frameworks: OrdMap<FrameworkId, Arc<Framework>>,
    /// Agents.
    pub agents: OrdMap<AgentId, Arc<Agent>>,
    /// Tasks that have not ended.
    pub tasks: OrdMap<TaskKey, Arc<Task>>,
    /// Services, also those that have no endpoint at the moment.
    pub services: OrdMap<ServiceKey, Arc<Service>>,
    /// Endpoints, those of one service side by side.
    pub endpoints: OrdMap<EndpointKey, Arc<Endpoint>>,
    /// Virtual networks.
    #[serde(default)]
    pub networks: OrdMap<NetworkName, Arc<VirtualNetwork>>,
    /// The parts of virtual networks that agents give addresses from.
    #[serde(default)]
    pub subnets: OrdMap<AgentId, Arc<NodeSubnets>>,
    /// Ends of tunnels, by the name of the node.
    #[serde(default)]
    pub tunnels: OrdMap<AgentId, Arc<TunnelEnd>>,
    /// Containers of other runtimes that are in virtual networks, by their first address.
    #[serde(default)]
    pub joined: OrdMap<IpAddr, Arc<JoinedContainer>>,
}

impl ClusterView {
    /// A cluster in which nothing has happened.
    pub fn empty(cluster: ClusterId) -> Self {
        Self {
            cluster,
            revision: Revision::ZERO,
            masters: OrdMap::new(),
            frameworks: OrdMap::new(),
            agents: OrdMap::new(),
            tasks: OrdMap::new(),
            services: OrdMap::new(),
            endpoints: OrdMap::new(),
            networks: OrdMap::new(),
            subnets: OrdMap::new(),
            tunnels: OrdMap::new(),
            joined: OrdMap::new(),
        }
    }

    /// The endpoints of a service, in the order of their keys.
    pub fn endpoints_of<'view>(
        &'view self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&'view EndpointKey, &'view Arc<Endpoint>)> {
        let first = EndpointKey::first_of(service);
        let service = service.clone();
        self.endpoints
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.service == service)
    }

    /// The other service that has an address with the protocol and port of this one, if there is one. Users may choose any
    /// address, also that of a name, and clients could be sent to only one of the two. Costs as much as there are services.
    pub fn rival(&self, key: &ServiceKey, address: IpAddr) -> Option<&ServiceKey> {
        let is_rival = |other: &&Arc<Service>| {
            (other.key.protocol, other.key.port) == (key.protocol, key.port)
                && other.key != *key
                && other.has_address(address)
        };
        self.services.values().find(is_rival).map(|other| &other.key)
    }
}

/// It sorts before every other.
static FIRST_TASK: LazyLock<TaskKey> =
    LazyLock::new(|| TaskKey::new(FrameworkId::new(""), crate::TaskId::new("")));

impl EndpointKey {
    /// A key that sorts before every endpoint of the service and after those of the services before it.
    fn first_of(service: &ServiceKey) -> Self {
        Self {
            service: service.clone(),
            task: FIRST_TASK.clone(),
            address: std::net::SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }
}
