//! The values that settings have, each with one text form.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use mesonet_model::{PortRanges, Scalar};
use thiserror::Error;

/// A text is no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is no {kind}: expected {expected}")]
pub struct ValueError {
    /// The text.
    pub text: String,
    /// What it should have been.
    pub kind: &'static str,
    /// The form of such a value.
    pub expected: &'static str,
}

/// Which data plane balances VIPs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Datapath {
    /// The userspace proxy: needs no rights.
    #[default]
    Proxy,
    /// The kernel, by eBPF programs.
    Ebpf,
    /// The best one that this machine and user can run.
    Auto,
    /// None: VIPs have names and addresses, but nobody listens.
    None,
}

/// Whether something is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Switch {
    /// It is on.
    On,
    /// It is off.
    #[default]
    Off,
}

/// Where something is served, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Here.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// An amount of a resource, more than nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub Scalar);

/// A range of ports, both ends included: `31000-32000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSpan {
    /// First port; not 0.
    pub first: u16,
    /// Last port; not below `first`.
    pub last: u16,
}

/// A range of addresses, both ends included: `127.11.0.0/16` or `127.11.0.0-127.11.255.255`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VipRange {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address; not below `first`.
    pub last: Ipv4Addr,
}

/// A time to wait: a number with `ms`, `s` or `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(pub Duration);

/// A share in percent: `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u8);

/// Where a master keeps the cluster's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// In a file of its own: it is the only master.
    #[default]
    Redb,
    /// In etcd, which several masters share.
    Etcd,
}

/// Where etcd is reached: URLs, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(pub Vec<String>);

/// Where masters are reached, `HOST:PORT` each, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masters(pub Vec<String>);

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; in colours on a terminal.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

// === impl Datapath ===

impl Datapath {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Ebpf => "ebpf",
            Self::Auto => "auto",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Datapath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "proxy" => Ok(Self::Proxy),
            "ebpf" => Ok(Self::Ebpf),
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => Err(error(text, "data path", "proxy, ebpf, auto or none")),
        }
    }
}

// === impl Switch ===

impl FromStr for Switch {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(error(text, "switch", "on or off")),
        }
    }
}

// === impl Listen ===

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| error(text, "address", "IP:PORT or off")),
        }
    }
}

// === impl Amount ===

impl FromStr for Amount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let amount = text.parse().ok().filter(|amount: &f64| amount.is_finite()).map(Scalar::from_f64);
        amount
            .filter(|amount| *amount > Scalar::ZERO)
            .map(Self)
            .ok_or_else(|| error(text, "amount", "a number above 0, such as 2 or 0.5"))
    }
}

// === impl PortSpan ===

impl PortSpan {
    /// The ports as a set.
    pub fn to_ranges(self) -> PortRanges {
        PortRanges::span(self.first, self.last)
    }
}

impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortSpan {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let span = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (0 < first && first <= last).then_some(Self { first, last })
        });
        span.ok_or_else(|| error(text, "range of ports", "FIRST-LAST, such as 31000-32000"))
    }
}

// === impl VipRange ===

impl fmt::Display for VipRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for VipRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let span = text.split_once('-').and_then(|(first, last)| {
            Some(Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        });
        span.or_else(|| network(text)).filter(|range| range.first <= range.last).ok_or_else(|| {
            error(text, "range of IPv4 addresses", "ADDRESS/LENGTH or FIRST-LAST, such as 127.11.0.0/16")
        })
    }
}

fn network(text: &str) -> Option<VipRange> {
    let (address, length) = text.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let length: u32 = length.parse().ok().filter(|length| *length <= 32)?;
    let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
    let first = u32::from(address) & !hosts;
    Some(VipRange { first: first.into(), last: (first | hosts).into() })
}

// === impl Grace ===

impl FromStr for Grace {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number_ends = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(number_ends);
        let millis_per_unit = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        number
            .parse::<u64>()
            .ok()
            .zip(millis_per_unit)
            .and_then(|(number, millis)| number.checked_mul(millis))
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| error(text, "duration", "a number with ms, s, m or h, such as 10s"))
    }
}

// === impl Percent ===

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
        number
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(|| error(text, "share", "a whole number of percent, such as 50%"))
    }
}

// === impl Masters ===

impl fmt::Display for Masters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl FromStr for Masters {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        if parts.iter().all(|part| is_address(part)) {
            Ok(Self(parts))
        } else {
            Err(error(text, "list of masters", "HOST:PORT, such as 10.0.0.1:7070"))
        }
    }
}

// === impl StoreKind ===

impl FromStr for StoreKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "redb" => Ok(Self::Redb),
            "etcd" => Ok(Self::Etcd),
            _ => Err(error(text, "store", "redb or etcd")),
        }
    }
}

// === impl Endpoints ===

impl Default for Endpoints {
    /// Where etcd listens by default.
    fn default() -> Self {
        Self(vec!["http://127.0.0.1:2379".to_owned()])
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl FromStr for Endpoints {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let is_url = |part: &str| {
            let address = part.strip_prefix("http://").or_else(|| part.strip_prefix("https://"));
            address.is_some_and(|address| is_address(address.trim_end_matches('/')))
        };
        let parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        if parts.iter().all(|part| is_url(part)) {
            Ok(Self(parts))
        } else {
            Err(error(text, "list of etcd's members", "http://HOST:PORT, such as http://10.0.0.1:2379"))
        }
    }
}

// === impl LogFormat ===

impl FromStr for LogFormat {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(error(text, "log format", "text or json")),
        }
    }
}

/// Whether a text has the form `HOST:PORT`.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

pub(super) fn error(text: &str, kind: &'static str, expected: &'static str) -> ValueError {
    ValueError { text: text.to_owned(), kind, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_ranges_are_networks_or_spans() {
        for (text, first, last) in [
            ("127.11.0.0/16", "127.11.0.0", "127.11.255.255"),
            ("127.11.3.4/16", "127.11.0.0", "127.11.255.255"),
            ("10.0.0.1/32", "10.0.0.1", "10.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("127.1.0.5-127.1.0.9", "127.1.0.5", "127.1.0.9"),
        ] {
            let range: VipRange = text.parse().expect(text);
            assert_eq!(
                (range.first.to_string(), range.last.to_string()),
                (first.into(), last.into()),
                "{text}"
            );
        }
        for text in ["127.11.0.0", "127.11.0.0/33", "127.0.0.9-127.0.0.1", "::1/64", ""] {
            assert!(text.parse::<VipRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!("10s".parse(), Ok(Grace(Duration::from_secs(10))));
        assert_eq!("250ms".parse(), Ok(Grace(Duration::from_millis(250))));
        assert_eq!("2m".parse(), Ok(Grace(Duration::from_secs(120))));
        assert_eq!("24h".parse(), Ok(Grace(Duration::from_secs(86_400))));
        for text in ["10", "s", "-1s", "1d", "99999999999999999999s"] {
            assert!(text.parse::<Grace>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_percents_of_at_most_all() {
        assert_eq!("0%".parse(), Ok(Percent(0)));
        assert_eq!("100%".parse(), Ok(Percent(100)));
        for text in ["", "%", "50", "101%", "-1%", "0.5%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn ports_and_amounts_refuse_what_cannot_be_offered() {
        assert_eq!("1-2".parse(), Ok(PortSpan { first: 1, last: 2 }));
        for text in ["0-5", "5-4", "5", "1-70000"] {
            assert!(text.parse::<PortSpan>().is_err(), "{text}");
        }
        for text in ["0", "-1", "NaN", "inf", "two"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
    }

    #[test]
    fn members_of_etcd_are_urls() {
        for (text, count) in [("http://127.0.0.1:2379", 1), ("https://a:1, http://[::1]:2/", 2)] {
            let Endpoints(members) = text.parse().expect(text);
            assert_eq!(members.len(), count, "{text}");
        }
        for text in ["", "127.0.0.1:2379", "http://", "http://a", "ftp://a:1", "http://a:1,"] {
            assert!(text.parse::<Endpoints>().is_err(), "{text}");
        }
    }

    #[test]
    fn masters_have_a_host_and_a_port() {
        for (text, expected) in [
            ("a:1", vec!["a:1"]),
            ("10.0.0.1:7070, b.c:7071", vec!["10.0.0.1:7070", "b.c:7071"]),
            ("[::1]:7070", vec!["[::1]:7070"]),
        ] {
            let Masters(masters) = text.parse().expect(text);
            assert_eq!(masters, expected);
        }
        for text in ["", "a", "a:", ":1", "a:0", "a:1,", "a:70000"] {
            assert!(text.parse::<Masters>().is_err(), "{text}");
        }
    }
}
