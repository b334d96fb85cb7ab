//! Has the host's programs ask here, from the first view on.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use mesonet_bus::Feed;

use crate::host::{ResolvConf, ResolvedDropIn};
use crate::net_plan::NetPlan;

/// How often to look whether there is a view. Before, every answer would be a failure.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The only port that resolv.conf knows.
const RESOLV_CONF_PORT: u16 = 53;

/// What is to be written, and where.
#[derive(Debug)]
pub struct ResolverPlan {
    dir: PathBuf,
    resolv_conf: Option<(PathBuf, IpAddr)>,
    /// Whether names outside the cluster's zones are answered, too.
    answers_all: bool,
    drop_in: Option<(PathBuf, SocketAddr)>,
    zones: Vec<String>,
}

impl ResolverPlan {
    /// What a plan asks for, if anything; `dns` are the addresses that are served.
    ///
    /// # Errors
    /// When no address that is served can be written there.
    pub fn of(plan: &NetPlan, dns: &[SocketAddr]) -> anyhow::Result<Option<Self>> {
        let options = &plan.options;
        let resolv_conf = match &options.resolv_conf {
            None => None,
            Some(path) => {
                let mut usable = dns.iter().filter(|dns| dns.port() == RESOLV_CONF_PORT).map(SocketAddr::ip);
                // Loopback is reached from no container, so it is the last choice.
                let address = options.dns_address.or_else(|| usable.clone().find(|ip| !is_local(*ip)));
                let Some(address) = address.or_else(|| usable.next()) else {
                    bail!(
                        "{} can only name servers at port 53: give --dns-address 198.51.100.1, or --dns IP:53",
                        path.display()
                    );
                };
                Some((path.clone(), reachable(address)))
            }
        };
        let first = dns.first().map(|dns| SocketAddr::new(reachable(dns.ip()), dns.port()));
        let drop_in = options.resolved_drop_in.clone().zip(first);
        if resolv_conf.is_none() && drop_in.is_none() {
            return Ok(None);
        }
        let (dir, zones) = (options.dir.clone(), plan.zones());
        Ok(Some(Self { dir, resolv_conf, answers_all: plan.answers_all(), drop_in, zones }))
    }

    /// Writes it as soon as there is a view, and takes it back when it is dropped.
    pub async fn carry_out(self, feed: Feed) {
        while feed.newest().is_none() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let resolv_conf = self.resolv_conf.map(|(path, address)| {
            ResolvConf::write(&path, address, self.answers_all, &self.dir).map_err(anyhow::Error::from)
        });
        let drop_in = self.drop_in.map(|(path, address)| {
            ResolvedDropIn::write(&path, address, &self.zones).map_err(anyhow::Error::from)
        });
        // Names are served whether or not this host asks for them here.
        let failures = [
            resolv_conf.as_ref().map(Result::as_ref).and_then(Result::err),
            drop_in.as_ref().map(Result::as_ref).and_then(Result::err),
        ];
        for error in failures.into_iter().flatten() {
            tracing::error!(error = format!("{error:#}"), "This host's programs are not led here");
        }
        std::future::pending::<()>().await;
    }
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

/// What a client on this host asks if all addresses are served.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]),
        other => other,
    }
}
