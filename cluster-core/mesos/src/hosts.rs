//! Where things are: Mesos process ids, host and port, and host names that others resolve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The longest host name (RFC 1035 §2.3.4, as text without the final dot).
const HOST_LENGTH_MAX: usize = 253;

/// The addresses of host names, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    known: BTreeMap<String, Vec<IpAddr>>,
    wanted: BTreeSet<String>,
}

/// A host and its port, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Hosts {
    /// The addresses of a host: itself if it is an address, else what is known of the name. A name of which nothing is
    /// known is asked for.
    pub(crate) fn addresses(&mut self, host: &str) -> Vec<IpAddr> {
        if let Some(address) = literal(host) {
            return vec![address];
        }
        match self.known.get(host) {
            Some(addresses) => addresses.clone(),
            None => {
                if !host.is_empty() && host.len() <= HOST_LENGTH_MAX {
                    self.wanted.insert(host.to_owned());
                }
                Vec::new()
            }
        }
    }

    /// Takes what a name was resolved to. Whether that is news.
    pub(crate) fn set(&mut self, host: &str, addresses: &[IpAddr]) -> bool {
        self.wanted.remove(host);
        let addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        let old = self.known.insert(host.to_owned(), addresses.clone());
        old.unwrap_or_default() != addresses
    }

    /// Names of which nothing is known yet.
    pub(crate) fn wanted(&self) -> &BTreeSet<String> {
        &self.wanted
    }
}

/// An address as text, with or without the brackets of a URL. IPv4 addresses mapped into IPv6 are IPv4 addresses, as
/// in mesos-dns.
pub(crate) fn literal(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    inner.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// The host and port of a Mesos process id, `name@host:port`.
pub(crate) fn of_pid(pid: &str) -> Option<HostPort> {
    let (_, place) = pid.trim().split_once('@')?;
    if place.contains('@') { None } else { host_port(place) }
}

/// Reads `host:port`; the host of an IPv6 address is in brackets.
pub(crate) fn host_port(text: &str) -> Option<HostPort> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let is_ambiguous = bare.is_none() && host.contains(':');
    if host.is_empty() || is_ambiguous {
        return None;
    }
    Some(HostPort { host: bare.unwrap_or(host).to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_ids_have_host_and_port() {
        for (pid, expected) in [
            ("slave(1)@127.0.0.1:5051", Some(("127.0.0.1", 5051))),
            ("  slave(1)@127.0.0.1:5051  ", Some(("127.0.0.1", 5051))),
            ("slave(1)@[2001:db8::1]:5051", Some(("2001:db8::1", 5051))),
            ("scheduler-1@host.example:25501", Some(("host.example", 25501))),
            ("", None),
            ("@", None),
            ("1@", None),
            ("@2", None),
            ("3@4", None),
            ("a@b@c:1", None),
            ("a@2001:db8::1:5051", None),
            ("a@host:port", None),
            ("a@host:70000", None),
        ] {
            let found = of_pid(pid);
            assert_eq!(found.as_ref().map(|each| (each.host.as_str(), each.port)), expected, "{pid}");
        }
    }

    #[test]
    fn names_are_asked_for_until_they_are_known() {
        let mut hosts = Hosts::default();
        assert_eq!(hosts.addresses("10.0.0.1"), [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(hosts.addresses("::ffff:10.0.0.1"), [IpAddr::from([10, 0, 0, 1])]);
        assert!(hosts.addresses("node1").is_empty() && hosts.wanted().contains("node1"));
        assert!(hosts.set("node1", &[[10, 0, 0, 2].into()]) && !hosts.set("node1", &[[10, 0, 0, 2].into()]));
        assert_eq!(hosts.addresses("node1"), [IpAddr::from([10, 0, 0, 2])]);
        assert!(hosts.wanted().is_empty());
        assert!(!hosts.set("node2", &[]) && hosts.addresses("node2").is_empty() && hosts.wanted().is_empty());
    }
}
