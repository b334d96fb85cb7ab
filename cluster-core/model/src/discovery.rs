//! What a task says of itself to service discovery (Mesos `DiscoveryInfo`), and the ports that follow from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{PortPolicy, Protocol, VipLabel, VipLabelError};

/// Mesos `DiscoveryInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// Who may see the task.
    pub visibility: Visibility,
    /// The name to publish; the task's own name if absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The ports to publish, in order.
    #[serde(default)]
    pub ports: Vec<DiscoveryPort>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Mesos `DiscoveryInfo.Visibility`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Visibility {
    /// Only tasks of the same framework.
    #[default]
    Framework,
    /// Everybody in the cluster.
    Cluster,
    /// Everybody.
    External,
}

/// One published port (Mesos `Port`). The protocol is as the framework wrote it: empty stands for both TCP and UDP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryPort {
    /// Port number.
    pub number: u16,
    /// Port name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `tcp`, `udp` in any case, or empty.
    #[serde(default)]
    pub protocol: String,
    /// Labels: `VIP_<n>`, `network-scope`, `network-name` and free ones.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Where one port of a task is reached, and by which virtual addresses (spec/dcos-networking.md §2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name; `default` if the framework gave none.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the agent's address, if there is one.
    pub host_port: Option<u16>,
    /// Port on the task's own address, if it has one.
    pub port: Option<u16>,
    /// The VIP labels of the port, each read or refused.
    pub vips: Vec<Result<VipLabel, VipLabelError>>,
    /// How connections to it are balanced.
    pub policy: PortPolicy,
}

impl DiscoveryPort {
    /// The port as a service sees it; nothing for number 0 or a protocol that is neither TCP nor UDP.
    pub fn service_port(&self) -> Option<ServicePort> {
        let protocol = self.protocol.parse().ok()?;
        if self.number == 0 {
            return None;
        }
        let on_host = self.labels.get("network-scope").is_some_and(|scope| scope == "host");
        let is_vip = |key: &str| key.starts_with("VIP") || key.starts_with("vip");
        Some(ServicePort {
            name: self.name.clone().unwrap_or_else(|| "default".to_owned()),
            protocol,
            host_port: on_host.then_some(self.number),
            port: (!on_host).then_some(self.number),
            vips: self
                .labels
                .iter()
                .filter(|(key, _)| is_vip(key))
                .map(|(_, value)| VipLabel::parse(value))
                .collect(),
            policy: PortPolicy::parse(&self.labels).0,
        })
    }
}
