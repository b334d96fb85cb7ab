//! The values that settings of the DNS server have, each with one text form.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use mesonet_dns_server::{Network, Overload, View};
use mesonet_dns_zone::{IpSource, TaskChoice};

use super::ValueError;

/// The port of DNS servers that are given without one.
const DNS_PORT: u16 = 53;

/// Where names outside the zones are asked, separated by commas: `9.9.9.9`, `10.0.0.1:5353`, `system`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstreams(pub Vec<UpstreamSource>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamSource {
    /// A DNS server.
    Server(SocketAddr),
    /// Those that this machine uses itself.
    System,
}

/// Where the names below others are asked: `corp.example=10.0.0.1,10.0.0.2; lab=10.1.0.1:5353`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardZones(pub BTreeMap<String, Vec<SocketAddr>>);

/// Where the addresses of tasks come from, the first that has one: `netinfo,mesos,host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpSources(pub Vec<IpSource>);

/// Which tasks names lead to: `best` or `running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedTasks(pub TaskChoice);

impl fmt::Display for UpstreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(address) => write!(f, "{address}"),
            Self::System => f.write_str("system"),
        }
    }
}

impl FromStr for IpSources {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = "host, netinfo, mesos and docker, separated by commas, each at most once";
        let mut sources = Vec::new();
        for part in text.split(',') {
            let source = IpSource::named(part.trim()).filter(|source| !sources.contains(source));
            sources.push(source.ok_or_else(|| error(text, "list of address sources", expected))?);
        }
        Ok(Self(sources))
    }
}

impl fmt::Display for IpSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|source| name_of(*source)).collect();
        f.write_str(&names.join(","))
    }
}

fn name_of(source: IpSource) -> &'static str {
    match source {
        IpSource::Host => "host",
        IpSource::Netinfo => "netinfo",
        IpSource::Mesos => "mesos",
        IpSource::Docker => "docker",
    }
}

impl FromStr for NamedTasks {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "best" => Ok(Self(TaskChoice::Best)),
            "running" => Ok(Self(TaskChoice::Running)),
            _ => Err(error(text, "choice of tasks", "best or running")),
        }
    }
}
/// Networks of clients, separated by commas: `10.0.0.0/8,192.0.2.1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks(pub Vec<Network>);

/// Networks that see some zones only: `10.1.0.0/16=mesos,dcos.thisdcos.directory; 10.2.0.0/16=mesos`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Views(pub Vec<View>);

/// A search list, separated by commas: `marathon.mesos,mesos`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchDomains(pub Vec<String>);

/// What becomes of queries that are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnOverload(pub Overload);

impl FromStr for Upstreams {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let source = |part: &str| match part.trim() {
            "system" => Some(UpstreamSource::System),
            server => address(server).map(UpstreamSource::Server),
        };
        text.split(',').map(source).collect::<Option<_>>().map(Self).ok_or_else(|| {
            error(text, "list of DNS servers", "IP or IP:PORT, separated by commas, or system")
        })
    }
}

impl FromStr for ForwardZones {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = "ZONE=IP[:PORT],..., separated by semicolons, each zone once";
        let mut zones = BTreeMap::new();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let zone = part.split_once('=').and_then(|(zone, servers)| {
                let servers =
                    servers.split(',').map(|server| address(server.trim())).collect::<Option<_>>()?;
                let zone = zone.trim().trim_end_matches('.').to_ascii_lowercase();
                (!zone.is_empty()).then_some((zone, servers))
            });
            let is_new = zone.is_some_and(|(zone, servers)| zones.insert(zone, servers).is_none());
            if !is_new {
                return Err(error(text, "list of forward zones", expected));
            }
        }
        Ok(Self(zones))
    }
}

impl FromStr for Networks {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        networks(text).map(Self).ok_or_else(|| {
            error(
                text,
                "list of networks",
                "ADDRESS/LENGTH or ADDRESS, separated by commas, such as 10.0.0.0/8",
            )
        })
    }
}

impl FromStr for Views {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let view = |part: &str| {
            let (clients, zones) = part.split_once('=')?;
            let zones: Vec<String> = zones.split(',').map(|zone| zone.trim().to_owned()).collect();
            let is_whole = zones.iter().all(|zone| !zone.is_empty());
            is_whole.then_some(View { networks: networks(clients)?, zones })
        };
        let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let views: Option<Vec<View>> = parts.map(view).collect();
        views
            .filter(|views| !views.is_empty())
            .map(Self)
            .ok_or_else(|| error(text, "list of views", "NETWORK,...=ZONE,..., separated by semicolons"))
    }
}

impl FromStr for SearchDomains {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let domains: Vec<String> = text.split(',').map(|domain| domain.trim().to_owned()).collect();
        let is_whole = domains.iter().all(|domain| !domain.trim_matches('.').is_empty());
        is_whole
            .then_some(Self(domains))
            .ok_or_else(|| error(text, "search list", "domains, separated by commas, such as marathon.mesos"))
    }
}

impl FromStr for OnOverload {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "refuse" => Ok(Self(Overload::Refuse)),
            "drop" => Ok(Self(Overload::Drop)),
            _ => Err(error(text, "way to shed load", "refuse or drop")),
        }
    }
}

fn networks(text: &str) -> Option<Vec<Network>> {
    text.split(',').map(|network| network.trim().parse().ok()).collect()
}

fn address(text: &str) -> Option<SocketAddr> {
    let with_port = text.parse().ok();
    let address = with_port.or_else(|| text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)));
    address.filter(|address| address.port() != 0 && !address.ip().is_unspecified())
}

fn error(text: &str, kind: &'static str, expected: &'static str) -> ValueError {
    ValueError { text: text.to_owned(), kind, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[test]
    fn upstream_servers_have_the_dns_port_unless_they_say_another() {
        let expected = [
            UpstreamSource::Server(server("192.0.2.1:53")),
            UpstreamSource::Server(server("192.0.2.2:5353")),
            UpstreamSource::System,
            UpstreamSource::Server(server("[2001:db8::1]:53")),
        ];
        assert_eq!("192.0.2.1, 192.0.2.2:5353,system,2001:db8::1".parse(), Ok(Upstreams(expected.into())));
        for text in ["", "a", "192.0.2.1:0", "0.0.0.0", "192.0.2.1,", "dns.example:53"] {
            assert!(text.parse::<Upstreams>().is_err(), "{text}");
        }
    }

    #[test]
    fn address_sources_are_known_and_named_once() {
        let sources: IpSources = "docker, host".parse().expect("sources");
        assert_eq!(sources, IpSources(vec![IpSource::Docker, IpSource::Host]));
        assert_eq!(sources.to_string(), "docker,host");
        for text in ["", "rkt", "host,host", "host,"] {
            assert!(text.parse::<IpSources>().is_err(), "{text}");
        }
        assert_eq!("running".parse(), Ok(NamedTasks(TaskChoice::Running)));
        assert!("all".parse::<NamedTasks>().is_err());
    }

    #[test]
    fn views_have_networks_and_zones() {
        let network = |text: &str| text.parse().expect(text);
        let expected = [
            View {
                networks: vec![network("10.1.0.0/16"), network("::1")],
                zones: vec!["mesos".to_owned(), "dcos.thisdcos.directory".to_owned()],
            },
            View { networks: vec![network("10.2.0.0/16")], zones: vec!["mesos".to_owned()] },
        ];
        assert_eq!(
            "10.1.0.0/16, ::1 = mesos, dcos.thisdcos.directory; 10.2.0.0/16=mesos".parse(),
            Ok(Views(expected.into()))
        );
        for text in ["", ";", "10.0.0.0/8", "10.0.0.0/8=", "=mesos", "10.0.0.0/33=mesos", "10.0.0.0/8=a,,b"] {
            assert!(text.parse::<Views>().is_err(), "{text}");
        }
        assert!("10.0.0.0/8,".parse::<Networks>().is_err());
    }

    #[test]
    fn forward_zones_have_servers() {
        let expected: BTreeMap<_, _> = [
            ("corp.example".to_owned(), vec![server("192.0.2.1:53"), server("192.0.2.2:53")]),
            ("lab".to_owned(), vec![server("[::1]:5353")]),
        ]
        .into();
        assert_eq!("Corp.example.=192.0.2.1,192.0.2.2; lab=[::1]:5353".parse(), Ok(ForwardZones(expected)));
        for text in ["corp", "corp=", "=192.0.2.1", "corp=192.0.2.1;corp=192.0.2.2"] {
            assert!(text.parse::<ForwardZones>().is_err(), "{text}");
        }
    }
}
