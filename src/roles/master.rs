//! The master's process.
//!
//! Tasks of the runtime: the driver, which ends after a commit under way; the bus server's and the HTTP server, which
//! hold nothing that a sudden end would damage.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use mesonet_api::Context;
use mesonet_bus::{Authority, MasterEnds, NodeName, Server, ServerSettings};
use mesonet_store::RedbStore;
use prometheus::Registry;
use tokio::task::JoinSet;

use super::authority::authority_dir;
use super::bus_metrics;
use crate::config::{Grace, MasterOptions, Percent};
use crate::driver::Ending;
use crate::master_role::{MasterRole, MasterSettings};
use crate::process::{self, Running};
use crate::sandboxes::RemoteSandboxes;
use crate::{http, http_server, open_files};

/// The name in the master's certificate.
const MASTER_NAME: &str = "master";

/// How long a node's certificate is valid, in seconds: a week. Nodes renew it after two thirds, so that one that is
/// away for a long week-end is still known when it comes back.
const CERTIFICATE_LIFETIME_SECONDS: u64 = 7 * 24 * 3600;

/// Runs a master until SIGINT or SIGTERM. Everything else runs on without it.
///
/// # Errors
/// When it cannot start: there is no cluster in the directory, it is in use, an address is taken.
pub fn run_master(options: &MasterOptions) -> anyhow::Result<()> {
    let start = MasterProcess::start(options);
    process::run(&options.log, options.log_format, start, |master| {
        println!("mesonet master of cluster {} is up", master.cluster);
        println!("  API    http://{}", master.http);
        println!("  nodes  {}, UDP", master.bus.address());
    })
}

#[derive(Debug)]
struct MasterProcess {
    cluster: mesonet_model::ClusterId,
    http: SocketAddr,
    bus: Arc<Server>,
    role: MasterRole,
    others: JoinSet<()>,
}

impl MasterProcess {
    async fn start(options: &MasterOptions) -> anyhow::Result<Self> {
        open_files::raise_limit();
        let dir = &options.dir;
        let authority = Authority::load(&authority_dir(dir)).with_context(|| {
            format!("there is no usable cluster in {} (make one with mesonet init --dir DIR)", dir.display())
        })?;
        let cluster = authority.cluster().clone();
        let (store, contents) = RedbStore::open(dir)?;
        let listener = http::listen(options.http, "the API").await?;
        let http = listener.local_addr().context("cannot tell the API's address")?;
        let metrics = Registry::new();
        let Grace(drain_grace) = options.drain_grace;
        let Grace(unreachable_after) = options.unreachable_after;
        let Grace(removed_after) = options.removed_after;
        let Percent(removal_percent_max) = options.removal_share;
        let Grace(removal_window) = options.removal_window;
        let reachable = http::reachable(http);
        let address = options.address.map_or(reachable, |ip| SocketAddr::new(ip, http.port()));
        let settings = MasterSettings {
            cluster: Some(cluster.clone()),
            address,
            vip_range: options.vip_range,
            service_ports: options.service_ports,
            drain_grace,
            unreachable_after,
            removed_after,
            removal_percent_max,
            removal_window,
        };
        let (role, link) = MasterRole::start(store, &contents, &settings, &metrics)?;
        let ends = MasterEnds { feed: role.feed.clone(), reports: link.reports, commands: link.commands };
        let bus = Server::start(bus_settings(options)?, authority, ends).with_context(|| {
            format!("cannot serve nodes on {} (choose another with --listen)", options.listen)
        })?;
        let bus = Arc::new(bus);
        bus_metrics::register(&metrics, bus.clone()).context("cannot register metrics")?;
        let context = Context {
            state: role.state.clone(),
            requests: role.requests.clone(),
            nodes: role.nodes.clone(),
            events: role.events.clone(),
            metrics,
            sandboxes: Arc::new(RemoteSandboxes),
            address,
        };
        let mut others = JoinSet::new();
        others.spawn(http_server::serve(listener, mesonet_api::router(context)));
        Ok(Self { cluster, http, bus, role, others })
    }
}

fn bus_settings(options: &MasterOptions) -> anyhow::Result<ServerSettings> {
    let name: NodeName = MASTER_NAME.parse().context("BUG: the master's name is none")?;
    let Grace(idle_timeout) = options.node_timeout;
    Ok(ServerSettings {
        listen: options.listen,
        name,
        idle_timeout,
        certificate_lifetime: std::time::Duration::from_secs(CERTIFICATE_LIFETIME_SECONDS),
    })
}

impl Running for MasterProcess {
    async fn broken(&mut self) -> anyhow::Error {
        // The driver ends only when it is told to, or by a bug, which it has logged.
        self.role.requests.closed().await;
        anyhow!("BUG: the control plane has ended by itself")
    }

    async fn end(mut self) {
        self.role.end(Ending::LeaveTasks).await;
        self.others.shutdown().await;
    }
}
