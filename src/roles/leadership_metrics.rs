//! What `/metrics` shows of leadership.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::leadership::{Cause, Stage};

/// Who leads, and how often that has changed.
#[derive(Debug, Clone)]
pub struct LeadershipMetrics {
    leading: IntGauge,
    term: IntGauge,
    elections: IntCounter,
    step_downs: IntCounterVec,
}

impl LeadershipMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let step_downs = Opts::new(
            "mesonet_master_step_downs_total",
            "Times that this master has stopped leading, or could not begin to, by cause.",
        );
        let metrics = Self {
            leading: IntGauge::new("mesonet_master_leading", "1 if this master leads, else 0.")?,
            term: IntGauge::new("mesonet_master_term", "The term of the leader that this master knows.")?,
            elections: IntCounter::new(
                "mesonet_master_elections_total",
                "Times that this master was elected.",
            )?,
            step_downs: IntCounterVec::new(step_downs, &["cause"])?,
        };
        for cause in Cause::ALL {
            metrics.step_downs.with_label_values(&[cause.as_str()]);
        }
        registry.register(Box::new(metrics.leading.clone()))?;
        registry.register(Box::new(metrics.term.clone()))?;
        registry.register(Box::new(metrics.elections.clone()))?;
        registry.register(Box::new(metrics.step_downs.clone()))?;
        Ok(metrics)
    }

    /// This master is elected.
    pub fn elected(&self) {
        self.elections.inc();
    }

    /// It has stopped.
    pub fn stepped_down(&self, cause: Cause) {
        self.step_downs.with_label_values(&[cause.as_str()]).inc();
    }

    /// Where it is, and the term of whoever leads.
    pub fn show(&self, stage: Stage, term: Option<u64>) {
        self.leading.set(i64::from(matches!(stage, Stage::Leading(_))));
        if let Some(term) = term {
            self.term.set(i64::try_from(term).unwrap_or(i64::MAX));
        }
    }
}
