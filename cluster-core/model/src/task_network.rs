//! What a Mesos cluster reports of a task's network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{PortPolicy, Protocol, ServicePort, TaskId, VipLabel};

/// A task's addresses, one list for each place where Mesos reports some, and its ports.
///
/// Source: spec/dcos-networking.md §1.4 for the first three lists, §2.2 for the rest. All lists are in the order
/// reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskNetwork {
    /// `container_status.network_infos` of the latest running status.
    pub netinfo: Vec<IpAddr>,
    /// Labels `MesosContainerizer.NetworkSettings.IPAddress` of the latest running status.
    pub mesos: Vec<IpAddr>,
    /// Labels `Docker.NetworkSettings.IPAddress` of the latest running status.
    pub docker: Vec<IpAddr>,
    /// `container_status.network_infos` of the latest status, whatever its state: on the host's network the agent's
    /// address.
    pub container: Vec<IpAddr>,
    /// The task's id if the task's key has another one, because the framework has several tasks of this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_id: Option<TaskId>,
    /// Port mappings, ports of `VIP_PORT` labels and ports of discovery information, joined.
    pub ports: Vec<NetworkPort>,
}

/// A port of a task as its port mappings, labels and discovery information say together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPort {
    /// Port name; `default` if the framework gave none.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the agent's address, if there is one.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// Port on the task's own addresses, if there is one.
    #[serde(default)]
    pub port: Option<u16>,
    /// The values of its VIP labels, sorted.
    #[serde(default)]
    pub vips: Vec<String>,
    /// Its labels `MESONET_LB_*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policy_labels: BTreeMap<String, String>,
}

impl NetworkPort {
    /// The port as a service sees it.
    pub fn service_port(&self) -> ServicePort {
        ServicePort {
            name: self.name.clone(),
            protocol: self.protocol,
            host_port: self.host_port,
            port: self.port,
            vips: self.vips.iter().map(|label| VipLabel::parse(label)).collect(),
            policy: PortPolicy::parse(&self.policy_labels).0,
        }
    }
}
