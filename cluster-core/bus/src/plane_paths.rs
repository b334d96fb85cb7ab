//! What is known of planes whose reports come by more than one way.
//!
//! A network daemon may be connected to any master, and those that stand by pass reports on to the leader. When a daemon
//! goes from one master to another, for a while reports arrive by both ways, and nothing orders them: what comes by the
//! way that is given up may be late, and so may be the news that it is given up. So each way has a report of its own,
//! and what counts is what all of them bear out: the oldest revision, and every task that one of them calls busy. That
//! is never better than what the plane has in effect, so that no drain ends too early.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{AgentId, Plane, PlaneReport};

/// The latest report of each plane by each way.
#[derive(Debug, Clone)]
pub struct PlanePaths<Path>(BTreeMap<(AgentId, Plane), BTreeMap<Path, PlaneReport>>);

/// What is known of a plane from a moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneKnown {
    /// What it has in effect at least, and is busy with at most.
    Report(PlaneReport),
    /// No way leads to it.
    Gone {
        /// The node.
        node: AgentId,
        /// The plane.
        plane: Plane,
    },
}

impl<Path> Default for PlanePaths<Path> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Path: Ord> PlanePaths<Path> {
    /// A report comes by a way, whose earlier report it replaces.
    pub fn report(&mut self, path: Path, report: PlaneReport) -> PlaneKnown {
        let key = (report.node.clone(), report.plane);
        self.0.entry(key.clone()).or_default().insert(path, report);
        self.known(&key)
    }

    /// A way to a plane is given up. Nothing if none was known.
    pub fn gone(&mut self, path: &Path, node: &AgentId, plane: Plane) -> Option<PlaneKnown> {
        let key = (node.clone(), plane);
        let paths = self.0.get_mut(&key)?;
        paths.remove(path)?;
        if paths.is_empty() {
            self.0.remove(&key);
        }
        Some(self.known(&key))
    }

    /// A way to many planes is given up, such as the connection of a master that stands by.
    pub fn path_gone(&mut self, path: &Path) -> Vec<PlaneKnown> {
        let of_path = self.0.iter().filter(|(_, paths)| paths.contains_key(path));
        let keys: Vec<(AgentId, Plane)> = of_path.map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|(node, plane)| self.gone(path, node, *plane)).collect()
    }

    fn known(&self, key: &(AgentId, Plane)) -> PlaneKnown {
        let reports = self.0.get(key).map(BTreeMap::values);
        let newest = reports.clone().and_then(|reports| reports.max_by_key(|report| report.applied));
        let (Some(reports), Some(newest)) = (reports, newest) else {
            let (node, plane) = key.clone();
            return PlaneKnown::Gone { node, plane };
        };
        let applied = reports.clone().map(|report| report.applied).min().unwrap_or(newest.applied);
        let busy: BTreeSet<_> = reports.flat_map(|report| report.busy.iter().cloned()).collect();
        PlaneKnown::Report(PlaneReport { applied, busy, ..newest.clone() })
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, Revision, TaskId, TaskKey};

    use super::*;

    fn task(id: &str) -> TaskKey {
        TaskKey::new(FrameworkId::new("f"), TaskId::new(id))
    }

    fn report(applied: u64, busy: &[&str]) -> PlaneReport {
        PlaneReport {
            node: AgentId::new("n"),
            plane: Plane::Lb,
            applied: Revision(applied),
            busy: busy.iter().map(|id| task(id)).collect(),
            failed: BTreeMap::new(),
            outage: None,
            tunnel: None,
        }
    }

    fn node() -> AgentId {
        AgentId::new("n")
    }

    #[test]
    fn by_one_way_the_latest_report_counts() {
        let mut paths = PlanePaths::default();
        paths.report("a", report(5, &["t"]));
        assert_eq!(paths.report("a", report(6, &[])), PlaneKnown::Report(report(6, &[])));
        assert_eq!(paths.report("a", report(3, &[])), PlaneKnown::Report(report(3, &[])), "it began anew");
    }

    #[test]
    fn what_comes_late_by_a_way_given_up_ends_no_wait() {
        let mut paths = PlanePaths::default();
        paths.report("a", report(5, &["t"]));
        assert_eq!(paths.report("b", report(7, &["u"])), PlaneKnown::Report(report(5, &["t", "u"])));
        assert_eq!(paths.report("a", report(6, &[])), PlaneKnown::Report(report(6, &["u"])));
        assert_eq!(
            paths.gone(&"a", &node(), Plane::Lb),
            Some(PlaneKnown::Report(report(7, &["u"]))),
            "the plane is there by the other way"
        );
        let gone = PlaneKnown::Gone { node: node(), plane: Plane::Lb };
        assert_eq!(paths.gone(&"b", &node(), Plane::Lb), Some(gone));
        assert_eq!(paths.gone(&"b", &node(), Plane::Lb), None, "said once");
    }

    #[test]
    fn the_end_of_a_way_ends_it_for_all_planes() {
        let mut paths = PlanePaths::default();
        paths.report("a", report(5, &[]));
        paths.report("a", PlaneReport { plane: Plane::Dns, ..report(5, &[]) });
        paths.report("b", PlaneReport { plane: Plane::Dns, ..report(6, &[]) });
        let dns = PlaneKnown::Report(PlaneReport { plane: Plane::Dns, ..report(6, &[]) });
        let lb = PlaneKnown::Gone { node: node(), plane: Plane::Lb };
        assert_eq!(paths.path_gone(&"a"), [dns, lb]);
        assert_eq!(paths.path_gone(&"a"), []);
    }
}
