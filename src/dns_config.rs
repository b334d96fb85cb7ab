//! From the settings of a role to those of its DNS server.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use mesonet_dns_server::{CertificateFiles, Config, EncryptedConfig, ForwardConfig, leads_to};

use crate::config::{DnsOptions, ForwardZones, Grace, Switch, UpstreamSource, Upstreams};

/// Where the system's own DNS servers are written down.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port that those answer at.
const DNS_PORT: u16 = 53;

/// The settings of a DNS server at an address. `own` is the node's certificate, if it has one.
///
/// # Errors
/// When the system's DNS servers are wanted but not written down, or a certificate is given without its key.
pub fn server_config(
    listen: SocketAddr,
    options: &DnsOptions,
    own: Option<CertificateFiles>,
) -> anyhow::Result<Config> {
    let forward = forward_config(listen, options)?;
    let certificate = match (&options.certificate, &options.key) {
        (Some(chain), Some(key)) => Some(CertificateFiles { chain: chain.clone(), key: key.clone() }),
        (None, None) => own,
        (Some(_), None) => bail!("--dns-certificate needs --dns-key"),
        (None, Some(_)) => bail!("--dns-key needs --dns-certificate"),
    };
    let DnsOptions { tls, https, quic, .. } = *options;
    let encrypted = EncryptedConfig { tls, https, quic, certificate };
    Ok(Config { forward, encrypted, ..Config::at(listen) })
}

fn forward_config(listen: SocketAddr, options: &DnsOptions) -> anyhow::Result<ForwardConfig> {
    let mut upstreams = Vec::new();
    for source in options.forward.iter().flat_map(|Upstreams(sources)| sources) {
        match source {
            UpstreamSource::Server(address) => upstreams.push(*address),
            UpstreamSource::System => {
                let text =
                    fs::read_to_string(RESOLV_CONF).with_context(|| format!("cannot read {RESOLV_CONF}"))?;
                // The system may ask this server; forwarding there would go round for ever.
                upstreams.extend(name_servers(&text).into_iter().filter(|server| !leads_to(*server, listen)));
            }
        }
    }
    let Grace(stale) = options.serve_stale;
    Ok(ForwardConfig {
        upstreams,
        zones: options.forward_zones.clone().map(|ForwardZones(zones)| zones).unwrap_or_default(),
        validate: options.validate == Switch::On,
        cache_entries: options.cache,
        stale,
    })
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
    fn the_systems_servers_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 \n\
                    nameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53"].map(|server| server.parse().expect(server)).into();
        assert_eq!(name_servers(text), expected);
    }
}
