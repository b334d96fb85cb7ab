//! Resource records as plain values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::Name;

/// Priority of the SRV records that follow from a view: all are equal.
const SRV_PRIORITY: u16 = 0;

/// Weight of the SRV records that follow from a view, the default of mesos-dns.
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
    /// A port of a host.
    Srv {
        /// Those of a lower one come first; [`Data::SRV_PRIORITY`] unless the settings say otherwise.
        priority: u16,
        /// Its share among those of the same priority; [`Data::SRV_WEIGHT`] unless the settings say otherwise.
        weight: u16,
        /// Where it is.
        target: Name,
        /// Its port.
        port: u16,
    },
    /// The name that this one is another for.
    Cname(Name),
    /// The name of an address.
    Ptr(Name),
    /// Text: strings of at most 255 octets.
    Txt(Vec<Arc<[u8]>>),
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
    /// Priority of the SRV records that follow from a view: all are equal.
    pub const SRV_PRIORITY: u16 = SRV_PRIORITY;

    /// Weight of the SRV records that follow from a view, the default of mesos-dns.
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

/// A character string in quotes; octets with a meaning of their own there are escaped (RFC 1035 §5.1).
fn write_text(f: &mut fmt::Formatter<'_>, string: &[u8]) -> fmt::Result {
    f.write_str(" \"")?;
    for &byte in string {
        match byte {
            b'"' | b'\\' => write!(f, "\\{}", char::from(byte))?,
            b' '..=b'~' => write!(f, "{}", char::from(byte))?,
            _ => write!(f, "\\{byte:03}")?,
        }
    }
    f.write_str("\"")
}

/// Zone-file form.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "A {address}"),
            Self::Aaaa(address) => write!(f, "AAAA {address}"),
            Self::Srv { priority, weight, port, target } => {
                write!(f, "SRV {priority} {weight} {port} {target}")
            }
            Self::Cname(name) => write!(f, "CNAME {name}"),
            Self::Ptr(name) => write!(f, "PTR {name}"),
            Self::Txt(strings) => {
                f.write_str("TXT")?;
                strings.iter().try_for_each(|string| write_text(f, string))
            }
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
