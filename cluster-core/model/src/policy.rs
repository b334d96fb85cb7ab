//! How the connections of a service are spread.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a data plane has to know of a service beside its endpoints and their weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServicePolicy {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// A client stays with its endpoint until it has had no connection for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Duration>,
    /// Endpoints are told the client's address by the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Endpoints on other nodes than the one that balances packets get them in a tunnel, and answer clients directly.
    pub direct_return: bool,
}

/// How an endpoint is chosen for a new connection. Where apps behind one service disagree, the last of these wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// At random, as often as its weight says.
    #[default]
    WeightedRandom,
    /// The one with the fewest open connections of this node for its weight.
    LeastConnections,
    /// By the client's address, the same on every node; few clients move when endpoints come and go.
    Maglev,
}

/// What the weights of a service's endpoints are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Weighing {
    /// Which endpoints are preferred.
    pub locality: Locality,
    /// How many open connections of this node the preferred endpoints have on average before others join them.
    pub spill_connections: u32,
    /// At most this share of the endpoints is ejected because connections to them fail.
    pub ejected_max_percent: u8,
    /// With fewer usable endpoints than this share of all, health is ignored: few would break under the load of all.
    pub panic_percent: u8,
}

/// Which endpoints are preferred. Where apps behind one service disagree, the last of these wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Locality {
    /// None.
    #[default]
    Off,
    /// Those in the node's zone.
    Zone,
    /// Those on the node itself, then those in its zone.
    Node,
}

/// The time in which a new endpoint gets to its full weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowStart {
    /// When it began.
    pub since: crate::Timestamp,
    /// How long it takes.
    pub over: Duration,
}

// === impl Algorithm ===

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::WeightedRandom, Self::LeastConnections, Self::Maglev];

    /// The name that users write.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WeightedRandom => "weighted-random",
            Self::LeastConnections => "least-connections",
            Self::Maglev => "maglev",
        }
    }
}

// === impl Locality ===

impl Locality {
    /// Every preference.
    pub const ALL: [Self; 3] = [Self::Off, Self::Zone, Self::Node];

    /// The name that users write.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Zone => "zone",
            Self::Node => "node",
        }
    }
}

// === impl Weighing ===

impl Default for Weighing {
    fn default() -> Self {
        Self { locality: Locality::Off, spill_connections: 100, ejected_max_percent: 30, panic_percent: 50 }
    }
}
