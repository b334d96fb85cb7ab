//! The ways by which the leader hears of planes: their nodes' own connections, and those of masters that stand by.

use std::collections::BTreeSet;

use mesonet_model::{AgentId, Plane, PlaneReport};

use crate::plane_paths::{PlaneKnown, PlanePaths};

/// A connection.
pub(crate) type Way = usize;

/// What is known of every plane.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    paths: PlanePaths<Way>,
    /// Connections of masters that have ended lately. The nodes that were connected there are on their way to another
    /// master: their planes are not gone yet, and are heard of by another way soon.
    ended: BTreeSet<Way>,
}

impl Ways {
    /// A report comes by a way.
    pub(crate) fn report(&mut self, way: Way, report: PlaneReport) -> PlaneKnown {
        for ended in &self.ended {
            drop(self.paths.gone(ended, &report.node, report.plane));
        }
        self.paths.report(way, report)
    }

    /// A plane is not connected by a way any more.
    pub(crate) fn gone(&mut self, way: Way, node: &AgentId, plane: Plane) -> Option<PlaneKnown> {
        self.paths.gone(&way, node, plane)
    }

    /// A master's connection has ended. What it has said counts until its planes are heard of by another way, or until
    /// it is given up.
    pub(crate) fn ended(&mut self, way: Way) {
        self.ended.insert(way);
    }

    /// All that is known by a way is of the past.
    pub(crate) fn give_up(&mut self, way: Way) -> Vec<PlaneKnown> {
        self.ended.remove(&way);
        self.paths.path_gone(&way)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesonet_model::Revision;

    use super::*;

    const HERE: Way = 1;
    const STANDBY: Way = 2;

    fn report(applied: u64) -> PlaneReport {
        PlaneReport {
            node: AgentId::new("n1"),
            plane: Plane::Dns,
            applied: Revision(applied),
            busy: BTreeSet::new(),
            failed: BTreeMap::new(),
        }
    }

    fn gone() -> PlaneKnown {
        PlaneKnown::Gone { node: AgentId::new("n1"), plane: Plane::Dns }
    }

    #[test]
    fn a_node_that_changes_to_another_master_is_never_taken_to_be_gone() {
        let mut ways = Ways::default();
        assert_eq!(ways.report(STANDBY, report(5)), PlaneKnown::Report(report(5)));
        ways.ended(STANDBY);
        assert_eq!(ways.report(HERE, report(7)), PlaneKnown::Report(report(7)), "the old way counts no more");
        assert_eq!(ways.give_up(STANDBY), []);
        assert_eq!(ways.gone(HERE, &AgentId::new("n1"), Plane::Dns), Some(gone()));
    }

    #[test]
    fn a_node_that_does_not_come_back_is_gone_in_the_end() {
        let mut ways = Ways::default();
        ways.report(STANDBY, report(5));
        ways.ended(STANDBY);
        assert_eq!(ways.give_up(STANDBY), [gone()]);
    }

    #[test]
    fn while_both_ways_are_open_the_older_report_counts() {
        let mut ways = Ways::default();
        ways.report(STANDBY, report(5));
        assert_eq!(ways.report(HERE, report(7)), PlaneKnown::Report(report(5)));
        let known = ways.gone(STANDBY, &AgentId::new("n1"), Plane::Dns);
        assert_eq!(known, Some(PlaneKnown::Report(report(7))));
    }
}
