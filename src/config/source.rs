//! Where a network daemon gets its view of the cluster from.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::{Masters, ValueError};

/// The port of a Mesos master where none is given.
const MESOS_PORT: u16 = 5050;

/// Masters that are named at most: clusters have up to seven.
const ENDPOINTS_MAX: usize = 32;

/// Where the view of the cluster comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Masters of mesonet, over the bus: `mesonet://HOST:7070,…`.
    Mesonet(Masters),
    /// The operator API of Mesos masters, event by event: `mesos://HOST:5050,…`.
    Mesos(Vec<Endpoint>),
    /// `/master/state` of Mesos masters, polled: `mesos-state://HOST:5050,…`.
    MesosState(Vec<Endpoint>),
    /// A saved state or view: `file:PATH`.
    File(PathBuf),
}

/// Where a server listens, by name or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, the latter without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

// === impl Source ===

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |endpoints: &[Endpoint]| {
            endpoints.iter().map(Endpoint::to_string).collect::<Vec<String>>().join(",")
        };
        match self {
            Self::Mesonet(masters) => write!(f, "mesonet://{masters}"),
            Self::Mesos(endpoints) => write!(f, "mesos://{}", listed(endpoints)),
            Self::MesosState(endpoints) => write!(f, "mesos-state://{}", listed(endpoints)),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl FromStr for Source {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let read = if let Some(masters) = text.strip_prefix("mesonet://") {
            masters.parse().ok().map(Self::Mesonet)
        } else if let Some(endpoints) = text.strip_prefix("mesos://") {
            endpoints_of(endpoints).map(Self::Mesos)
        } else if let Some(endpoints) = text.strip_prefix("mesos-state://") {
            endpoints_of(endpoints).map(Self::MesosState)
        } else {
            text.strip_prefix("file:").filter(|path| !path.is_empty()).map(|path| Self::File(path.into()))
        };
        read.ok_or_else(|| ValueError {
            text: text.to_owned(),
            kind: "source",
            expected: "mesonet://HOST:7070, mesos://HOST:5050, mesos-state://HOST:5050 (several masters \
                       separated by commas) or file:PATH",
        })
    }
}

fn endpoints_of(text: &str) -> Option<Vec<Endpoint>> {
    let endpoints: Vec<Endpoint> =
        text.trim_end_matches('/').split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    (endpoints.len() <= ENDPOINTS_MAX).then_some(endpoints)
}

// === impl Endpoint ===

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A port is 5050 if it is left out.
impl FromStr for Endpoint {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError {
            text: text.to_owned(),
            kind: "address of a master",
            expected: "HOST:PORT, such as 10.0.0.1:5050 or [fd00::1]:5050",
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port: MESOS_PORT });
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => {
                let host: Ipv6Addr = host.parse().map_err(|_| error())?;
                (host.to_string(), port)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                (text[..end].to_owned(), &text[end..])
            }
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?,
            None if port.is_empty() => MESOS_PORT,
            None => return Err(error()),
        };
        // What it is put into: a request's Host line.
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(is_host) {
            return Err(error());
        }
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_one_text_form() {
        for (text, canonical) in [
            ("mesonet://a:7070,b:7070", "mesonet://a:7070,b:7070"),
            ("mesos://10.0.0.1:5050", "mesos://10.0.0.1:5050"),
            ("mesos://10.0.0.1, m2:81/", "mesos://10.0.0.1:5050,m2:81"),
            ("mesos-state://[fd00::1]:5050,fd00::2", "mesos-state://[fd00::1]:5050,[fd00::2]:5050"),
            ("file:/var/tmp/state.json", "file:/var/tmp/state.json"),
        ] {
            let source: Source = text.parse().expect(text);
            assert_eq!(source.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(source));
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in [
            "",
            "mesos:",
            "mesos://",
            "mesos://a:0",
            "mesos://a:99999",
            "mesos://a:5050,,b:5050",
            "mesos://a b:5050",
            "mesos://[fd00::1",
            "mesos://[fd00::1]5050",
            "mesos-state://u@h:1",
            "mesonet://a",
            "file:",
            "zk://a:2181/mesos",
            "http://a:5050",
        ] {
            let error = text.parse::<Source>().expect_err(text).to_string();
            assert!(error.contains("expected mesonet://HOST:7070"), "{error}");
        }
    }
}
