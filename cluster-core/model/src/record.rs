//! What the control plane asks the store to keep.

use std::fmt;

/// A group of records in the store; its name is part of the on-disk format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Facts about the cluster as a whole, by name.
    Cluster,
    /// Agents by id.
    Agents,
    /// Frameworks by id.
    Frameworks,
    /// Tasks by key, with their launch description.
    Tasks,
    /// Addresses given to named VIPs, by `name.framework`.
    Vips,
    /// Services by key.
    Services,
    /// Virtual networks by name.
    Networks,
    /// The parts of virtual networks that agents give addresses from, by agent.
    Subnets,
    /// Ends of tunnels, by the name of the node.
    Tunnels,
    /// Containers of other runtimes in virtual networks, by their first address.
    Joined,
    /// Marathon apps by id: the versions' order and state.
    Apps,
    /// Versions of Marathon apps by `<app id>@<version>`.
    AppVersions,
    /// Marathon deployments by id.
    Deployments,
    /// Marathon's instances by task id.
    Instances,
}

/// One record put (`Some`) or deleted (`None`). Values are JSON with named fields, so that versions before and after
/// can read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The table.
    pub table: Table,
    /// The record's key.
    pub key: String,
    /// The record's new value.
    pub value: Option<Vec<u8>>,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 14] = [
        Self::Cluster,
        Self::Agents,
        Self::Frameworks,
        Self::Tasks,
        Self::Vips,
        Self::Services,
        Self::Networks,
        Self::Subnets,
        Self::Tunnels,
        Self::Joined,
        Self::Apps,
        Self::AppVersions,
        Self::Deployments,
        Self::Instances,
    ];

    /// The name on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Agents => "agents",
            Self::Frameworks => "frameworks",
            Self::Tasks => "tasks",
            Self::Vips => "vips",
            Self::Services => "services",
            Self::Networks => "networks",
            Self::Subnets => "subnets",
            Self::Tunnels => "tunnels",
            Self::Joined => "joined",
            Self::Apps => "apps",
            Self::AppVersions => "app_versions",
            Self::Deployments => "deployments",
            Self::Instances => "instances",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Write {
    /// A record to be put, encoded as JSON.
    ///
    /// # Panics
    /// Never for the types of this workspace: their map keys are all text.
    pub fn put<T: serde::Serialize>(table: Table, key: impl fmt::Display, value: &T) -> Self {
        let value = serde_json::to_vec(value).expect("BUG: a record has a map key that is no text");
        Self { table, key: key.to_string(), value: Some(value) }
    }

    /// A record to be deleted.
    pub fn delete(table: Table, key: impl fmt::Display) -> Self {
        Self { table, key: key.to_string(), value: None }
    }
}
