//! The interfaces of a task that is not on the host's network, as they are written down before it starts.

use std::net::IpAddr;

use mesonet_model::{NetworkName, PortForward, Subnet, TaskNetworking, gateway_of};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::addresses::Addresses;

/// The bridge of tasks that are in no virtual network.
const NODE_BRIDGE: &str = "mesonet0";

/// The longest packet that fits through the tunnel between nodes, over Ethernet and either family; that of DC/OS.
pub(crate) const TUNNEL_MTU: u32 = 1420;

/// The interfaces of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerNetwork {
    /// In the order of their names, `eth0`, `eth1` and so on.
    pub(crate) interfaces: Vec<Interface>,
    /// Ports of the node that lead to the task.
    pub(crate) forwards: Vec<PortForward>,
    /// The node's address, where these ports are.
    pub(crate) host: IpAddr,
    /// The task's name server.
    pub(crate) name_server: IpAddr,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    /// The bridge on the node.
    pub(crate) bridge: String,
    pub(crate) addresses: Vec<InterfaceAddress>,
    /// The longest packet, if it is not that of the kernel's choice.
    #[serde(default)]
    pub(crate) mtu: Option<u32>,
}

/// One address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InterfaceAddress {
    pub(crate) address: IpAddr,
    /// The node's part of the network.
    pub(crate) subnet: Subnet,
}

/// What a node has for its tasks' networks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings {
    pub(crate) host: IpAddr,
    pub(crate) name_server: IpAddr,
}

/// A task cannot have the interfaces that it wants here and at this time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum NoNetwork {
    #[error("this agent cannot give tasks addresses of their own: it lacks {0}")]
    Rights(String),
    #[error("the task is in no network at all")]
    Nowhere,
    #[error("this agent has no part of network '{0}'")]
    NoPart(NetworkName),
    #[error("every address of {0} is taken")]
    Exhausted(Subnet),
}

impl ContainerNetwork {
    /// Chooses the addresses of a run of a task. If there are none, none is taken.
    pub(crate) fn plan(
        networking: &TaskNetworking,
        container: Uuid,
        addresses: &mut Addresses,
        Surroundings { host, name_server }: Surroundings,
    ) -> Result<Self, NoNetwork> {
        let mut interfaces = Vec::with_capacity(networking.attachments.len());
        for attachment in &networking.attachments {
            let (bridge, subnets) = match &attachment.network {
                Some(network) if attachment.subnets.is_empty() => {
                    addresses.free(container);
                    return Err(NoNetwork::NoPart(network.clone()));
                }
                Some(network) => (network.bridge(), attachment.subnets.clone()),
                None => (NODE_BRIDGE.to_owned(), vec![Subnet::NODE_BRIDGE]),
            };
            let mut chosen = Vec::with_capacity(subnets.len());
            for subnet in subnets {
                let Some(address) = addresses.take(subnet, container) else {
                    addresses.free(container);
                    return Err(NoNetwork::Exhausted(subnet));
                };
                chosen.push(InterfaceAddress { address, subnet });
            }
            let mtu = attachment.network.as_ref().map(|_| TUNNEL_MTU);
            interfaces.push(Interface { bridge, addresses: chosen, mtu });
        }
        if interfaces.is_empty() {
            return Err(NoNetwork::Nowhere);
        }
        Ok(Self { interfaces, forwards: networking.mappings.clone(), host, name_server })
    }

    /// The gateways of the default routes that lead through an interface: of each family, through the first interface that
    /// has an address of it.
    pub(crate) fn default_gateways(&self, index: usize) -> Vec<IpAddr> {
        let (earlier, own) = self.interfaces.split_at(index.min(self.interfaces.len()));
        let has_family = |is_ipv4: bool| {
            earlier.iter().flat_map(|each| &each.addresses).any(|each| each.subnet.is_ipv4() == is_ipv4)
        };
        let own = own.first().into_iter().flat_map(|interface| &interface.addresses);
        let leading = own.filter(|each| !has_family(each.subnet.is_ipv4()));
        leading.filter_map(InterfaceAddress::gateway).collect()
    }

    /// The task's addresses, those of the first interface first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.interfaces.iter().flat_map(|each| &each.addresses).map(|each| each.address).collect()
    }
}

impl InterfaceAddress {
    /// The node's address on the bridge.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        gateway_of(&self.subnet)
    }
}

/// The name of an interface in the task's namespace.
pub(crate) fn inside_name(index: usize) -> String {
    format!("eth{index}")
}

/// The name of an interface's end on the node, for the number of an interface of a run of a task.
pub(crate) fn port_name(container: Uuid, index: usize) -> String {
    // At most 15 characters: two, ten of the run's id, and the number.
    format!("mn{}{index}", &container.simple().to_string()[..10])
}

#[cfg(test)]
mod tests {
    use mesonet_model::Attachment;

    use super::*;

    const SURROUNDINGS: Surroundings = Surroundings {
        host: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        name_server: IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    };

    fn attachment(name: &str, subnets: &[&str]) -> Attachment {
        let subnets = subnets.iter().map(|subnet| subnet.parse().expect("range")).collect();
        Attachment { network: Some(name.parse().expect("name")), subnets }
    }

    #[test]
    fn each_family_has_its_default_route_through_the_first_interface_with_it() {
        let attachments = vec![
            attachment("four", &["9.0.1.0/24"]),
            attachment("both", &["10.1.1.0/24", "fd01::/80"]),
            attachment("six", &["fd02::/80"]),
        ];
        let networking = TaskNetworking { attachments, mappings: Vec::new() };
        let mut addresses = Addresses::default();
        let run = Uuid::from_u128(1);
        let planned = ContainerNetwork::plan(&networking, run, &mut addresses, SURROUNDINGS).expect("room");
        let gateways: Vec<Vec<String>> = (0..4)
            .map(|index| planned.default_gateways(index).iter().map(IpAddr::to_string).collect())
            .collect();
        assert_eq!(gateways, [vec!["9.0.1.1"], vec!["fd01::1"], vec![], vec![]]);
    }

    #[test]
    fn a_task_has_an_address_of_each_part_or_none_is_taken() {
        let mut addresses = Addresses::default();
        let both = attachment("both", &["9.0.0.0/30", "fd01::/80"]);
        let networking =
            TaskNetworking { attachments: vec![Attachment::default(), both], mappings: Vec::new() };
        let run = Uuid::from_u128;
        let planned =
            ContainerNetwork::plan(&networking, run(1), &mut addresses, SURROUNDINGS).expect("room");
        let texts: Vec<String> = planned.addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["172.31.254.2", "9.0.0.2", "fd01::2"]);
        assert_eq!(planned.interfaces[1].bridge, "m-both");
        let full = ContainerNetwork::plan(&networking, run(2), &mut addresses, SURROUNDINGS);
        assert_eq!(full, Err(NoNetwork::Exhausted("9.0.0.0/30".parse().expect("range"))));
        addresses.free(run(1));
        assert!(!addresses.uses(&Subnet::NODE_BRIDGE), "the refused task has left nothing behind");
        let nowhere = TaskNetworking { attachments: vec![attachment("gone", &[])], mappings: Vec::new() };
        let refused = ContainerNetwork::plan(&nowhere, run(3), &mut addresses, SURROUNDINGS);
        assert_eq!(refused, Err(NoNetwork::NoPart("gone".parse().expect("name"))));
    }
}
