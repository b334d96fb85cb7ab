//! The zone's settings.

use std::net::IpAddr;

use thiserror::Error;

use crate::{NameError, StaticRecord};

/// SOA refresh of mesos-dns in seconds.
const SOA_REFRESH: u32 = 60;

/// SOA retry of mesos-dns in seconds.
const SOA_RETRY: u32 = 600;

/// SOA expire of mesos-dns in seconds.
const SOA_EXPIRE: u32 = 86_400;

/// The zone's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The mesos-dns zone, without dots at its ends.
    pub domain: String,
    /// Time to live of records in seconds. Negative answers live as long unless [`SoaConfig::minimum`] says otherwise,
    /// so that a name that appears is seen as soon as one that changes.
    pub ttl: u32,
    /// Where the addresses of tasks come from: the first source that has one counts, with all that it has
    /// (spec/dcos-networking.md §1.4). A task's label [`IP_SOURCES_LABEL`] says otherwise for that task.
    pub ip_sources: Vec<IpSource>,
    /// How names of the mesos-dns zone are made valid.
    pub label_rule: LabelRule,
    /// Which tasks names lead to.
    pub task_choice: TaskChoice,
    /// Weight of the SRV records of the mesos-dns zone.
    pub srv_weight: u16,
    /// The zones' SOA records.
    pub soa: SoaConfig,
    /// The z-base-32 form of the cluster's public key: the zones below `thisdcos.directory` are served below
    /// `<key>.dcos.directory`, too.
    pub cluster_key: Option<String>,
    /// The addresses of this node, for `thisnode.thisdcos.directory`.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses at which this node is reached from outside, for `public.thisnode.thisdcos.directory`.
    pub node_public_addresses: Vec<IpAddr>,
    /// Whether addresses of the cluster that have one name only lead back to it.
    pub reverse_names: bool,
    /// Records that do not follow from the cluster.
    pub static_records: Vec<StaticRecord>,
}

/// The label with which a task chooses its IP sources, separated by commas: `host,netinfo`.
pub const IP_SOURCES_LABEL: &str = "MESONET_DNS_IP_SOURCES";

/// A place where an address of a task may be found (spec/dcos-networking.md §1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpSource {
    /// The addresses of its agent.
    Host,
    /// The addresses of its network interfaces, as its container status has them.
    Netinfo,
    /// What the Mesos containerizer's label says.
    Mesos,
    /// What Docker's label says.
    Docker,
}

/// How text is made a DNS label in the mesos-dns zone (spec/dcos-networking.md §1.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelRule {
    /// Host names of RFC 1123: up to 63 letters, digits and hyphens.
    #[default]
    Rfc1123,
    /// Host names of RFC 952: up to 24, and no digit first.
    Rfc952,
}

/// Which tasks names lead to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TaskChoice {
    /// The best ones: those that are ready, and if there are none, those that are nearly so.
    #[default]
    Best,
    /// All whose state is `TASK_RUNNING` and no others, as with mesos-dns and dcos-dns, which look at nothing else.
    Running,
}

/// The fields of SOA records; times in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoaConfig {
    /// The primary server; `ns1.<domain>` if absent.
    pub primary: Option<String>,
    /// The mailbox of who is responsible, with `.` or `@` after the user; `root.<primary>` if absent.
    pub mailbox: Option<String>,
    /// How often a secondary looks for a change.
    pub refresh: u32,
    /// How soon it tries again.
    pub retry: u32,
    /// After what time without answer it stops serving.
    pub expire: u32,
    /// How long a negative answer may be kept; [`Config::ttl`] if absent.
    pub minimum: Option<u32>,
}

impl Default for Config {
    /// The names of mesos-dns and the time to live of dcos-dns.
    ///
    /// mesos-dns uses 60 s because its records lag by its polling interval anyway. Here a record is right within
    /// milliseconds, so that caches would be the only source of stale addresses; 5 s keeps them short and still spares
    /// the server most of a busy client's queries.
    fn default() -> Self {
        Self {
            domain: "mesos".to_owned(),
            ttl: 5,
            ip_sources: vec![IpSource::Netinfo, IpSource::Mesos, IpSource::Host],
            label_rule: LabelRule::Rfc1123,
            task_choice: TaskChoice::Best,
            srv_weight: crate::Data::SRV_WEIGHT,
            soa: SoaConfig::default(),
            cluster_key: None,
            node_addresses: Vec::new(),
            node_public_addresses: Vec::new(),
            reverse_names: true,
            static_records: Vec::new(),
        }
    }
}

impl Default for SoaConfig {
    /// Those of mesos-dns.
    fn default() -> Self {
        Self {
            primary: None,
            mailbox: None,
            refresh: SOA_REFRESH,
            retry: SOA_RETRY,
            expire: SOA_EXPIRE,
            minimum: None,
        }
    }
}

impl IpSource {
    /// The source of a name in mesos-dns' settings, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "host" => Some(Self::Host),
            "netinfo" => Some(Self::Netinfo),
            "mesos" => Some(Self::Mesos),
            "docker" => Some(Self::Docker),
            _ => None,
        }
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
    /// A name of the SOA record is no domain name.
    #[error("'{name}' is no name for the zone's SOA record")]
    Soa {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The cluster's key is no label of a domain name.
    #[error("'{key}' is no cluster key: expected z-base-32")]
    ClusterKey {
        /// The key as given.
        key: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A static record's name is no domain name.
    #[error("'{name}' is no name for a static record")]
    StaticName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A name that is an alias has other static records.
    #[error("static name '{name}' is an alias (CNAME) and can have no other record")]
    AliasAndMore {
        /// The name as given.
        name: String,
    },
}
