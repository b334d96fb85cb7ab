//! From the settings of a role to those of its DNS server.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, bail};
use mesonet_dns_server::{CertificateFiles, Config, EncryptedConfig, ForwardConfig, PolicyConfig, leads_to};
use mesonet_dns_zone::{StaticRecord, TaskChoice};

use crate::config::{
    DnsOptions, ForwardZones, Grace, IpSources, NamedTasks, Networks, OnOverload, SearchDomains, Switch,
    UpstreamSource, Upstreams, Views, ZoneOptions,
};

/// Where the system's own DNS servers are written down.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port that those answer at.
const DNS_PORT: u16 = 53;

/// The largest file of records of one's own: some 100,000 records.
const OWN_RECORDS_SIZE_MAX: u64 = 8 << 20;

/// The settings of a DNS server at some addresses. `own` is the node's certificate, if it has one.
///
/// # Errors
/// When the system's DNS servers are wanted but not written down, or a certificate is given without its key.
pub fn server_config(
    listen: Vec<SocketAddr>,
    options: &DnsOptions,
    zone: mesonet_dns_zone::Config,
    own: Option<CertificateFiles>,
) -> anyhow::Result<Config> {
    let forward = forward_config(&listen, options)?;
    let certificate = match (&options.certificate, &options.key) {
        (Some(chain), Some(key)) => Some(CertificateFiles { chain: chain.clone(), key: key.clone() }),
        (None, None) => own,
        (Some(_), None) => bail!("--dns-certificate needs --dns-key"),
        (None, Some(_)) => bail!("--dns-key needs --dns-certificate"),
    };
    let DnsOptions { tls, https, quic, .. } = *options;
    let encrypted = EncryptedConfig { tls, https, quic, certificate };
    Ok(Config { listen, zone, forward, encrypted, policy: policy_config(options) })
}

fn policy_config(options: &DnsOptions) -> PolicyConfig {
    let networks = |networks: &Option<Networks>| networks.clone().map(|Networks(networks)| networks);
    let default = PolicyConfig::default();
    PolicyConfig {
        allow: networks(&options.allow).unwrap_or(default.allow),
        recursion: networks(&options.forward_allow).unwrap_or(default.recursion),
        says_recursion: default.says_recursion,
        transfer: networks(&options.transfer_allow).unwrap_or(default.transfer),
        views: options.views.clone().map(|Views(views)| views).unwrap_or(default.views),
        rate_max: options.rate_limit,
        identity: options.identity.clone(),
    }
}

fn forward_config(listen: &[SocketAddr], options: &DnsOptions) -> anyhow::Result<ForwardConfig> {
    let mut upstreams = Vec::new();
    for source in options.forward.iter().flat_map(|Upstreams(sources)| sources) {
        match source {
            UpstreamSource::Server(address) => upstreams.push(*address),
            UpstreamSource::System => {
                let text =
                    fs::read_to_string(RESOLV_CONF).with_context(|| format!("cannot read {RESOLV_CONF}"))?;
                // The system may ask this server; forwarding there would go round for ever.
                let is_here = |server: &SocketAddr| listen.iter().any(|own| leads_to(*server, *own));
                upstreams.extend(name_servers(&text).into_iter().filter(|server| !is_here(server)));
            }
        }
    }
    let Grace(stale) = options.serve_stale;
    let OnOverload(overload) = options.overload;
    Ok(ForwardConfig {
        upstreams,
        zones: options.forward_zones.clone().map(|ForwardZones(zones)| zones).unwrap_or_default(),
        validate: options.validate == Switch::On,
        cache_entries: options.cache,
        stale,
        queries_max: options.queries_max,
        overload,
        search: options.search_collapse.clone().map(|SearchDomains(domains)| domains).unwrap_or_default(),
    })
}

/// The settings of the zones. `tasks` is which tasks names lead to if that is not said.
///
/// # Errors
/// When the file with records of one's own cannot be used; every mistake in it is named.
pub fn zone_config(options: &ZoneOptions, tasks: TaskChoice) -> anyhow::Result<mesonet_dns_zone::Config> {
    let IpSources(ip_sources) = options.ip_sources.clone();
    let static_records = match &options.records {
        Some(path) => own_records(path)?,
        None => Vec::new(),
    };
    Ok(mesonet_dns_zone::Config {
        domain: options.domain.clone(),
        ttl: options.ttl,
        ip_sources,
        task_choice: options.tasks.map_or(tasks, |NamedTasks(tasks)| tasks),
        static_records,
        cluster_key: options.cluster_key.clone(),
        node_addresses: options.node_address.into_iter().collect(),
        ..mesonet_dns_zone::Config::default()
    })
}

/// Records of one's own; empty lines and lines after a semicolon or a hash are left out.
fn own_records(path: &Path) -> anyhow::Result<Vec<StaticRecord>> {
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size > OWN_RECORDS_SIZE_MAX {
        bail!("{} has {size} bytes, more than the {OWN_RECORDS_SIZE_MAX} that are read", path.display());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with([';', '#']));
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in lines {
        match line.parse::<StaticRecord>() {
            Ok(record) => records.push(record),
            Err(error) => problems.push(format!("\n  line {number}: {:#}", anyhow::Error::from(error))),
        }
    }
    if problems.is_empty() {
        Ok(records)
    } else {
        bail!("{} has records that cannot be served:{}", path.display(), problems.concat())
    }
}

/// The servers that a resolv.conf names. Those with a zone (of IPv6) are left out, as a zone is a matter of interfaces
/// that come and go.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace();
        let ip: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some((ip, DNS_PORT).into())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_ones_own_are_read_and_every_mistake_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("records");
        fs::write(
            &path,
            "# mine\n\ndb.example 60 A 10.0.0.1\n; more\n_x._tcp.example SRV 0 1 80 db.example\n",
        )
        .expect("written");
        let options = ZoneOptions { records: Some(path.clone()), ..ZoneOptions::default() };
        let zone = zone_config(&options, TaskChoice::Running).expect("records");
        assert_eq!((zone.static_records.len(), zone.task_choice), (2, TaskChoice::Running));
        fs::write(&path, "db.example A 10.0.0\ndb.example A 10.0.0.1\nnothing\n").expect("written");
        let error = zone_config(&options, TaskChoice::Best).expect_err("two mistakes").to_string();
        assert!(error.contains("line 1: '10.0.0' is no value") && error.contains("line 3: "), "{error}");
    }

    #[test]
    fn the_systems_servers_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 \n\
                    nameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53"].map(|server| server.parse().expect(server)).into();
        assert_eq!(name_servers(text), expected);
    }
}
