//! The agent's process.
//!
//! Tasks of the runtime: the agent's own, the bus client's, and the metrics'. The tasks that the agent runs go on without it, and the
//! next one takes them up.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::Router;
use mesonet_agent::{AgentMetrics, CgroupMode, LogLimits, Place};
use mesonet_bus::{Client, ClientSettings, Identity, JoinToken, LinkState};
use mesonet_model::{Attribute, NODE_ATTRIBUTE, ZONE_ATTRIBUTE};
use mesonet_netlink::is_here;
use prometheus::{IntGauge, Registry};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::node_identity::{self, Node};
use crate::config::{AgentOptions, Grace, Listen};
use crate::driver::{AGENT_COMMANDS_MAX, AGENT_REPORTS_MAX};
use crate::machine::{self, Wanted};
use crate::process::{self, Running};
use crate::sandboxes::LocalSandboxes;
use crate::{http, http_server, open_files, process_metrics};

/// How often it is looked whether the node's address is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is tried to listen for who asks for metrics.
const LISTEN_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the node's agent until SIGINT or SIGTERM; its tasks run on. `token` is needed until the node has joined.
///
/// # Errors
/// When it cannot start: the node has not joined, the token is refused, the directory is in use.
pub fn run_agent(options: &AgentOptions, token: Option<&JoinToken>) -> anyhow::Result<()> {
    let start = AgentProcess::start(options, token);
    process::run(&options.log, options.log_format, start, |agent| {
        println!("mesonet agent of node {} is up", agent.identity.name());
        if let Some(http) = agent.http {
            println!("  metrics  http://{http}/metrics");
        }
    })
}

#[derive(Debug)]
struct AgentProcess {
    identity: Identity,
    agent: JoinHandle<()>,
    http: Option<SocketAddr>,
    others: JoinSet<()>,
    /// Held so that the connection is kept up.
    _bus: Client,
}

impl AgentProcess {
    async fn start(options: &AgentOptions, token: Option<&JoinToken>) -> anyhow::Result<Self> {
        let node =
            Node { dir: &options.dir, masters: options.master.as_ref(), token, name: options.node.as_ref() };
        let Grace(idle_timeout) = options.master_timeout;
        let masters = node.masters()?.to_vec();
        let identity = node.identity().await?;
        let metrics = Registry::new();
        let (counted, connected) = register(&metrics).context("cannot register metrics")?;
        let shown = Shown::begin(options.http).await;
        let http = shown.address();
        let (address, places) = match options.address {
            Some(address) => (address, None),
            None => {
                let address = address_towards_masters(&node).await?;
                (address, Some(places_from(address, options.hostname.clone(), masters.clone())))
            }
        };
        let agent_dir = options.dir.join("agent");
        let config = mesonet_agent::Config {
            dir: agent_dir.clone(),
            hostname: options.hostname.clone().unwrap_or_else(|| address.to_string()),
            address,
            places,
            resources: machine::offered(Wanted::from(options), &options.dir),
            attributes: attributes(identity.name().to_string(), options.zone.clone()),
            supervisor: process::supervisor()?,
            logs: LogLimits::default(),
            cgroups: CgroupMode::default(),
            open_files: open_files::raise_limit(),
            container_dns: options.container_dns,
            tasks_end_with_agent: false,
            port: 0,
            metrics: counted,
        };
        let (commands, commands_in) = mpsc::channel(AGENT_COMMANDS_MAX);
        let (reports, reports_out) = mpsc::channel(AGENT_REPORTS_MAX);
        let agent =
            mesonet_agent::start(config, commands_in, reports).await.context("cannot start the agent")?;
        let settings = ClientSettings { masters, identity: node.identity_dir(), idle_timeout };
        let files = Arc::new(LocalSandboxes { agent_dir });
        let bus = Client::start_agent_with_files(settings, commands, reports_out, files)
            .context("cannot use the bus")?;
        let mut others = JoinSet::new();
        others.spawn(show_connection(bus.state(), connected));
        others.spawn(shown.serve(http::metrics_only(metrics)));
        Ok(Self { identity, agent, http, others, _bus: bus })
    }
}

impl Running for AgentProcess {
    async fn broken(&mut self) -> anyhow::Error {
        match (&mut self.agent).await {
            Ok(()) => anyhow!("BUG: the agent has ended by itself"),
            Err(error) => anyhow!(error).context("BUG: the agent has failed"),
        }
    }

    async fn end(mut self) {
        self.others.shutdown().await;
    }
}

/// Registers what is shown: what the agent counts, and whether a master is connected.
fn register(metrics: &Registry) -> Result<(AgentMetrics, IntGauge), prometheus::Error> {
    process_metrics::register(metrics)?;
    let connected =
        IntGauge::new("mesonet_agent_connected", "Whether the agent is connected to a master: 1 or 0.")?;
    metrics.register(Box::new(connected.clone()))?;
    Ok((AgentMetrics::register(metrics)?, connected))
}

/// Where metrics are shown. An address that is taken keeps no agent from starting: the node's tasks need it more than
/// anybody needs its numbers.
enum Shown {
    At(TcpListener),
    Later(SocketAddr),
    Nowhere,
}

impl Shown {
    async fn begin(address: Listen) -> Self {
        let Listen::At(address) = address else { return Self::Nowhere };
        match http::listen(address, "metrics").await {
            Ok(listener) => Self::At(listener),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "The agent runs without metrics until it can listen"
                );
                Self::Later(address)
            }
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::At(listener) => listener.local_addr().ok(),
            Self::Later(_) | Self::Nowhere => None,
        }
    }

    async fn serve(self, router: Router) {
        let listener = match self {
            Self::At(listener) => listener,
            Self::Later(address) => when_free(address).await,
            Self::Nowhere => return,
        };
        http_server::serve(listener, router).await;
    }
}

async fn when_free(address: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(LISTEN_INTERVAL).await;
        if let Ok(listener) = http::listen(address, "metrics").await {
            tracing::info!(%address, "The metrics are shown");
            return listener;
        }
    }
}

async fn show_connection(mut state: watch::Receiver<LinkState>, connected: IntGauge) {
    loop {
        connected.set(matches!(*state.borrow_and_update(), LinkState::Connected { .. }).into());
        if state.changed().await.is_err() {
            return connected.set(0);
        }
    }
}

impl From<&AgentOptions> for Wanted {
    fn from(options: &AgentOptions) -> Self {
        let AgentOptions { cpus, mem, disk, host_ports, .. } = options;
        Self { cpus: *cpus, mem: *mem, disk: *disk, host_ports: *host_ports }
    }
}

/// Where the node is reached, now and whenever the address is not this machine's any more. A second one beside it, or
/// another way to the masters, is no reason to move.
fn places_from(address: IpAddr, hostname: Option<String>, masters: Vec<String>) -> watch::Receiver<Place> {
    let place = move |address: IpAddr| Place {
        address,
        hostname: hostname.clone().unwrap_or_else(|| address.to_string()),
    };
    let (sender, places) = watch::channel(place(address));
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if is_here(sender.borrow().address) {
                continue;
            }
            let masters = masters.clone();
            let found = tokio::task::spawn_blocking(move || node_identity::address_towards(&masters)).await;
            // Until there is a way to a master again, nobody could be told.
            if let Ok(Ok(address)) = found {
                // In a VRF, the host's addresses are not among those of the routes that are asked.
                sender.send_if_modified(|last| {
                    let has_moved = last.address != address;
                    if has_moved {
                        *last = place(address);
                    }
                    has_moved
                });
            }
        }
    });
    places
}

/// Waits for a way to a master: after a reboot, the network may come up later than the agent.
async fn address_towards_masters(node: &Node<'_>) -> anyhow::Result<IpAddr> {
    const ATTEMPTS: u32 = 30;
    const PAUSE: Duration = Duration::from_secs(1);
    let mut found = node.address_towards_masters();
    for _ in 1..ATTEMPTS {
        let Err(error) = &found else { break };
        tracing::warn!(error = format!("{error:#}"), "Waiting for the network");
        tokio::time::sleep(PAUSE).await;
        found = node.address_towards_masters();
    }
    found
}

/// What the agent says of its node for placement and for balancing.
fn attributes(name: String, zone: Option<String>) -> Vec<Attribute> {
    let node = Attribute { name: NODE_ATTRIBUTE.to_owned(), value: name };
    let zone = zone.map(|value| Attribute { name: ZONE_ATTRIBUTE.to_owned(), value });
    std::iter::once(node).chain(zone).collect()
}
