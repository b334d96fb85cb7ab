//! Measures how long a committed change takes until it is in effect: real driver, store on disk, bus, DNS server and
//! balancer; only the agents have no processes and the balancer's data plane no sockets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mesonet_api::{Request, State};
use mesonet_dns_server::Server;
use mesonet_lb_dataplane::LoadBalancer;
use mesonet_marathon::{AppView, Command};
use mesonet_model::{AgentId, AppId, Plane, TaskId, TaskState};
use mesonet_store::RedbStore;
use prometheus::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::driver::Ending;
use crate::histogram::Histogram;
use crate::master_role::{Instruments, MasterRole, MasterSettings};
use crate::{memory_agents, planes, sample_app};

/// Instances of each app: a service of an ordinary size.
const INSTANCES: u32 = 10;

/// Agents; each has room for a thousand tasks.
const AGENTS: u8 = 10;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

const LATENCY_METRIC: &str = "mesonet_event_to_applied_seconds";

/// What was measured of one plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The plane.
    pub plane: Plane,
    /// Revisions that it has put into effect.
    pub revisions: u64,
    /// Time from commit to applied that half of them took at most.
    pub p50: Duration,
    /// Time that 99 of 100 took at most.
    pub p99: Duration,
}

/// Runs so many tasks, then for so long kills one after the other, each of which starts another, and measures each
/// plane while this goes on.
///
/// # Errors
/// When the cluster cannot be started or something does not happen within a minute.
pub fn measure_applied(tasks: u32, lasting: Duration) -> anyhow::Result<Vec<Applied>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    runtime.block_on(async {
        let cluster = MeasuredCluster::start(dir.path()).await?;
        let measured = cluster.measure(tasks, lasting).await;
        cluster.end().await;
        measured
    })
}

/// A cluster whose tasks have no processes.
struct MeasuredCluster {
    master: MasterRole,
    metrics: Registry,
    others: JoinSet<()>,
}

impl MeasuredCluster {
    async fn start(dir: &Path) -> anyhow::Result<Self> {
        let (store, contents) = RedbStore::open(dir)?;
        let metrics = Registry::new();
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = MasterSettings::at(anywhere);
        let dns = Server::start(mesonet_dns_server::Config::at(anywhere), &metrics).await?;
        let instruments = Instruments::register(&metrics).context("cannot register metrics")?;
        let (master, link) = MasterRole::start(store, &contents, &settings, &instruments)?;
        let mut others = JoinSet::new();
        others.spawn(memory_agents::run(AGENTS, link));
        let node = AgentId::new("measured");
        others.spawn(planes::follow_with_dns(
            dns,
            master.feed.subscribe(node.clone(), Plane::Dns),
            planes::always_fresh(),
        ));
        let balancer = LoadBalancer::memory(&metrics);
        planes::start_lb(Some(balancer), &master.feed, &node, None, &mut others);
        Ok(Self { master, metrics, others })
    }

    async fn end(mut self) {
        self.master.end(Ending::LeaveTasks).await;
        self.others.shutdown().await;
    }

    async fn measure(&self, tasks: u32, lasting: Duration) -> anyhow::Result<Vec<Applied>> {
        let apps: Vec<AppId> = (0..tasks.div_ceil(INSTANCES))
            .map(|number| AppId::parse(&format!("/measured/app-{number}")))
            .collect::<Result<_, _>>()?;
        for app in &apps {
            self.command(sample_app::put(app, INSTANCES)).await?;
        }
        for app in &apps {
            self.wait_until("all tasks run", |state| is_complete(state, app)).await?;
        }
        self.wait_until_applied().await?;
        let before = self.latencies();
        let started = Instant::now();
        for app in apps.iter().cycle().take_while(|_| started.elapsed() < lasting) {
            let victim = self.first_instance(app)?;
            let command = Command::KillTasks { tasks: vec![victim.clone()], scale: false, force: false };
            self.command(command).await?;
            let is_replaced = |state: &State| {
                is_complete(state, app)
                    && !app_of(state, app).is_some_and(|app| app.instances.contains_key(&victim))
            };
            self.wait_until("a killed task is replaced", is_replaced).await?;
        }
        self.wait_until_applied().await?;
        self.applied_since(&before)
    }

    async fn command(&self, command: Command) -> anyhow::Result<()> {
        let (answer, answered) = oneshot::channel();
        self.master.requests.send(Request { command, answer }).await.context("the driver is gone")?;
        answered.await.context("the driver has refused a command")??;
        Ok(())
    }

    async fn wait_until(&self, what: &str, is_so: impl Fn(&State) -> bool) -> anyhow::Result<()> {
        let mut state = self.master.state.clone();
        let waiting = state.wait_for(|state| state.as_ref().is_some_and(|state| is_so(state)));
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .with_context(|| format!("not within a minute: {what}"))?
            .context("the driver is gone")?;
        Ok(())
    }

    async fn wait_until_applied(&self) -> anyhow::Result<()> {
        let is_applied = |state: &State| {
            state.planes.len() == 2
                && state.planes.values().all(|plane| plane.applied == state.cluster.revision)
        };
        self.wait_until("both planes have applied the newest revision", is_applied).await
    }

    fn first_instance(&self, app: &AppId) -> anyhow::Result<TaskId> {
        let state: Option<Arc<State>> = self.master.state.borrow().clone();
        let state = state.context("there is no state")?;
        let app = app_of(&state, app).context("an app is gone")?;
        app.instances.keys().next().cloned().context("an app has no instances")
    }

    fn latencies(&self) -> BTreeMap<String, Histogram> {
        Histogram::gather(&self.metrics, LATENCY_METRIC, "plane")
    }

    fn applied_since(&self, before: &BTreeMap<String, Histogram>) -> anyhow::Result<Vec<Applied>> {
        let after = self.latencies();
        let mut measured = Vec::new();
        for plane in [Plane::Dns, Plane::Lb] {
            let Some((before, after)) = before.get(plane.as_str()).zip(after.get(plane.as_str())) else {
                bail!("plane {plane} has reported nothing");
            };
            let latencies = after.since(before);
            measured.push(Applied {
                plane,
                revisions: latencies.count(),
                p50: Duration::from_secs_f64(latencies.quantile(0.5)),
                p99: Duration::from_secs_f64(latencies.quantile(0.99)),
            });
        }
        Ok(measured)
    }
}

fn app_of<'state>(state: &'state State, app: &AppId) -> Option<&'state Arc<AppView>> {
    state.marathon.apps.get(app)
}

fn is_complete(state: &State, app: &AppId) -> bool {
    app_of(state, app).is_some_and(|app| {
        let running = app.instances.values().filter(|instance| instance.state == TaskState::Running).count();
        running == app.instances.len() && running == app.definition.instances as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kill_makes_revisions_that_both_planes_apply() {
        let measured = measure_applied(30, Duration::from_millis(300)).expect("measured");
        assert_eq!(measured.iter().map(|applied| applied.plane).collect::<Vec<_>>(), [Plane::Dns, Plane::Lb]);
        for applied in measured {
            assert!(applied.revisions >= 1, "{applied:?}");
            assert!(applied.p50 <= applied.p99, "{applied:?}");
        }
    }
}
