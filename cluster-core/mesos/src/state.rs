//! The JSON of `/master/state` and of the v1 operator API, which differ in how they write ids, labels and resources.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::json::{if_readable, or_default};

/// The answer of `/master/state`, as much of it as is used.
#[derive(Debug, Deserialize)]
pub(crate) struct StateJson<'a> {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) leader: String,
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) slaves: Vec<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) frameworks: Vec<&'a RawValue>,
}

/// An agent in `/master/state`.
#[derive(Debug, Deserialize)]
pub(crate) struct SlaveJson {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) hostname: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) pid: String,
    #[serde(default)]
    pub(crate) active: Option<bool>,
}

/// A framework in `/master/state`.
#[derive(Debug, Deserialize)]
pub(crate) struct FrameworkJson<'a> {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) user: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) role: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) pid: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) webui_url: Option<String>,
    #[serde(default)]
    pub(crate) active: Option<bool>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) tasks: Vec<&'a RawValue>,
}

/// A task: `id` and `slave_id` in `/master/state`, `task_id` and `agent_id` in the v1 API. The status of a
/// `TASK_UPDATED` event is one without most members.
#[derive(Debug, Deserialize)]
pub(crate) struct TaskJson<'a> {
    #[serde(borrow, default, alias = "task_id")]
    pub(crate) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) framework_id: Option<&'a RawValue>,
    #[serde(borrow, default, alias = "slave_id")]
    pub(crate) agent_id: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) state: String,
    #[serde(borrow, default)]
    pub(crate) resources: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) labels: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) statuses: Vec<StatusJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) discovery: Option<DiscoveryJson<'a>>,
    #[serde(default)]
    pub(crate) container: Option<ContainerJson>,
    #[serde(default)]
    pub(crate) health_check: Option<IgnoredAny>,
}

/// Mesos `TaskStatus`.
#[derive(Debug, Deserialize)]
pub(crate) struct StatusJson<'a> {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) state: String,
    #[serde(default, deserialize_with = "if_readable")]
    pub(crate) timestamp: Option<f64>,
    #[serde(borrow, default)]
    pub(crate) labels: Option<&'a RawValue>,
    #[serde(default)]
    pub(crate) container_status: Option<ContainerStatusJson>,
    #[serde(default)]
    pub(crate) healthy: Option<bool>,
}

/// Mesos `ContainerStatus`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ContainerStatusJson {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) network_infos: Vec<NetworkInfoJson>,
}

/// Mesos `NetworkInfo`.
#[derive(Debug, Deserialize)]
pub(crate) struct NetworkInfoJson {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip_addresses: Vec<IpAddressJson>,
    /// The form before Mesos 0.26.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip_address: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) port_mappings: Vec<PortMappingJson>,
}

/// Mesos `NetworkInfo.IPAddress`.
#[derive(Debug, Deserialize)]
pub(crate) struct IpAddressJson {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip_address: String,
}

/// Mesos `NetworkInfo.PortMapping` and `DockerInfo.PortMapping`.
#[derive(Debug, Deserialize)]
pub(crate) struct PortMappingJson {
    #[serde(default, deserialize_with = "if_readable")]
    pub(crate) host_port: Option<u16>,
    #[serde(default, deserialize_with = "if_readable")]
    pub(crate) container_port: Option<u16>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) protocol: String,
}

/// Mesos `ContainerInfo`.
#[derive(Debug, Deserialize)]
pub(crate) struct ContainerJson {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) network_infos: Option<Vec<NetworkInfoJson>>,
    #[serde(default)]
    pub(crate) docker: Option<DockerJson>,
}

/// Mesos `ContainerInfo.DockerInfo`.
#[derive(Debug, Deserialize)]
pub(crate) struct DockerJson {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) port_mappings: Vec<PortMappingJson>,
}

/// Mesos `DiscoveryInfo`.
#[derive(Debug, Deserialize)]
pub(crate) struct DiscoveryJson<'a> {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) visibility: String,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(borrow, default)]
    pub(crate) ports: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) labels: Option<&'a RawValue>,
}

/// Mesos `Ports`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct PortsJson<'a> {
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) ports: Vec<PortJson<'a>>,
}

/// Mesos `Port`.
#[derive(Debug, Deserialize)]
pub(crate) struct PortJson<'a> {
    #[serde(default, deserialize_with = "if_readable")]
    pub(crate) number: Option<u16>,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) protocol: String,
    #[serde(borrow, default)]
    pub(crate) labels: Option<&'a RawValue>,
}
