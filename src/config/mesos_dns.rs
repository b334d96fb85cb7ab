//! The configuration file of mesos-dns (`config.json`), so that mesonet can take its place with the same file.
//!
//! Every key that mesos-dns knows is honoured, said to have no effect, or refused with the reason; keys that it does
//! not know are warned about, as it would ignore them. Names of keys are compared without regard to case, as there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesonet_dns_zone::IpSource;
use serde_json::Value;
use thiserror::Error;

use super::{Endpoint, IpSources};

/// The largest file that is read; real ones have a few KiB.
const SIZE_MAX: u64 = 1 << 20;

/// The port of a name server where none is given.
const DNS_PORT: u16 = 53;

/// The port of mesos-dns' HTTP API.
const HTTP_PORT: u16 = 8123;

/// The longest period or time limit that makes sense: a day, in seconds.
const SECONDS_MAX: u64 = 86_400;

/// What a `config.json` asks for; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MesosDnsConfig {
    /// `Masters`.
    pub masters: Vec<Endpoint>,
    /// `RefreshSeconds`.
    pub refresh: Option<Duration>,
    /// `StateTimeoutSeconds`.
    pub state_timeout: Option<Duration>,
    /// `Domain`.
    pub domain: Option<String>,
    /// `TTL`, in seconds.
    pub ttl: Option<u32>,
    /// `Listener` and `Port`.
    pub listen: SocketAddrParts,
    /// `HTTPListener` and `HttpPort`.
    pub http: SocketAddrParts,
    /// `HttpOn`.
    pub http_on: Option<bool>,
    /// `Resolvers`, if `ExternalOn` does not forbid them.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// `ZoneResolvers`: zones without dots at their ends.
    pub zone_resolvers: BTreeMap<String, Vec<SocketAddr>>,
    /// `ExternalOn`.
    pub external_on: Option<bool>,
    /// `RecurseOn`; as with mesos-dns, it is on unless the file says otherwise.
    pub recurse_on: Option<bool>,
    /// `IPSources`, in order.
    pub ip_sources: Option<Vec<IpSource>>,
    /// `EnforceRFC952`.
    pub enforce_rfc952: Option<bool>,
    /// `EnumerationOn`.
    pub enumeration_on: Option<bool>,
    /// `SRVRecordDefaultWeight`.
    pub srv_weight: Option<u16>,
    /// The SOA record.
    pub soa: SoaParts,
    /// `MesosCredentials`, if `MesosAuthentication` wants them.
    pub credentials: Option<Credentials>,
    /// Sentences on keys that have no effect here, and on unknown ones.
    pub warnings: Vec<String>,
}

/// An address and a port, each only if it is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketAddrParts {
    /// The address.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
}

/// What a Mesos master knows a client by.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who it is.
    pub principal: String,
    /// How it proves that.
    pub secret: String,
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// What is said of the SOA record; times in seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoaParts {
    /// `SOAMname`.
    pub primary: Option<String>,
    /// `SOARname`, a domain name.
    pub mailbox: Option<String>,
    /// `SOARefresh`.
    pub refresh: Option<u32>,
    /// `SOARetry`.
    pub retry: Option<u32>,
    /// `SOAExpire`.
    pub expire: Option<u32>,
    /// `SOAMinttl`.
    pub minimum: Option<u32>,
}

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum MesosDnsConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration of mesos-dns {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{} has {size} bytes, too many for a configuration of mesos-dns (at most {SIZE_MAX})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// It is no JSON object.
    #[error("the configuration of mesos-dns {} is no JSON object", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Some keys are refused.
    #[error("the configuration of mesos-dns {}:\n  {}", path.display(), problems.join("\n  "))]
    Problems {
        /// The file.
        path: PathBuf,
        /// Each of them: key and reason.
        problems: Vec<String>,
    },
}

impl MesosDnsConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no configuration, or one that is not honoured; all its problems are named. `has_source` says whether
    /// the view comes from somewhere else than the file says.
    pub fn read(path: &Path, has_source: bool) -> Result<Self, MesosDnsConfigError> {
        let failed = |source| MesosDnsConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > SIZE_MAX {
            return Err(MesosDnsConfigError::TooLarge { path: path.to_owned(), size });
        }
        let text = std::fs::read(path).map_err(failed)?;
        let keys: BTreeMap<String, Value> = serde_json::from_slice(&text)
            .map_err(|source| MesosDnsConfigError::Syntax { path: path.to_owned(), source })?;
        parse(keys, has_source)
            .map_err(|problems| MesosDnsConfigError::Problems { path: path.to_owned(), problems })
    }

    /// Where names are to be served.
    pub fn listen(&self) -> SocketAddr {
        self.listen.or_defaults(DNS_PORT)
    }

    /// Where the HTTP API is to be served.
    pub fn http(&self) -> SocketAddr {
        self.http.or_defaults(HTTP_PORT)
    }
}

impl SocketAddrParts {
    /// With mesos-dns' default for what is not given: all addresses, and its port.
    fn or_defaults(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), self.port.unwrap_or(port))
    }
}

fn parse(keys: BTreeMap<String, Value>, has_source: bool) -> Result<MesosDnsConfig, Vec<String>> {
    let mut keys = Keys::new(keys);
    let mut config = MesosDnsConfig {
        masters: keys.endpoints("Masters"),
        refresh: keys.seconds("RefreshSeconds"),
        state_timeout: keys.seconds("StateTimeoutSeconds"),
        domain: keys.domain(),
        ttl: keys.number("TTL", i32::MAX as u64).and_then(|ttl| u32::try_from(ttl).ok()),
        listen: SocketAddrParts { ip: keys.ip("Listener"), port: keys.port("Port") },
        http: SocketAddrParts { ip: keys.ip("HTTPListener"), port: keys.port("HttpPort") },
        http_on: keys.bool("HttpOn"),
        resolvers: keys.servers("Resolvers"),
        zone_resolvers: BTreeMap::new(),
        external_on: keys.bool("ExternalOn"),
        recurse_on: keys.bool("RecurseOn").or(Some(true)),
        ip_sources: keys.ip_sources(),
        enforce_rfc952: keys.bool("EnforceRFC952"),
        enumeration_on: keys.bool("EnumerationOn"),
        srv_weight: keys
            .number("SRVRecordDefaultWeight", u64::from(u16::MAX))
            .and_then(|weight| u16::try_from(weight).ok()),
        soa: keys.soa(),
        credentials: keys.credentials(),
        warnings: Vec::new(),
    };
    config.zone_resolvers = keys.zone_resolvers(config.domain.as_deref().unwrap_or("mesos"));
    keys.refuse_what_is_missing(has_source || !config.masters.is_empty());
    config.warnings = keys.finish()?;
    Ok(config)
}

/// The keys that nobody has asked for yet, and what there is to say of the others.
struct Keys {
    /// By the name in lower case: the name as written, and the value.
    left: BTreeMap<String, (String, Value)>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

impl Keys {
    fn new(keys: BTreeMap<String, Value>) -> Self {
        let mut left = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, value) in keys {
            let lower = name.to_ascii_lowercase();
            if let Some((other, _)) = left.insert(lower, (name.clone(), value)) {
                problems.push(format!("{name}: given twice, also as {other}"));
            }
        }
        Self { left, warnings: Vec::new(), problems }
    }

    /// The value of a key; null is as good as none.
    fn take(&mut self, key: &str) -> Option<Value> {
        let (_, value) = self.left.remove(&key.to_ascii_lowercase())?;
        (!value.is_null()).then_some(value)
    }

    fn problem(&mut self, key: &str, problem: impl AsRef<str>) {
        self.problems.push(format!("{key}: {}", problem.as_ref()));
    }

    fn read<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let found = read(&value);
        if found.is_none() {
            self.problem(key, format!("expected {expected}, found {value}"));
        }
        found
    }

    fn bool(&mut self, key: &str) -> Option<bool> {
        self.read(key, "true or false", Value::as_bool)
    }

    fn number(&mut self, key: &str, max: u64) -> Option<u64> {
        let expected = format!("a whole number from 0 to {max}");
        self.read(key, &expected, |value| value.as_u64().filter(|number| *number <= max))
    }

    fn seconds(&mut self, key: &str) -> Option<Duration> {
        let expected = format!("a number of seconds from 1 to {SECONDS_MAX}");
        let in_range = |seconds: &u64| (1..=SECONDS_MAX).contains(seconds);
        self.read(key, &expected, |value| value.as_u64().filter(in_range)).map(Duration::from_secs)
    }

    fn port(&mut self, key: &str) -> Option<u16> {
        self.read(key, "a port from 1 to 65535", |value| {
            value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
        })
    }

    fn ip(&mut self, key: &str) -> Option<IpAddr> {
        self.read(key, "an address of this machine", |value| value.as_str()?.parse().ok())
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.read(key, "text", |value| value.as_str().map(str::to_owned)).filter(|text| !text.is_empty())
    }

    fn endpoints(&mut self, key: &str) -> Vec<Endpoint> {
        let read = self.read(key, "a list of masters, HOST:PORT each", |value| {
            let parts = value.as_array()?.iter();
            parts.map(|part| part.as_str()?.parse().ok()).collect::<Option<Vec<Endpoint>>>()
        });
        let endpoints = read.unwrap_or_default();
        let is_twice = |endpoint: &&Endpoint| endpoints.iter().filter(|other| other == endpoint).count() > 1;
        if let Some(endpoint) = endpoints.iter().find(is_twice) {
            self.problem(key, format!("{endpoint} is given twice"));
        }
        endpoints
    }

    fn servers(&mut self, key: &str) -> Option<Vec<SocketAddr>> {
        self.read(key, "a list of name servers, IP or IP:PORT each", servers_of)
    }

    fn domain(&mut self) -> Option<String> {
        self.read("Domain", "a domain without dots at its ends", |value| {
            let text = value.as_str()?;
            let has_ends = text.starts_with('.') || text.ends_with('.');
            (!text.is_empty() && !has_ends).then(|| text.to_ascii_lowercase())
        })
    }

    fn ip_sources(&mut self) -> Option<Vec<IpSource>> {
        let expected = "a list of host, netinfo, mesos and docker, each at most once";
        let read = |value: &Value| {
            let names = value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<&str>>>()?;
            names.join(",").parse().ok()
        };
        self.read("IPSources", expected, read).map(|IpSources(sources)| sources)
    }

    fn zone_resolvers(&mut self, domain: &str) -> BTreeMap<String, Vec<SocketAddr>> {
        let key = "ZoneResolvers";
        let read = self.read(key, "name servers by zone, such as {\"corp\": [\"192.0.2.1\"]}", |value| {
            let zones = value.as_object()?.iter().map(|(zone, servers)| {
                let zone = zone.trim_matches('.').to_ascii_lowercase();
                let servers = servers_of(servers).filter(|servers| !servers.is_empty())?;
                (!zone.is_empty()).then_some((zone, servers))
            });
            zones.collect::<Option<BTreeMap<String, Vec<SocketAddr>>>>()
        });
        let zones = read.unwrap_or_default();
        for zone in zones.keys().filter(|zone| is_within(zone, domain) || is_within(domain, zone)) {
            self.problem(key, format!("{zone} overlaps the domain {domain}, which is served here"));
        }
        zones
    }

    fn soa(&mut self) -> SoaParts {
        if self.take("SOASerial").is_some_and(|serial| serial != 0) {
            self.warn("SOASerial", "the serial is the revision of the view, which goes up with each change");
        }
        let mut number =
            |key| self.number(key, u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok());
        let (refresh, retry) = (number("SOARefresh"), number("SOARetry"));
        let (expire, minimum) = (number("SOAExpire"), number("SOAMinttl"));
        let name = |text: String| text.trim_end_matches('.').to_ascii_lowercase();
        SoaParts {
            primary: self.text("SOAMname").map(name),
            mailbox: self.text("SOARname").map(|text| name(text.replacen('@', ".", 1))),
            refresh,
            retry,
            expire,
            minimum,
        }
    }

    fn credentials(&mut self) -> Option<Credentials> {
        let given = self.read("MesosCredentials", "an object with principal and secret", |value| {
            let part = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
            // An empty object is what mesos-dns has by default.
            match value.as_object()?.is_empty() {
                true => Some(None),
                false => Some(Some(Credentials { principal: part("principal")?, secret: part("secret")? })),
            }
        });
        let given = given.flatten().filter(|given: &Credentials| !given.principal.is_empty());
        match self.text("MesosAuthentication").as_deref() {
            None => None,
            Some("basic") if given.is_some() => given,
            Some("basic") => {
                self.problem("MesosAuthentication", "basic needs MesosCredentials with principal and secret");
                None
            }
            Some("iam") => {
                self.problem(
                    "MesosAuthentication",
                    "iam is refused: the login needs TLS to the masters, which is not there; \
                     give a token with --mesos-token-file",
                );
                None
            }
            Some(other) => {
                let problem = format!("expected basic, iam or nothing, found {other:?}");
                self.problem("MesosAuthentication", problem);
                None
            }
        }
    }

    /// Keys whose meaning is not there.
    fn refuse_what_is_missing(&mut self, has_masters: bool) {
        match self.text("Zk") {
            Some(_) if !has_masters => self.problem(
                "Zk",
                "refused: masters are not looked up in ZooKeeper; name them in Masters or with --source \
                 mesos-state://HOST:5050,… (whichever leads is found)",
            ),
            Some(_) => self.warn("Zk", "masters are not looked up in ZooKeeper; those named are asked"),
            None if !has_masters && !self.problems.iter().any(|problem| problem.starts_with("Masters:")) => {
                self.problem("Masters", "there are none, and no --source");
            }
            None => {}
        }
        if self.take("ZkDetectionTimeout").is_some() {
            self.warn("ZkDetectionTimeout", "masters are not looked up in ZooKeeper");
        }
        if self.bool("MesosHTTPSOn") == Some(true) {
            self.problem("MesosHTTPSOn", "refused: there is no TLS to the masters");
        }
        for key in ["CACertFile", "CertFile", "KeyFile"] {
            if self.text(key).is_some() {
                self.warn(key, "there is no TLS to the masters");
            }
        }
        if self.text("IAMConfigFile").is_some() {
            self.problem("IAMConfigFile", "refused: see MesosAuthentication");
        }
        if self.bool("DnsOn") == Some(false) {
            self.problem("DnsOn", "refused: serving names cannot be turned off");
        }
        if self.bool("SetTruncateBit") == Some(false) {
            self.problem(
                "SetTruncateBit",
                "refused: without the bit clients take a part of the records for all of them",
            );
        }
        if self.seconds("Timeout").is_some() {
            self.warn("Timeout", "the next server is asked as soon as one is slower than usual");
        }
        // In the files of DC/OS, but never read by mesos-dns.
        self.take("email");
    }

    fn warn(&mut self, key: &str, reason: &str) {
        self.warnings.push(format!("{key} has no effect: {reason}"));
    }

    fn finish(mut self) -> Result<Vec<String>, Vec<String>> {
        let unknown =
            self.left.into_values().map(|(name, _)| format!("{name} is not known and has no effect"));
        self.warnings.extend(unknown);
        if self.problems.is_empty() { Ok(self.warnings) } else { Err(self.problems) }
    }
}

/// Name servers, `IP` or `IP:PORT` each, none twice.
fn servers_of(value: &Value) -> Option<Vec<SocketAddr>> {
    let read = |text: &str| {
        let address = text.parse().ok();
        address.or_else(|| Some(SocketAddr::new(text.trim_matches(['[', ']']).parse().ok()?, DNS_PORT)))
    };
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in value.as_array()? {
        let server = read(server.as_str()?)?;
        if servers.contains(&server) {
            return None;
        }
        servers.push(server);
    }
    Some(servers)
}

/// Whether a domain is another one or below it.
fn is_within(domain: &str, other: &str) -> bool {
    domain == other || domain.strip_suffix(other).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<MesosDnsConfig, Vec<String>> {
        parse(serde_json::from_value(config).expect("object"), false)
    }

    #[test]
    fn every_key_that_is_honoured_is_read_whatever_its_case() {
        let config = read(json!({
            "masters": ["10.0.0.1:5050", "m2"], "REFRESHSECONDS": 30, "stateTimeoutSeconds": 10,
            "domain": "Mesos", "ttl": 20, "listener": "127.0.0.1", "port": 61053,
            "httplistener": "127.0.0.1", "httpport": 8124, "httpon": true, "dnson": true,
            "resolvers": ["192.0.2.1", "[2001:db8::1]:5353"], "zoneResolvers": {"corp.": ["192.0.2.2:54"]},
            "externalon": true, "recurseon": false, "IPSources": ["host", "netinfo"],
            "enforceRFC952": true, "setTruncateBit": true, "enumerationOn": false,
            "SRVRecordDefaultWeight": 5, "SOAMname": "ns9.mesos.", "SOARname": "root@ns9.mesos.",
            "SOARefresh": 1, "SOARetry": 2, "SOAExpire": 3, "SOAMinttl": 4, "SOASerial": 0,
            "mesosAuthentication": "basic", "mesosCredentials": {"principal": "p", "secret": "s"},
            "zk": "", "mesosHTTPSOn": false, "CACertFile": "", "email": "root.mesos-dns.mesos",
        }))
        .expect("all honoured");
        assert_eq!(config.masters.len(), 2);
        assert_eq!(config.refresh, Some(Duration::from_secs(30)));
        assert_eq!(config.state_timeout, Some(Duration::from_secs(10)));
        assert_eq!((config.domain.as_deref(), config.ttl), (Some("mesos"), Some(20)));
        assert_eq!(config.listen(), "127.0.0.1:61053".parse().expect("address"));
        assert_eq!(config.http(), "127.0.0.1:8124".parse().expect("address"));
        let resolvers = config.resolvers.clone().expect("resolvers");
        assert_eq!(resolvers[0], "192.0.2.1:53".parse().expect("address"));
        assert_eq!(config.zone_resolvers["corp"][0], "192.0.2.2:54".parse().expect("address"));
        assert_eq!((config.external_on, config.recurse_on), (Some(true), Some(false)));
        assert_eq!(config.ip_sources, Some(vec![IpSource::Host, IpSource::Netinfo]));
        assert_eq!((config.enforce_rfc952, config.enumeration_on), (Some(true), Some(false)));
        assert_eq!(config.srv_weight, Some(5));
        let soa = SoaParts {
            primary: Some("ns9.mesos".to_owned()),
            mailbox: Some("root.ns9.mesos".to_owned()),
            refresh: Some(1),
            retry: Some(2),
            expire: Some(3),
            minimum: Some(4),
        };
        assert_eq!(config.soa, soa);
        assert!(!format!("{config:?}").contains("\"s\""), "secrets are not shown");
        let credentials = Credentials { principal: "p".to_owned(), secret: "s".to_owned() };
        assert_eq!(config.credentials, Some(credentials));
        assert_eq!(config.warnings, [""; 0]);
    }

    #[test]
    fn what_is_not_honoured_is_refused_with_the_key_and_the_reason() {
        for (key, value, expected) in [
            ("zk", json!("zk://zk-1.zk:2181/mesos"), "Zk: refused: masters are not looked up in ZooKeeper"),
            ("masters", json!(["a:0"]), "Masters: expected a list of masters"),
            ("masters", json!("a:1"), "Masters: expected a list of masters"),
            ("masters", json!(["a:1", "a:1"]), "Masters: a:1 is given twice"),
            ("refreshSeconds", json!(0), "RefreshSeconds: expected a number of seconds"),
            ("refreshSeconds", json!("60"), "found \"60\""),
            ("domain", json!(".mesos"), "Domain: expected a domain"),
            ("ttl", json!(-1), "TTL: expected a whole number"),
            ("listener", json!("eth0"), "Listener: expected an address"),
            ("port", json!(65_536), "Port: expected a port"),
            ("resolvers", json!(["dns.example"]), "Resolvers: expected a list of name servers"),
            ("resolvers", json!(["192.0.2.1", "192.0.2.1:53"]), "Resolvers: expected a list of name servers"),
            ("zoneResolvers", json!({"corp": []}), "ZoneResolvers: expected name servers by zone"),
            (
                "zoneResolvers",
                json!({"a.mesos": ["192.0.2.1"]}),
                "ZoneResolvers: a.mesos overlaps the domain",
            ),
            ("ipSources", json!(["host", "rkt"]), "IPSources: expected a list of host"),
            ("ipSources", json!(["host", "host"]), "IPSources: expected a list of host"),
            ("dnsOn", json!(false), "DnsOn: refused"),
            ("setTruncateBit", json!(false), "SetTruncateBit: refused"),
            ("mesosHTTPSOn", json!(true), "MesosHTTPSOn: refused"),
            ("mesosAuthentication", json!("iam"), "MesosAuthentication: iam is refused"),
            ("mesosAuthentication", json!("basic"), "MesosAuthentication: basic needs MesosCredentials"),
            ("mesosAuthentication", json!("kerberos"), "MesosAuthentication: expected basic, iam or nothing"),
            ("mesosCredentials", json!({"principal": "p"}), "MesosCredentials: expected an object"),
            ("iamConfigFile", json!("/etc/iam.json"), "IAMConfigFile: refused"),
            ("SRVRecordDefaultWeight", json!(65_536), "SRVRecordDefaultWeight: expected a whole number"),
        ] {
            let mut config = json!({ key: value });
            if !["zk", "masters"].contains(&key) {
                config["masters"] = json!(["10.0.0.1:5050"]);
            }
            let problems = read(config).expect_err(key);
            assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        }
        let problems = read(json!({ "ttl": 1, "TTL": 2 })).expect_err("two problems");
        assert_eq!(problems.len(), 2, "all are named: {problems:?}");
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let config = read(json!({
            "zk": "zk://zk-1.zk:2181/mesos", "masters": ["10.0.0.1:5050"], "zkDetectionTimeout": 30,
            "SOASerial": 7, "colour": "blue", "timeout": 5,
        }))
        .expect("usable");
        let said = config.warnings.join("\n");
        for expected in [
            "Zk has no",
            "ZkDetectionTimeout has no",
            "SOASerial has no",
            "colour is not known",
            "Timeout has no",
        ] {
            assert!(said.contains(expected), "{said}");
        }
    }
}
