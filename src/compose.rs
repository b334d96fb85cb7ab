//! Composes a local cluster from the capabilities. The order of its start is the way that state takes:
//! store → master and Marathon → bus → agent → planes (names, services) → API.
//!
//! Tasks of the runtime: the driver, which ends by its own after a commit under way; and the way of commands to the
//! agent, the agent, one per plane and the HTTP server, which hold nothing that a sudden end would damage.

use std::future;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use mesonet_agent::AgentMetrics;
use mesonet_api::{Context, LoneMaster};
use mesonet_dns_zone::TaskChoice;
use mesonet_model::{AgentCommand, AgentId, Plane, Resources};
use mesonet_store::RedbStore;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::{DevOptions, Grace, Switch};
use crate::dns_api::{ApiSettings, DnsApi};
use crate::driver::{AGENT_COMMANDS_MAX, Ending};
use crate::greeting::Greeting;
use crate::lb_api::LbApi;
use crate::machine::{self, Wanted};
use crate::master_role::{AgentLink, Instruments, MasterRole, MasterSettings};
use crate::process::{self, Running};
use crate::sandboxes::LocalSandboxes;
use crate::state_dir::StateDir;
use crate::{dns_api, dns_config, http, http_server, open_files, planes};

/// The one node's address: its tasks' host ports are on loopback as far as clients of a local cluster are concerned.
/// It is the host name as well, since it needs no resolver and is the same for every client.
const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How long the agent may take to register: it looks at every task that it had before.
const REGISTRATION_MAX: Duration = Duration::from_secs(30);

/// Runs master, agent and network daemon in this process until it is told to end by SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start: an address is taken, the directory is in use or was written by a newer version.
pub fn run_dev(options: &DevOptions) -> anyhow::Result<()> {
    let supervisor = process::supervisor()?;
    process::run(&options.log, options.log_format, LocalCluster::start(options, supervisor), |cluster| {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print!("{}", Greeting { cluster, options, coloured });
    })
}

/// A cluster of one node, all of it in this process.
#[derive(Debug)]
pub struct LocalCluster {
    dir: StateDir,
    http: SocketAddr,
    dns: SocketAddr,
    dns_http: Option<SocketAddr>,
    resources: Resources,
    master: MasterRole,
    others: JoinSet<()>,
}

impl Running for LocalCluster {
    /// Whatever breaks here has been logged; the rest goes on, so that it can be looked at.
    async fn broken(&mut self) -> anyhow::Error {
        future::pending().await
    }

    async fn end(self) {
        Self::end(self).await;
    }
}

impl From<&DevOptions> for Wanted {
    fn from(options: &DevOptions) -> Self {
        let DevOptions { cpus, mem, disk, host_ports, .. } = options;
        Self { cpus: *cpus, mem: *mem, disk: *disk, host_ports: *host_ports }
    }
}

impl LocalCluster {
    /// Starts everything in its order. `supervisor` is the program that runs a task's process, with its arguments.
    ///
    /// # Errors
    /// As [`run_dev`].
    pub async fn start(options: &DevOptions, supervisor: Vec<String>) -> anyhow::Result<Self> {
        refuse_what_is_missing(options)?;
        let open_files_of_tasks = open_files::raise_limit();
        let dir = StateDir::open(options.dir.as_deref())?;
        let (store, contents) = RedbStore::open(dir.path())?;
        let listener = http::listen(options.http, "the API").await?;
        let http = listener.local_addr().context("cannot tell the API's address")?;
        let api_listener = dns_api::listen(options.dns_http).await?;
        let dns_http = api_listener.as_ref().map(TcpListener::local_addr).transpose();
        let dns_http = dns_http.context("cannot tell the address of the DNS API")?;
        let metrics = Registry::new();
        let balancer = planes::load_balancer(options.datapath, &options.sockets, &metrics)?;
        let zone = dns_config::zone_config(&options.zone, TaskChoice::Best)?;
        let dns_config = dns_config::server_config(vec![options.dns], &options.names, zone, None)?;
        let dns_server = planes::start_dns(dns_config, &metrics).await?;
        let dns = dns_server.addresses().first().copied().unwrap_or(options.dns);

        let Grace(drain_grace) = options.drain_grace;
        let settings = MasterSettings {
            vip_range: options.vip_range,
            service_ports: options.service_ports,
            drain_grace,
            ..MasterSettings::at(http::reachable(http))
        };
        let instruments = Instruments::register(&metrics).context("cannot register metrics")?;
        let (master, link) = MasterRole::start(store, &contents, &settings, &instruments)?;
        let mut others = JoinSet::new();
        let resources = machine::offered(Wanted::from(options), dir.path());
        let counted = AgentMetrics::register(&metrics).context("cannot register metrics")?;
        let agent = mesonet_agent::Config {
            open_files: open_files_of_tasks,
            container_dns: options.container_dns,
            tasks_end_with_agent: !dir.is_kept(),
            ..agent_config(&dir, http.port(), resources.clone(), supervisor, counted)
        };
        let node = start_agent(agent, link, &mut others).await?;
        if let Some(listener) = api_listener {
            let settings = ApiSettings::of(&options.zone, &options.names, vec![dns], options.dns_http);
            let api = DnsApi { zone: dns_server.served(), feed: master.feed.clone(), settings };
            others.spawn(http_server::serve(listener, api.router()));
        }
        let zone = dns_server.served();
        let dns_plane = master.feed.subscribe(node.clone(), Plane::Dns);
        others.spawn(planes::follow_with_dns(dns_server, dns_plane, planes::always_fresh()));
        let balancer = planes::start_lb(balancer, &master.feed, &node, None, &mut others);
        let lb_api = LbApi { node, balancer, feed: master.feed.clone(), zone, overlay: None };
        let context = Context {
            state: master.state.clone(),
            requests: master.requests.clone(),
            nodes: master.nodes.clone(),
            events: master.events.clone(),
            clock: std::sync::Arc::new(master.clock.clone()),
            metrics,
            sandboxes: std::sync::Arc::new(LocalSandboxes { agent_dir: dir.agent() }),
            masters: std::sync::Arc::new(LoneMaster::default()),
            address: http::reachable(http),
        };
        let router = lb_api.router().fallback_service(mesonet_api::router(context));
        others.spawn(http_server::serve(listener, router));
        Ok(Self { dir, http, dns, dns_http, resources, master, others })
    }

    /// Ends everything. Tasks run on if the directory is kept, since the next start takes them up again.
    pub async fn end(mut self) {
        let ending = if self.dir.is_kept() { Ending::LeaveTasks } else { Ending::EndTasks };
        self.master.end(ending).await;
        self.others.shutdown().await;
    }

    /// Where the API listens.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where names are served.
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Where the HTTP API of mesos-dns listens, if it is wanted.
    pub fn dns_http(&self) -> Option<SocketAddr> {
        self.dns_http
    }

    /// Where state, checkpoints and sandboxes are.
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// What the node offers.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }
}

fn refuse_what_is_missing(options: &DevOptions) -> anyhow::Result<()> {
    if options.overlay == Switch::On {
        bail!("the overlay is between nodes, and a local cluster has one only: use --overlay off");
    }
    Ok(())
}

/// The settings of the agent, which is reached where the API is.
fn agent_config(
    dir: &StateDir,
    port: u16,
    resources: Resources,
    supervisor: Vec<String>,
    metrics: AgentMetrics,
) -> mesonet_agent::Config {
    mesonet_agent::Config {
        dir: dir.agent(),
        hostname: NODE_ADDRESS.to_string(),
        address: NODE_ADDRESS,
        places: None,
        port,
        resources,
        attributes: Vec::new(),
        supervisor,
        logs: mesonet_agent::LogLimits::default(),
        cgroups: mesonet_agent::CgroupMode::default(),
        open_files: None,
        container_dns: NODE_ADDRESS,
        tasks_end_with_agent: false,
        metrics,
    }
}

/// Starts the agent and waits until it is registered, which gives the node its id.
async fn start_agent(
    config: mesonet_agent::Config,
    link: AgentLink,
    others: &mut JoinSet<()>,
) -> anyhow::Result<AgentId> {
    let (commands, commands_in) = mpsc::channel(AGENT_COMMANDS_MAX);
    let (registered, node) = oneshot::channel();
    others.spawn(carry_commands(link.commands, commands, registered));
    let agent =
        mesonet_agent::start(config, commands_in, link.reports).await.context("cannot start the agent")?;
    others.spawn(async move {
        if let Err(error) = agent.await {
            tracing::error!(%error, "BUG: the agent has failed");
        }
    });
    tokio::time::timeout(REGISTRATION_MAX, node)
        .await
        .ok()
        .and_then(Result::ok)
        .context("the agent has not registered with the master in time")
}

/// Carries what the master tells its only agent.
async fn carry_commands(
    mut from: mpsc::Receiver<(AgentId, AgentCommand)>,
    to: mpsc::Sender<AgentCommand>,
    registered: oneshot::Sender<AgentId>,
) {
    let mut registered = Some(registered);
    while let Some((_, command)) = from.recv().await {
        if let AgentCommand::Registered { agent } = &command
            && let Some(registered) = registered.take()
        {
            // Whoever waits may have given up.
            drop(registered.send(agent.clone()));
        }
        if to.send(command).await.is_err() {
            return;
        }
    }
}
