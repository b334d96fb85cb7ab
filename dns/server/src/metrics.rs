//! The server's instruments.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use mesonet_dns_zone::NameError;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

const QUERIES: &str = "mesonet_dns_queries_total";
const QUERY_DURATION: &str = "mesonet_dns_query_duration_seconds";
const RECORDS: &str = "mesonet_dns_records";
const RECORDS_LEFT_OUT: &str = "mesonet_dns_records_left_out";
const APPLY_DURATION: &str = "mesonet_dns_apply_duration_seconds";
const MALFORMED: &str = "mesonet_dns_malformed_total";

/// Smallest histogram bucket in seconds: about what one answer takes.
const BUCKET_FIRST: f64 = 0.000_004;

/// Each bucket is so much wider than the one before.
const BUCKET_FACTOR: f64 = 4.0;

/// Number of buckets; the last one ends at about a second.
const BUCKET_COUNT: usize = 10;

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
}

const KINDS: [(KindLabel, &str); 8] = [
    (KindLabel::A, "A"),
    (KindLabel::Aaaa, "AAAA"),
    (KindLabel::Srv, "SRV"),
    (KindLabel::Soa, "SOA"),
    (KindLabel::Ns, "NS"),
    (KindLabel::Ptr, "PTR"),
    (KindLabel::Any, "ANY"),
    (KindLabel::Other, "other"),
];

const CODES: [(CodeLabel, &str); 6] = [
    (CodeLabel::NoError, "NOERROR"),
    (CodeLabel::ServFail, "SERVFAIL"),
    (CodeLabel::NxDomain, "NXDOMAIN"),
    (CodeLabel::NotImp, "NOTIMP"),
    (CodeLabel::Refused, "REFUSED"),
    (CodeLabel::BadVers, "BADVERS"),
];

const TRANSPORTS: [(Transport, &str); 2] = [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")];

const REASONS: [(NameError, &str); 4] = [
    (NameError::EmptyLabel, "empty_label"),
    (NameError::LabelTooLong, "label_too_long"),
    (NameError::NameTooLong, "name_too_long"),
    (NameError::Character, "character"),
];

/// The server's instruments.
#[derive(Debug)]
pub(crate) struct Metrics {
    queries: IntCounterVec,
    /// The counters of `queries` that were used, so that a query takes no lock and unused ones are not shown.
    used: Box<[OnceLock<IntCounter>]>,
    query_duration: Histogram,
    records: IntGauge,
    records_left_out: IntGaugeVec,
    apply_duration: Histogram,
    malformed: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queries = IntCounterVec::new(
            Opts::new(QUERIES, "DNS queries by type, result and transport"),
            &["type", "rcode", "transport"],
        )?;
        let query_duration = Histogram::with_opts(
            HistogramOpts::new(QUERY_DURATION, "Time from reading a DNS query to having its answer")
                .buckets(exponential_buckets(BUCKET_FIRST, BUCKET_FACTOR, BUCKET_COUNT)?),
        )?;
        let records = IntGauge::new(RECORDS, "DNS records served")?;
        let records_left_out = IntGaugeVec::new(
            Opts::new(RECORDS_LEFT_OUT, "DNS records left out because their names would not be valid"),
            &["reason"],
        )?;
        let apply_duration = Histogram::with_opts(
            HistogramOpts::new(APPLY_DURATION, "Time to put a change of the cluster into the DNS zone")
                .buckets(exponential_buckets(BUCKET_FIRST, BUCKET_FACTOR, BUCKET_COUNT)?),
        )?;
        let malformed = IntCounter::new(MALFORMED, "DNS messages that could not be read")?;
        registry.register(Box::new(queries.clone()))?;
        registry.register(Box::new(query_duration.clone()))?;
        registry.register(Box::new(records.clone()))?;
        registry.register(Box::new(records_left_out.clone()))?;
        registry.register(Box::new(apply_duration.clone()))?;
        registry.register(Box::new(malformed.clone()))?;
        let cells = KINDS.len() * CODES.len() * TRANSPORTS.len();
        let used = (0..cells).map(|_| OnceLock::new()).collect();
        Ok(Self { queries, used, query_duration, records, records_left_out, apply_duration, malformed })
    }

    /// A query was answered.
    pub(crate) fn answered(
        &self,
        kind: KindLabel,
        code: CodeLabel,
        transport: Transport,
        duration: Duration,
    ) {
        let cell = (kind as usize * CODES.len() + code as usize) * TRANSPORTS.len() + transport as usize;
        let counter = self.used[cell].get_or_init(|| {
            let labels = [KINDS[kind as usize].1, CODES[code as usize].1, TRANSPORTS[transport as usize].1];
            self.queries.with_label_values(&labels)
        });
        counter.inc();
        self.query_duration.observe(duration.as_secs_f64());
    }

    /// A message could not be read.
    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }

    /// A view was applied.
    pub(crate) fn applied(&self, duration: Duration, records: usize, left_out: &BTreeMap<NameError, usize>) {
        self.apply_duration.observe(duration.as_secs_f64());
        self.records.set(gauge_value(records));
        for (error, reason) in REASONS {
            let count = left_out.get(&error).copied().unwrap_or_default();
            self.records_left_out.with_label_values(&[reason]).set(gauge_value(count));
        }
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
        assert!(TRANSPORTS.iter().enumerate().all(|(at, (transport, _))| *transport as usize == at));
    }
}
