//! What is counted of single endpoints.

use std::collections::BTreeMap;
use std::iter;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesonet_model::ServiceKey;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};

/// Distinct pairs of `service` and `endpoint`, of endpoints that are there. Further endpoints are left out.
const ENDPOINT_LABELS_MAX: usize = 1000;

/// From clients to the endpoint, as everywhere in the metrics of the load balancer.
const IN: &str = "in";
const OUT: &str = "out";

/// Instruments by service and endpoint. Cloning shares them.
#[derive(Debug, Clone)]
pub(crate) struct EndpointMetrics {
    families: Families,
    series: Arc<Mutex<BTreeMap<[String; 2], Weak<EndpointSeries>>>>,
}

#[derive(Debug, Clone)]
struct Families {
    connections: IntCounterVec,
    /// `None` where nobody sees whether an endpoint takes a connection.
    failures: Option<IntCounterVec>,
    bytes: IntCounterVec,
    packets: IntCounterVec,
}

/// What was counted of an endpoint, all in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EndpointTraffic {
    /// Connections and UDP sessions given to it.
    pub(crate) connections: u64,
    /// Those that it did not take.
    pub(crate) failures: u64,
    /// Octets from clients.
    pub(crate) bytes_up: u64,
    /// Octets to clients.
    pub(crate) bytes_down: u64,
    /// Packets from clients; 0 where nobody sees packets.
    pub(crate) packets_up: u64,
    /// Packets to clients.
    pub(crate) packets_down: u64,
}

/// The instruments of one endpoint, which go when nobody holds them any more.
#[derive(Debug)]
pub(crate) struct EndpointSeries {
    labels: [String; 2],
    metrics: EndpointMetrics,
}

/// By endpoint, and by endpoint and direction.
const LABELS: [&str; 2] = ["service", "endpoint"];
const LABELS_OF_DIRECTIONS: [&str; 3] = ["service", "endpoint", "direction"];

impl EndpointMetrics {
    /// Those of connections from this node; not yet registered.
    pub(crate) fn of_connections() -> Self {
        Self::new(Families {
            connections: counters(
                "mesonet_lb_endpoint_connections_total",
                "Connections and UDP sessions given to an endpoint",
                &LABELS,
            ),
            failures: Some(counters(
                "mesonet_lb_endpoint_connect_failures_total",
                "Attempts that an endpoint refused or did not answer in time",
                &LABELS,
            )),
            bytes: counters(
                "mesonet_lb_endpoint_bytes_total",
                "Bytes forwarded, by service, endpoint and direction (in: from clients)",
                &LABELS_OF_DIRECTIONS,
            ),
            packets: counters(
                "mesonet_lb_endpoint_packets_total",
                "Packets of connections that have ended, and datagrams, by service, endpoint and direction (in: from clients)",
                &LABELS_OF_DIRECTIONS,
            ),
        })
    }

    /// Those of packets from outside; not yet registered.
    pub(crate) fn of_packets() -> Self {
        Self::new(Families {
            connections: counters(
                "mesonet_lb_packet_endpoint_flows_total",
                "Connections and datagram flows from outside given to an endpoint",
                &LABELS,
            ),
            failures: None,
            bytes: counters(
                "mesonet_lb_packet_endpoint_bytes_total",
                "Bytes of IP packets translated, by service, endpoint and direction (in: from clients)",
                &LABELS_OF_DIRECTIONS,
            ),
            packets: counters(
                "mesonet_lb_packet_endpoint_translations_total",
                "Packets translated, by service, endpoint and direction (in: from clients)",
                &LABELS_OF_DIRECTIONS,
            ),
        })
    }

    fn new(families: Families) -> Self {
        Self { families, series: Arc::default() }
    }

    /// The instruments of an endpoint, unless there are too many others. All who count of it share them.
    pub(crate) fn endpoint(&self, service: &ServiceKey, endpoint: SocketAddr) -> Option<Arc<EndpointSeries>> {
        let labels = [service.to_string(), endpoint.to_string()];
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&labels).and_then(Weak::upgrade) {
            return Some(known);
        }
        if all.len() >= ENDPOINT_LABELS_MAX && !all.contains_key(&labels) {
            return None;
        }
        let series = Arc::new(EndpointSeries { labels: labels.clone(), metrics: self.clone() });
        all.insert(labels, Arc::downgrade(&series));
        Some(series)
    }

    /// The descriptions of all instruments.
    pub(crate) fn describe(&self) -> Vec<&Desc> {
        self.families.all().flat_map(Collector::desc).collect()
    }

    /// What all instruments show.
    pub(crate) fn show(&self) -> Vec<MetricFamily> {
        self.families.all().flat_map(Collector::collect).collect()
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("BUG: an instrument is described wrongly")
}

impl Families {
    fn by_endpoint(&self) -> impl Iterator<Item = &IntCounterVec> {
        iter::once(&self.connections).chain(&self.failures)
    }

    fn by_direction(&self) -> [&IntCounterVec; 2] {
        [&self.bytes, &self.packets]
    }

    fn all(&self) -> impl Iterator<Item = &IntCounterVec> {
        self.by_endpoint().chain(self.by_direction())
    }
}

impl EndpointSeries {
    /// Adds what was counted between two looks.
    pub(crate) fn add(&self, new: &EndpointTraffic, old: &EndpointTraffic) {
        let [service, endpoint] = self.labels.each_ref().map(String::as_str);
        let Families { connections, failures, bytes, packets } = &self.metrics.families;
        let labels = [service, endpoint];
        connections.with_label_values(&labels).inc_by(new.connections.wrapping_sub(old.connections));
        if let Some(failures) = failures {
            failures.with_label_values(&labels).inc_by(new.failures.wrapping_sub(old.failures));
        }
        for (family, direction, new, old) in [
            (bytes, IN, new.bytes_up, old.bytes_up),
            (bytes, OUT, new.bytes_down, old.bytes_down),
            (packets, IN, new.packets_up, old.packets_up),
            (packets, OUT, new.packets_down, old.packets_down),
        ] {
            // A series of something that is not seen would say that there was none.
            if new != old {
                family.with_label_values(&[service, endpoint, direction]).inc_by(new.wrapping_sub(old));
            }
        }
    }
}

impl Drop for EndpointSeries {
    fn drop(&mut self) {
        let mut all = self.metrics.series.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have made it anew meanwhile.
        if all.get(&self.labels).is_none_or(|series| series.strong_count() > 0) {
            return;
        }
        all.remove(&self.labels);
        let [service, endpoint] = self.labels.each_ref().map(String::as_str);
        // Each fails only if it has never been made.
        for family in self.metrics.families.by_endpoint() {
            let _ = family.remove_label_values(&[service, endpoint]);
        }
        for family in self.metrics.families.by_direction() {
            for direction in [IN, OUT] {
                let _ = family.remove_label_values(&[service, endpoint, direction]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number as u16))
    }

    /// How many series each family has.
    fn count(metrics: &EndpointMetrics) -> Vec<usize> {
        metrics.show().iter().map(|family| family.get_metric().len()).collect()
    }

    #[test]
    fn endpoints_beyond_the_bound_are_left_out_until_others_go() {
        let metrics = EndpointMetrics::of_connections();
        let service: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        let add = |number| {
            let series = metrics.endpoint(&service, endpoint(number))?;
            let traffic = EndpointTraffic { connections: 1, bytes_up: 7, ..EndpointTraffic::default() };
            series.add(&traffic, &EndpointTraffic::default());
            Some(series)
        };
        let mut held: Vec<_> = (0..=ENDPOINT_LABELS_MAX).filter_map(add).collect();
        assert_eq!(count(&metrics), [ENDPOINT_LABELS_MAX, ENDPOINT_LABELS_MAX, ENDPOINT_LABELS_MAX, 0]);
        held.drain(..10).for_each(drop);
        let fewer = ENDPOINT_LABELS_MAX - 10;
        assert_eq!(count(&metrics), [fewer, fewer, fewer, 0]);
        held.extend(add(ENDPOINT_LABELS_MAX));
        assert_eq!(count(&metrics)[0], fewer + 1);
    }

    #[test]
    fn series_stay_while_anybody_counts() {
        let metrics = EndpointMetrics::of_connections();
        let service: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        let [first, second] =
            [metrics.endpoint(&service, endpoint(1)), metrics.endpoint(&service, endpoint(1))];
        let none = EndpointTraffic::default();
        let some = |connections| EndpointTraffic { connections, ..none };
        first.as_ref().expect("room").add(&some(3), &none);
        second.as_ref().expect("room").add(&some(4), &some(2));
        drop(first);
        assert_eq!(metrics.show()[0].get_metric()[0].get_counter().get_value(), 5.0);
        drop(second);
        assert_eq!(count(&metrics), [0, 0, 0, 0]);
    }
}
