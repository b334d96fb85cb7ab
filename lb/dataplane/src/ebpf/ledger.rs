//! What the programs have counted, as metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesonet_ebpf_abi::{Count, Place};
use mesonet_model::{Protocol, ServiceKey};

use crate::Metrics;
use crate::endpoint_metrics::{EndpointSeries, EndpointTraffic};

use super::maps::{Counts, Loads};

/// How often a counter is read after its endpoint is gone: a program that chose the endpoint just before counts long
/// before the last time.
const LAST_LOOKS: u8 = 3;

/// How often, if clients have not closed all of its connections. What one counts later is lost.
const LAST_LOOKS_OPEN: u8 = 8;

/// The counters of the programs, and what they are of.
#[derive(Debug)]
pub(super) struct Ledger {
    counts: Counts,
    loads: Loads,
    metrics: Metrics,
    accounts: BTreeMap<u32, Account>,
    /// Those whose endpoints are gone, and how often they have been read since.
    closing: BTreeMap<u32, u8>,
    /// Endpoints that have failed since somebody asked.
    failed: BTreeSet<(Arc<ServiceKey>, SocketAddr)>,
}

/// What a counter is of.
#[derive(Debug, Clone)]
pub(super) struct Account {
    /// The service.
    pub(super) service: Arc<ServiceKey>,
    /// Its endpoint; without one, the service's refusals are counted.
    pub(super) endpoint: Option<Place>,
    /// Nothing, until something is counted: of most endpoints of a large cluster a node counts nothing.
    exported: Option<Box<Exported>>,
}

/// What the metrics have of an account.
#[derive(Debug, Clone, Default)]
struct Exported {
    count: Count,
    /// Unless there are too many others.
    series: Option<Arc<EndpointSeries>>,
}

impl Account {
    pub(super) fn new(service: Arc<ServiceKey>, endpoint: Option<Place>) -> Self {
        Self { service, endpoint, exported: None }
    }
}

impl Ledger {
    /// What was counted before belongs to endpoints that are given an account later; what belongs to none, because a
    /// process ended in the middle of a change, is forgotten.
    pub(super) fn new(
        counts: Counts,
        loads: Loads,
        metrics: &Metrics,
        known: &BTreeSet<u32>,
    ) -> io::Result<Self> {
        let unknown: BTreeSet<u32> = counts
            .all()?
            .into_iter()
            .map(|(counter, _)| counter)
            .filter(|each| !known.contains(each))
            .collect();
        counts.remove_many(&unknown)?;
        let unknown: Vec<u32> = loads
            .all()?
            .into_iter()
            .map(|(counter, _)| counter)
            .filter(|each| !known.contains(each))
            .collect();
        loads.remove_many(&unknown.iter().collect::<Vec<_>>())?;
        let metrics = metrics.clone();
        Ok(Self {
            counts,
            loads,
            metrics,
            accounts: BTreeMap::new(),
            closing: BTreeMap::new(),
            failed: BTreeSet::new(),
        })
    }

    /// What is counted under numbers belongs to endpoints.
    pub(super) fn open(&mut self, accounts: Vec<(u32, Account)>) {
        if self.accounts.is_empty() {
            // In one go, which takes a fraction of the time for many; each kind is in order.
            let (endpoints, refusals): (Vec<_>, Vec<_>) =
                accounts.into_iter().partition(|(_, account)| account.endpoint.is_some());
            self.accounts = endpoints.into_iter().chain(refusals).collect();
            return;
        }
        for (counter, account) in accounts {
            self.accounts.entry(counter).or_insert(account);
        }
    }

    /// The endpoint is gone; what is still counted is its.
    pub(super) fn close(&mut self, counter: u32) {
        self.closing.insert(counter, 0);
    }

    /// Whether connections or flows of datagrams may be open.
    pub(super) fn is_used(&self, counter: u32) -> bool {
        let count = self.counts.get(counter);
        count.connections > count.ended
    }

    /// Whether a number is an endpoint's of datagrams.
    pub(super) fn is_of_datagrams(&self, counter: u32) -> bool {
        self.accounts.get(&counter).is_some_and(|account| account.service.protocol == Protocol::Udp)
    }

    /// What has been counted under a number.
    pub(super) fn count(&self, counter: u32) -> Count {
        self.counts.get(counter)
    }

    /// The endpoints that have failed since this was called last.
    pub(super) fn take_failed(&mut self) -> BTreeSet<(Arc<ServiceKey>, SocketAddr)> {
        std::mem::take(&mut self.failed)
    }

    /// Brings the metrics up to date.
    pub(super) fn export(&mut self) -> io::Result<()> {
        for (counter, count) in self.counts.all()? {
            if let Some(account) = self.accounts.get_mut(&counter) {
                let failures = account.export(count, &self.metrics);
                self.failed.extend(
                    account
                        .endpoint
                        .filter(|_| failures > 0)
                        .map(|endpoint| (account.service.clone(), endpoint.into())),
                );
            }
        }
        self.closing.values_mut().for_each(|looks| *looks = looks.saturating_add(1));
        let is_open = |counter| self.accounts.get(counter).is_some_and(Account::is_open);
        let is_closed = |counter, looks| looks >= if is_open(counter) { LAST_LOOKS_OPEN } else { LAST_LOOKS };
        let closed: BTreeSet<u32> = self
            .closing
            .iter()
            .filter(|(counter, looks)| is_closed(counter, **looks))
            .map(|(counter, _)| *counter)
            .collect();
        for counter in &closed {
            self.closing.remove(counter);
            if let Some(account) = self.accounts.remove(counter) {
                account.forget(&self.metrics);
            }
        }
        self.counts.remove_many(&closed)?;
        self.loads.remove_many(&closed.iter().collect::<Vec<_>>())
    }
}

impl Account {
    /// Adds what has been counted since the last time. How many failures that is.
    fn export(&mut self, count: Count, metrics: &Metrics) -> u64 {
        let old = self.exported.as_deref().map_or(Count::default(), |exported| exported.count);
        if count == old {
            return 0;
        }
        let exported = self.exported.get_or_insert_default();
        exported.count = count;
        let service = metrics.service(&self.service);
        let failures = count.failures - old.failures;
        // No other endpoint is tried.
        service.failed.inc_by(failures);
        let Some(endpoint) = self.endpoint else {
            service.connections.inc_by(failures);
            return failures;
        };
        let connections = count.connections - old.connections;
        service.connections.inc_by(connections);
        service.connect_failures.inc_by(failures);
        service.resets.inc_by(count.resets - old.resets);
        service.bytes_up.inc_by(count.bytes_out - old.bytes_out);
        service.bytes_down.inc_by(count.bytes_in - old.bytes_in);
        service.packets_up.inc_by(count.packets_out - old.packets_out);
        service.packets_down.inc_by(count.packets_in - old.packets_in);
        if exported.series.is_none() {
            exported.series = metrics.endpoints().endpoint(&self.service, endpoint.into());
        }
        if let Some(series) = &exported.series {
            series.add(&traffic(&count), &traffic(&old));
        }
        service.active.add(self.open(&count) - self.open(&old));
        failures
    }

    fn forget(&self, metrics: &Metrics) {
        let Some(exported) = &self.exported else { return };
        metrics.service(&self.service).active.sub(self.open(&exported.count));
    }

    /// Whether connections were open when it was read last.
    fn is_open(&self) -> bool {
        self.exported.as_deref().is_some_and(|exported| self.open(&exported.count) > 0)
    }

    /// Connections that are open; nothing tells the end of a flow of datagrams.
    fn open(&self, count: &Count) -> i64 {
        match self.service.protocol {
            Protocol::Tcp => i64::try_from(count.connections.saturating_sub(count.ended)).unwrap_or(i64::MAX),
            Protocol::Udp => 0,
        }
    }
}

fn traffic(count: &Count) -> EndpointTraffic {
    EndpointTraffic {
        connections: count.connections,
        failures: count.failures,
        bytes_up: count.bytes_out,
        bytes_down: count.bytes_in,
        packets_up: count.packets_out,
        packets_down: count.packets_in,
    }
}
