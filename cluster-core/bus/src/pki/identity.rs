//! A node's key and certificate.

use std::path::Path;

use mesonet_model::ClusterId;
use thiserror::Error;

use crate::NodeName;

/// A node's key, its certificate and the authority's, as they lie in the node's directory.
#[derive(Debug)]
pub struct Identity {
    name: NodeName,
    cluster: ClusterId,
}

/// A node's identity cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The node has not joined.
    #[error("there is no identity in the directory")]
    Missing,
}

impl Identity {
    /// Whether a directory holds an identity.
    pub fn exists(_dir: &Path) -> bool {
        todo!()
    }

    /// Reads the identity of a directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn load(_dir: &Path) -> Result<Self, IdentityError> {
        todo!()
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The cluster that the node belongs to.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }
}
