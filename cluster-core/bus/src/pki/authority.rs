//! The cluster's certificate authority in a directory of the master.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mesonet_model::{AgentId, ClusterId, Timestamp};
use thiserror::Error;

use crate::{JoinToken, NodeName, Role, TokenTerms};

/// The authority: its key and certificate, the nodes that it knows and the tokens that it has given out.
///
/// Everything is in files below one directory, read anew and locked for each operation, so a command may work on them
/// beside a running master.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
}

/// What the authority knows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// What it may be.
    pub roles: BTreeSet<Role>,
    /// When its newest certificate ends; `None` once it is revoked.
    pub expires: Option<Timestamp>,
    /// The agent that runs there, once it has registered.
    pub agent: Option<AgentId>,
}

/// Why the authority cannot do what it is asked.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("{} holds an authority already", .0.display())]
    Exists(PathBuf),
}

impl Authority {
    /// Makes an authority for a new cluster. Its files are for the owner only.
    ///
    /// # Errors
    /// When the directory holds one already, or cannot be written.
    pub fn create(_dir: &Path, _cluster: &ClusterId) -> Result<Self, AuthorityError> {
        todo!()
    }

    /// Takes up the authority of a directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn load(_dir: &Path) -> Result<Self, AuthorityError> {
        todo!()
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterId {
        todo!()
    }

    /// Makes a token. The master keeps only a hash of its secret.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn create_token(&self, _terms: &TokenTerms) -> Result<JoinToken, AuthorityError> {
        todo!()
    }

    /// Declares every certificate of a node void and frees its name. Its connections end within a second.
    ///
    /// # Errors
    /// When there is no such node, or it cannot be kept.
    pub fn revoke(&self, _name: &NodeName) -> Result<(), AuthorityError> {
        todo!()
    }

    /// Every node that has joined, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, AuthorityError> {
        let _ = &self.dir;
        todo!()
    }
}
