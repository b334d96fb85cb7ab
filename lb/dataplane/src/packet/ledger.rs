//! What the programs have counted, as metrics: read when they are asked for, so that they are exact.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesonet_ebpf_abi::{PacketCount, PacketEvent};
use mesonet_model::ServiceKey;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts, Registry};

use super::maps::Counters;
use crate::endpoint_metrics::{EndpointMetrics, EndpointSeries, EndpointTraffic};
use crate::metrics::SERVICE_LABELS_MAX;

const OTHER_SERVICES: &str = "other";

/// The counters of the programs, and what they are of. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Ledger(Arc<Mutex<Accounts>>);

#[derive(Debug)]
struct Accounts {
    counters: Counters,
    /// By the numbers of endpoints. That of an endpoint that is gone stays until another one has its number.
    accounts: BTreeMap<u32, Account>,
    events: BTreeMap<PacketEvent, u64>,
    labels: BTreeSet<String>,
    instruments: Instruments,
}

#[derive(Debug)]
struct Account {
    label: String,
    /// Until it is gone.
    endpoint: Option<(ServiceKey, SocketAddr)>,
    /// Its own instruments, from when something is counted, unless there are too many others.
    series: Option<Arc<EndpointSeries>>,
    exported: PacketCount,
    /// What was counted under the number before the endpoint had it.
    before: PacketCount,
}

#[derive(Debug)]
struct Instruments {
    flows: IntCounterVec,
    ended: IntCounterVec,
    packets: IntCounterVec,
    bytes: IntCounterVec,
    events: IntCounterVec,
    endpoints: EndpointMetrics,
}

impl Ledger {
    pub(super) fn new(counters: Counters) -> Self {
        let events = counters.events();
        let instruments = Instruments::new();
        let (accounts, labels) = (BTreeMap::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(Accounts { counters, accounts, events, labels, instruments })))
    }

    /// Exports them from now on.
    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.clone()))
    }

    /// What is counted under a number from now on belongs to an endpoint of a service, which has so many flows already.
    pub(super) fn open(&self, number: u32, service: &ServiceKey, endpoint: SocketAddr, flows: u64) {
        let mut accounts = self.lock();
        accounts.export(number);
        let exported = accounts.counters.of(number);
        let label = accounts.label(service);
        let before = PacketCount { flows: exported.flows.wrapping_sub(flows), ..exported };
        let endpoint = Some((service.clone(), endpoint));
        let account = Account { label, endpoint, series: None, exported, before };
        accounts.accounts.insert(number, account);
    }

    /// The endpoint is gone. What is still counted is its service's.
    pub(super) fn close(&self, number: u32) {
        let mut accounts = self.lock();
        accounts.export(number);
        if let Some(account) = accounts.accounts.get_mut(&number) {
            (account.endpoint, account.series) = (None, None);
        }
    }

    /// How many flows the endpoint with a number has been given, and how many of them have ended.
    pub(super) fn flows(&self, number: u32) -> (u64, u64) {
        let accounts = self.lock();
        let Some(Account { before, .. }) = accounts.accounts.get(&number) else { return (0, 0) };
        let count = accounts.counters.of(number);
        (count.flows.wrapping_sub(before.flows), count.ended.wrapping_sub(before.ended))
    }

    /// Everything that was counted of an endpoint's number since the maps were made.
    pub(super) fn of(&self, number: u32) -> PacketCount {
        self.lock().counters.of(number)
    }

    pub(super) fn events(&self) -> BTreeMap<PacketEvent, u64> {
        self.lock().counters.events()
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Ledger {
    fn desc(&self) -> Vec<&Desc> {
        // The registry need not know them: their names, which begin with `mesonet_lb_packet_`, are used by nobody else.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut accounts = self.lock();
        let numbers: Vec<u32> = accounts.accounts.keys().copied().collect();
        numbers.into_iter().for_each(|number| accounts.export(number));
        accounts.export_events();
        let mut families = accounts.instruments.endpoints.show();
        families.extend(accounts.instruments.all().into_iter().flat_map(Collector::collect));
        families
    }
}

impl Accounts {
    fn label(&mut self, service: &ServiceKey) -> String {
        let label = service.to_string();
        if self.labels.len() < SERVICE_LABELS_MAX || self.labels.contains(&label) {
            self.labels.insert(label.clone());
            label
        } else {
            OTHER_SERVICES.to_owned()
        }
    }

    /// Adds what was counted since the last time.
    fn export(&mut self, number: u32) {
        let Some(account) = self.accounts.get_mut(&number) else { return };
        let (new, old) = (self.counters.of(number), account.exported);
        let label = account.label.as_str();
        let Instruments { flows, ended, packets, bytes, endpoints, .. } = &self.instruments;
        flows.with_label_values(&[label]).inc_by(new.flows.wrapping_sub(old.flows));
        ended.with_label_values(&[label]).inc_by(new.ended.wrapping_sub(old.ended));
        for (direction, count, grown) in [
            ("in", packets, new.packets_in.wrapping_sub(old.packets_in)),
            ("out", packets, new.packets_out.wrapping_sub(old.packets_out)),
            ("in", bytes, new.bytes_in.wrapping_sub(old.bytes_in)),
            ("out", bytes, new.bytes_out.wrapping_sub(old.bytes_out)),
        ] {
            count.with_label_values(&[label, direction]).inc_by(grown);
        }
        if new != old && account.series.is_none() {
            let of = |(service, endpoint): &(ServiceKey, SocketAddr)| endpoints.endpoint(service, *endpoint);
            account.series = account.endpoint.as_ref().and_then(of);
        }
        if let Some(series) = &account.series {
            series.add(&traffic(&new), &traffic(&old));
        }
        account.exported = new;
    }

    fn export_events(&mut self) {
        for (event, count) in self.counters.events() {
            let old = self.events.insert(event, count).unwrap_or(0);
            self.instruments.events.with_label_values(&[event.as_str()]).inc_by(count.wrapping_sub(old));
        }
    }
}

fn traffic(count: &PacketCount) -> EndpointTraffic {
    EndpointTraffic {
        connections: count.flows,
        failures: 0,
        bytes_up: count.bytes_in,
        bytes_down: count.bytes_out,
        packets_up: count.packets_in,
        packets_down: count.packets_out,
    }
}

impl Instruments {
    fn new() -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels are valid")
        };
        Self {
            flows: counters(
                "mesonet_lb_packet_flows_total",
                "Connections and datagram flows from outside that got an endpoint, by service",
                &["service"],
            ),
            ended: counters(
                "mesonet_lb_packet_flows_ended_total",
                "Connections from outside that both sides have ended or one has reset, by service",
                &["service"],
            ),
            packets: counters(
                "mesonet_lb_packet_translations_total",
                "Packets translated, by service and direction (in: from clients)",
                &["service", "direction"],
            ),
            bytes: counters(
                "mesonet_lb_packet_bytes_total",
                "Bytes of IP packets translated, by service and direction (in: from clients)",
                &["service", "direction"],
            ),
            events: counters(
                "mesonet_lb_packet_events_total",
                "Packets that were not translated though they may have been meant to be, by reason",
                &["event"],
            ),
            endpoints: EndpointMetrics::of_packets(),
        }
    }

    fn all(&self) -> [&IntCounterVec; 5] {
        [&self.flows, &self.ended, &self.packets, &self.bytes, &self.events]
    }
}
