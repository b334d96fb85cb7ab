//! Resource records as plain values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::Name;

/// Priority of every SRV record: all are equal.
const SRV_PRIORITY: u16 = 0;

/// Weight of every SRV record, the default of mesos-dns.
const SRV_WEIGHT: u16 = 1;

/// One resource record of class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name it belongs to.
    pub owner: Name,
    /// Time to live in seconds.
    pub ttl: u32,
    /// Type and value.
    pub data: Data,
}

/// Type and value of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// A port of a host. All have the priority and weight that [`Data::SRV_PRIORITY`] and [`Data::SRV_WEIGHT`] say.
    Srv {
        /// Where it is.
        target: Name,
        /// Its port.
        port: u16,
    },
    /// Name server of a zone.
    Ns(Name),
    /// Start of a zone.
    Soa(Arc<Soa>),
    /// The small answer to a question for every type (RFC 8482 §4.2).
    AnyRefused,
}

/// The fields of a SOA record; times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Soa {
    /// The primary server.
    pub primary: Name,
    /// The mailbox of who is responsible.
    pub mailbox: Name,
    /// The lower 32 bits of the view's revision, compared by serial number arithmetic (RFC 1982).
    pub serial: u32,
    /// How often a secondary looks for a change.
    pub refresh: u32,
    /// How soon it tries again.
    pub retry: u32,
    /// After what time without answer it stops serving.
    pub expire: u32,
    /// How long a negative answer may be kept.
    pub minimum: u32,
}

impl Data {
    /// Priority of every SRV record: all are equal.
    pub const SRV_PRIORITY: u16 = SRV_PRIORITY;

    /// Weight of every SRV record, the default of mesos-dns.
    pub const SRV_WEIGHT: u16 = SRV_WEIGHT;
}

impl From<IpAddr> for Data {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// Zone-file form.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} IN {}", self.owner, self.ttl, self.data)
    }
}

/// Zone-file form.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "A {address}"),
            Self::Aaaa(address) => write!(f, "AAAA {address}"),
            Self::Srv { target, port } => write!(f, "SRV {SRV_PRIORITY} {SRV_WEIGHT} {port} {target}"),
            Self::Ns(server) => write!(f, "NS {server}"),
            Self::Soa(soa) => write!(
                f,
                "SOA {} {} {} {} {} {} {}",
                soa.primary, soa.mailbox, soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum
            ),
            Self::AnyRefused => f.write_str("HINFO \"RFC8482\" \"\""),
        }
    }
}
