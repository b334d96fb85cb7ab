//! With what a client proves who it is.

use std::path::PathBuf;
use std::time::Duration;

use super::dial::LinkError;
use crate::{Authority, Identity, NodeName};

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub(super) enum Credentials {
    /// The directory of a node, which the node's daemons share.
    Node {
        /// The directory.
        dir: PathBuf,
    },
    /// A master gives itself a new one for each connection.
    Master {
        /// The cluster's authority.
        authority: Authority,
        /// The master.
        name: NodeName,
        /// How long the certificate is valid. The connection ends with it, and the next one has a new one.
        lifetime: Duration,
    },
}

impl Credentials {
    /// The identity for one connection, read anew: another daemon of the node may have renewed it.
    pub(super) fn identity(&self) -> Result<Identity, LinkError> {
        match self {
            Self::Node { dir } => Ok(Identity::load(dir)?),
            Self::Master { authority, name, lifetime } => authority
                .master_identity(name, *lifetime)
                .map_err(|error| LinkError::OwnCertificate(Box::new(error))),
        }
    }

    /// The node's directory, if a certificate of it can be renewed.
    pub(super) fn renewable(&self) -> Option<PathBuf> {
        match self {
            Self::Node { dir } => Some(dir.clone()),
            Self::Master { .. } => None,
        }
    }

    /// A name for errors.
    pub(super) fn dir(&self) -> PathBuf {
        self.renewable().unwrap_or_default()
    }
}
