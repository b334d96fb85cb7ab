//! Agents: the nodes that run tasks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Resources, Timestamp};

/// What an agent says of itself when it registers (Mesos `SlaveInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The host's name as clients should see it; must resolve for them or be an address.
    pub hostname: String,
    /// The address at which its tasks' host ports are reached. An unspecified one, `0.0.0.0`, stands for an address
    /// that is not known.
    pub address: IpAddr,
    /// The port of its HTTP endpoint; 0 if it has none of its own.
    pub port: u16,
    /// All that it has to give.
    pub resources: Resources,
    /// For placement constraints, in the order given.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
    /// Whether it can give tasks interfaces and addresses of their own.
    #[serde(default)]
    pub container_networks: bool,
}

/// A named property of an agent (Mesos `Attribute`, text form).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// An agent that the master knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Given by the master at the first registration, kept by the agent.
    pub id: AgentId,
    /// What it said of itself.
    pub info: AgentInfo,
    /// The addresses of its HTTP endpoint where they are not that of its tasks' host ports alone, as when its Mesos
    /// process listens under a name; see [`Agent::endpoint_addresses`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_addresses: Vec<IpAddr>,
    /// Whether it answers.
    pub state: AgentState,
    /// Whether an operator wants it empty: nothing new is placed on it, and its tasks move elsewhere.
    #[serde(default)]
    pub draining: bool,
    /// When it first registered.
    pub registered_at: Timestamp,
}

/// The attribute with the name of an agent's node, for placement constraints and to name nodes by.
pub const NODE_ATTRIBUTE: &str = "node";

/// The attribute with the name of the zone that an agent's node is in: nodes of one zone are near each other.
pub const ZONE_ATTRIBUTE: &str = "zone";

impl Agent {
    /// The addresses of its HTTP endpoint, as far as they are known.
    pub fn endpoint_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let own = self.other_addresses.is_empty().then_some(self.info.address);
        self.other_addresses.iter().copied().chain(own).filter(|address| !address.is_unspecified())
    }

    /// The zone of the agent's node, if it has one.
    pub fn zone(&self) -> Option<&str> {
        let mut attributes = self.info.attributes.iter();
        attributes
            .find(|attribute| attribute.name == ZONE_ATTRIBUTE)
            .map(|attribute| attribute.value.as_str())
    }

    /// The name of the agent's node; its id where the node has no name, as in a local cluster.
    pub fn node_name(&self) -> &str {
        let mut attributes = self.info.attributes.iter();
        let named = attributes.find(|attribute| attribute.name == NODE_ATTRIBUTE);
        named.map_or(self.id.as_str(), |attribute| &attribute.value)
    }
}

/// Whether an agent answers. Only on an active one that does not drain anything new is placed.
///
/// ```text
///                  registers          connection lost
///   Recovered ───────────────► Active ───────────────► Suspect ───────► Unreachable
///       │                        ▲                      │  ▲  does not        │
///       │                        └─────── registers ────┴──│─ come back ──────┘
///       └──────────────── does not come ───────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It is connected.
    Active,
    /// It was connected to the master before this one and may not have found this one yet.
    Recovered,
    /// Its connection is lost: clients are sent to its tasks only where there is nothing better.
    #[serde(alias = "disconnected")]
    Suspect,
    /// It has not come back in time: frameworks may replace its tasks.
    Unreachable,
}

impl AgentState {
    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Recovered => "recovered",
            Self::Suspect => "suspect",
            Self::Unreachable => "unreachable",
        }
    }

    /// Whether its tasks may be out of reach.
    pub fn is_lost(self) -> bool {
        match self {
            Self::Active | Self::Recovered => false,
            Self::Suspect | Self::Unreachable => true,
        }
    }
}
