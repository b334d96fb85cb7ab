//! All that a network daemon is told: its settings, and what a `config.json` of mesos-dns adds to them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;
use mesonet_dns_server::{CertificateFiles, server_addresses};
use mesonet_dns_zone::{LabelRule, SoaConfig, TaskChoice};
use serde::Deserialize;
use thiserror::Error;

use crate::config::{
    ConfigError, Credentials, DnsSettings, Endpoint, ForwardZones, Grace, IpSources, Listen, MesosDnsConfig,
    MesosDnsConfigError, NetOptions, NetSettings, Settings, Source, Switch, UpstreamSource, Upstreams,
    ZoneSettings,
};
use crate::dns_api::ApiSettings;
use crate::dns_config;
use crate::sources::{InvalidCredentials, MesosSettings, basic_authorization, token_authorization};

/// The port at which names are served on an address of the daemon's own: the one that resolv.conf knows.
const DNS_PORT: u16 = 53;

/// What a network daemon is told. A flag wins over its variable, which wins over the file of mesonet, which wins over
/// that of mesos-dns.
#[derive(Debug, Clone)]
pub struct NetPlan {
    /// The settings.
    pub options: NetOptions,
    /// What only mesos-dns has a key for.
    mesos_dns: MesosDnsConfig,
}

/// What is told makes no sense.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file of mesonet.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file of mesos-dns.
    #[error(transparent)]
    MesosDns(#[from] MesosDnsConfigError),
}

/// There are credentials, but they cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the credentials for Mesos masters from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what is expected.
    #[error("expected JSON with principal and secret in {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and why. It shows nothing of the file.
        source: serde_json::Error,
    },
    /// They cannot be sent.
    #[error(transparent)]
    Invalid(#[from] InvalidCredentials),
    /// There are several.
    #[error("both a principal and a token are given for Mesos masters; only one of them can be sent")]
    Both,
}

/// Mesos' form of a credential (`--credential` of agents and frameworks).
#[derive(Deserialize)]
struct CredentialJson {
    principal: String,
    secret: String,
}

impl NetPlan {
    /// Completes what flags and environment said with the file of mesonet and that of mesos-dns, if they are named.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn resolve(given: NetSettings, file: Option<&Path>) -> Result<Self, PlanError> {
        let settings = given.merged(file)?;
        let Some(path) = &settings.mesos_dns_config else {
            return Ok(Self { options: settings.with_defaults(), mesos_dns: MesosDnsConfig::default() });
        };
        let mesos_dns = MesosDnsConfig::read(path, settings.source.is_some())?;
        let options = settings.or(settings_of(&mesos_dns)).with_defaults();
        Ok(Self { options, mesos_dns })
    }

    /// Sentences on what is told and has no effect.
    pub fn warnings(&self) -> &[String] {
        &self.mesos_dns.warnings
    }

    /// How names are served. `own` is the node's certificate, if it has one.
    ///
    /// # Errors
    /// When the system's DNS servers are wanted but not written down, or a file that is named cannot be used.
    pub fn dns(&self, own: Option<CertificateFiles>) -> anyhow::Result<mesonet_dns_server::Config> {
        let mut config = dns_config::server_config(self.listen(), &self.options.names, self.zone()?, own)?;
        config.policy.says_recursion = self.mesos_dns.recurse_on;
        Ok(config)
    }

    /// Where names are served.
    fn listen(&self) -> Vec<SocketAddr> {
        let named = self.options.dns;
        let own = self.options.dns_address.map(|address| SocketAddr::new(address, DNS_PORT));
        // Whoever listens on all addresses listens on this one, too.
        let own =
            own.filter(|own| *own != named && !(named.ip().is_unspecified() && named.port() == DNS_PORT));
        own.into_iter().chain([named]).collect()
    }

    /// The addresses of the server itself, for its name.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        server_addresses(&self.listen())
    }

    /// Which names are served.
    ///
    /// # Errors
    /// When the file of records cannot be used.
    pub fn zone(&self) -> anyhow::Result<mesonet_dns_zone::Config> {
        let zone = dns_config::zone_config(&self.options.zone, self.default_tasks())?;
        let told = &self.mesos_dns;
        let rfc952 = told.enforce_rfc952 == Some(true);
        Ok(mesonet_dns_zone::Config {
            label_rule: if rfc952 { LabelRule::Rfc952 } else { zone.label_rule },
            srv_weight: told.srv_weight.unwrap_or(zone.srv_weight),
            soa: SoaConfig {
                primary: told.soa.primary.clone(),
                mailbox: told.soa.mailbox.clone(),
                refresh: told.soa.refresh.unwrap_or(zone.soa.refresh),
                retry: told.soa.retry.unwrap_or(zone.soa.retry),
                expire: told.soa.expire.unwrap_or(zone.soa.expire),
                minimum: told.soa.minimum,
            },
            ..zone
        })
    }

    /// In the place of mesos-dns, names lead to the tasks that they led to before.
    fn default_tasks(&self) -> TaskChoice {
        match &self.options.source {
            None | Some(Source::Mesonet(_)) => TaskChoice::Best,
            Some(Source::Mesos(_) | Source::MesosState(_) | Source::File(_)) => TaskChoice::Running,
        }
    }

    /// The zones whose names are served, for who asks here for them only.
    pub fn zones(&self) -> Vec<String> {
        vec![self.options.zone.domain.clone(), "thisdcos.directory".to_owned()]
    }

    /// Whether names outside these zones are answered, too.
    pub fn answers_all(&self) -> bool {
        self.options.names.forward.is_some()
    }

    /// What the HTTP API shows of it.
    pub fn api(&self) -> ApiSettings {
        let Grace(refresh) = self.options.refresh;
        let Grace(state_timeout) = self.options.source_timeout;
        let NetOptions { zone, names, dns_http, .. } = &self.options;
        let settings = ApiSettings::of(zone, names, self.listen(), *dns_http);
        ApiSettings {
            refresh,
            state_timeout,
            recurse_on: self.mesos_dns.recurse_on.unwrap_or_else(|| settings.forwards()),
            rfc952: self.mesos_dns.enforce_rfc952 == Some(true),
            authentication: self.mesos_dns.credentials.as_ref().map_or("", |_| "basic"),
            masters: self.masters().iter().map(Endpoint::to_string).collect(),
            srv_weight: self.mesos_dns.srv_weight.unwrap_or(settings.srv_weight),
            enumeration: self.options.dns_enumeration == Switch::On,
            ..settings
        }
    }

    fn masters(&self) -> &[Endpoint] {
        match &self.options.source {
            Some(Source::Mesos(masters) | Source::MesosState(masters)) => masters,
            Some(Source::Mesonet(_) | Source::File(_)) | None => &[],
        }
    }

    /// How Mesos masters are asked.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn mesos(&self) -> Result<MesosSettings, CredentialsError> {
        let Grace(refresh) = self.options.refresh;
        let Grace(timeout) = self.options.source_timeout;
        let authorization = self.authorization()?;
        Ok(MesosSettings { masters: self.masters().to_vec(), refresh, timeout, authorization })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, CredentialsError> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|source| CredentialsError::Read { path: path.clone(), source })
        };
        let basic = match &self.options.mesos_credentials {
            Some(path) => {
                let CredentialJson { principal, secret } = serde_json::from_str(&read(path)?)
                    .map_err(|source| CredentialsError::Content { path: path.clone(), source })?;
                Some(Credentials { principal, secret })
            }
            None => self.mesos_dns.credentials.clone(),
        };
        match (basic, &self.options.mesos_token_file) {
            (Some(_), Some(_)) => Err(CredentialsError::Both),
            (Some(Credentials { principal, secret }), None) => {
                Ok(Some(basic_authorization(&principal, &secret)?))
            }
            (None, Some(path)) => Ok(Some(token_authorization(read(path)?.trim())?)),
            (None, None) => Ok(None),
        }
    }
}

/// What of a `config.json` has a setting.
fn settings_of(told: &MesosDnsConfig) -> NetSettings {
    let http = match told.http_on {
        Some(false) => Some(Listen::Off),
        Some(true) | None => Some(Listen::At(told.http())),
    };
    let forwards = told.external_on != Some(false);
    let upstreams = told.resolvers.iter().flatten().copied().map(UpstreamSource::Server).collect();
    let forward = match &told.resolvers {
        _ if !forwards => None,
        // As in mesos-dns: an empty list stands for the system's servers.
        Some(servers) if servers.is_empty() => Some(Upstreams(vec![UpstreamSource::System])),
        Some(_) => Some(Upstreams(upstreams)),
        None => None,
    };
    let zones = &told.zone_resolvers;
    let forward_zones = (forwards && !zones.is_empty()).then(|| ForwardZones(zones.clone()));
    NetSettings {
        source: (!told.masters.is_empty()).then(|| Source::MesosState(told.masters.clone())),
        refresh: told.refresh.map(Grace),
        source_timeout: told.state_timeout.map(Grace),
        dns: Some(told.listen()),
        dns_http: http,
        zone: ZoneSettings {
            domain: told.domain.clone(),
            ttl: told.ttl,
            ip_sources: told.ip_sources.clone().map(IpSources),
            ..ZoneSettings::default()
        },
        names: DnsSettings { forward, forward_zones, ..DnsSettings::default() },
        dns_enumeration: told.enumeration_on.map(|on| if on { Switch::On } else { Switch::Off }),
        ..NetSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use mesonet_dns_zone::IpSource;

    use super::*;

    fn plan(settings: NetSettings, mesos_dns: &str) -> NetPlan {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, mesos_dns).expect("written");
        let settings = NetSettings { mesos_dns_config: Some(path), ..settings };
        NetPlan::resolve(settings, None).expect("plan")
    }

    #[test]
    fn what_is_said_otherwise_wins_over_the_file_of_mesos_dns() {
        let given = NetSettings { dns: "127.0.0.1:5353".parse().ok(), ..NetSettings::default() };
        let plan = plan(
            given,
            r#"{"masters": ["10.0.0.1:5050"], "port": 61053, "httpport": 8124, "domain": "cluster", "ttl": 9,
                "IPSources": ["host"], "SRVRecordDefaultWeight": 7, "enforceRFC952": true, "SOAExpire": 5,
                "SOAMinttl": 6, "SOAMname": "ns9.cluster."}"#,
        );
        assert_eq!(plan.listen(), ["127.0.0.1:5353".parse().expect("address")]);
        assert_eq!(plan.options.dns_http, "0.0.0.0:8124".parse().expect("address"));
        assert_eq!(plan.options.source, "mesos-state://10.0.0.1:5050".parse().ok());
        let zone = plan.zone().expect("zone");
        assert_eq!((zone.domain.as_str(), zone.ttl, zone.srv_weight), ("cluster", 9, 7));
        assert_eq!((zone.ip_sources, zone.task_choice), (vec![IpSource::Host], TaskChoice::Running));
        assert_eq!((zone.label_rule, zone.soa.expire, zone.soa.minimum), (LabelRule::Rfc952, 5, Some(6)));
        assert_eq!(zone.soa.primary.as_deref(), Some("ns9.cluster"));
    }

    #[test]
    fn an_address_of_its_own_is_served_at_the_port_of_dns() {
        let address = "198.51.100.1".parse().ok();
        let given = NetSettings { dns_address: address, ..NetSettings::default() };
        let plan_without_file = NetPlan::resolve(given, None).expect("plan");
        let listen: Vec<String> = plan_without_file.listen().iter().map(SocketAddr::to_string).collect();
        assert_eq!(listen, ["198.51.100.1:53", "127.0.0.1:8053"]);
        let given = NetSettings { dns_address: "198.51.100.1".parse().ok(), ..NetSettings::default() };
        let plan = plan(given, r#"{"masters": ["10.0.0.1:5050"], "httpOn": false}"#);
        let listen: Vec<String> = plan.listen().iter().map(SocketAddr::to_string).collect();
        assert_eq!(listen, ["0.0.0.0:53"], "mesos-dns listens on all addresses");
        assert_eq!(plan.options.dns_http, Listen::Off);
    }

    #[test]
    fn the_example_that_is_shipped_is_a_plan() {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/config/drop-in.toml"));
        let plan = NetPlan::resolve(NetSettings::default(), Some(file)).expect("plan");
        assert_eq!(plan.masters().len(), 3);
        assert!(plan.answers_all() && plan.listen()[0].port() == DNS_PORT);
    }

    #[test]
    fn credentials_come_from_one_place() {
        let dir = tempfile::tempdir().expect("directory");
        let token = dir.path().join("token");
        std::fs::write(&token, "abc\n").expect("written");
        let with_token = NetSettings { mesos_token_file: Some(token), ..NetSettings::default() };
        let file = r#"{"masters": ["m"], "mesosAuthentication": "basic",
                       "mesosCredentials": {"principal": "p", "secret": "s"}}"#;
        let header = |plan: NetPlan| plan.mesos().map(|mesos| mesos.authorization);
        let basic = header(plan(NetSettings::default(), file)).expect("basic");
        assert_eq!(basic.expect("header"), "Basic cDpz");
        let sent = header(plan(with_token.clone(), r#"{"masters": ["m"]}"#)).expect("token");
        assert_eq!(sent.expect("header"), "token=abc");
        assert!(matches!(header(plan(with_token, file)), Err(CredentialsError::Both)));
        let bad = NetSettings { mesos_credentials: Some(dir.path().join("token")), ..NetSettings::default() };
        let error = header(plan(bad, r#"{"masters": ["m"]}"#)).expect_err("no JSON").to_string();
        assert!(error.contains("expected JSON with principal and secret"), "{error}");
    }
}
