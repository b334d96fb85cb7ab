//! What is counted of single endpoints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesonet_model::ServiceKey;
use prometheus::{IntCounterVec, Opts, Registry};

use crate::metrics::register;

/// Distinct pairs of `service` and `endpoint`, of endpoints that are there. Further endpoints are left out.
const ENDPOINT_LABELS_MAX: usize = 1000;

/// Instruments by service and endpoint. Cloning shares them.
#[derive(Debug, Clone)]
pub(crate) struct EndpointMetrics {
    connections: IntCounterVec,
    failures: IntCounterVec,
    labels: Arc<Mutex<BTreeSet<[String; 2]>>>,
}

impl EndpointMetrics {
    /// Registers the instruments.
    pub(crate) fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &["service", "endpoint"]))
        };
        Self {
            connections: counters(
                "mesonet_lb_endpoint_connections_total",
                "Connections and UDP sessions given to an endpoint",
            ),
            failures: counters(
                "mesonet_lb_endpoint_connect_failures_total",
                "Attempts that an endpoint refused or did not answer in time",
            ),
            labels: Arc::default(),
        }
    }

    /// Connections were given to an endpoint, and some of them failed.
    pub(crate) fn count(&self, service: &ServiceKey, endpoint: SocketAddr, connections: u64, failures: u64) {
        let labels = [service.to_string(), endpoint.to_string()];
        let mut known = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&labels) {
            if known.len() >= ENDPOINT_LABELS_MAX {
                return;
            }
            known.insert(labels.clone());
        }
        self.connections.with_label_values(&labels).inc_by(connections);
        self.failures.with_label_values(&labels).inc_by(failures);
    }

    /// An endpoint is gone, and with it what was told of it.
    pub(crate) fn forget(&self, service: &ServiceKey, endpoint: SocketAddr) {
        let labels = [service.to_string(), endpoint.to_string()];
        if self.labels.lock().unwrap_or_else(PoisonError::into_inner).remove(&labels) {
            for family in [&self.connections, &self.failures] {
                // It has been made with the labels.
                let _ = family.remove_label_values(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_beyond_the_bound_are_left_out_until_others_go() {
        let registry = Registry::new();
        let metrics = EndpointMetrics::new(&registry);
        let service: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        let endpoint = |number: usize| SocketAddr::from(([10, 0, 0, 1], number as u16));
        let count = || {
            let families = registry.gather();
            let family = |family: &&prometheus::proto::MetricFamily| {
                family.name() == "mesonet_lb_endpoint_connections_total"
            };
            families.iter().find(family).map_or(0, |family| family.get_metric().len())
        };
        (0..=ENDPOINT_LABELS_MAX).for_each(|number| metrics.count(&service, endpoint(number), 1, 0));
        assert_eq!(count(), ENDPOINT_LABELS_MAX);
        (0..10).for_each(|number| metrics.forget(&service, endpoint(number)));
        assert_eq!(count(), ENDPOINT_LABELS_MAX - 10);
        metrics.count(&service, endpoint(ENDPOINT_LABELS_MAX), 1, 0);
        assert_eq!(count(), ENDPOINT_LABELS_MAX - 9);
    }
}
