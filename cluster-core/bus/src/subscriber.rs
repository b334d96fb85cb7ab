//! A plane's end of the bus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesonet_model::{
    AgentId, ClusterView, Delta, Plane, PlaneReport, Revision, ServiceKey, TaskKey, TunnelReport,
};

use crate::{Feed, PlaneNews, Report};

/// A new view, and how it differs from the one before.
#[derive(Debug, Clone)]
pub struct Update {
    /// The newest view.
    pub view: Arc<ClusterView>,
    /// What changed since the last update; from an empty view the first time.
    pub delta: Delta,
}

/// Follows the cluster for one plane of one node.
#[derive(Debug)]
pub struct Subscriber {
    feed: Feed,
    node: AgentId,
    plane: Plane,
    seen: Option<Arc<ClusterView>>,
    applied: Revision,
}

impl Subscriber {
    pub(crate) fn new(feed: Feed, node: AgentId, plane: Plane) -> Self {
        // What was committed before somebody followed has not waited for this plane.
        let applied = feed.newest().map_or(Revision::ZERO, |view| view.revision);
        Self { feed, node, plane, seen: None, applied }
    }

    /// Waits for a view newer than the last one returned; `None` when the control plane is gone.
    ///
    /// Cancel-safe: an update that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Update> {
        let seen = self.seen.as_ref().map(|view| view.revision);
        let is_newer = |view: &Option<Arc<ClusterView>>| {
            view.as_ref().is_some_and(|view| seen.is_none_or(|seen| view.revision > seen))
        };
        let view = self.feed.views.wait_for(is_newer).await.ok()?.clone()?;
        let delta = match &self.seen {
            Some(seen) => Delta::between(seen, &view),
            None => Delta::between(&ClusterView::empty(view.cluster.clone()), &view),
        };
        self.seen = Some(view.clone());
        Some(Update { view, delta })
    }

    /// Waits until there is a view of at least a revision, or the control plane is gone. Nothing is returned by that.
    pub async fn reaches(&mut self, revision: Revision) {
        let reaches =
            |view: &Option<Arc<ClusterView>>| view.as_ref().is_some_and(|view| view.revision >= revision);
        let _ = self.feed.views.wait_for(reaches).await;
    }

    /// Reports what is in effect: everything up to a revision, which draining tasks still have open connections, and
    /// which services could not be put into effect.
    pub async fn report(
        &mut self,
        applied: Revision,
        busy: BTreeSet<TaskKey>,
        failed: BTreeMap<ServiceKey, String>,
    ) {
        self.say(applied, (busy, failed), None).await;
    }

    /// Reports what is in effect of the overlay, and what there is to say of tunnels.
    pub async fn report_tunnel(&mut self, applied: Revision, tunnel: TunnelReport) {
        self.say(applied, (BTreeSet::new(), BTreeMap::new()), Some(Box::new(tunnel))).await;
    }

    async fn say(
        &mut self,
        applied: Revision,
        (busy, failed): (BTreeSet<TaskKey>, BTreeMap<ServiceKey, String>),
        tunnel: Option<Box<TunnelReport>>,
    ) {
        let commits = self.feed.commits.between(self.applied, applied);
        self.applied = self.applied.max(applied);
        let (node, plane) = (self.node.clone(), self.plane);
        // Whether there were masters is added where they are connected.
        let report = PlaneReport { node, plane, applied, busy, failed, outage: None, tunnel };
        let latencies = commits.into_iter().map(|at| at.elapsed()).collect();
        // Only fails when the control plane is gone, and then nobody waits for the report.
        let _ = self.feed.reports.send(PlaneNews::Report(Report { report, latencies })).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesonet_model::ClusterId;

    fn view(revision: u64) -> ClusterView {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        view.revision = Revision(revision);
        view
    }

    #[tokio::test]
    async fn a_slow_reader_sees_one_merged_delta() {
        let (publisher, feed, _reports) = crate::channel();
        let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Dns);
        publisher.publish(view(1));
        assert_eq!(subscriber.next().await.expect("update").delta.to, Revision(1));
        publisher.publish(view(2));
        publisher.publish(view(3));
        let update = subscriber.next().await.expect("update");
        assert_eq!((update.delta.from, update.delta.to), (Revision(1), Revision(3)));
    }

    #[tokio::test]
    async fn a_report_carries_one_latency_per_revision() {
        let (publisher, feed, mut reports) = crate::channel();
        let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Lb);
        for revision in 1..=3 {
            publisher.publish(view(revision));
        }
        subscriber.next().await.expect("update");
        subscriber.report(Revision(3), BTreeSet::new(), BTreeMap::new()).await;
        let PlaneNews::Report(report) = reports.recv().await.expect("report") else { panic!("gone") };
        assert_eq!(report.report.applied, Revision(3));
        assert_eq!(report.latencies.len(), 3);
    }

    #[tokio::test]
    async fn a_late_subscriber_is_not_charged_for_what_came_before_it() {
        let (publisher, feed, mut reports) = crate::channel();
        publisher.publish(view(1));
        let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Dns);
        assert_eq!(subscriber.next().await.expect("snapshot").delta.from, Revision::ZERO);
        subscriber.report(Revision(1), BTreeSet::new(), BTreeMap::new()).await;
        let PlaneNews::Report(report) = reports.recv().await.expect("report") else { panic!("gone") };
        assert!(report.latencies.is_empty());
    }

    #[tokio::test]
    async fn the_end_of_the_control_plane_ends_the_feed() {
        let (publisher, feed, _reports) = crate::channel();
        let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Dns);
        drop(publisher);
        assert!(subscriber.next().await.is_none());
    }
}
