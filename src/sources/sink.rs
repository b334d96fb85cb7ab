//! Where every source puts what it has found.

use std::time::{SystemTime, UNIX_EPOCH};

use mesonet_bus::Publisher;
use mesonet_model::{ClusterView, Delta, Revision};
use prometheus::{IntCounter, Registry};
use tokio::sync::watch;

/// What is shown of a source.
#[derive(Debug, Clone)]
pub struct SourceMetrics {
    /// Times that the source was asked or subscribed to, also in vain.
    pub attempts: IntCounter,
    /// Of those, the ones in vain, and subscriptions that ended.
    pub failures: IntCounter,
    /// What has come from it.
    pub received_bytes: IntCounter,
    /// Things in what came that could not be used.
    pub left_out: IntCounter,
}

impl SourceMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            attempts: counter(
                "mesonet_source_attempts_total",
                "Times that the source of the view was read or subscribed to.",
            )?,
            failures: counter(
                "mesonet_source_failures_total",
                "Times that this failed, and subscriptions that ended.",
            )?,
            received_bytes: counter(
                "mesonet_source_received_bytes_total",
                "Bytes that came from the source.",
            )?,
            left_out: counter(
                "mesonet_source_left_out_total",
                "Tasks, agents and frameworks that came from the source and could not be used.",
            )?,
        })
    }
}

/// Whether a source says how things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It has not been reached yet.
    Unknown,
    /// The newest view is what it says.
    Confirmed,
    /// It was not reached the last time, and why.
    Lost(String),
}

/// Publishes what a source finds.
///
/// A source knows no revisions and no changes, only how things are. A revision is at least the time in seconds since
/// 1970, so that it goes up from one run of the program to the next, as mesos-dns' serial does.
#[derive(Debug)]
pub struct Sink {
    publisher: Publisher,
    /// What was published last.
    newest: ClusterView,
    /// What the source said last. It differs from what was published in nothing but its revision; but its maps are the
    /// source's own, so that what has changed is found at the cost of what has changed.
    seen: ClusterView,
    state: watch::Sender<SourceState>,
    /// What is shown.
    pub metrics: SourceMetrics,
}

impl Sink {
    /// A sink on top of a view, the one from disk or an empty one. Also tells how the source is.
    pub fn new(
        publisher: Publisher,
        newest: ClusterView,
        metrics: SourceMetrics,
    ) -> (Self, watch::Receiver<SourceState>) {
        let (state, source_state) = watch::channel(SourceState::Unknown);
        let seen = newest.clone();
        (Self { publisher, newest, seen, state, metrics }, source_state)
    }

    /// How things are.
    pub fn found(&mut self, view: &ClusterView) {
        self.publish(view);
        self.confirm();
    }

    /// How things are as far as is known.
    pub fn publish(&mut self, view: &ClusterView) {
        let mut delta = Delta::between(&self.seen, view);
        self.seen = view.clone();
        // The first view is published even if the cluster is empty: from then on, that is known.
        if !delta.is_empty() || self.newest.revision == Revision::ZERO {
            delta.from = self.newest.revision;
            delta.to = next_revision(self.newest.revision);
            self.newest.apply(&delta).expect("BUG: the delta starts at this view");
            tracing::debug!(revision = %self.newest.revision, tasks = delta.tasks.0.len(), "The source has changed");
            self.publisher.publish(self.newest.clone());
        }
    }

    /// What was found last is how things are.
    pub fn confirm(&mut self) {
        self.state.send_if_modified(|state| match std::mem::replace(state, SourceState::Confirmed) {
            SourceState::Confirmed => false,
            SourceState::Unknown => true,
            SourceState::Lost(error) => {
                tracing::info!(revision = %self.newest.revision, error, "The source of the view is reached again");
                true
            }
        });
    }

    /// The source does not say how things are. The same reason is not logged as a warning again and again.
    pub fn lost(&mut self, error: &anyhow::Error) {
        self.metrics.failures.inc();
        let error = format!("{error:#}");
        let lost = SourceState::Lost(error.clone());
        let is_new = self.state.send_if_modified(|state| std::mem::replace(state, lost.clone()) != lost);
        if is_new {
            tracing::warn!(error, "The source of the view is not reached, trying again; what is known stays");
        } else {
            tracing::debug!(error, "The source of the view is still not reached, trying again");
        }
    }
}

fn next_revision(last: Revision) -> Revision {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Revision(now.max(last.0 + 1))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use mesonet_model::{ClusterId, Master, MasterId};

    use super::*;

    #[test]
    fn only_what_differs_is_published_and_revisions_go_up() {
        let (publisher, feed, _reports) = mesonet_bus::channel();
        let metrics = SourceMetrics::register(&Registry::new()).expect("metrics");
        let empty = ClusterView::empty(ClusterId::new("c"));
        let (mut sink, state) = Sink::new(publisher, empty.clone(), metrics);
        assert_eq!(*state.borrow(), SourceState::Unknown);
        sink.found(&empty);
        let first = feed.newest().expect("an empty cluster is known as well");
        assert!(first.revision.0 > 1_500_000_000);
        assert_eq!(*state.borrow(), SourceState::Confirmed);
        sink.found(&empty);
        assert_eq!(feed.newest().expect("view").revision, first.revision, "nothing has changed");
        sink.lost(&anyhow::anyhow!("gone"));
        assert_eq!(*state.borrow(), SourceState::Lost("gone".to_owned()));
        let mut changed = empty;
        let master = Master {
            id: MasterId::new("m"),
            address: SocketAddr::from(([127, 0, 0, 1], 5050)),
            leading: true,
            removal_held: false,
        };
        changed.masters.insert(master.id.clone(), Arc::new(master));
        sink.found(&changed);
        let second = feed.newest().expect("view");
        assert!(second.revision > first.revision && second.masters == changed.masters);
        assert_eq!(*state.borrow(), SourceState::Confirmed);
    }
}
