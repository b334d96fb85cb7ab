//! Frameworks and masters, as names and clients see them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{FrameworkId, MasterId, Timestamp};

/// A framework that has subscribed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framework {
    /// Identity.
    pub id: FrameworkId,
    /// Name; part of its tasks' DNS names.
    pub name: String,
    /// User that its tasks run as by default.
    pub user: String,
    /// Resource role.
    pub role: String,
    /// Where its scheduler runs.
    pub hostname: String,
    /// The address of its scheduler or web page, if known.
    pub address: Option<SocketAddr>,
    /// The addresses of its scheduler if they are not that of `address`, as when it runs under a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_addresses: Vec<IpAddr>,
    /// Its web page.
    pub webui_url: Option<String>,
    /// Whether it is subscribed.
    pub active: bool,
    /// When it first subscribed.
    pub registered_at: Timestamp,
}

/// A master of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Identity.
    pub id: MasterId,
    /// Where its HTTP endpoints are.
    pub address: SocketAddr,
    /// Whether it leads.
    pub leading: bool,
    /// Whether agents that do not answer are not given up, because too many are lost at once, until they come back or
    /// an operator confirms that they are gone.
    #[serde(default)]
    pub removal_held: bool,
}
