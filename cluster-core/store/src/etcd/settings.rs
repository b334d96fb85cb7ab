//! Where etcd is.

use std::fmt;
use std::time::Duration;

use mesonet_model::ClusterId;

/// How etcd is reached.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// URLs of its members: `http://HOST:PORT`, or `https://HOST:PORT` with [`EtcdSettings::tls`].
    pub endpoints: Vec<String>,
    /// Whose state.
    pub cluster: ClusterId,
    /// What `https` endpoints are known by.
    pub tls: Option<EtcdTls>,
    /// How long a leader that is silent is still the leader. etcd counts in seconds and has a least time of its own,
    /// 2 s with its default settings.
    pub lease: Duration,
}

/// What TLS needs, in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Certificates of the authority that signs etcd's.
    pub authority: Vec<u8>,
    /// This master's own certificate, with those between it and the authority, and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl EtcdSettings {
    /// The least that etcd grants by default.
    pub const LEASE: Duration = Duration::from_secs(2);
}

/// Without the key, since debug output ends up in logs.
impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").field("has_identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}
