//! What flows back up from the planes of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Revision, ServiceKey, TaskKey, Timestamp, TunnelReport};

/// A part of a node's network daemon that follows the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// Names.
    Dns,
    /// Virtual addresses.
    Lb,
    /// Tunnels between containers.
    Overlay,
}

impl Plane {
    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Lb => "lb",
            Self::Overlay => "overlay",
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one plane of one node has put into effect. Sent whenever it changes; the latest replaces earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneReport {
    /// The node.
    pub node: AgentId,
    /// The plane.
    pub plane: Plane,
    /// The newest revision that is fully in effect.
    pub applied: Revision,
    /// Tasks whose endpoints drain and that still have open connections through this plane.
    pub busy: BTreeSet<TaskKey>,
    /// Services that could not be put into effect, and why.
    pub failed: BTreeMap<ServiceKey, String>,
    /// The last time that the node served a view that no master confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// What the plane of the overlay says of tunnels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Box<TunnelReport>>,
}

/// A time without any master, by the node's clock. What the node served at its end was as old as this is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When a master had confirmed the view for the last time.
    pub since: Timestamp,
    /// When the next master was there.
    pub until: Timestamp,
}
