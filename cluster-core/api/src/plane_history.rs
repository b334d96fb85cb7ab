//! Since when planes lag or are away.

use imbl::{OrdMap, Vector};
use mesonet_model::{AgentId, Plane, Revision, Timestamp};

/// Commits whose time is remembered. A plane that is further behind has lagged at least since the oldest of them.
const COMMITS_MAX: usize = 4096;

/// Planes that are remembered after their connection has ended; those that are away for the longest are forgotten first.
const AWAY_MAX: usize = 10_000;

/// When recent revisions were committed, and the planes that were connected before. Shares its structure with its
/// clones, because there is one after every turn of the control plane.
#[derive(Debug, Clone, Default)]
pub struct PlaneHistory {
    commits: Vector<(Revision, Timestamp)>,
    away: OrdMap<(AgentId, Plane), AwayPlane>,
}

/// A plane that is not connected any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwayPlane {
    /// What it had applied.
    pub applied: Revision,
    /// Since when it is away.
    pub since: Timestamp,
}

impl PlaneHistory {
    /// A revision is committed.
    pub fn committed(&mut self, revision: Revision, now: Timestamp) {
        if self.commits.len() == COMMITS_MAX {
            self.commits.pop_front();
        }
        self.commits.push_back((revision, now));
    }

    /// A plane is connected.
    pub fn connected(&mut self, node: &AgentId, plane: Plane) {
        if !self.away.is_empty() {
            self.away.remove(&(node.clone(), plane));
        }
    }

    /// A plane is not connected any more.
    pub fn disconnected(&mut self, node: AgentId, plane: Plane, applied: Revision, since: Timestamp) {
        self.away.insert((node, plane), AwayPlane { applied, since });
        if self.away.len() > AWAY_MAX {
            let longest = self.away.iter().min_by_key(|(_, away)| away.since).map(|(key, _)| key.clone());
            longest.and_then(|key| self.away.remove(&key));
        }
    }

    /// A node is not part of the cluster any more.
    pub fn forget(&mut self, node: &AgentId) {
        for plane in [Plane::Dns, Plane::Lb, Plane::Overlay] {
            self.away.remove(&(node.clone(), plane));
        }
    }

    /// Since when something is committed that a plane with this revision lacks; `None` if it lacks nothing.
    pub fn behind_since(&self, applied: Revision) -> Option<Timestamp> {
        let known = self.commits.binary_search_by_key(&applied, |(revision, _)| *revision);
        let next = known.map_or_else(|next| next, |index| index + 1);
        self.commits.get(next).map(|(_, at)| *at)
    }

    /// The planes that are not connected any more.
    pub fn away(&self) -> impl Iterator<Item = (&AgentId, Plane, AwayPlane)> {
        self.away.iter().map(|((node, plane), away)| (node, *plane, *away))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_plane_is_behind_since_the_first_commit_that_it_lacks() {
        let mut history = PlaneHistory::default();
        assert_eq!(history.behind_since(Revision(3)), None);
        for revision in [5, 6, 9] {
            history.committed(Revision(revision), at(i64::try_from(revision).expect("small")));
        }
        for (applied, since) in
            [(1, Some(5)), (5, Some(6)), (6, Some(9)), (7, Some(9)), (9, None), (10, None)]
        {
            assert_eq!(history.behind_since(Revision(applied)), since.map(at), "{applied}");
        }
    }

    #[test]
    fn a_plane_is_away_until_it_is_back_or_its_node_forgotten() {
        let (one, other) = (AgentId::new("n1"), AgentId::new("n2"));
        let mut history = PlaneHistory::default();
        for node in [&one, &other] {
            history.disconnected(node.clone(), Plane::Lb, Revision(4), at(1));
        }
        let away = AwayPlane { applied: Revision(4), since: at(1) };
        assert_eq!(history.away().collect::<Vec<_>>(), [(&one, Plane::Lb, away), (&other, Plane::Lb, away)]);
        history.connected(&one, Plane::Lb);
        history.forget(&other);
        assert_eq!(history.away().count(), 0);
    }
}
