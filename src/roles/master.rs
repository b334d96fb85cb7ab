//! The master's process.
//!
//! Tasks of the runtime: the driver, which ends after a commit under way; the bus server's and the HTTP server, which
//! hold nothing that a sudden end would damage.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mesonet_api::{Context, LoneMaster};
use mesonet_bus::{Authority, MasterEnds, NodeName, Server, ServerSettings};
use mesonet_store::RedbStore;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::authority::authority_dir;
use super::bus_metrics;
use super::elected_master::run_elected_master;
use crate::config::{Grace, MasterOptions, Percent, StoreKind};
use crate::driver::Ending;
use crate::master_role::{Instruments, MasterRole, MasterSettings};
use crate::process::{self, Running};
use crate::sandboxes::RemoteSandboxes;
use crate::{http, http_server, open_files};

/// The name in the certificate of a master that is the only one.
const MASTER_NAME: &str = "master";

/// How long a node's certificate is valid, in seconds: a week. Nodes renew it after two thirds, so that one that is
/// away for a long week-end is still known when it comes back.
const CERTIFICATE_LIFETIME_SECONDS: u64 = 7 * 24 * 3600;

/// Runs a master until SIGINT or SIGTERM. Everything else runs on without it.
///
/// # Errors
/// When it cannot start: there is no cluster in the directory, it is in use, an address is taken, etcd is not reached.
pub fn run_master(options: &MasterOptions) -> anyhow::Result<()> {
    match options.store {
        StoreKind::Redb => run_lone_master(options),
        StoreKind::Etcd => run_elected_master(options),
    }
}

fn run_lone_master(options: &MasterOptions) -> anyhow::Result<()> {
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

/// What every master has before it does anything.
#[derive(Debug)]
pub(super) struct Groundwork {
    /// The cluster's authority.
    pub(super) authority: Authority,
    /// The API's socket.
    pub(super) listener: TcpListener,
    /// Where it listens.
    pub(super) http: SocketAddr,
    /// What a control plane is made from.
    pub(super) settings: MasterSettings,
    /// What is shown.
    pub(super) metrics: Registry,
    /// What shows how the control plane does.
    pub(super) instruments: Instruments,
}

impl Groundwork {
    /// Reads and listens.
    ///
    /// # Errors
    /// When there is no cluster in the directory, or the API's address is taken.
    pub(super) async fn lay(options: &MasterOptions) -> anyhow::Result<Self> {
        open_files::raise_limit();
        let dir = &options.dir;
        let authority = Authority::load(&authority_dir(dir)).with_context(|| {
            format!("there is no usable cluster in {} (make one with mesonet init --dir DIR)", dir.display())
        })?;
        let listener = http::listen(options.http, "the API").await?;
        let http = listener.local_addr().context("cannot tell the API's address")?;
        let metrics = Registry::new();
        let instruments = Instruments::register(&metrics).context("cannot register metrics")?;
        let Grace(drain_grace) = options.drain_grace;
        let Grace(unreachable_after) = options.unreachable_after;
        let Grace(removed_after) = options.removed_after;
        let Percent(removal_percent_max) = options.removal_share;
        let Grace(removal_window) = options.removal_window;
        let reachable = http::reachable(http);
        let settings = MasterSettings {
            cluster: Some(authority.cluster().clone()),
            address: options.address.map_or(reachable, |ip| SocketAddr::new(ip, http.port())),
            vip_range: options.vip_range,
            service_ports: options.service_ports,
            drain_grace,
            unreachable_after,
            removed_after,
            removal_percent_max,
            removal_window,
        };
        Ok(Self { authority, listener, http, settings, metrics, instruments })
    }
}

impl MasterProcess {
    async fn start(options: &MasterOptions) -> anyhow::Result<Self> {
        let Groundwork { authority, listener, http, settings, metrics, instruments } =
            Groundwork::lay(options).await?;
        let cluster = authority.cluster().clone();
        let (store, contents) = RedbStore::open(&options.dir)?;
        let (role, link) = MasterRole::start(store, &contents, &settings, &instruments)?;
        let ends = MasterEnds { feed: role.feed.clone(), reports: link.reports, commands: link.commands };
        let name = MASTER_NAME.parse().context("BUG: the master's name is none")?;
        let bus = Server::start(bus_settings(options, name), authority, ends)
            .with_context(|| cannot_serve(options))?;
        let bus = Arc::new(bus);
        bus_metrics::register(&metrics, bus.clone()).context("cannot register metrics")?;
        let context = Context {
            state: role.state.clone(),
            requests: role.requests.clone(),
            nodes: role.nodes.clone(),
            events: role.events.clone(),
            clock: Arc::new(role.clock.clone()),
            metrics,
            sandboxes: Arc::new(RemoteSandboxes::new(bus.clone())),
            masters: Arc::new(LoneMaster::default()),
            address: settings.address,
        };
        let mut others = JoinSet::new();
        others.spawn(http_server::serve(listener, mesonet_api::router(context)));
        Ok(Self { cluster, http, bus, role, others })
    }
}

pub(super) fn cannot_serve(options: &MasterOptions) -> String {
    format!("cannot serve nodes on {} (choose another with --listen)", options.listen)
}

pub(super) fn bus_settings(options: &MasterOptions, name: NodeName) -> ServerSettings {
    let Grace(idle_timeout) = options.node_timeout;
    ServerSettings {
        listen: options.listen,
        name,
        idle_timeout,
        certificate_lifetime: Duration::from_secs(CERTIFICATE_LIFETIME_SECONDS),
    }
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
