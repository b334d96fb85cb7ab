//! Tokens that let a node join.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::Role;

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTerms {
    /// How long from now.
    pub ttl: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
    /// What they may be: agent and net for a node, operator for a person.
    pub roles: BTreeSet<Role>,
}

/// A secret that lets a node join, with the authority's fingerprint by which the node knows the master.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {}

/// The text is no token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("this is no join token, which has the form mesonet1.FINGERPRINT.ID.SECRET")]
pub struct JoinTokenError;

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(_text: &str) -> Result<Self, JoinTokenError> {
        todo!()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}
