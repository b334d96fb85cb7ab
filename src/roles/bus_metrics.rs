//! What `/metrics` of a master shows of the bus.

use std::sync::Arc;

use mesonet_bus::{Role, Server, ServerStats};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

/// Registers what is read from the server whenever somebody looks.
pub fn register(registry: &Registry, server: Arc<Server>) -> Result<(), prometheus::Error> {
    registry.register(Box::new(BusCollector {
        server,
        connections: labelled("mesonet_bus_connections", "Nodes that are connected, by role.", "role")?,
        refused: labelled(
            "mesonet_bus_refused_total",
            "Connections and requests that were refused, by reason.",
            "reason",
        )?,
        sent: labelled("mesonet_bus_sent_total", "Views sent to nodes, by form.", "form")?,
        relayed_planes: IntGauge::new(
            "mesonet_bus_relayed_planes",
            "Planes whose nodes are connected to masters that stand by and pass on their reports.",
        )?,
        newcomers: IntGauge::new(
            "mesonet_bus_unauthenticated_connections",
            "Connections that have not proved who they are.",
        )?,
        view_bytes: IntGauge::new("mesonet_bus_view_bytes_total", "Bytes of views handed to connections.")?,
        joined: IntGauge::new("mesonet_bus_joined_total", "Nodes that have joined.")?,
        renewed: IntGauge::new("mesonet_bus_certificates_renewed_total", "Certificates that were renewed.")?,
        undeliverable: IntGauge::new(
            "mesonet_bus_undeliverable_total",
            "Commands dropped because their agent was not connected; they are repeated when it is.",
        )?,
    }))
}

fn labelled(name: &str, help: &str, label: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &[label])
}

struct BusCollector {
    server: Arc<Server>,
    connections: IntGaugeVec,
    refused: IntGaugeVec,
    sent: IntGaugeVec,
    relayed_planes: IntGauge,
    newcomers: IntGauge,
    view_bytes: IntGauge,
    joined: IntGauge,
    renewed: IntGauge,
    undeliverable: IntGauge,
}

impl BusCollector {
    fn parts(&self) -> [&dyn Collector; 9] {
        [
            &self.connections,
            &self.refused,
            &self.sent,
            &self.relayed_planes,
            &self.newcomers,
            &self.view_bytes,
            &self.joined,
            &self.renewed,
            &self.undeliverable,
        ]
    }

    fn show(&self, stats: &ServerStats) {
        for role in Role::ALL {
            let count = stats.connections.get(&role).copied().unwrap_or_default();
            self.connections.with_label_values(&[role.as_str()]).set(as_gauge(count));
        }
        for (reason, count) in &stats.refused {
            self.refused.with_label_values(&[reason.as_str()]).set(as_gauge(*count));
        }
        self.sent.with_label_values(&["snapshot"]).set(as_gauge(stats.snapshots));
        self.sent.with_label_values(&["delta"]).set(as_gauge(stats.deltas));
        self.relayed_planes.set(as_gauge(stats.relayed_planes));
        self.newcomers.set(as_gauge(stats.newcomers));
        self.view_bytes.set(as_gauge(stats.view_bytes));
        self.joined.set(as_gauge(stats.joined));
        self.renewed.set(as_gauge(stats.renewed));
        self.undeliverable.set(as_gauge(stats.undeliverable));
    }
}

impl Collector for BusCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.show(&self.server.stats());
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

fn as_gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
