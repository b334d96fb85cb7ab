//! The zone's settings, and the fixed names that follow from them.

use std::net::IpAddr;

use thiserror::Error;

use crate::{Name, NameError};

/// The zone's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The mesos-dns zone, without dots at its ends.
    pub domain: String,
    /// Time to live of records in seconds. Negative answers live as long, so that a name that appears is seen as soon
    /// as one that changes.
    pub ttl: u32,
}

impl Default for Config {
    /// The domain of mesos-dns and the time to live of dcos-dns.
    ///
    /// mesos-dns uses 60 s because its records lag by its polling interval anyway. Here a record is right within
    /// milliseconds, so that caches would be the only source of stale addresses; 5 s keeps them short and still spares
    /// the server most of a busy client's queries.
    fn default() -> Self {
        Self { domain: "mesos".to_owned(), ttl: 5 }
    }
}

/// The settings make no zone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The domain is no domain name, or so long that no name fits below it.
    #[error("'{domain}' is no domain to serve")]
    Domain {
        /// The domain as given.
        domain: String,
        /// What is wrong with it.
        source: NameError,
    },
}

/// The names that everything else is built from.
#[derive(Debug)]
pub(crate) struct Origins {
    /// The mesos-dns zone.
    pub(crate) domain: Name,
    /// `slave.<domain>`.
    pub(crate) slave: Name,
    /// `dcos.thisdcos.directory`.
    pub(crate) dcos: Name,
    /// `l4lb.thisdcos.directory`.
    pub(crate) l4lb: Name,
    /// `mesos.thisdcos.directory`, the mesos-dns zone under another name.
    pub(crate) mirror: Name,
    /// The name of the server itself, in every zone's SOA and NS.
    pub(crate) nameserver: Name,
    /// The mailbox in every zone's SOA.
    pub(crate) mailbox: Name,
    /// Time to live of records in seconds.
    pub(crate) ttl: u32,
    /// The addresses of the server itself.
    pub(crate) nameserver_addresses: Vec<IpAddr>,
}

impl Origins {
    pub(crate) fn new(config: &Config, nameserver_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        let below = |origin: &Name, relative: &str| {
            origin
                .below(relative)
                .map_err(|source| ConfigError::Domain { domain: config.domain.clone(), source })
        };
        let domain = below(&Name::root(), &config.domain)?;
        let nameserver = below(&domain, "ns1")?;
        Ok(Self {
            slave: below(&domain, "slave")?,
            dcos: below(&Name::root(), "dcos.thisdcos.directory")?,
            l4lb: below(&Name::root(), "l4lb.thisdcos.directory")?,
            mirror: below(&Name::root(), "mesos.thisdcos.directory")?,
            mailbox: below(&nameserver, "root")?,
            nameserver,
            domain,
            ttl: config.ttl,
            nameserver_addresses: nameserver_addresses.to_vec(),
        })
    }

    /// The zones' apexes.
    pub(crate) fn apexes(&self) -> [&Name; 4] {
        [&self.domain, &self.dcos, &self.l4lb, &self.mirror]
    }
}
