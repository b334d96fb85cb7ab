//! Tokens that let a node join.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::certificate::{self, Fingerprint, NoRandomness};
use super::hex;
use crate::Role;

/// What every token starts with: its format.
const PREFIX: &str = "mesonet1";

/// Bytes of a secret: nobody guesses 256 bits.
const SECRET_BYTES: usize = 32;

/// Bytes of a token's public name.
const ID_BYTES: usize = 8;

/// Bytes of a fingerprint.
const FINGERPRINT_BYTES: usize = 32;

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
pub struct JoinToken {
    /// Of the authority's certificate.
    pub(crate) authority: Fingerprint,
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// The text is no token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("this is no join token, which has the form mesonet1.FINGERPRINT.ID.SECRET")]
pub struct JoinTokenError;

impl JoinToken {
    pub(crate) fn new(authority: Fingerprint) -> Result<Self, NoRandomness> {
        let id = hex::encode(&certificate::random::<ID_BYTES>()?);
        let secret = hex::encode(&certificate::random::<SECRET_BYTES>()?);
        Ok(Self { authority, id, secret })
    }

    /// Whether a text can be a token's id, and so part of a file's name.
    pub(crate) fn is_id(text: &str) -> bool {
        hex::decode::<ID_BYTES>(text).is_some()
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        match parts[..] {
            [PREFIX, authority, id, secret]
                if hex::decode::<FINGERPRINT_BYTES>(authority).is_some()
                    && Self::is_id(id)
                    && hex::decode::<SECRET_BYTES>(secret).is_some() =>
            {
                Ok(Self { authority: authority.to_owned(), id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(JoinTokenError),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.authority, self.id, self.secret)
    }
}

/// Without the secret, since debug output ends up in logs.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}
