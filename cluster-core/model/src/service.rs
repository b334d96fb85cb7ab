//! Services and the endpoints behind them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text_key::{TextKeyError, serde_as_text};
use crate::{AgentId, DEFAULT_SHARE, ServiceKey, ServicePolicy, SlowStart, TaskKey, Timestamp, Weighing};

/// A stable address and port that stands for a set of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub key: ServiceKey,
    /// Its IPv4 address, if it has endpoints of that family.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, if it has endpoints of that family.
    pub ipv6: Option<Ipv6Addr>,
    /// Since when it has no endpoint; its name and address stay for a while.
    pub empty_since: Option<Timestamp>,
    /// How connections are spread: what the labels of its endpoints' ports say together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: ServicePolicy,
    /// What the weights of its endpoints are computed from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weighing: Weighing,
}

/// Identity of an endpoint: a service has at most one per address and port of a task.
/// Its text is `<service key>|<framework>/<task>|<address>:<port>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The service.
    pub service: ServiceKey,
    /// The task.
    pub task: TaskKey,
    /// Where the task is reached.
    pub address: SocketAddr,
}

/// One address and port of one task behind a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The node that the task runs on.
    pub agent: AgentId,
    /// Whether clients are sent to it.
    pub state: EndpointState,
    /// Its share of new connections among the ready ones; 0 gets none unless every ready endpoint has 0. An endpoint
    /// whose agent does not answer has 0, unless its service has nothing better.
    pub weight: u32,
    /// Its part beside the others when all of them are well, [`DEFAULT_SHARE`] unless its app says otherwise.
    #[serde(default = "default_share", skip_serializing_if = "is_default_share")]
    pub share: u32,
    /// Whether its checks fail although they have passed before: it is used again where too few others are well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failing: bool,
    /// While it gets to its full weight, and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
}

/// Whether clients are sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// By weight.
    Ready,
    /// No new connections; existing ones stay.
    Draining,
    /// It is dead: existing connections are told.
    Down,
}

impl Service {
    /// A service without endpoints, addresses or wishes.
    pub fn new(key: ServiceKey) -> Self {
        Self {
            key,
            ipv4: None,
            ipv6: None,
            empty_since: None,
            policy: ServicePolicy::default(),
            weighing: Weighing::default(),
        }
    }

    /// Whether this is one of its addresses.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.ipv4.map(IpAddr::V4) == Some(address) || self.ipv6.map(IpAddr::V6) == Some(address)
    }
}

impl Endpoint {
    /// An endpoint whose app says nothing about its part.
    pub fn new(agent: AgentId, state: EndpointState, weight: u32) -> Self {
        Self { agent, state, weight, share: DEFAULT_SHARE, failing: false, slow_start: None }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_share() -> u32 {
    DEFAULT_SHARE
}

fn is_default_share(share: &u32) -> bool {
    *share == DEFAULT_SHARE
}

impl EndpointState {
    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|{}", self.service, self.task, self.address)
    }
}

impl FromStr for EndpointKey {
    type Err = TextKeyError;

    fn from_str(text: &str) -> Result<Self, TextKeyError> {
        let error = || TextKeyError {
            text: text.to_owned(),
            kind: "endpoint key",
            expected: "SERVICE|FRAMEWORK/TASK|ADDRESS:PORT",
        };
        let (service, rest) = text.split_once('|').ok_or_else(error)?;
        let (task, address) = rest.rsplit_once('|').ok_or_else(error)?;
        Ok(Self {
            service: service.parse().map_err(|_| error())?,
            task: task.parse().map_err(|_| error())?,
            address: address.parse().map_err(|_| error())?,
        })
    }
}

serde_as_text!(EndpointKey);
