//! How old a node's view may be, and keeping it on disk.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesonet_bus::{Feed, LinkState};
use mesonet_model::{ClusterView, Revision};
use prometheus::{Gauge, IntCounter, IntGauge, Registry};
use tokio::sync::watch;

use super::view_cache::ViewCache;
use crate::sources::SourceState;

/// How often the view is looked at, and at most written: what is lost by a crash is this much younger than the disk's.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often a view that does not change is confirmed on disk: by so much it seems older than it is after a restart.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);

/// What is shown of the view.
#[derive(Debug)]
pub struct ViewMetrics {
    age_seconds: Gauge,
    revision: IntGauge,
    connected: IntGauge,
    cache_failures: IntCounter,
}

impl ViewMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            age_seconds: Gauge::new(
                "mesonet_view_age_seconds",
                "Time since a master or another source last confirmed that the view is the newest; 0 while one does.",
            )?,
            revision: IntGauge::new("mesonet_view_revision", "The newest revision that the node has.")?,
            connected: IntGauge::new(
                "mesonet_view_connected",
                "Whether a master is connected, or another source answers: 1 or 0.",
            )?,
            cache_failures: IntCounter::new(
                "mesonet_view_cache_failures_total",
                "Attempts to keep the view on disk that failed.",
            )?,
        };
        registry.register(Box::new(metrics.age_seconds.clone()))?;
        registry.register(Box::new(metrics.revision.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.cache_failures.clone()))?;
        Ok(metrics)
    }
}

/// Who confirms that the view is the newest.
#[derive(Debug)]
pub enum Confirmation {
    /// The master at the other end of the node's connection, while there is one.
    Bus(watch::Receiver<LinkState>),
    /// A source that is asked, while it answers.
    Source(watch::Receiver<SourceState>),
}

impl Confirmation {
    /// The state of a source that knows no revisions, if the view comes from one.
    pub fn source(&self) -> Option<watch::Receiver<SourceState>> {
        match self {
            Self::Bus(_) => None,
            Self::Source(state) => Some(state.clone()),
        }
    }
}

/// Follows a view's age, and keeps the view on disk.
#[derive(Debug)]
pub struct ViewKeeper {
    /// Where views come from.
    pub feed: Feed,
    /// Whether somebody says that the view is the newest.
    pub confirmation: Confirmation,
    /// The disk.
    pub cache: ViewCache,
    /// When a master confirmed the view that the node started with.
    pub confirmed_before: Option<SystemTime>,
    /// From this age on, the view is stale.
    pub stale_after: Duration,
    /// Told whether it is.
    pub stale: watch::Sender<bool>,
    /// What is shown.
    pub metrics: ViewMetrics,
}

/// What is on disk.
#[derive(Debug)]
struct OnDisk {
    revision: Revision,
    confirmed: Instant,
    is_failing: bool,
}

impl ViewKeeper {
    /// Runs until the process ends. `kept` is the revision on disk.
    pub async fn run(self, kept: Revision) {
        let mut on_disk = OnDisk { revision: kept, confirmed: Instant::now(), is_failing: false };
        let mut last_contact = self.confirmed_before;
        loop {
            let connected = self.is_connected();
            if connected {
                last_contact = Some(SystemTime::now());
            }
            let view = self.feed.newest();
            let age = match (&view, last_contact) {
                // The clock may have been set back since.
                (Some(_), Some(contact)) if !connected => contact.elapsed().unwrap_or_default(),
                (Some(_) | None, _) => Duration::ZERO,
            };
            self.show(view.as_deref(), connected, age);
            if connected && let Some(view) = view {
                self.keep(view, &mut on_disk).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn is_connected(&self) -> bool {
        match &self.confirmation {
            Confirmation::Bus(link) => matches!(&*link.borrow(), LinkState::Connected { .. }),
            Confirmation::Source(state) => *state.borrow() == SourceState::Confirmed,
        }
    }

    fn show(&self, view: Option<&ClusterView>, connected: bool, age: Duration) {
        let revision = view.map_or(Revision::ZERO, |view| view.revision);
        self.metrics.revision.set(i64::try_from(revision.0).unwrap_or(i64::MAX));
        self.metrics.connected.set(i64::from(connected));
        self.metrics.age_seconds.set(age.as_secs_f64());
        let is_stale = age >= self.stale_after && !connected && view.is_some();
        let has_changed = self.stale.send_if_modified(|stale| std::mem::replace(stale, is_stale) != is_stale);
        match (has_changed, is_stale) {
            (true, true) => {
                tracing::warn!(?age, %revision, "Nobody confirms the view; answers are marked stale");
            }
            (true, false) => tracing::info!(%revision, "The view is confirmed again"),
            (false, _) => {}
        }
    }

    async fn keep(&self, view: Arc<ClusterView>, on_disk: &mut OnDisk) {
        let revision = view.revision;
        let cache = self.cache.clone();
        let writing = if revision != on_disk.revision {
            tokio::task::spawn_blocking(move || cache.write(&view))
        } else if on_disk.confirmed.elapsed() >= CONFIRM_INTERVAL {
            tokio::task::spawn_blocking(move || cache.confirm())
        } else {
            return;
        };
        match writing.await {
            Ok(Ok(())) => {
                if on_disk.is_failing {
                    tracing::info!(%revision, "The view is kept on disk again");
                }
                *on_disk = OnDisk { revision, confirmed: Instant::now(), is_failing: false };
            }
            Ok(Err(error)) => {
                self.metrics.cache_failures.inc();
                if !on_disk.is_failing {
                    tracing::warn!(%error, %revision, "Cannot keep the view on disk, trying again");
                }
                on_disk.is_failing = true;
            }
            Err(error) => tracing::error!(%error, "BUG: keeping the view has failed"),
        }
    }
}
