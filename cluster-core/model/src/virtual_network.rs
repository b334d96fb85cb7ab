//! Virtual networks: address ranges that tasks get addresses of their own from, wherever they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text_key::serde_as_text;
use crate::{AgentId, Protocol, Subnet};

/// The longest name of a virtual network: that of its bridge is `m-` and this, and Linux allows 15 bytes.
pub const NETWORK_NAME_LENGTH_MAX: usize = 13;

/// Names that mean something else where networks are named (spec/dcos-networking.md §2.4.1).
const RESERVED_NAMES: [&str; 4] = ["host", "bridge", "default", "none"];

/// A node's part of a network has room for a gateway and two containers at least.
const PART_BITS_MIN: u8 = 2;

/// The name of a virtual network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

/// A text is no name of a virtual network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkNameError {
    /// Its bridge could not be named.
    #[error(
        "network name '{0}' has more than {NETWORK_NAME_LENGTH_MAX} characters, which is all that the name of \
         its bridge has room for"
    )]
    TooLong(String),
    /// Other characters than Marathon takes.
    #[error("network name '{0}' does not match ^[a-z0-9]([-a-z0-9_]*[a-z0-9])?$")]
    Characters(String),
    /// It is taken.
    #[error("network name '{0}' is reserved")]
    Reserved(String),
}

/// A virtual network. It has an IPv4 range, an IPv6 range, or both; then its containers have an address of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its IPv4 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NetworkRange>,
    /// Its IPv6 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NetworkRange>,
}

/// The addresses of a network in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRange {
    /// All of them.
    pub subnet: Subnet,
    /// The prefix of the part that each node gets.
    pub node_prefix: u8,
}

/// The parts of virtual networks that a node gives addresses from: at most one per network and family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeSubnets(pub BTreeMap<NetworkName, Vec<Subnet>>);

/// Why a network is not made or not removed. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkRefusal {
    /// It is there.
    #[error("network '{0}' exists")]
    Exists(NetworkName),
    /// It is not there.
    #[error("network '{0}' does not exist")]
    Unknown(NetworkName),
    /// There is nothing to give addresses from.
    #[error("network '{0}' has neither an IPv4 nor an IPv6 range")]
    NoRange(NetworkName),
    /// A range of the other family.
    #[error("{0} is in the place of a range of the other family")]
    Family(Subnet),
    /// Nodes' parts are none.
    #[error(
        "nodes cannot have parts of /{node_prefix} of {subnet}: their prefix must be from /{least} to /{most}"
    )]
    NodePrefix {
        /// The range.
        subnet: Subnet,
        /// The prefix.
        node_prefix: u8,
        /// The shortest that is possible.
        least: u8,
        /// The longest that is possible.
        most: u8,
    },
    /// The addresses have a meaning already.
    #[error("{subnet} overlaps {other}, {what}")]
    Overlap {
        /// The range.
        subnet: Subnet,
        /// What is in the way.
        other: Subnet,
        /// What that is.
        what: String,
    },
    /// There are so many.
    #[error("there are {0} networks, and no more are possible")]
    TooMany(usize),
    /// Tasks or containers are in it.
    #[error("network '{name}' is used by {tasks} tasks{}", and_containers(*containers))]
    InUse {
        /// The network.
        name: NetworkName,
        /// How many tasks use it.
        tasks: usize,
        /// How many interfaces of containers that have joined by CNI are in it.
        containers: usize,
    },
}

fn and_containers(containers: usize) -> String {
    if containers == 0 { String::new() } else { format!(" and {containers} containers of other runtimes") }
}

// === impl NetworkName ===

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the network's bridge on every node, as in DC/OS.
    pub fn bridge(&self) -> String {
        format!("m-{}", self.0)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkName {
    type Err = NetworkNameError;

    fn from_str(text: &str) -> Result<Self, NetworkNameError> {
        let is_edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_inner = |byte: u8| is_edge(byte) || byte == b'-' || byte == b'_';
        let bytes = text.as_bytes();
        let has_edges = bytes.first().is_some_and(|byte| is_edge(*byte))
            && bytes.last().is_some_and(|byte| is_edge(*byte));
        if !has_edges || !bytes.iter().all(|byte| is_inner(*byte)) {
            return Err(NetworkNameError::Characters(text.to_owned()));
        }
        if bytes.len() > NETWORK_NAME_LENGTH_MAX {
            return Err(NetworkNameError::TooLong(text.to_owned()));
        }
        if RESERVED_NAMES.contains(&text) {
            return Err(NetworkNameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

serde_as_text!(NetworkName);

// === impl VirtualNetwork ===

impl VirtualNetwork {
    /// The networks of a new cluster, those of DC/OS: `dcos` has 9.0.0.0/8 and a /24 for each node, `dcos6` has
    /// fd01:b::/64 and a /80 (spec/dcos-networking.md §0.2).
    pub fn defaults() -> [Self; 2] {
        let range = |first: IpAddr, prefix: u8, node_prefix: u8| {
            let subnet = Subnet::new(first, prefix).expect("BUG: a constant is no address range");
            Some(NetworkRange { subnet, node_prefix })
        };
        let ipv4 = range([9, 0, 0, 0].into(), 8, 24);
        let ipv6 = range([0xfd01, 0xb, 0, 0, 0, 0, 0, 0].into(), 64, 80);
        [
            Self { name: NetworkName("dcos".to_owned()), ipv4, ipv6: None },
            Self { name: NetworkName("dcos6".to_owned()), ipv4: None, ipv6 },
        ]
    }

    /// Its ranges, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = &NetworkRange> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// Whether an address is one of its.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges().any(|range| range.subnet.contains(address))
    }

    /// Refuses what makes no sense whatever else there is.
    pub fn check(&self) -> Result<(), NetworkRefusal> {
        if self.ranges().next().is_none() {
            return Err(NetworkRefusal::NoRange(self.name.clone()));
        }
        let wrong_v4 = self.ipv4.iter().find(|range| !range.subnet.is_ipv4());
        let wrong_v6 = self.ipv6.iter().find(|range| range.subnet.is_ipv4());
        if let Some(range) = wrong_v4.or(wrong_v6) {
            return Err(NetworkRefusal::Family(range.subnet));
        }
        self.ranges().try_for_each(NetworkRange::check)
    }
}

impl NetworkRange {
    fn check(&self) -> Result<(), NetworkRefusal> {
        let Self { subnet, node_prefix } = *self;
        let width: u8 = if subnet.is_ipv4() { 32 } else { 128 };
        let (least, most) = (subnet.prefix(), width - PART_BITS_MIN);
        if !(least..=most).contains(&node_prefix) {
            return Err(NetworkRefusal::NodePrefix { subnet, node_prefix, least, most });
        }
        let special = SPECIAL_RANGES.iter().find_map(|(range, what)| {
            let range: Subnet = range.parse().expect("BUG: a constant is no address range");
            range.overlaps(&subnet).then_some((range, what))
        });
        match special {
            Some((other, what)) => Err(NetworkRefusal::Overlap { subnet, other, what: (*what).to_owned() }),
            None => Ok(()),
        }
    }
}

/// Addresses that no container can have (RFC 6890), and those that nodes have for their name servers and bridges.
const SPECIAL_RANGES: [(&str, &str); 10] = [
    ("0.0.0.0/8", "which is no address of a host"),
    ("127.0.0.0/8", "which is every host's own"),
    ("169.254.0.0/16", "which is link-local"),
    ("224.0.0.0/3", "which is multicast or reserved"),
    ("198.51.100.0/24", "which name servers of nodes have"),
    ("172.31.254.0/24", "which the own bridges of nodes have"),
    ("::/8", "which is no address of a host"),
    ("fe80::/10", "which is link-local"),
    ("ff00::/8", "which is multicast"),
    ("fd01:d::/64", "which name servers of nodes have"),
];

// === impl NodeSubnets ===

impl NodeSubnets {
    /// The parts of one network.
    pub fn of(&self, network: &NetworkName) -> &[Subnet] {
        self.0.get(network).map_or(&[], Vec::as_slice)
    }

    /// The part that an address is in, and of which network it is.
    pub fn part_with(&self, address: IpAddr) -> Option<(&NetworkName, &Subnet)> {
        let parts = self.0.iter().flat_map(|(network, parts)| parts.iter().map(move |part| (network, part)));
        parts.into_iter().find(|(_, part)| part.contains(address))
    }

    /// All parts.
    pub fn all(&self) -> impl Iterator<Item = &Subnet> {
        self.0.values().flatten()
    }
}

/// The address of a node on its bridge in a part of a network: the first one of a host.
pub fn gateway_of(part: &Subnet) -> Option<IpAddr> {
    part.nth(1)
}

/// How many containers have room in a part: all addresses but those of the network, of the node, and in IPv4 that of
/// broadcasts. Capped, since nothing needs more.
pub fn room_of(part: &Subnet) -> u64 {
    let last = part.size_less_one();
    let usable = if part.is_ipv4() { last.saturating_sub(2) } else { last.saturating_sub(1) };
    u64::try_from(usable).unwrap_or(u64::MAX)
}

/// Where a task's interfaces are, instead of on the host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetworking {
    /// One per interface; the default route leads through the first. Never empty.
    pub attachments: Vec<Attachment>,
    /// Ports of the node that lead to ports of the task.
    #[serde(default)]
    pub mappings: Vec<PortForward>,
}

/// One interface of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The virtual network; the node's own bridge, whose addresses mean nothing elsewhere, if absent.
    #[serde(default)]
    pub network: Option<NetworkName>,
    /// The node's parts of the virtual network, one per family. Filled in by the master.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
}

/// A port of the node that leads to a port of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// The port on the node's address.
    pub host_port: u16,
    /// The port on the task's own address.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl TaskNetworking {
    /// The virtual networks that it is in, each once.
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        self.attachments.iter().filter_map(|attachment| attachment.network.as_ref()).collect()
    }
}

/// Room for further tasks in the virtual networks of an agent, by network; those that it has no part of are absent.
pub type NetworkRoom = BTreeMap<NetworkName, u64>;

/// An agent cannot run a task in a network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AttachmentRefusal {
    /// The agent has no rights to make namespaces.
    #[error("agent {0} cannot give tasks addresses of their own")]
    Agent(AgentId),
    /// The network is not there, or all its parts are given away, or the agent's own address is in it.
    #[error("agent {agent} has no part of network '{network}'")]
    NoPart {
        /// The agent.
        agent: AgentId,
        /// The name as the framework gave it.
        network: NetworkName,
    },
    /// Every address is taken.
    #[error("agent {agent} has no address left in network '{network}'")]
    Exhausted {
        /// The agent.
        agent: AgentId,
        /// The network.
        network: NetworkName,
    },
}
