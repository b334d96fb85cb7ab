//! Virtual addresses: what a port's label declares, and the key of the service that it makes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::name;
use crate::text_key::{TextKeyError, serde_as_text};

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = TextKeyError;

    fn from_str(text: &str) -> Result<Self, TextKeyError> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(TextKeyError { text: text.to_owned(), kind: "protocol", expected: "tcp or udp" }),
        }
    }
}

/// What a virtual address is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vip {
    /// A name below `l4lb.thisdcos.directory`; the cluster chooses the address.
    Named {
        /// The label's sanitised name, one or more DNS labels.
        name: Arc<str>,
        /// The sanitised name of the framework whose task declares it.
        framework: Arc<str>,
    },
    /// An address that the user chose. It has no name.
    Static(IpAddr),
}

impl Vip {
    /// `name.framework` of a named VIP: what its address is hashed from, and its DNS name below
    /// `l4lb.thisdcos.directory`.
    pub fn allocation_name(&self) -> Option<String> {
        match self {
            Self::Named { name, framework } => Some(format!("{name}.{framework}")),
            Self::Static(_) => None,
        }
    }
}

/// A `VIP_<n>` label as written: name or address, and port. The framework and the protocol come from the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VipLabel {
    /// `/web:80` or `web:80`: the sanitised name and the port.
    Named {
        /// One or more DNS labels.
        name: String,
        /// The virtual port.
        port: u16,
    },
    /// `1.2.3.4:80` or `fd01:c::1:80`.
    Static {
        /// The virtual address.
        address: IpAddr,
        /// The virtual port.
        port: u16,
    },
}

/// Why a label declares no VIP.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VipLabelError {
    /// There is no colon before a port.
    #[error("VIP label '{0}' has no port: expected NAME:PORT or ADDRESS:PORT")]
    NoPort(String),
    /// The port is no number from 1 to 65535.
    #[error("VIP label '{0}' has a port that is no number from 1 to 65535")]
    BadPort(String),
    /// Nothing is left of the name once it is made a DNS name.
    #[error("VIP label '{0}' has no name: expected letters or digits before the port")]
    NoName(String),
    /// What stands before the port looks like an address and is none.
    #[error("VIP label '{0}' has neither a name nor an IPv4 or IPv6 address before the port")]
    NoAddress(String),
    /// No client can connect to the address.
    #[error("VIP label '{0}' has an address that is no single host's: expected a unicast address")]
    NotUnicast(String),
    /// Every node uses the address for itself: clients of whatever listens there would be sent to the service.
    #[error(
        "VIP label '{0}' has an address that every node uses for itself (127.0.0.0/16 or ::1): expected another one"
    )]
    NodesOwn(String),
    /// The name is too long to be resolved.
    #[error("VIP label '{0}' has a name that is too long: expected at most {NAME_LENGTH_MAX} characters")]
    TooLong(String),
}

/// The longest name: with a framework's name of one label and the domain behind it, it has the 253 characters that a
/// domain name may have.
const NAME_LENGTH_MAX: usize = 165;

impl VipLabel {
    /// Reads a label's value by the rules of spec/dcos-networking.md §2.3.1: split at the last colon.
    pub fn parse(text: &str) -> Result<Self, VipLabelError> {
        let (left, port) = text.rsplit_once(':').ok_or_else(|| VipLabelError::NoPort(text.to_owned()))?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| VipLabelError::BadPort(text.to_owned()))?;
        let literal = left.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(left);
        if let Ok(address) = literal.parse() {
            return match address {
                address if !is_one_hosts(address) => Err(VipLabelError::NotUnicast(text.to_owned())),
                address if is_every_nodes(address) => Err(VipLabelError::NodesOwn(text.to_owned())),
                address => Ok(Self::Static { address, port }),
            };
        }
        if looks_like_address(left) {
            return Err(VipLabelError::NoAddress(text.to_owned()));
        }
        match name::domain_fragment(left) {
            name if name.is_empty() => Err(VipLabelError::NoName(text.to_owned())),
            name if name.len() > NAME_LENGTH_MAX => Err(VipLabelError::TooLong(text.to_owned())),
            name => Ok(Self::Named { name, port }),
        }
    }

    /// The key of the service that this label of a framework's port declares.
    pub fn service_key(self, protocol: Protocol, framework_name: &str) -> ServiceKey {
        match self {
            Self::Named { name, port } => {
                let framework = name::domain_fragment(framework_name).into();
                ServiceKey { protocol, vip: Vip::Named { name: name.into(), framework }, port }
            }
            Self::Static { address, port } => ServiceKey { protocol, vip: Vip::Static(address), port },
        }
    }
}

/// Whether a client anywhere can connect to the address, and means one host by it. An IPv6 address that stands for an IPv4
/// one is reached as that.
fn is_one_hosts(address: IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some() || address.is_unicast_link_local(),
    };
    !is_special && !address.is_unspecified() && !address.is_multicast()
}

/// Whether programs of every node listen there for their own node: `localhost`, Debian's 127.0.1.1, resolvers. The rest of
/// 127.0.0.0/8 is free for virtual addresses, and the default range of names is there.
fn is_every_nodes(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [127, 0],
        IpAddr::V6(address) => address.is_loopback(),
    }
}

/// Made a name, it would be one that nobody asks for.
fn looks_like_address(text: &str) -> bool {
    let is_dotted = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let has_numbers = text.contains('.') && text.bytes().any(|byte| byte.is_ascii_digit());
    text.contains([':', '[', ']']) || (has_numbers && text.bytes().all(is_dotted))
}

/// A service: protocol, virtual address and port. Its text is `tcp/web@marathon:80` for a named VIP and
/// `tcp/1.2.3.4:80` or `tcp/[fd01:c::1]:80` for a static one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Name or address.
    pub vip: Vip,
    /// The virtual port.
    pub port: u16,
}

const SERVICE_KEY_FORM: &str = "PROTOCOL/NAME@FRAMEWORK:PORT or PROTOCOL/ADDRESS:PORT";

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.vip {
            Vip::Named { name, framework } => write!(f, "{}/{name}@{framework}:{}", self.protocol, self.port),
            Vip::Static(IpAddr::V4(address)) => write!(f, "{}/{address}:{}", self.protocol, self.port),
            Vip::Static(IpAddr::V6(address)) => write!(f, "{}/[{address}]:{}", self.protocol, self.port),
        }
    }
}

impl FromStr for ServiceKey {
    type Err = TextKeyError;

    fn from_str(text: &str) -> Result<Self, TextKeyError> {
        let error = || TextKeyError { text: text.to_owned(), kind: "service", expected: SERVICE_KEY_FORM };
        let (protocol, rest) = text.split_once('/').ok_or_else(error)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(error)?;
        let protocol = protocol.parse().map_err(|_| error())?;
        let port = port.parse().map_err(|_| error())?;
        let vip = match host.split_once('@') {
            Some((name, framework)) if !name.is_empty() => {
                Vip::Named { name: name.into(), framework: framework.into() }
            }
            _ => Vip::Static(host.trim_matches(['[', ']']).parse().map_err(|_| error())?),
        };
        Ok(Self { protocol, vip, port })
    }
}

serde_as_text!(ServiceKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_split_at_the_last_colon() {
        for (text, expected) in [
            ("/web:80", VipLabel::Named { name: "web".into(), port: 80 }),
            ("web:80", VipLabel::Named { name: "web".into(), port: 80 }),
            ("/api.hello-world:80", VipLabel::Named { name: "api.hello-world".into(), port: 80 }),
            ("/my/group:9", VipLabel::Named { name: "mygroup".into(), port: 9 }),
            ("1.2.3.4:5000", VipLabel::Static { address: [1, 2, 3, 4].into(), port: 5000 }),
            ("127.11.0.1:80", VipLabel::Static { address: [127, 11, 0, 1].into(), port: 80 }),
            ("fd01:c::1:80", VipLabel::Static { address: "fd01:c::1".parse().expect("address"), port: 80 }),
        ] {
            assert_eq!(VipLabel::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn labels_that_are_no_vip_say_why() {
        for (text, expected) in [
            ("web", VipLabelError::NoPort("web".into())),
            ("web:http", VipLabelError::BadPort("web:http".into())),
            ("web:0", VipLabelError::BadPort("web:0".into())),
            ("web:65536", VipLabelError::BadPort("web:65536".into())),
            ("/:80", VipLabelError::NoName("/:80".into())),
            ("...:80", VipLabelError::NoName("...:80".into())),
            ("1.2.3.400:80", VipLabelError::NoAddress("1.2.3.400:80".into())),
            ("fd01:c:::1:80", VipLabelError::NoAddress("fd01:c:::1:80".into())),
            ("[web]:80", VipLabelError::NoAddress("[web]:80".into())),
            ("tcp://web:80", VipLabelError::NoAddress("tcp://web:80".into())),
            ("0.0.0.0:80", VipLabelError::NotUnicast("0.0.0.0:80".into())),
            ("255.255.255.255:80", VipLabelError::NotUnicast("255.255.255.255:80".into())),
            ("224.0.0.1:80", VipLabelError::NotUnicast("224.0.0.1:80".into())),
            ("[::]:80", VipLabelError::NotUnicast("[::]:80".into())),
            ("[ff02::1]:80", VipLabelError::NotUnicast("[ff02::1]:80".into())),
            ("[fe80::1]:80", VipLabelError::NotUnicast("[fe80::1]:80".into())),
            ("[::ffff:1.2.3.4]:80", VipLabelError::NotUnicast("[::ffff:1.2.3.4]:80".into())),
            ("127.0.0.1:80", VipLabelError::NodesOwn("127.0.0.1:80".into())),
            ("127.0.0.53:53", VipLabelError::NodesOwn("127.0.0.53:53".into())),
            ("[::1]:80", VipLabelError::NodesOwn("[::1]:80".into())),
        ] {
            assert_eq!(VipLabel::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn names_end_where_nobody_could_resolve_them() {
        let label = "a".repeat(54);
        let longest = format!("{label}.{label}.{label}a");
        assert_eq!(longest.len(), NAME_LENGTH_MAX);
        let parsed = VipLabel::parse(&format!("/{longest}:80"));
        assert_eq!(parsed, Ok(VipLabel::Named { name: longest.clone(), port: 80 }));
        let domain = format!("{longest}.{}.l4lb.thisdcos.directory", "f".repeat(name::LABEL_LENGTH_MAX));
        assert_eq!(domain.len(), 253);
        let too_long = format!("/{longest}b:80");
        assert_eq!(VipLabel::parse(&too_long), Err(VipLabelError::TooLong(too_long)));
        assert!(VipLabel::parse("10:80").is_ok() && VipLabel::parse("v1.2:80").is_ok(), "names with digits");
    }

    #[test]
    fn service_keys_read_what_they_print() {
        for text in ["tcp/web@marathon:80", "udp/a.b@my.fw:53", "tcp/1.2.3.4:80", "tcp/[fd01:c::1]:80"] {
            let key: ServiceKey = text.parse().expect(text);
            assert_eq!(key.to_string(), text);
        }
        assert!("tcp/web:80".parse::<ServiceKey>().is_err());
    }
}
