//! A task's ports, joined from what its container, its labels and its discovery information say.
//!
//! Source: spec/dcos-networking.md §2.2.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesonet_model::{DiscoveryPort, NetworkPort, Protocol};

use crate::facts::TaskFacts;
use crate::state::PortMappingJson;

/// The name of a port that has none.
const DEFAULT_NAME: &str = "default";

/// A host port that leads to a port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) protocol: Protocol,
    pub(crate) host_port: u16,
    pub(crate) port: u16,
}

/// Reads port mappings. Those of other protocols than TCP and UDP and incomplete ones are left out.
pub(crate) fn mappings(json: &[PortMappingJson]) -> Vec<Mapping> {
    let read = |mapping: &PortMappingJson| {
        Some(Mapping {
            protocol: mapping.protocol.parse().ok()?,
            host_port: mapping.host_port?,
            port: mapping.container_port?,
        })
    };
    json.iter().filter_map(read).collect()
}

/// The ports of a task whose agent has these addresses.
pub(crate) fn of_task(facts: &TaskFacts, on_host: bool) -> Vec<NetworkPort> {
    let mappings = facts.mappings.as_deref().unwrap_or(&facts.latest.mappings);
    let mapped = mappings.iter().map(|mapping| NetworkPort {
        name: DEFAULT_NAME.to_owned(),
        protocol: mapping.protocol,
        host_port: Some(mapping.host_port),
        port: Some(mapping.port),
        vips: Vec::new(),
        policy_labels: BTreeMap::new(),
    });
    let labelled = facts.labels.iter().filter_map(|(key, value)| labelled_port(key, value, &facts.port_list));
    let published = facts.discovery.iter().flat_map(|discovery| &discovery.ports).filter_map(discovery_port);
    let mut ports: Vec<NetworkPort> = Vec::new();
    // What discovery information says comes last, so that its names stay.
    for port in mapped.chain(labelled).chain(published) {
        join(&mut ports, port);
    }
    if on_host { fold_into_host(ports) } else { ports }
}

/// Whether a task's addresses are those of the host that it runs on.
pub(crate) fn is_on_host(task: &[IpAddr], agent: &[IpAddr]) -> bool {
    !task.is_empty() && task.iter().all(|address| agent.contains(address))
}

/// The port that a task label `VIP_PORT<index>` = `tcp://<VIP>` declares: a resource port by its position.
fn labelled_port(key: &str, value: &str, ports: &[u16]) -> Option<NetworkPort> {
    const PREFIX: &str = "vip_port";
    let lower = key.to_ascii_lowercase();
    let index: usize = lower.strip_prefix(PREFIX)?.parse().ok()?;
    let (protocol, vip) = match value.split_once("://")? {
        ("tcp", vip) => (Protocol::Tcp, vip),
        ("udp", vip) => (Protocol::Udp, vip),
        _ => return None,
    };
    let host_port = *ports.get(index)?;
    let name = DEFAULT_NAME.to_owned();
    Some(NetworkPort {
        name,
        protocol,
        host_port: Some(host_port),
        port: None,
        vips: vec![vip.to_owned()],
        policy_labels: BTreeMap::new(),
    })
}

fn discovery_port(port: &DiscoveryPort) -> Option<NetworkPort> {
    let protocol = port.protocol.parse().ok()?;
    if port.number == 0 {
        return None;
    }
    let on_host = port.labels.get("network-scope").is_some_and(|scope| scope == "host");
    let is_vip = |key: &str| key.starts_with("VIP") || key.starts_with("vip");
    let labels = port.labels.iter().filter(|(key, _)| is_vip(key));
    let mut vips: Vec<String> = labels.map(|(_, value)| value.clone()).collect();
    vips.sort();
    vips.dedup();
    let ours = port.labels.iter().filter(|(key, _)| key.starts_with("MESONET_LB_"));
    Some(NetworkPort {
        name: port.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        protocol,
        host_port: on_host.then_some(port.number),
        port: (!on_host).then_some(port.number),
        vips,
        policy_labels: ours.map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

/// Adds a port, or joins it with those that have the same host port or the same own port.
fn join(ports: &mut Vec<NetworkPort>, port: NetworkPort) {
    let is_same = |other: &NetworkPort| {
        let same = |a: Option<u16>, b: Option<u16>| a.is_some() && a == b;
        other.protocol == port.protocol
            && (same(other.port, port.port) || same(other.host_port, port.host_port))
    };
    match ports.iter_mut().find(|other| is_same(other)) {
        Some(other) => merge(other, port),
        None => ports.push(port),
    }
}

fn merge(port: &mut NetworkPort, other: NetworkPort) {
    if other.name != DEFAULT_NAME {
        port.name = other.name;
    }
    port.host_port = port.host_port.or(other.host_port);
    port.port = port.port.or(other.port);
    port.vips.extend(other.vips);
    port.vips.sort();
    port.vips.dedup();
    port.policy_labels.extend(other.policy_labels);
}

/// On the host's network every port is one of the host.
fn fold_into_host(ports: Vec<NetworkPort>) -> Vec<NetworkPort> {
    let mut folded: Vec<NetworkPort> = Vec::new();
    for port in ports {
        let host_port = port.host_port.or(port.port);
        let port = NetworkPort { host_port, port: None, ..port };
        join(&mut folded, port);
    }
    folded
}
