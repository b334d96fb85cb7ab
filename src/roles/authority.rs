//! What an operator does in the master's directory: make a cluster, and tokens to join it.
//!
//! Whoever may write in that directory is an operator; nothing of this can be asked for over the network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesonet_bus::{Authority, AuthorityError, JoinToken, NodeName, Role, TokenRecord, TokenTerms};
use mesonet_model::{ClusterId, UuidSource};
use mesonet_store::EtcdKeys;
use thiserror::Error;

use super::elected_master::etcd_settings;
use crate::config::{MasterOptions, StoreKind};
use crate::etcd_records::shared_authority;
use crate::master_role;

/// How long the first token is valid: long enough to set up some machines.
const FIRST_TOKEN_TTL: Duration = Duration::from_secs(3600);

/// A cluster cannot be made. Nothing that was there is changed.
#[derive(Debug, Error)]
pub enum InitError {
    /// There is no randomness to make its id from.
    #[error("cannot make up an id for the cluster")]
    Randomness(#[source] anyhow::Error),
    /// The authority cannot be made.
    #[error("cannot make the cluster's authority")]
    Authority(#[from] AuthorityError),
}

/// Who may join with a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TokenRoles {
    /// A node: its agent and its network daemon.
    #[default]
    Node,
    /// A node that only serves names and virtual addresses.
    Net,
}

/// What a token is to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewToken {
    /// How long from now.
    pub ttl: Duration,
    /// How many nodes may join.
    pub uses: u32,
    /// As what.
    pub roles: TokenRoles,
}

/// Where the authority is in a master's directory.
pub fn authority_dir(dir: &Path) -> PathBuf {
    dir.join("authority")
}

/// Makes a new cluster in a master's directory; returns its id and a token for its first node.
///
/// # Errors
/// When there is one already, or the directory cannot be written.
pub fn init(dir: &Path) -> Result<(ClusterId, JoinToken), InitError> {
    let seed = master_role::seed().map_err(InitError::Randomness)?;
    let cluster = ClusterId::new(UuidSource::from_seed(seed).next_uuid().to_string());
    let authority = Authority::create(&authority_dir(dir), &cluster)?;
    let first = NewToken { ttl: FIRST_TOKEN_TTL, uses: 1, roles: TokenRoles::Node };
    let token = authority.create_token(&first.terms())?;
    Ok((cluster, token))
}

/// Makes a token for the cluster of a master with these settings. Masters may be running.
///
/// # Errors
/// When there is no cluster in the directory, etcd is not reached, or the token cannot be kept.
pub fn create_token(options: &MasterOptions, token: &NewToken) -> anyhow::Result<JoinToken> {
    Ok(open(options)?.create_token(&token.terms())?)
}

/// The tokens that can still be used.
///
/// # Errors
/// When there is no cluster in the directory, etcd is not reached, or a record cannot be read.
pub fn tokens(options: &MasterOptions) -> anyhow::Result<Vec<TokenRecord>> {
    Ok(open(options)?.tokens()?)
}

/// Makes a token useless, given its id.
///
/// # Errors
/// When there is no cluster in the directory, etcd is not reached, or there is no such token.
pub fn revoke_token(options: &MasterOptions, id: &str) -> anyhow::Result<()> {
    Ok(open(options)?.revoke_token(id)?)
}

/// Declares all certificates of a node void. Masters may be running.
///
/// # Errors
/// When there is no cluster in the directory, etcd is not reached, there is no such node, or it cannot be kept.
pub fn revoke_node(options: &MasterOptions, node: &NodeName) -> anyhow::Result<()> {
    Ok(open(options)?.revoke(node)?)
}

/// The authority with its records where the state is: in the directory too, or in etcd.
fn open(options: &MasterOptions) -> anyhow::Result<Authority> {
    let dir = authority_dir(&options.dir);
    let authority = Authority::load(&dir)?;
    match options.store {
        StoreKind::Redb => Ok(authority),
        StoreKind::Etcd => {
            let keys = EtcdKeys::open(&etcd_settings(options, authority.cluster())?)?;
            Ok(shared_authority(&dir, keys)?)
        }
    }
}

impl NewToken {
    fn terms(&self) -> TokenTerms {
        let roles = match self.roles {
            TokenRoles::Node => [Role::Agent, Role::Net].into(),
            TokenRoles::Net => [Role::Net].into(),
        };
        TokenTerms { ttl: self.ttl, uses: self.uses, roles }
    }
}
