//! The master's role: the control plane with its store, its bus and the driver between them.

use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesonet_api::{NodeRequest, PlaneHistory, Planes, Request, State};
use mesonet_bus::Feed;
use mesonet_marathon::{Event, Marathon};
use mesonet_master::{FailureDetection, Master};
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, ClusterId, Framework, FrameworkId, MasterId, Timestamp, UuidSource,
};
use mesonet_store::{Contents, Store};
use prometheus::Registry;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock::{ClockReader, WallClock};
use crate::config::{Grace, MasterOptions, Percent, PortSpan, VipRange};
use crate::control_plane::{self, ControlPlane};
use crate::driver::{self, Driver, Ended, Ending, Inlets, Outlets};
use crate::metrics::{self, DriverMetrics};

/// First and last address of named VIPs in IPv6, those of DC/OS (spec/dcos-networking.md §2.3.2).
const VIP_RANGE_V6: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0xfd01, 0xc, 0, 0, 0, 0, 0, 0),
    Ipv6Addr::new(0xfd01, 0xc, 0, 0, 0xffff, 0xffff, 0xffff, 0xffff),
);

/// The most versions kept of an app, Marathon's default.
const VERSIONS_MAX: usize = 50;

/// Marathon's name as a framework; part of its tasks' DNS names.
const MARATHON_NAME: &str = "marathon";

/// The role's settings.
#[derive(Debug, Clone)]
pub struct MasterSettings {
    /// The cluster, if it has an authority that says which it is; else a new one is made up with the first start.
    pub cluster: Option<ClusterId>,
    /// Where the API is reached.
    pub address: SocketAddr,
    /// Addresses of named VIPs.
    pub vip_range: VipRange,
    /// Ports that Marathon gives to services.
    pub service_ports: PortSpan,
    /// The longest wait for open connections before a task is killed.
    pub drain_grace: Duration,
    /// How long after its connection is lost an agent is unreachable.
    pub unreachable_after: Duration,
    /// How long after that it is removed with its tasks.
    pub removed_after: Duration,
    /// The greatest share of the agents, in percent, that is given up when they are lost at about the same time.
    pub removal_percent_max: u8,
    /// What "at about the same time" means.
    pub removal_window: Duration,
}

impl MasterSettings {
    /// The defaults, for an API at an address.
    pub fn at(address: SocketAddr) -> Self {
        let defaults = MasterOptions::default();
        let Grace(drain_grace) = defaults.drain_grace;
        let Grace(unreachable_after) = defaults.unreachable_after;
        let Grace(removed_after) = defaults.removed_after;
        let Percent(removal_percent_max) = defaults.removal_share;
        let Grace(removal_window) = defaults.removal_window;
        Self {
            cluster: None,
            address,
            vip_range: defaults.vip_range,
            service_ports: defaults.service_ports,
            drain_grace,
            unreachable_after,
            removed_after,
            removal_percent_max,
            removal_window,
        }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct MasterRole {
    /// The newest committed state; `None` until the first commit.
    pub state: watch::Receiver<Option<Arc<State>>>,
    /// Where users' commands go.
    pub requests: mpsc::Sender<Request>,
    /// Where operators' orders for nodes go.
    pub nodes: mpsc::Sender<NodeRequest>,
    /// Marathon's events.
    pub events: broadcast::Sender<Arc<Event>>,
    /// Where planes subscribe.
    pub feed: Feed,
    /// The control plane's time.
    pub clock: ClockReader,
    driver: JoinHandle<Ended>,
    end: oneshot::Sender<Ending>,
}

/// What shows how the control plane does, also from one term of leadership to the next.
#[derive(Debug, Clone)]
pub struct Instruments {
    driver: DriverMetrics,
    /// The newest committed state, while there is a control plane here.
    state: watch::Sender<Option<Arc<State>>>,
}

/// The control plane's way to its agents and back.
#[derive(Debug)]
pub struct AgentLink {
    /// Where agents report.
    pub reports: mpsc::Sender<AgentReport>,
    /// What agents are told.
    pub commands: mpsc::Receiver<(AgentId, AgentCommand)>,
}

impl Instruments {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let state = watch::Sender::new(None);
        metrics::register_state(registry, state.subscribe())?;
        Ok(Self { driver: DriverMetrics::register(registry)?, state })
    }

    /// There is no control plane here any more.
    pub fn forget_state(&self) {
        self.state.send_replace(None);
    }
}

impl MasterRole {
    /// Recovers master and Marathon from what the store held, and starts to drive them.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn start(
        store: impl Store + 'static,
        contents: &Contents,
        settings: &MasterSettings,
        instruments: &Instruments,
    ) -> anyhow::Result<(Self, AgentLink)> {
        let mut clock = WallClock::not_before(control_plane::committed_at(&contents.records));
        let (control_plane, first) = ControlPlane::start(
            recover_master(settings, contents, seed()?)?,
            recover_marathon(settings, contents, seed()?)?,
            marathon_as_framework(settings.address, clock.now()),
            contents.revision,
            clock.now(),
        );
        let (views, feed, planes) = mesonet_bus::channel();
        let (reports, agents) = mpsc::channel(driver::AGENT_REPORTS_MAX);
        let (agent_commands, commands) = mpsc::channel(driver::AGENT_COMMANDS_MAX);
        let (requests, requests_in) = mpsc::channel(driver::REQUESTS_MAX);
        let (nodes, nodes_in) = mpsc::channel(driver::NODE_REQUESTS_MAX);
        let (events, _) = broadcast::channel(driver::EVENTS_MAX);
        let (end, ended) = oneshot::channel();
        let Instruments { driver: metrics, state: state_in } = instruments.clone();
        state_in.send_replace(None);
        let state = state_in.subscribe();
        let inlets = Inlets { agents, planes, requests: requests_in, nodes: nodes_in };
        let outlets = Outlets { agents: agent_commands, views, state: state_in, events: events.clone() };
        let time = clock.reader();
        let driver = Driver::new(control_plane, store, clock, inlets, outlets, metrics);
        let driver = tokio::spawn(driver.run(first, ended));
        Ok((
            Self { state, requests, nodes, events, feed, clock: time, driver, end },
            AgentLink { reports, commands },
        ))
    }

    /// Waits until the driver ends by itself. Must not be called again then.
    pub async fn ended(&mut self) -> Ended {
        match (&mut self.driver).await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "BUG: the driver has failed");
                Ended::Told
            }
        }
    }

    /// Ends the driver at once, also if it is committing.
    pub fn abort(self) {
        self.driver.abort();
    }

    /// Ends the driver, after a commit under way.
    pub async fn end(self, ending: Ending) {
        // If the driver is gone already, there is nothing to end.
        let _ = self.end.send(ending);
        if let Err(error) = self.driver.await {
            tracing::error!(%error, "BUG: the driver has failed");
        }
    }
}

/// The state that records hold, as whoever does not drive it sees it.
///
/// # Errors
/// When a record cannot be read.
pub fn recorded_state(settings: &MasterSettings, contents: &Contents) -> anyhow::Result<State> {
    let mut cluster = recover_master(settings, contents, seed()?)?.view().clone();
    let mut marathon = recover_marathon(settings, contents, seed()?)?.view();
    // A master that begins from them would make the next revision.
    cluster.revision = contents.revision;
    marathon.revision = contents.revision;
    Ok(State { cluster, marathon, planes: Planes::new(), plane_history: PlaneHistory::default() })
}

pub(crate) fn recover_master(
    settings: &MasterSettings,
    contents: &Contents,
    seed: u64,
) -> anyhow::Result<Master> {
    let mut ids = UuidSource::from_seed(seed);
    let config = mesonet_master::Config {
        master: MasterId::new(ids.next_uuid().to_string()),
        address: settings.address,
        vip_range_v4: (settings.vip_range.first, settings.vip_range.last),
        vip_range_v6: VIP_RANGE_V6,
        drain_grace: settings.drain_grace,
        failure_detection: FailureDetection {
            unreachable_after: settings.unreachable_after,
            removed_after: settings.removed_after,
            removal_percent_max: settings.removal_percent_max,
            removal_window: settings.removal_window,
        },
        seed: seed.wrapping_add(1),
    };
    let cluster = settings.cluster.clone().unwrap_or_else(|| ClusterId::new(ids.next_uuid().to_string()));
    Master::recover(config, cluster, contents.revision, &contents.records)
        .context("cannot recover the master's state")
}

pub(crate) fn recover_marathon(
    settings: &MasterSettings,
    contents: &Contents,
    seed: u64,
) -> anyhow::Result<Marathon> {
    let config = mesonet_marathon::Config {
        service_ports: (settings.service_ports.first, settings.service_ports.last),
        seed,
        versions_max: VERSIONS_MAX,
    };
    Marathon::recover(config, &contents.records).context("cannot recover Marathon's state")
}

pub(crate) fn marathon_as_framework(address: SocketAddr, now: Timestamp) -> Framework {
    Framework {
        id: FrameworkId::new(""),
        name: MARATHON_NAME.to_owned(),
        user: std::env::var("USER").unwrap_or_else(|_| "nobody".to_owned()),
        role: "*".to_owned(),
        hostname: address.ip().to_string(),
        address: Some(address),
        webui_url: Some(format!("http://{address}")),
        other_addresses: Vec::new(),
        active: true,
        registered_at: now,
    }
}

/// A number that nobody can guess and that does not repeat.
pub(crate) fn seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read randomness from /dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}
