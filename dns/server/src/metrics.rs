//! The server's instruments.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesonet_dns_zone::NameError;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

use crate::fast::FastZones;
use crate::limiter::Allowance;
use crate::query_metrics::QueryMetrics;

const RECORDS: &str = "mesonet_dns_records";
const RECORDS_LEFT_OUT: &str = "mesonet_dns_records_left_out";
const APPLY_DURATION: &str = "mesonet_dns_apply_duration_seconds";
const MALFORMED: &str = "mesonet_dns_malformed_total";
const FAST_NAMES: &str = "mesonet_dns_fast_names";
const FAST_MEMORY: &str = "mesonet_dns_fast_memory_bytes";

const CONNECTIONS: &str = "mesonet_dns_connections";
const CONNECTIONS_SHED: &str = "mesonet_dns_connections_shed_total";
const CONNECTIONS_REFUSED: &str = "mesonet_dns_connections_refused_total";
const LIMITED: &str = "mesonet_dns_limited_total";
const SHED: &str = "mesonet_dns_shed_total";
const CACHE_LOOKUPS: &str = "mesonet_dns_cache_lookups_total";
const CACHE_ENTRIES: &str = "mesonet_dns_cache_entries";
const COALESCED: &str = "mesonet_dns_coalesced_total";
const UPSTREAM_DURATION: &str = "mesonet_dns_upstream_duration_seconds";
const UPSTREAM_FAILURES_TOTAL: &str = "mesonet_dns_upstream_failures_total";

/// Smallest bucket of upstream latencies in seconds: a server on the same machine or network.
const UPSTREAM_BUCKET_FIRST: f64 = 0.000_5;

/// Number of those buckets, each twice the one before; the last one ends at about four seconds.
const UPSTREAM_BUCKET_COUNT: usize = 14;

/// Smallest histogram bucket in seconds: about what one answer takes.
const BUCKET_FIRST: f64 = 0.000_004;

/// Each bucket is so much wider than the one before.
const BUCKET_FACTOR: f64 = 4.0;

/// Number of buckets; the last one ends at about a second.
pub(crate) const BUCKET_COUNT: usize = 10;

/// Type of a query as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KindLabel {
    A,
    Aaaa,
    Srv,
    Soa,
    Ns,
    Ptr,
    Any,
    Axfr,
    Other,
}

/// Result of a query as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeLabel {
    NoError,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
}

/// How a query came, also as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
    Tls,
    Https,
    Quic,
}

/// How many types there are.
pub(crate) const KIND_COUNT: usize = KINDS.len();

/// How many results there are.
pub(crate) const CODE_COUNT: usize = CODES.len();

pub(crate) const KINDS: [(KindLabel, &str); 9] = [
    (KindLabel::A, "A"),
    (KindLabel::Aaaa, "AAAA"),
    (KindLabel::Srv, "SRV"),
    (KindLabel::Soa, "SOA"),
    (KindLabel::Ns, "NS"),
    (KindLabel::Ptr, "PTR"),
    (KindLabel::Any, "ANY"),
    (KindLabel::Axfr, "AXFR"),
    (KindLabel::Other, "other"),
];

pub(crate) const CODES: [(CodeLabel, &str); 6] = [
    (CodeLabel::NoError, "NOERROR"),
    (CodeLabel::ServFail, "SERVFAIL"),
    (CodeLabel::NxDomain, "NXDOMAIN"),
    (CodeLabel::NotImp, "NOTIMP"),
    (CodeLabel::Refused, "REFUSED"),
    (CodeLabel::BadVers, "BADVERS"),
];

pub(crate) const TRANSPORTS: [(Transport, &str); 5] = [
    (Transport::Udp, "udp"),
    (Transport::Tcp, "tcp"),
    (Transport::Tls, "tls"),
    (Transport::Https, "https"),
    (Transport::Quic, "quic"),
];

const REASONS: [(NameError, &str); 4] = [
    (NameError::EmptyLabel, "empty_label"),
    (NameError::LabelTooLong, "label_too_long"),
    (NameError::NameTooLong, "name_too_long"),
    (NameError::Character, "character"),
];

/// The server's instruments.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) queries: QueryMetrics,
    records: IntGauge,
    records_left_out: IntGaugeVec,
    apply_duration: Histogram,
    malformed: IntCounter,
    limited: IntCounterVec,
    fast_names: IntGauge,
    fast_memory: IntGauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queries = QueryMetrics::register(registry)?;
        let records = IntGauge::new(RECORDS, "DNS records served")?;
        let records_left_out = IntGaugeVec::new(
            Opts::new(RECORDS_LEFT_OUT, "DNS records left out because their names would not be valid"),
            &["reason"],
        )?;
        let apply_duration = Histogram::with_opts(
            HistogramOpts::new(APPLY_DURATION, "Time to put a change of the cluster into the DNS zone")
                .buckets(bucket_bounds().into()),
        )?;
        let malformed = IntCounter::new(MALFORMED, "DNS messages that could not be read")?;
        registry.register(Box::new(records.clone()))?;
        registry.register(Box::new(records_left_out.clone()))?;
        registry.register(Box::new(apply_duration.clone()))?;
        let limited = IntCounterVec::new(
            Opts::new(
                LIMITED,
                "DNS answers over the limit of their client's network, by what was sent instead",
            ),
            &["sent"],
        )?;
        registry.register(Box::new(malformed.clone()))?;
        registry.register(Box::new(limited.clone()))?;
        let fast_names = IntGauge::new(FAST_NAMES, "Names whose DNS answers are encoded ahead of time")?;
        let fast_memory = IntGauge::new(
            FAST_MEMORY,
            "About how much memory the DNS answers take that are encoded ahead of time",
        )?;
        registry.register(Box::new(fast_names.clone()))?;
        registry.register(Box::new(fast_memory.clone()))?;
        Ok(Self {
            queries,
            records,
            records_left_out,
            apply_duration,
            malformed,
            limited,
            fast_names,
            fast_memory,
        })
    }

    /// A message could not be read.
    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }

    /// An answer was over the limit.
    pub(crate) fn limited(&self, allowance: Allowance) {
        match allowance {
            Allowance::Send => {}
            Allowance::Cut => self.limited.with_label_values(&["cut"]).inc(),
            Allowance::Drop => self.limited.with_label_values(&["nothing"]).inc(),
        }
    }

    /// A view was applied.
    pub(crate) fn applied(
        &self,
        duration: Duration,
        records: usize,
        left_out: &BTreeMap<NameError, usize>,
        fast: &FastZones,
    ) {
        self.fast_names.set(gauge_value(fast.served().name_count()));
        self.fast_memory.set(gauge_value(fast.octet_count()));
        self.apply_duration.observe(duration.as_secs_f64());
        self.records.set(gauge_value(records));
        for (error, reason) in REASONS {
            let count = left_out.get(&error).copied().unwrap_or_default();
            self.records_left_out.with_label_values(&[reason]).set(gauge_value(count));
        }
    }
}

/// The upper bounds of the histograms' buckets, in seconds.
pub(crate) fn bucket_bounds() -> [f64; BUCKET_COUNT] {
    let mut bound = BUCKET_FIRST / BUCKET_FACTOR;
    std::array::from_fn(|_| {
        bound *= BUCKET_FACTOR;
        bound
    })
}

// === Connections ===

/// The instruments of connections.
#[derive(Debug)]
pub(crate) struct ConnectionMetrics {
    open: IntGauge,
    shed: IntCounter,
    refused: IntCounter,
}

impl ConnectionMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let open = IntGauge::new(CONNECTIONS, "DNS connections that are open")?;
        let shed = IntCounter::new(CONNECTIONS_SHED, "Idle DNS connections that were closed for a new one")?;
        let refused = IntCounter::new(
            CONNECTIONS_REFUSED,
            "DNS connections that were refused because all others were answering something",
        )?;
        registry.register(Box::new(open.clone()))?;
        registry.register(Box::new(shed.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { open, shed, refused })
    }

    /// So many are open.
    pub(crate) fn open(&self, count: usize) {
        self.open.set(gauge_value(count));
    }

    /// An idle one is closed for a new one.
    pub(crate) fn shed(&self) {
        self.shed.inc();
    }

    /// One is refused.
    pub(crate) fn refused(&self) {
        self.refused.inc();
    }
}

// === Forwarding ===

/// Why an upstream server did not answer, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpstreamFailure {
    Timeout,
    Network,
    Mismatch,
    ServFail,
    Refused,
    OtherCode,
}

const UPSTREAM_FAILURES: [(UpstreamFailure, &str); 6] = [
    (UpstreamFailure::Timeout, "timeout"),
    (UpstreamFailure::Network, "network"),
    (UpstreamFailure::Mismatch, "mismatch"),
    (UpstreamFailure::ServFail, "servfail"),
    (UpstreamFailure::Refused, "refused"),
    (UpstreamFailure::OtherCode, "other_code"),
];

/// What the cache had, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheResult {
    Hit,
    Miss,
    Stale,
}

const CACHE_RESULTS: [(CacheResult, &str); 3] =
    [(CacheResult::Hit, "hit"), (CacheResult::Miss, "miss"), (CacheResult::Stale, "stale")];

/// The instruments of forwarding.
#[derive(Debug)]
pub(crate) struct ForwardMetrics {
    cache: [IntCounter; CACHE_RESULTS.len()],
    cache_entries: IntGauge,
    coalesced: IntCounter,
    shed: IntCounter,
    upstream_duration: HistogramVec,
    upstream_failures: IntCounterVec,
}

impl ForwardMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let cache = IntCounterVec::new(
            Opts::new(CACHE_LOOKUPS, "Forwarded DNS queries by what the cache had for them"),
            &["result"],
        )?;
        let cache_entries = IntGauge::new(CACHE_ENTRIES, "Answers of upstream DNS servers that are kept")?;
        let coalesced =
            IntCounter::new(COALESCED, "Forwarded DNS queries that waited for the answer to an equal one")?;
        let shed =
            IntCounter::new(SHED, "Forwarded DNS queries that were turned away because too many waited")?;
        let upstream_duration = HistogramVec::new(
            HistogramOpts::new(UPSTREAM_DURATION, "Time that an upstream DNS server took to answer")
                .buckets(exponential_buckets(UPSTREAM_BUCKET_FIRST, 2.0, UPSTREAM_BUCKET_COUNT)?),
            &["upstream"],
        )?;
        let upstream_failures = IntCounterVec::new(
            Opts::new(UPSTREAM_FAILURES_TOTAL, "Questions that an upstream DNS server did not answer"),
            &["upstream", "reason"],
        )?;
        registry.register(Box::new(cache.clone()))?;
        registry.register(Box::new(cache_entries.clone()))?;
        registry.register(Box::new(coalesced.clone()))?;
        registry.register(Box::new(shed.clone()))?;
        registry.register(Box::new(upstream_duration.clone()))?;
        registry.register(Box::new(upstream_failures.clone()))?;
        let cache = CACHE_RESULTS.map(|(_, label)| cache.with_label_values(&[label]));
        Ok(Self { cache, cache_entries, coalesced, shed, upstream_duration, upstream_failures })
    }

    /// The instruments of one upstream server.
    pub(crate) fn upstream(&self, address: SocketAddr) -> UpstreamMetrics {
        let address = address.to_string();
        let failures = UPSTREAM_FAILURES
            .map(|(_, reason)| self.upstream_failures.with_label_values(&[address.as_str(), reason]));
        UpstreamMetrics { duration: self.upstream_duration.with_label_values(&[&address]), failures }
    }

    /// The cache was asked.
    pub(crate) fn looked_up(&self, result: CacheResult) {
        self.cache[result as usize].inc();
    }

    /// So many answers are kept.
    pub(crate) fn cached(&self, entries: usize) {
        self.cache_entries.set(gauge_value(entries));
    }

    /// A query is turned away.
    pub(crate) fn shed(&self) {
        self.shed.inc();
    }

    /// A query waits for the answer to an equal one.
    pub(crate) fn coalesced(&self) {
        self.coalesced.inc();
    }
}

/// The instruments of one upstream server.
#[derive(Debug)]
pub(crate) struct UpstreamMetrics {
    duration: Histogram,
    failures: [IntCounter; UPSTREAM_FAILURES.len()],
}

impl UpstreamMetrics {
    /// It answered.
    pub(crate) fn answered(&self, latency: Duration) {
        self.duration.observe(latency.as_secs_f64());
    }

    /// It did not.
    pub(crate) fn failed(&self, reason: UpstreamFailure) {
        self.failures[reason as usize].inc();
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_tables_are_in_the_order_of_their_enums() {
        assert!(KINDS.iter().enumerate().all(|(at, (kind, _))| *kind as usize == at));
        assert!(CODES.iter().enumerate().all(|(at, (code, _))| *code as usize == at));
        assert!(UPSTREAM_FAILURES.iter().enumerate().all(|(at, (reason, _))| *reason as usize == at));
        assert!(CACHE_RESULTS.iter().enumerate().all(|(at, (result, _))| *result as usize == at));
        assert!(TRANSPORTS.iter().enumerate().all(|(at, (transport, _))| *transport as usize == at));
    }
}
