//! Tunnels between nodes: what each node lets the others know of its end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Timestamp};

/// The longest key as text; a WireGuard key is 44 characters of base64.
const KEY_LENGTH_MAX: usize = 64;

/// A node's end of the tunnels to it. It is said by the node's network daemon, whose certificate says which node that
/// is. Its address is that of the node's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelEnd {
    /// Its public WireGuard key, in base64.
    pub key: String,
    /// Another key that is its own as well, while its keys change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_key: Option<String>,
    /// The UDP port where it listens.
    pub port: u16,
    /// When `key` was made, by the node's clock.
    #[serde(default)]
    pub made: Timestamp,
    /// Whether every live node has all of this. The master says it, and only while keys change.
    #[serde(default)]
    pub is_acknowledged: bool,
}

/// What a node's overlay reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// The node's end of tunnels.
    pub end: TunnelEnd,
    /// Nodes that do not answer through their tunnels, though there was something to answer.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub silent: BTreeSet<AgentId>,
    /// What the node's host goes without, for people to read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omissions: Vec<String>,
}

impl TunnelEnd {
    /// Whether a node has said the same twice, whatever the master has added.
    pub fn says_the_same(&self, other: &Self) -> bool {
        Self { is_acknowledged: false, ..self.clone() } == Self { is_acknowledged: false, ..other.clone() }
    }

    /// Whether it may be kept: nothing in it is longer than it has to be.
    pub fn is_plausible(&self) -> bool {
        let is_key = |key: &String| (1..=KEY_LENGTH_MAX).contains(&key.len());
        self.port != 0 && is_key(&self.key) && self.other_key.iter().all(is_key)
    }
}
