//! Agents: the nodes that run tasks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Resources, Timestamp};

/// What an agent says of itself when it registers (Mesos `SlaveInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The host's name as clients should see it; must resolve for them or be an address.
    pub hostname: String,
    /// The address at which its tasks' host ports are reached.
    pub address: IpAddr,
    /// The port of its HTTP endpoint; 0 if it has none of its own.
    pub port: u16,
    /// All that it has to give.
    pub resources: Resources,
    /// For placement constraints, in the order given.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
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
    /// Whether it answers.
    pub state: AgentState,
    /// When it first registered.
    pub registered_at: Timestamp,
}

/// Whether an agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It is connected.
    Active,
    /// Its connection is lost; nothing new is placed on it.
    Disconnected,
}
