//! What the load balancer counts. Every data plane records the same instruments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesonet_lb_plan::{EndpointSpec, Entries, KernelMap, Op, RouteState};
use mesonet_model::ServiceKey;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::Missing;
use crate::endpoint_metrics::EndpointMetrics;
use crate::ledger::Ledger;

/// Distinct values of the `service` label. Further services share the label `other`, so that a cluster that makes
/// and deletes services forever does not grow the metrics forever.
pub const SERVICE_LABELS_MAX: usize = 1000;

const OTHER_SERVICES: &str = "other";

/// Seconds; from a table of one service to one of 50,000.
const APPLY_BUCKETS: [f64; 9] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0];

/// The instruments of one load balancer. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    connections: IntCounterVec,
    active: IntGaugeVec,
    bytes: IntCounterVec,
    connect_failures: IntCounterVec,
    failed: IntCounterVec,
    resets: IntCounterVec,
    packets: IntCounterVec,
    by_endpoint: EndpointMetrics,
    closed_namespaces: IntGauge,
    services: IntGauge,
    endpoints: IntGaugeVec,
    failed_services: IntGauge,
    maps: MapMetrics,
    attachments: AttachmentMetrics,
    apply: Histogram,
    datapath: IntGaugeVec,
    handles: Arc<Mutex<BTreeMap<String, ServiceMetrics>>>,
    /// What connections through the proxy have come to.
    pub(crate) ledger: Ledger,
}

/// Brings what is counted of endpoints up to date when it is asked for.
#[derive(Debug, Clone)]
struct ByEndpoint {
    metrics: EndpointMetrics,
    ledger: Ledger,
}

impl Collector for ByEndpoint {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics.describe()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.ledger.export(&self.metrics);
        self.metrics.show()
    }
}

/// What is, and what was not, in its place in the kernel.
#[derive(Debug, Clone)]
struct AttachmentMetrics {
    missing: IntGaugeVec,
    restored: IntCounterVec,
}

/// What services take up of the kernel's maps.
#[derive(Debug, Clone)]
struct MapMetrics {
    entries: IntGaugeVec,
    entries_max: IntGaugeVec,
}

/// The instruments of one service.
#[derive(Debug, Clone)]
pub(crate) struct ServiceMetrics {
    /// Connections (TCP) and sessions (UDP) given to an endpoint or failed.
    pub(crate) connections: IntCounter,
    /// Those open.
    pub(crate) active: IntGauge,
    /// Bytes forwarded from clients to endpoints.
    pub(crate) bytes_up: IntCounter,
    /// Bytes forwarded from endpoints to clients.
    pub(crate) bytes_down: IntCounter,
    /// Attempts that an endpoint refused or did not answer in time.
    pub(crate) connect_failures: IntCounter,
    /// Connections reset because no endpoint took them.
    pub(crate) failed: IntCounter,
    /// Open connections that one side has reset.
    pub(crate) resets: IntCounter,
    /// Packets from clients to endpoints.
    pub(crate) packets_up: IntCounter,
    /// Packets from endpoints to clients.
    pub(crate) packets_down: IntCounter,
}

impl ServiceMetrics {
    /// Bytes were forwarded from and to clients.
    pub(crate) fn carry(&self, up: u64, down: u64) {
        for (counter, bytes) in [(&self.bytes_up, up), (&self.bytes_down, down)] {
            if bytes > 0 {
                counter.inc_by(bytes);
            }
        }
    }
}

impl Metrics {
    /// Registers the instruments.
    ///
    /// # Panics
    /// When the registry has the instruments of another load balancer.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, label: &str| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let apply = HistogramOpts::new("mesonet_lb_apply_seconds", "Time to put one view into effect")
            .buckets(APPLY_BUCKETS.to_vec());
        let by_endpoint =
            ByEndpoint { metrics: EndpointMetrics::of_connections(), ledger: Ledger::default() };
        let by_endpoint = register(registry, Ok(by_endpoint));
        Self {
            connections: counters(
                "mesonet_lb_connections_total",
                "Connections and UDP sessions begun, by service",
                &["service"],
            ),
            active: gauges(
                "mesonet_lb_active_connections",
                "Connections and UDP sessions open, by service",
                "service",
            ),
            bytes: counters(
                "mesonet_lb_bytes_total",
                "Bytes forwarded, by service and direction (in: from clients)",
                &["service", "direction"],
            ),
            connect_failures: counters(
                "mesonet_lb_connect_failures_total",
                "Attempts that an endpoint refused or did not answer in time, by service",
                &["service"],
            ),
            failed: counters(
                "mesonet_lb_failed_connections_total",
                "Connections reset because no endpoint took them, by service",
                &["service"],
            ),
            resets: counters(
                "mesonet_lb_reset_connections_total",
                "Connections that one side has reset, by service",
                &["service"],
            ),
            packets: counters(
                "mesonet_lb_packets_total",
                "Packets of connections that have ended, and datagrams, by service and direction (in: from clients)",
                &["service", "direction"],
            ),
            by_endpoint: by_endpoint.metrics,
            closed_namespaces: gauge(
                "mesonet_lb_closed_namespaces",
                "Network namespaces that were not seen or could not be entered when connections to a dead endpoint were ended",
            ),
            services: gauge("mesonet_lb_services", "Services in effect"),
            endpoints: gauges("mesonet_lb_endpoints", "Endpoints in effect, by state", "state"),
            failed_services: gauge(
                "mesonet_lb_failed_services",
                "Services that could not be put into effect",
            ),
            maps: MapMetrics::new(registry),
            attachments: AttachmentMetrics::new(registry),
            apply: register(registry, Histogram::with_opts(apply)),
            datapath: gauges("mesonet_lb_datapath", "1 for what balances: ebpf, proxy or memory", "datapath"),
            handles: Arc::default(),
            ledger: by_endpoint.ledger,
        }
    }

    /// The instruments of a service. The same service has the same ones for as long as the process lives.
    pub(crate) fn service(&self, key: &ServiceKey) -> ServiceMetrics {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut label = key.to_string();
        if handles.len() >= SERVICE_LABELS_MAX && !handles.contains_key(&label) {
            OTHER_SERVICES.clone_into(&mut label);
        }
        handles
            .entry(label)
            .or_insert_with_key(|label| ServiceMetrics {
                connections: self.connections.with_label_values(&[label]),
                active: self.active.with_label_values(&[label]),
                bytes_up: self.bytes.with_label_values(&[label.as_str(), "in"]),
                bytes_down: self.bytes.with_label_values(&[label.as_str(), "out"]),
                connect_failures: self.connect_failures.with_label_values(&[label]),
                failed: self.failed.with_label_values(&[label]),
                resets: self.resets.with_label_values(&[label]),
                packets_up: self.packets.with_label_values(&[label.as_str(), "in"]),
                packets_down: self.packets.with_label_values(&[label.as_str(), "out"]),
            })
            .clone()
    }

    /// The instruments of single endpoints.
    pub(crate) fn endpoints(&self) -> &EndpointMetrics {
        &self.by_endpoint
    }

    /// How many network namespaces could not be entered.
    pub(crate) fn set_closed_namespaces(&self, count: usize) {
        self.closed_namespaces.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// An operation has been applied to a table; its endpoint was something there before, or nothing.
    pub(crate) fn count_op(&self, op: &Op, old: Option<EndpointSpec>) {
        let endpoints = |state: RouteState| self.endpoints.with_label_values(&[state.as_str()]);
        if let Some(old) = old {
            endpoints(old.state).dec();
        }
        match op {
            Op::AddEndpoint { spec, .. } | Op::SetEndpoint { spec, .. } => endpoints(spec.state).inc(),
            Op::RemoveEndpoint { .. }
            | Op::SetPolicy { .. }
            | Op::OpenListener { .. }
            | Op::CloseListener { .. } => {}
        }
    }

    /// How many services are in effect, and how many could not be put into effect.
    pub(crate) fn set_services(&self, in_effect: usize, failed: usize) {
        self.services.set(i64::try_from(in_effect).unwrap_or(i64::MAX));
        self.failed_services.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// What services take up in the kernel.
    pub(crate) fn set_kernel_entries(&self, used: Entries) {
        let set = |gauges: &IntGaugeVec, map: KernelMap, count| {
            gauges.with_label_values(&[map.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for map in KernelMap::ALL {
            set(&self.maps.entries, map, used.of(map));
            set(&self.maps.entries_max, map, map.entries_max());
        }
    }

    /// What is not in its place in the kernel, and what was put back.
    pub(crate) fn set_missing(&self, missing: Missing, restored: Missing) {
        for (kind, count) in missing.by_kind() {
            self.attachments.missing.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (kind, count) in restored.by_kind() {
            self.attachments.restored.with_label_values(&[kind]).inc_by(count as u64);
        }
    }

    /// What balances.
    pub(crate) fn set_datapath(&self, name: &str) {
        self.datapath.with_label_values(&[name]).set(1);
    }

    /// Times what happens until the timer is dropped.
    pub(crate) fn time_apply(&self) -> prometheus::HistogramTimer {
        self.apply.start_timer()
    }
}

impl MapMetrics {
    fn new(registry: &Registry) -> Self {
        let gauges =
            |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &["map"]));
        Self {
            entries: gauges("mesonet_lb_map_entries", "Entries of the kernel's maps that hold services"),
            entries_max: gauges(
                "mesonet_lb_map_entries_max",
                "Entries that the kernel's maps that hold services can have",
            ),
        }
    }
}

impl AttachmentMetrics {
    fn new(registry: &Registry) -> Self {
        let missing = Opts::new(
            "mesonet_lb_missing_attachments",
            "What balances in the kernel and is not in its place, by kind",
        );
        let restored = Opts::new(
            "mesonet_lb_restored_attachments_total",
            "What balances in the kernel and was put back after somebody had taken it away, by kind",
        );
        Self {
            missing: register(registry, IntGaugeVec::new(missing, &["kind"])),
            restored: register(registry, IntCounterVec::new(restored, &["kind"])),
        }
    }
}

pub(crate) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("BUG: an instrument is described wrongly");
    registry.register(Box::new(collector.clone())).expect("BUG: an instrument is registered twice");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_beyond_the_bound_share_one_label() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        for number in 0..SERVICE_LABELS_MAX + 2 {
            let key = format!("tcp/s{number}@marathon:80").parse().expect("key");
            metrics.service(&key).connections.inc();
        }
        let families = registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "mesonet_lb_connections_total")
            .expect("the family is registered");
        assert_eq!(family.get_metric().len(), SERVICE_LABELS_MAX + 1);
        let other = family
            .get_metric()
            .iter()
            .find(|metric| metric.get_label().iter().any(|label| label.value() == OTHER_SERVICES))
            .expect("there is a shared label");
        assert_eq!(other.get_counter().get_value(), 2.0);
    }
}
