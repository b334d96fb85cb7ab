//! What is known of a task, an agent and a framework, before it is put into relation to anything else.

use std::collections::BTreeMap;

use mesonet_model::{
    AgentId, Discovery, DiscoveryPort, FrameworkId, PortRanges, TaskId, TaskKey, TaskState, Visibility,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::hosts::{self, HostPort};
use crate::json::{id, if_readable, label_map, labels, or_default};
use crate::network::StatusFacts;
use crate::ports::{Mapping, mappings};
use crate::state::{ContainerJson, DiscoveryJson, FrameworkJson, PortJson, PortsJson, SlaveJson, TaskJson};

/// How many ports of a task are told apart by `VIP_PORT` labels: more than a machine has.
const PORT_LIST_MAX: usize = 65_536;

/// An agent as the master describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentFacts {
    pub(crate) id: AgentId,
    pub(crate) hostname: String,
    /// Where its process listens, if that can be read.
    pub(crate) endpoint: Option<HostPort>,
    /// Whether it is connected.
    pub(crate) active: bool,
}

/// A framework as the master describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameworkFacts {
    pub(crate) id: FrameworkId,
    pub(crate) name: String,
    pub(crate) user: String,
    pub(crate) role: String,
    pub(crate) hostname: String,
    /// Where its scheduler's process listens; none of one that uses HTTP.
    pub(crate) endpoint: Option<HostPort>,
    pub(crate) webui_url: Option<String>,
    pub(crate) active: bool,
}

/// A task as the master describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskFacts {
    pub(crate) key: TaskKey,
    /// Its id, if another task of its framework has the same and so its key is made up.
    pub(crate) shared_id: Option<TaskId>,
    pub(crate) agent: AgentId,
    pub(crate) name: String,
    pub(crate) state: TaskState,
    pub(crate) discovery: Option<Discovery>,
    pub(crate) labels: BTreeMap<String, String>,
    /// The host ports that are set aside for it, as a set and in the order listed.
    pub(crate) resource_ports: PortRanges,
    pub(crate) port_list: Vec<u16>,
    /// The port mappings of its container; none if it is for the status to say.
    pub(crate) mappings: Option<Vec<Mapping>>,
    pub(crate) has_health_check: bool,
    /// The status with the greatest timestamp.
    pub(crate) latest: StatusFacts,
    /// The one of those that say that it runs.
    pub(crate) running: Option<StatusFacts>,
}

// === impl AgentFacts ===

impl AgentFacts {
    /// Nothing if it has no id.
    pub(crate) fn of_state(json: SlaveJson) -> Option<Self> {
        (!json.id.is_empty()).then(|| Self {
            id: AgentId::new(&json.id),
            hostname: json.hostname,
            endpoint: hosts::of_pid(&json.pid),
            active: json.active.unwrap_or(true),
        })
    }
}

// === impl FrameworkFacts ===

impl FrameworkFacts {
    /// Nothing if it has no id.
    pub(crate) fn of_state(json: &FrameworkJson<'_>) -> Option<Self> {
        (!json.id.is_empty()).then(|| Self {
            id: FrameworkId::new(&json.id),
            name: json.name.clone(),
            user: json.user.clone(),
            role: json.role.clone(),
            hostname: json.hostname.clone(),
            endpoint: hosts::of_pid(&json.pid),
            webui_url: json.webui_url.clone(),
            active: json.active.unwrap_or(true),
        })
    }
}

// === impl TaskFacts ===

impl TaskFacts {
    /// Reads a task. `framework` is the one that it is listed under, if it is listed under one. Nothing if it has no
    /// id, framework or agent.
    pub(crate) fn of_json(json: TaskJson<'_>, framework: Option<&FrameworkId>) -> Option<Self> {
        let framework = match framework {
            Some(framework) => framework.clone(),
            None => FrameworkId::new(id(json.framework_id)),
        };
        let (task, agent) = (id(json.id), id(json.agent_id));
        if task.is_empty() || agent.is_empty() || framework.as_str().is_empty() {
            return None;
        }
        let (latest, running) = StatusFacts::choose(&json.statuses);
        let port_list = json.resources.map(resource_ports).unwrap_or_default();
        Some(Self {
            key: TaskKey::new(framework, TaskId::new(task)),
            shared_id: None,
            agent: AgentId::new(agent),
            name: json.name,
            state: state(&json.state),
            discovery: json.discovery.map(discovery),
            labels: label_map(labels(json.labels)),
            resource_ports: port_list.iter().copied().collect(),
            port_list,
            mappings: json.container.and_then(container_mappings),
            has_health_check: json.health_check.is_some(),
            latest: latest.unwrap_or_default(),
            running,
        })
    }

    /// Gives it a key of its own: it is the one with this number of those with its id.
    pub(crate) fn distinguish(&mut self, number: usize) {
        let own = TaskId::new(format!("{} ({number})", self.key.task));
        self.shared_id = Some(std::mem::replace(&mut self.key.task, own));
    }

    /// Whether it passes its health check: nothing without one, no before the first result.
    pub(crate) fn healthy(&self) -> Option<bool> {
        self.latest.healthy.or(self.has_health_check.then_some(false))
    }
}

/// Reads a state. What is no state of Mesos is unknown.
pub(crate) fn state(text: &str) -> TaskState {
    let deserializer = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    TaskState::deserialize(deserializer).unwrap_or(TaskState::Unknown)
}

fn discovery(json: DiscoveryJson<'_>) -> Discovery {
    let ports: PortsJson<'_> =
        json.ports.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    Discovery {
        visibility: match json.visibility.as_str() {
            "CLUSTER" => Visibility::Cluster,
            "EXTERNAL" => Visibility::External,
            _ => Visibility::Framework,
        },
        name: json.name,
        ports: ports.ports.into_iter().filter_map(discovery_port).collect(),
        labels: label_map(labels(json.labels)),
    }
}

/// Nothing if its number is none.
fn discovery_port(json: PortJson<'_>) -> Option<DiscoveryPort> {
    Some(DiscoveryPort {
        number: json.number?,
        name: json.name,
        protocol: json.protocol,
        labels: label_map(labels(json.labels)),
    })
}

/// The port mappings that a container's description has (spec/dcos-networking.md §2.2).
fn container_mappings(json: ContainerJson) -> Option<Vec<Mapping>> {
    match json.kind.as_str() {
        "DOCKER" => Some(json.docker.map(|docker| mappings(&docker.port_mappings)).unwrap_or_default()),
        _ => {
            let infos = json.network_infos?;
            Some(infos.iter().flat_map(|info| mappings(&info.port_mappings)).collect())
        }
    }
}

/// The ports of a task's resources in the order listed: `{"ports": "[31000-31001]"}` in `/master/state`, a list of
/// Mesos `Resource` in the v1 API. Parts that cannot be read are left out.
fn resource_ports(raw: &RawValue) -> Vec<u16> {
    #[derive(Deserialize)]
    struct Map {
        #[serde(default, deserialize_with = "if_readable")]
        ports: Option<String>,
    }
    #[derive(Deserialize)]
    struct Resource {
        #[serde(default, deserialize_with = "or_default")]
        name: String,
        #[serde(default, deserialize_with = "if_readable")]
        ranges: Option<Ranges>,
    }
    #[derive(Deserialize)]
    struct Ranges {
        #[serde(default, deserialize_with = "or_default")]
        range: Vec<Range>,
    }
    #[derive(Deserialize)]
    struct Range {
        begin: u16,
        end: u16,
    }
    let mut ports = Vec::new();
    if let Ok(Map { ports: Some(text) }) = serde_json::from_str(raw.get()) {
        let inner = text.split_once('[').map_or(text.as_str(), |(_, rest)| rest);
        let inner = inner.split_once(']').map_or(inner, |(front, _)| front);
        for part in inner.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse()) {
                ports.extend(first..=last);
            }
            ports.truncate(PORT_LIST_MAX);
        }
    } else if let Ok(resources) = serde_json::from_str::<Vec<Resource>>(raw.get()) {
        let of_ports = resources.into_iter().filter(|resource| resource.name == "ports");
        for range in of_ports.filter_map(|resource| resource.ranges).flat_map(|ranges| ranges.range) {
            ports.extend(range.begin..=range.end);
            ports.truncate(PORT_LIST_MAX);
        }
    }
    ports
}
