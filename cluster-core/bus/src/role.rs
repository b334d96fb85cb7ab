//! Who may take part: names of nodes and what their certificates allow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The longest name of a node; it names a file too.
pub const NODE_NAME_LENGTH_MAX: usize = 128;

/// A node's name, as its certificate has it: lower-case letters, digits, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// The text cannot name a node.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no node name: up to {NODE_NAME_LENGTH_MAX} lower-case letters, digits, '-' and '.', with a letter or \
     digit at both ends"
)]
pub struct NodeNameError(pub String);

/// What a certificate allows its holder to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    Agent,
    /// Decides; what nodes connect to.
    Master,
    /// Serves names and virtual addresses.
    Net,
    /// Watches.
    Operator,
}

/// The text names no role.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no role: one of agent, master, net, operator")]
pub struct RoleError(pub String);

impl NodeName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let is_valid = bytes.len() <= NODE_NAME_LENGTH_MAX
            && bytes.iter().all(|byte| is_alphanumeric(*byte) || matches!(byte, b'-' | b'.'))
            && bytes.first().is_some_and(|byte| is_alphanumeric(*byte))
            && bytes.last().is_some_and(|byte| is_alphanumeric(*byte));
        if is_valid { Ok(Self(text.to_owned())) } else { Err(NodeNameError(text.to_owned())) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Master, Self::Net, Self::Operator];

    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Master => "master",
            Self::Net => "net",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}
