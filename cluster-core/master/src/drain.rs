//! Drains: a task is killed once no plane sends clients to it any more.
//!
//! ```text
//!            begin                ready or deadline
//! (running) ───────► Waiting ───────────────────────► Killed ───► (forgotten when the task ends)
//!     │                                                  ▲
//!     └──────────────────── kill at once ────────────────┘
//! ```
//!
//! A drain is ready when every plane that is known has applied the revision that withdrew the task's endpoints, and no
//! plane still has connections to the task. Planes may join and leave meanwhile; one that is not connected any more may
//! well go on sending clients, and is waited for until it has had the time to connect again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_model::{AgentId, Plane, PlaneReport, Revision, TaskKey, Timestamp};

/// How long after a restart of the master, or after the loss of their connection, planes may take to report again; before,
/// their silence does not mean that they are gone. Several times what a plane waits between two attempts to connect.
const RECONNECT_TIME: Duration = Duration::from_secs(5);

/// Every drain that is under way, and what is known of the planes.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    planes: BTreeMap<PlaneId, PlaneState>,
    /// How many planes are at each revision; the first key is what all have applied.
    applied: BTreeMap<Revision, usize>,
    /// The planes that have connections to a task.
    busy: BTreeMap<TaskKey, BTreeSet<PlaneId>>,
    drains: BTreeMap<TaskKey, Drain>,
    /// Waiting drains by the revision that they wait for.
    by_revision: BTreeMap<Revision, BTreeSet<TaskKey>>,
    /// Waiting drains by the next time at which they may end without a report.
    by_time: BTreeSet<(Timestamp, TaskKey)>,
    /// Planes that are not connected, by when they are not waited for any more.
    lost: BTreeSet<(Timestamp, PlaneId)>,
    /// Tasks to be killed that have not been handed out.
    due: BTreeSet<TaskKey>,
    /// Until then no drain is ready, whatever the planes have said: some may have to report yet.
    planes_expected_until: Timestamp,
}

type PlaneId = (AgentId, Plane);

#[derive(Debug)]
struct PlaneState {
    applied: Revision,
    busy: BTreeSet<TaskKey>,
    /// Until when it is waited for, if it is not connected.
    lost_at: Option<Timestamp>,
}

#[derive(Debug)]
enum Drain {
    Waiting {
        /// What the planes must have applied.
        revision: Revision,
        /// Until then it is not ready, whatever the planes have said.
        not_before: Timestamp,
        /// It ends then in any case.
        deadline: Timestamp,
        /// The time under which it is in `by_time`: one of the two above.
        timer: Timestamp,
    },
    Killed,
}

impl Drains {
    /// The master has restarted, and no plane has had the time to report.
    pub(crate) fn restarted(&mut self, now: Timestamp) {
        self.planes_expected_until = now.plus(RECONNECT_TIME);
    }

    /// Starts a drain of a task whose endpoints are withdrawn at a revision. The grace is that of its service.
    pub(crate) fn begin(&mut self, task: TaskKey, revision: Revision, now: Timestamp, grace: Duration) {
        let deadline = now.plus(grace);
        let not_before = self.planes_expected_until.clamp(now, deadline);
        self.forget(&task);
        let timer = if not_before > now { not_before } else { deadline };
        self.by_revision.entry(revision).or_default().insert(task.clone());
        self.by_time.insert((timer, task.clone()));
        self.drains.insert(task.clone(), Drain::Waiting { revision, not_before, deadline, timer });
        self.check(&task, now);
    }

    /// Remembers that a task is killed without a drain.
    pub(crate) fn kill_at_once(&mut self, task: TaskKey) {
        self.forget(&task);
        self.drains.insert(task, Drain::Killed);
    }

    /// Whether a drain of the task is under way or has ended.
    pub(crate) fn contains(&self, task: &TaskKey) -> bool {
        self.drains.contains_key(task)
    }

    /// Whether the task is to be dead: its kill has been handed out.
    pub(crate) fn is_killed(&self, task: &TaskKey) -> bool {
        matches!(self.drains.get(task), Some(Drain::Killed))
    }

    /// The task has ended.
    pub(crate) fn forget(&mut self, task: &TaskKey) {
        self.stop_waiting(task);
        self.drains.remove(task);
        self.due.remove(task);
    }

    /// A plane has reported; the report replaces its earlier one. Busy tasks that do not drain are of no interest.
    pub(crate) fn report(&mut self, report: PlaneReport, now: Timestamp) {
        let plane = (report.node, report.plane);
        let before = self.applied_by_all();
        let old = self.planes.remove(&plane);
        if let Some(old) = &old {
            self.uncount(old.applied);
            self.found(&plane, old);
        }
        *self.applied.entry(report.applied).or_default() += 1;
        let busy: BTreeSet<TaskKey> =
            report.busy.into_iter().filter(|task| self.drains.contains_key(task)).collect();
        for task in &busy {
            self.busy.entry(task.clone()).or_default().insert(plane.clone());
        }
        for task in old.iter().flat_map(|old| old.busy.difference(&busy)) {
            self.unmark_busy(task, &plane);
            self.check(task, now);
        }
        self.planes.insert(plane, PlaneState { applied: report.applied, busy, lost_at: None });
        self.check_between(before, now);
    }

    /// A plane is not connected any more; if it does not report again in time, it is not waited for until it does.
    pub(crate) fn plane_gone(&mut self, node: AgentId, plane: Plane, now: Timestamp) {
        let plane = (node, plane);
        let Some(state) = self.planes.get_mut(&plane).filter(|state| state.lost_at.is_none()) else { return };
        let until = now.plus(RECONNECT_TIME);
        state.lost_at = Some(until);
        self.lost.insert((until, plane));
    }

    fn plane_forgotten(&mut self, plane: PlaneId, now: Timestamp) {
        let before = self.applied_by_all();
        let Some(old) = self.planes.remove(&plane) else { return };
        self.uncount(old.applied);
        self.found(&plane, &old);
        for task in &old.busy {
            self.unmark_busy(task, &plane);
            self.check(task, now);
        }
        self.check_between(before, now);
    }

    fn found(&mut self, plane: &PlaneId, state: &PlaneState) {
        if let Some(until) = state.lost_at {
            self.lost.remove(&(until, plane.clone()));
        }
    }

    /// When a drain ends at the latest, or may end because a plane is not waited for any more.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let drain = self.by_time.first().map(|(at, _)| *at);
        let lost = self.lost.first().map(|(at, _)| *at);
        drain.into_iter().chain(lost).min()
    }

    /// Does what is due by now, which nobody has said anything against: reports that have arrived are to be heard first.
    pub(crate) fn pass_time(&mut self, now: Timestamp) {
        while let Some((_, plane)) = self.lost.first().cloned().filter(|(at, _)| *at <= now) {
            self.plane_forgotten(plane, now);
        }
        while let Some((at, task)) = self.by_time.first().cloned().filter(|(at, _)| *at <= now) {
            self.timer_fired(&task, at, now);
        }
    }

    /// The tasks to be killed now; each is given once.
    pub(crate) fn take_due(&mut self) -> BTreeSet<TaskKey> {
        std::mem::take(&mut self.due)
    }

    /// At `not_before` the drain may be ready already; if it is not, its deadline is next.
    fn timer_fired(&mut self, task: &TaskKey, at: Timestamp, now: Timestamp) {
        self.by_time.remove(&(at, task.clone()));
        let Some(Drain::Waiting { deadline, timer, .. }) = self.drains.get_mut(task) else { return };
        if *deadline <= now {
            self.end(task);
            return;
        }
        *timer = *deadline;
        self.by_time.insert((*deadline, task.clone()));
        self.check(task, now);
    }

    /// Checks the drains that may be ready because all planes have gone beyond a revision.
    fn check_between(&mut self, before: Option<Revision>, now: Timestamp) {
        let after = self.applied_by_all();
        let from = before.map_or(Revision::ZERO, Revision::next);
        let to = after.unwrap_or(Revision(u64::MAX));
        if from > to {
            return;
        }
        let candidates: Vec<TaskKey> =
            self.by_revision.range(from..=to).flat_map(|(_, tasks)| tasks.iter().cloned()).collect();
        for task in candidates {
            self.check(&task, now);
        }
    }

    fn check(&mut self, task: &TaskKey, now: Timestamp) {
        let Some(Drain::Waiting { revision, not_before, .. }) = self.drains.get(task) else { return };
        let applied = self.applied_by_all().is_none_or(|applied| *revision <= applied);
        if applied && *not_before <= now && !self.busy.contains_key(task) {
            self.end(task);
        }
    }

    fn end(&mut self, task: &TaskKey) {
        self.stop_waiting(task);
        self.drains.insert(task.clone(), Drain::Killed);
        self.due.insert(task.clone());
    }

    fn stop_waiting(&mut self, task: &TaskKey) {
        if let Some(Drain::Waiting { revision, timer, .. }) = self.drains.get(task) {
            if let Some(tasks) = self.by_revision.get_mut(revision) {
                tasks.remove(task);
                if tasks.is_empty() {
                    self.by_revision.remove(revision);
                }
            }
            self.by_time.remove(&(*timer, task.clone()));
        }
    }

    /// The revision that every plane has applied; nothing without planes.
    fn applied_by_all(&self) -> Option<Revision> {
        self.applied.first_key_value().map(|(revision, _)| *revision)
    }

    fn uncount(&mut self, revision: Revision) {
        if let Some(count) = self.applied.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.applied.remove(&revision);
            }
        }
    }

    fn unmark_busy(&mut self, task: &TaskKey, plane: &PlaneId) {
        if let Some(planes) = self.busy.get_mut(task) {
            planes.remove(plane);
            if planes.is_empty() {
                self.busy.remove(task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId};
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn key(task: &str) -> TaskKey {
        TaskKey::new(FrameworkId::new("f"), TaskId::new(task))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn report(node: &str, plane: Plane, applied: u64, busy: &[&str]) -> PlaneReport {
        PlaneReport {
            node: AgentId::new(node),
            plane,
            applied: Revision(applied),
            busy: busy.iter().map(|task| key(task)).collect(),
            failed: BTreeMap::new(),
            outage: None,
            tunnel: None,
        }
    }

    fn due(drains: &mut Drains, seconds: i64) -> Vec<String> {
        drains.pass_time(at(seconds));
        drains.take_due().iter().map(|task| task.task.as_str().to_owned()).collect()
    }

    /// Two planes at revision 4, and a drain of `a` from revision 5 on, begun at time 0.
    fn waiting() -> Drains {
        let mut drains = Drains::default();
        drains.report(report("n", Plane::Dns, 4, &[]), at(0));
        drains.report(report("n", Plane::Lb, 4, &[]), at(0));
        drains.begin(key("a"), Revision(5), at(0), GRACE);
        assert_eq!(due(&mut drains, 0), Vec::<String>::new());
        drains
    }

    #[test]
    fn a_late_acknowledgement_ends_the_wait_and_a_later_revision_counts() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        assert_eq!(due(&mut drains, 1), Vec::<String>::new());
        drains.report(report("n", Plane::Lb, 9, &[]), at(8));
        assert_eq!(due(&mut drains, 8), ["a"]);
        assert!(drains.is_killed(&key("a")));
        assert_eq!(due(&mut drains, 100), Vec::<String>::new(), "a task is given once");
    }

    #[test]
    fn a_lost_acknowledgement_costs_the_grace() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        assert_eq!(drains.deadline(), Some(at(10)));
        assert_eq!(due(&mut drains, 9), Vec::<String>::new());
        assert_eq!(due(&mut drains, 10), ["a"]);
        assert_eq!(drains.deadline(), None);
    }

    #[test]
    fn a_plane_that_falls_back_is_waited_for_again() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        drains.report(report("n", Plane::Dns, 3, &[]), at(2));
        drains.report(report("n", Plane::Lb, 5, &[]), at(3));
        assert_eq!(due(&mut drains, 3), Vec::<String>::new());
        drains.report(report("n", Plane::Dns, 5, &[]), at(4));
        assert_eq!(due(&mut drains, 4), ["a"]);
    }

    #[test]
    fn a_plane_that_joins_behind_is_waited_for_even_after_all_others_acknowledged() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        drains.report(report("n", Plane::Lb, 5, &["a"]), at(1));
        drains.report(report("m", Plane::Lb, 2, &[]), at(2));
        drains.report(report("n", Plane::Lb, 5, &[]), at(3));
        assert_eq!(due(&mut drains, 3), Vec::<String>::new());
        drains.report(report("m", Plane::Lb, 6, &[]), at(4));
        assert_eq!(due(&mut drains, 4), ["a"]);
    }

    #[test]
    fn the_last_plane_that_leaves_ends_the_wait() {
        let mut drains = waiting();
        drains.plane_gone(AgentId::new("n"), Plane::Dns, at(1));
        drains.plane_gone(AgentId::new("n"), Plane::Lb, at(2));
        drains.plane_gone(AgentId::new("n"), Plane::Lb, at(3));
        assert_eq!(due(&mut drains, 6), Vec::<String>::new());
        assert_eq!(drains.deadline(), Some(at(7)), "the first loss counts");
        assert_eq!(due(&mut drains, 7), ["a"]);
    }

    #[test]
    fn a_plane_that_connects_again_has_been_waited_for() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        drains.plane_gone(AgentId::new("n"), Plane::Lb, at(1));
        assert_eq!(due(&mut drains, 3), Vec::<String>::new(), "it goes on sending clients");
        drains.report(report("n", Plane::Lb, 5, &["a"]), at(3));
        assert_eq!(due(&mut drains, 9), Vec::<String>::new());
        drains.report(report("n", Plane::Lb, 5, &[]), at(9));
        assert_eq!(due(&mut drains, 9), ["a"]);
    }

    #[test]
    fn a_busy_plane_that_leaves_takes_its_connections_along() {
        let mut drains = waiting();
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        drains.report(report("n", Plane::Lb, 5, &["a"]), at(1));
        assert_eq!(due(&mut drains, 1), Vec::<String>::new());
        drains.plane_gone(AgentId::new("n"), Plane::Lb, at(2));
        assert_eq!(due(&mut drains, 7), ["a"]);
    }

    #[test]
    fn a_task_that_ended_meanwhile_is_not_killed() {
        let mut drains = waiting();
        drains.forget(&key("a"));
        drains.report(report("n", Plane::Dns, 5, &[]), at(1));
        drains.report(report("n", Plane::Lb, 5, &[]), at(1));
        assert_eq!(due(&mut drains, 100), Vec::<String>::new());
        assert!(!drains.contains(&key("a")));
    }

    #[test]
    fn after_a_restart_silence_is_no_answer_for_a_while() {
        let mut drains = Drains::default();
        drains.restarted(at(0));
        drains.begin(key("a"), Revision(5), at(0), GRACE);
        drains.begin(key("b"), Revision(5), at(0), Duration::from_secs(1));
        assert_eq!(due(&mut drains, 0), Vec::<String>::new());
        assert_eq!(due(&mut drains, 1), ["b"]);
        drains.report(report("n", Plane::Dns, 5, &[]), at(2));
        assert_eq!(due(&mut drains, 2), Vec::<String>::new(), "other planes may still come");
        assert_eq!(drains.deadline(), Some(at(5)));
        drains.begin(key("c"), Revision(5), at(2), GRACE);
        assert_eq!(due(&mut drains, 2), Vec::<String>::new(), "nor is the next drain ready");
        assert_eq!(due(&mut drains, 5), ["a", "c"]);
        drains.begin(key("d"), Revision(5), at(5), GRACE);
        assert_eq!(due(&mut drains, 5), ["d"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin { task: u8 },
        Report { plane: u8, behind: u64, busy: Vec<u8> },
        Gone { plane: u8 },
        Forget { task: u8 },
        Pass { seconds: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u8).prop_map(|task| Step::Begin { task }),
            (0..3_u8, 0..3_u64, proptest::collection::vec(0..4_u8, 0..3))
                .prop_map(|(plane, behind, busy)| Step::Report { plane, behind, busy }),
            (0..3_u8).prop_map(|plane| Step::Gone { plane }),
            (0..4_u8).prop_map(|task| Step::Forget { task }),
            (0..4_i64).prop_map(|seconds| Step::Pass { seconds }),
        ]
    }

    /// What the drains should do, computed by looking at everything.
    #[derive(Default)]
    struct Reference {
        planes: BTreeMap<u8, (u64, BTreeSet<u8>)>,
        lost: BTreeMap<u8, i64>,
        waiting: BTreeMap<u8, (u64, i64)>,
    }

    impl Reference {
        fn take_due(&mut self, now: i64) -> BTreeSet<u8> {
            let lost = &self.lost;
            self.planes.retain(|plane, _| lost.get(plane).is_none_or(|until| now < *until));
            self.lost.retain(|_, until| now < *until);
            let planes = &self.planes;
            let is_due = |task: &u8, revision: &u64, deadline: &i64| {
                let is_ready =
                    planes.values().all(|(applied, busy)| applied >= revision && !busy.contains(task));
                is_ready || *deadline <= now
            };
            let due: BTreeSet<u8> = self
                .waiting
                .iter()
                .filter(|(task, (revision, deadline))| is_due(task, revision, deadline))
                .map(|(task, _)| *task)
                .collect();
            self.waiting.retain(|task, _| !due.contains(task));
            due
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn drains_end_when_a_look_at_everything_says_so(steps in proptest::collection::vec(step(), 1..60)) {
            let mut drains = Drains::default();
            let mut reference = Reference::default();
            let mut now = 0;
            let mut revision = 1;
            for step in steps {
                match step {
                    Step::Begin { task } if !drains.contains(&key(&task.to_string())) => {
                        revision += 1;
                        drains.begin(key(&task.to_string()), Revision(revision), at(now), GRACE);
                        reference.waiting.insert(task, (revision, now + 10));
                    }
                    Step::Begin { .. } => {}
                    Step::Report { plane, behind, busy } => {
                        let applied = revision.saturating_sub(behind);
                        // Only tasks that drain are reported as busy.
                        let busy: BTreeSet<u8> =
                            busy.into_iter().filter(|task| drains.contains(&key(&task.to_string()))).collect();
                        let keys: Vec<String> = busy.iter().map(ToString::to_string).collect();
                        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                        drains.report(report(&plane.to_string(), Plane::Lb, applied, &keys), at(now));
                        reference.planes.insert(plane, (applied, busy));
                        reference.lost.remove(&plane);
                    }
                    Step::Gone { plane } => {
                        drains.plane_gone(AgentId::new(plane.to_string()), Plane::Lb, at(now));
                        if reference.planes.contains_key(&plane) {
                            reference.lost.entry(plane).or_insert(now + 5);
                        }
                    }
                    Step::Forget { task } => {
                        drains.forget(&key(&task.to_string()));
                        reference.waiting.remove(&task);
                    }
                    Step::Pass { seconds } => now += seconds,
                }
                let expected: BTreeSet<TaskKey> =
                    reference.take_due(now).iter().map(|task| key(&task.to_string())).collect();
                drains.pass_time(at(now));
                prop_assert_eq!(drains.take_due(), expected);
            }
        }
    }
}
