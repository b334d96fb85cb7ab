//! What `/metrics` shows of the control plane. The planes add what is theirs to the same registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesonet_api::State;
use mesonet_model::{AgentState, ClusterView, Plane, TaskState};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::sync::watch;

/// Counts and times of the driver.
#[derive(Debug, Clone)]
pub struct DriverMetrics {
    /// How long commits take.
    pub commit_seconds: Histogram,
    /// Attempts to commit that failed.
    pub commit_failures: IntCounter,
    /// Agents that got no part of a virtual network.
    pub network_exhaustions: IntCounter,
    event_to_applied_seconds: HistogramVec,
}

/// From 0.1 ms to 1 s: a local disk's flush is between.
const COMMIT_BUCKETS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Finest around the goals: 10 ms on one node, 50 ms in a small cluster, 1 s in a large one.
const APPLIED_BUCKETS: [f64; 18] = [
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25,
    0.5, 1.0, 5.0,
];

/// Nodes whose applied revisions are shown one by one. Beyond these, the slowest is what matters, and `converge` has
/// it.
const NODES_MAX: usize = 256;

impl DriverMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let commit =
            HistogramOpts::new("mesonet_store_commit_seconds", "Time to make a group of changes durable.");
        let applied = HistogramOpts::new(
            "mesonet_event_to_applied_seconds",
            "Time from the commit of a revision until a plane has put it fully into effect.",
        );
        let metrics = Self {
            commit_seconds: Histogram::with_opts(commit.buckets(COMMIT_BUCKETS.to_vec()))?,
            commit_failures: IntCounter::new(
                "mesonet_store_commit_failures_total",
                "Attempts to make changes durable that failed.",
            )?,
            network_exhaustions: IntCounter::new(
                "mesonet_network_exhaustions_total",
                "Times that an agent got no part of a virtual network because all are given away.",
            )?,
            event_to_applied_seconds: HistogramVec::new(
                applied.buckets(APPLIED_BUCKETS.to_vec()),
                &["plane"],
            )?,
        };
        registry.register(Box::new(metrics.commit_seconds.clone()))?;
        registry.register(Box::new(metrics.commit_failures.clone()))?;
        registry.register(Box::new(metrics.network_exhaustions.clone()))?;
        registry.register(Box::new(metrics.event_to_applied_seconds.clone()))?;
        Ok(metrics)
    }

    /// One value per revision that a plane has put into effect.
    pub fn observe_applied(&self, plane: Plane, latencies: &[Duration]) {
        let histogram = self.event_to_applied_seconds.with_label_values(&[plane.as_str()]);
        latencies.iter().for_each(|latency| histogram.observe(latency.as_secs_f64()));
    }
}

/// Registers what is read from the state and from the system whenever somebody looks.
pub fn register_state(
    registry: &Registry,
    state: watch::Receiver<Option<Arc<State>>>,
) -> Result<(), prometheus::Error> {
    let build =
        IntGaugeVec::new(Opts::new("mesonet_build_info", "The version that runs; always 1."), &["version"])?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))?;
    crate::process_metrics::register(registry)?;
    registry.register(Box::new(StateCollector::new(state)?))
}

/// Counts the newest state.
struct StateCollector {
    state: watch::Receiver<Option<Arc<State>>>,
    tasks: IntGaugeVec,
    agents: IntGaugeVec,
    agents_draining: IntGauge,
    removal_held: IntGauge,
    apps: IntGauge,
    deployments: IntGauge,
    committed: IntGauge,
    applied: IntGaugeVec,
    network_addresses: IntGaugeVec,
}

impl StateCollector {
    fn new(state: watch::Receiver<Option<Arc<State>>>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            state,
            tasks: IntGaugeVec::new(
                Opts::new("mesonet_tasks", "Tasks that have not ended, by state."),
                &["state"],
            )?,
            agents: IntGaugeVec::new(Opts::new("mesonet_agents", "Agents, by state."), &["state"])?,
            agents_draining: IntGauge::new("mesonet_agents_draining", "Agents that are to be empty.")?,
            removal_held: IntGauge::new(
                "mesonet_agents_removal_held",
                "1 if agents that do not answer are not given up because too many are lost at once, else 0.",
            )?,
            apps: IntGauge::new("mesonet_apps", "Marathon apps.")?,
            deployments: IntGauge::new("mesonet_deployments", "Marathon deployments under way.")?,
            committed: IntGauge::new("mesonet_revision_committed", "The newest committed revision.")?,
            applied: IntGaugeVec::new(
                Opts::new("mesonet_revision_applied", "The newest revision fully in effect."),
                &["plane", "node"],
            )?,
            network_addresses: IntGaugeVec::new(
                Opts::new(
                    "mesonet_network_addresses",
                    "Addresses in nodes' parts of networks: of tasks, of containers of other runtimes, and free.",
                ),
                &["network", "use"],
            )?,
        })
    }

    fn parts(&self) -> [&dyn Collector; 9] {
        [
            &self.tasks,
            &self.agents,
            &self.agents_draining,
            &self.removal_held,
            &self.apps,
            &self.deployments,
            &self.committed,
            &self.applied,
            &self.network_addresses,
        ]
    }

    fn count_addresses(&self, cluster: &ClusterView) {
        self.network_addresses.reset();
        for ((network, _), part) in cluster.part_uses() {
            for (of, count) in [("task", part.tasks), ("container", part.containers), ("free", part.free)] {
                let gauge = self.network_addresses.with_label_values(&[network.as_str(), of]);
                gauge.set(gauge.get().saturating_add(as_gauge(count)));
            }
        }
    }

    fn count_agents(&self, cluster: &ClusterView) {
        let states =
            [AgentState::Active, AgentState::Recovered, AgentState::Suspect, AgentState::Unreachable];
        for state in states {
            let count = cluster.agents.values().filter(|agent| agent.state == state).count();
            self.agents.with_label_values(&[state.as_str()]).set(as_gauge(count));
        }
        let draining = cluster.agents.values().filter(|agent| agent.draining).count();
        self.agents_draining.set(as_gauge(draining));
        let is_held = cluster.masters.values().any(|master| master.removal_held);
        self.removal_held.set(is_held.into());
    }
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let state = self.state.borrow().clone();
        // Nothing is known by a master that stands by.
        let Some(state) = state else { return Vec::new() };
        let mut tasks: BTreeMap<TaskState, i64> =
            [TaskState::Staging, TaskState::Starting, TaskState::Running, TaskState::Killing]
                .map(|state| (state, 0))
                .into();
        for task in state.cluster.tasks.values() {
            *tasks.entry(task.state).or_default() += 1;
        }
        self.tasks.reset();
        for (state, count) in tasks {
            self.tasks.with_label_values(&[state.as_str()]).set(count);
        }
        self.count_agents(&state.cluster);
        self.count_addresses(&state.cluster);
        self.apps.set(as_gauge(state.marathon.apps.len()));
        self.deployments.set(as_gauge(state.marathon.deployments.len()));
        self.committed.set(as_gauge(state.cluster.revision.0));
        self.applied.reset();
        for ((node, plane), report) in state.planes.iter().take(NODES_MAX) {
            let labels = [plane.as_str(), node.as_str()];
            self.applied.with_label_values(&labels).set(as_gauge(report.applied.0));
        }
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

fn as_gauge(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
