//! Reads quantiles out of exported histograms, as Prometheus does.

use std::collections::BTreeMap;

use prometheus::Registry;

/// Counts of values up to each bound. The values themselves are gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds in ascending order, and how many values were at most that.
    buckets: Vec<(f64, u64)>,
    count: u64,
}

impl Histogram {
    /// The histograms of one name in a registry, by the value of a label.
    pub fn gather(registry: &Registry, name: &str, label: &str) -> BTreeMap<String, Self> {
        let families = registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|f| f.get_metric());
        metrics
            .filter_map(|metric| {
                let key = metric.get_label().iter().find(|pair| pair.name() == label)?.value().to_owned();
                let histogram = metric.get_histogram();
                let buckets = histogram.get_bucket();
                let buckets = buckets.iter().map(|b| (b.upper_bound(), b.cumulative_count())).collect();
                Some((key, Self { buckets, count: histogram.get_sample_count() }))
            })
            .collect()
    }

    /// The values that came after an earlier reading of the same histogram.
    pub fn since(&self, before: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&before.buckets);
        Self {
            buckets: pairs.map(|((bound, now), (_, then))| (*bound, now - then)).collect(),
            count: self.count - before.count,
        }
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that a share of all values does not exceed, taken to be spread evenly in its bucket; the greatest
    /// bound if it is beyond that, and 0 without values.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = share * self.count as f64;
        let mut lower = (0.0, 0);
        for &(bound, count) in &self.buckets {
            if count as f64 >= rank && count > lower.1 {
                let within = (rank - lower.1 as f64) / (count - lower.1) as f64;
                return lower.0 + (bound - lower.0) * within;
            }
            lower = (bound, count);
        }
        lower.0.min(if self.count == 0 { 0.0 } else { f64::INFINITY })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let histogram = Histogram { buckets: vec![(1.0, 10), (2.0, 90), (4.0, 99)], count: 100 };
        assert_eq!(histogram.quantile(0.05), 0.5);
        assert_eq!(histogram.quantile(0.5), 1.5);
        assert_eq!(histogram.quantile(0.99), 4.0);
        assert_eq!(histogram.quantile(0.999), 4.0, "beyond the last bound");
        assert_eq!(Histogram::default().quantile(0.5), 0.0);
    }

    #[test]
    fn a_later_reading_less_an_earlier_one_is_what_came_between() {
        let registry = Registry::new();
        let options = prometheus::HistogramOpts::new("seconds", "Times.").buckets(vec![1.0, 2.0]);
        let metric = prometheus::HistogramVec::new(options, &["plane"]).expect("metric");
        registry.register(Box::new(metric.clone())).expect("registered");
        let observe = |value| metric.with_label_values(&["dns"]).observe(value);
        observe(0.5);
        let before = Histogram::gather(&registry, "seconds", "plane")["dns"].clone();
        observe(1.5);
        observe(1.5);
        let between = Histogram::gather(&registry, "seconds", "plane")["dns"].since(&before);
        assert_eq!(between, Histogram { buckets: vec![(1.0, 0), (2.0, 2)], count: 2 });
    }
}
