//! Queries as metrics: those of the full path as they come, those of the fast path's threads when they are asked for.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mesonet_dns_zone::Name;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram as HistogramValue, LabelPair, Metric, MetricFamily};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use crate::fast::ThreadCounters;
use crate::metrics::{
    BUCKET_COUNT, CODE_COUNT, CODES, CodeLabel, KIND_COUNT, KINDS, KindLabel, TRANSPORTS, Transport,
    bucket_bounds,
};

const QUERIES: &str = "mesonet_dns_queries_total";
const QUERY_DURATION: &str = "mesonet_dns_query_duration_seconds";
const DROPPED: &str = "mesonet_dns_dropped_total";

const PATH_LABEL: &str = "path";
const FAST: &str = "fast";
const FULL: &str = "full";

/// Zones that are counted apart. Further ones are counted together with names outside all zones.
pub(crate) const ZONE_COUNT: usize = 16;

/// A zone as a metric label; the first number stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ZoneLabel(u8);

impl ZoneLabel {
    /// A name outside all zones.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn number(self) -> usize {
        usize::from(self.0)
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..ZONE_COUNT).filter_map(|number| u8::try_from(number).ok()).map(Self)
    }
}

/// The instruments for queries.
#[derive(Debug, Clone)]
pub(crate) struct QueryMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queries: IntCounterVec,
    /// The counters of the full path that were used, so that a query takes no lock and unused ones are not shown.
    used: Box<[OnceLock<IntCounter>]>,
    duration: HistogramVec,
    dropped: IntCounterVec,
    zones: Mutex<Vec<Name>>,
    threads: Mutex<Threads>,
}

#[derive(Debug)]
struct Threads {
    counters: Vec<Arc<ThreadCounters>>,
    /// What was added to `queries` so far, by zone, type and result.
    shown: Vec<u64>,
    shown_queue_full: u64,
    shown_refused: u64,
}

impl QueryMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queries = IntCounterVec::new(
            Opts::new(QUERIES, "DNS queries by zone, type, result, path through the server and transport"),
            &["zone", "type", "rcode", PATH_LABEL, "transport"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(QUERY_DURATION, "Time from reading a DNS query to having its answer")
                .buckets(bucket_bounds().into()),
            &[PATH_LABEL],
        )?;
        let dropped = IntCounterVec::new(Opts::new(DROPPED, "DNS queries that got no answer"), &["reason"])?;
        let cells = ZONE_COUNT * KIND_COUNT * CODE_COUNT;
        let metrics = Self(Arc::new(Inner {
            queries,
            used: (0..cells * TRANSPORTS.len()).map(|_| OnceLock::new()).collect(),
            duration,
            dropped,
            zones: Mutex::new(Vec::new()),
            threads: Mutex::new(Threads {
                counters: Vec::new(),
                shown: vec![0; cells],
                shown_queue_full: 0,
                shown_refused: 0,
            }),
        }));
        registry.register(Box::new(metrics.clone()))?;
        Ok(metrics)
    }

    /// The label of a zone.
    pub(crate) fn zone(&self, apex: &Name) -> ZoneLabel {
        let mut zones = self.0.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let known = zones.iter().position(|zone| zone == apex);
        let number = known.unwrap_or_else(|| {
            if zones.len() + 1 < ZONE_COUNT {
                zones.push(apex.clone());
                zones.len() - 1
            } else {
                ZONE_COUNT
            }
        });
        u8::try_from(number + 1).ok().filter(|_| number + 1 < ZONE_COUNT).map_or(ZoneLabel::NONE, ZoneLabel)
    }

    /// Counters for a thread of the fast path.
    pub(crate) fn thread(&self) -> Arc<ThreadCounters> {
        let counters = Arc::new(ThreadCounters::new());
        let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.counters.push(counters.clone());
        counters
    }

    /// The full path answered a query.
    pub(crate) fn answered(
        &self,
        zone: ZoneLabel,
        kind: KindLabel,
        code: CodeLabel,
        transport: Transport,
        duration: Duration,
    ) {
        let inner = &*self.0;
        let cell = cell(zone, kind, code) * TRANSPORTS.len() + transport as usize;
        let counter = inner.used[cell].get_or_init(|| {
            let transport = TRANSPORTS[transport as usize].1;
            inner.queries.with_label_values(&self.0.labels(zone, kind, code, FULL, transport))
        });
        counter.inc();
        inner.duration.with_label_values(&[FULL]).observe(duration.as_secs_f64());
    }
}

impl Inner {
    fn labels(
        &self,
        zone: ZoneLabel,
        kind: KindLabel,
        code: CodeLabel,
        path: &str,
        transport: &str,
    ) -> [String; 5] {
        let zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let apex = zone.number().checked_sub(1).and_then(|at| zones.get(at));
        let zone = apex.map_or_else(|| "none".to_owned(), |apex| apex.to_string());
        [
            zone,
            KINDS[kind as usize].1.to_owned(),
            CODES[code as usize].1.to_owned(),
            path.to_owned(),
            transport.to_owned(),
        ]
    }

    /// Adds what the threads counted since the last time.
    fn add_threads(&self, threads: &mut Threads) {
        let udp = TRANSPORTS[Transport::Udp as usize].1;
        for zone in ZoneLabel::all() {
            for (kind, _) in KINDS {
                for (code, _) in CODES {
                    let total: u64 =
                        threads.counters.iter().map(|thread| thread.answered_total(zone, kind, code)).sum();
                    let shown = &mut threads.shown[cell(zone, kind, code)];
                    let more = total.saturating_sub(*shown);
                    if more > 0 {
                        *shown = total;
                        self.queries
                            .with_label_values(&self.labels(zone, kind, code, FAST, udp))
                            .inc_by(more);
                    }
                }
            }
        }
        let queue_full: u64 = threads.counters.iter().map(|thread| thread.dropped_total()).sum();
        let refused: u64 = threads.counters.iter().map(|thread| thread.refused_total()).sum();
        for (reason, total, shown) in [
            ("queue_full", queue_full, &mut threads.shown_queue_full),
            ("not_sent", refused, &mut threads.shown_refused),
        ] {
            self.dropped.with_label_values(&[reason]).inc_by(total.saturating_sub(*shown));
            *shown = total;
        }
    }

    /// The latencies of the threads as one metric.
    fn thread_durations(threads: &Threads) -> Metric {
        let mut counts = [0_u64; BUCKET_COUNT + 1];
        let mut seconds = 0.0;
        for thread in &threads.counters {
            let (more, sum) = thread.durations();
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            seconds += sum;
        }
        let mut cumulative = 0;
        let buckets = bucket_bounds().into_iter().zip(counts).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut value = HistogramValue::default();
        value.set_bucket(buckets.collect());
        value.set_sample_count(counts.iter().sum());
        value.set_sample_sum(seconds);
        let mut label = LabelPair::default();
        label.set_name(PATH_LABEL.to_owned());
        label.set_value(FAST.to_owned());
        let mut metric = Metric::from_label(vec![label]);
        metric.set_histogram(value);
        metric
    }
}

impl Collector for QueryMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let inner = &*self.0;
        [inner.queries.desc(), inner.duration.desc(), inner.dropped.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let inner = &*self.0;
        // So that the family is there even if the full path answered nothing.
        inner.duration.with_label_values(&[FULL]);
        let mut threads = inner.threads.lock().unwrap_or_else(PoisonError::into_inner);
        inner.add_threads(&mut threads);
        let mut durations = inner.duration.collect();
        for family in &mut durations {
            family.mut_metric().push(Inner::thread_durations(&threads));
        }
        [inner.queries.collect(), durations, inner.dropped.collect()].concat()
    }
}

fn cell(zone: ZoneLabel, kind: KindLabel, code: CodeLabel) -> usize {
    (zone.number() * KIND_COUNT + kind as usize) * CODE_COUNT + code as usize
}
