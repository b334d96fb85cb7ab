//! The two ends of the bus on the control plane's side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_model::{AgentId, ClusterView, Plane, PlaneReport, Revision};
use tokio::sync::{mpsc, watch};

use crate::Subscriber;
use crate::commit_log::CommitLog;

/// Reports under way to the control plane. When the queue is full, planes wait before they report, which only delays
/// acknowledgements.
pub const REPORTS_MAX: usize = 1024;

/// A plane's report, and how long each revision that it newly covers took from commit to applied.
#[derive(Debug)]
pub struct Report {
    /// What is in effect.
    pub report: PlaneReport,
    /// One value per revision that is newly in effect and was committed after the plane had subscribed.
    pub latencies: Vec<Duration>,
}

/// What reaches the control plane from planes, in order.
#[derive(Debug)]
pub enum PlaneNews {
    /// A plane reports.
    Report(Report),
    /// A plane's node is not connected any more. Said by the bus.
    Gone {
        /// The node.
        node: AgentId,
        /// The plane.
        plane: Plane,
    },
    /// A node has a newer view than there is: the records are older ones that somebody has put back. Said by the bus, maybe
    /// more than once, and before the report that shows it.
    Ahead {
        /// Its revision.
        revision: Revision,
    },
    /// A node's certificates were declared void, and it is cut off. Said by the bus, and maybe more than once.
    Revoked {
        /// The node.
        node: AgentId,
    },
}

/// Where the control plane puts each new view.
#[derive(Debug)]
pub struct Publisher {
    views: watch::Sender<Option<Arc<ClusterView>>>,
    commits: Arc<CommitLog>,
}

/// Where planes subscribe.
#[derive(Debug, Clone)]
pub struct Feed {
    pub(crate) views: watch::Receiver<Option<Arc<ClusterView>>>,
    pub(crate) reports: mpsc::Sender<PlaneNews>,
    pub(crate) commits: Arc<CommitLog>,
}

/// A bus within this process: its two ends, and the planes' reports.
pub fn channel() -> (Publisher, Feed, mpsc::Receiver<PlaneNews>) {
    let (views_in, views) = watch::channel(None);
    let (reports, reports_out) = mpsc::channel(REPORTS_MAX);
    let commits = Arc::new(CommitLog::default());
    (Publisher { views: views_in, commits: commits.clone() }, Feed { views, reports, commits }, reports_out)
}

impl Publisher {
    /// Makes a view the newest one. Views with the revision of the newest one are ignored.
    pub fn publish(&self, view: ClusterView) {
        self.views.send_if_modified(|newest| {
            if newest.as_ref().is_some_and(|newest| newest.revision >= view.revision) {
                return false;
            }
            self.commits.record(view.revision, Instant::now());
            *newest = Some(Arc::new(view));
            true
        });
    }
}

impl Publisher {
    /// Follows what is published.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<ClusterView>>> {
        self.views.subscribe()
    }
}

impl Feed {
    /// Follows the cluster on behalf of a plane.
    pub fn subscribe(&self, node: AgentId, plane: Plane) -> Subscriber {
        Subscriber::new(self.clone(), node, plane)
    }

    /// The newest view, if there is one yet.
    pub fn newest(&self) -> Option<Arc<ClusterView>> {
        self.views.borrow().clone()
    }
}
