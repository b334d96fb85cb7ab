//! A task's statuses on their way to the master.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mesonet_model::{StatusReason, TaskStatus};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// After this time a status is sent again, as in Mesos.
const RESEND_FIRST: Duration = Duration::from_secs(10);

/// Each time the delay doubles, up to this, as in Mesos.
const RESEND_MAX: Duration = Duration::from_secs(600);

/// The latest status and those that the master has not acknowledged, oldest first. There are at most as many as a task
/// has states on its way, and one on what checks have found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusQueue {
    latest: TaskStatus,
    pending: VecDeque<TaskStatus>,
    #[serde(skip)]
    resend: Option<Resend>,
}

/// When the oldest status is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resend {
    at: Instant,
    delay: Duration,
}

impl StatusQueue {
    /// A task's first status; it is to be sent now.
    pub(crate) fn new(status: TaskStatus, now: Instant) -> Self {
        let pending = VecDeque::from([status.clone()]);
        Self { latest: status, pending, resend: Some(Resend::from(now)) }
    }

    /// Takes in a further status; it is to be sent now.
    pub(crate) fn push(&mut self, status: TaskStatus, now: Instant) {
        self.latest = status.clone();
        self.pending.push_back(status);
        self.resend.get_or_insert(Resend::from(now));
    }

    /// Takes in what checks have found; it is to be sent now. It takes the place of what was found before if that is not
    /// acknowledged, whose id is returned: each says what all checks have found, so only the last word matters.
    pub(crate) fn push_checked(&mut self, status: TaskStatus, now: Instant) -> Option<Uuid> {
        let is_of_check = |status: &TaskStatus| match status.reason {
            Some(
                StatusReason::ReasonTaskHealthCheckStatusUpdated | StatusReason::ReasonTaskCheckStatusUpdated,
            ) => true,
            Some(_) | None => false,
        };
        let is_replaced = |last: &TaskStatus| is_of_check(last) && last.state == status.state;
        let replaced =
            if self.pending.back().is_some_and(is_replaced) { self.pending.pop_back() } else { None };
        if self.pending.is_empty() {
            self.resend = None;
        }
        self.push(status, now);
        replaced.and_then(|status| status.uuid)
    }

    /// The task is not checked for readiness any more, and who listens knows that.
    pub(crate) fn end_readiness(&mut self) {
        self.latest.readiness = None;
    }

    /// The state of the task, as last reported.
    pub(crate) fn latest(&self) -> &TaskStatus {
        &self.latest
    }

    /// What is not acknowledged, oldest first.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &TaskStatus> {
        self.pending.iter()
    }

    /// Forgets a status that has arrived. Says whether it was one of these.
    pub(crate) fn acknowledge(&mut self, uuid: Uuid, now: Instant) -> bool {
        let before = self.pending.len();
        self.pending.retain(|status| status.uuid != Some(uuid));
        let known = self.pending.len() < before;
        if known {
            self.resend = (!self.pending.is_empty()).then(|| Resend::from(now));
        }
        known
    }

    /// Whether the task has ended and the master knows it.
    pub(crate) fn is_settled(&self) -> bool {
        self.latest.state.is_terminal() && self.pending.iter().all(|status| status.uuid != self.latest.uuid)
    }

    /// When [`StatusQueue::take_due`] has something.
    pub(crate) fn next_resend(&self) -> Option<Instant> {
        self.resend.map(|resend| resend.at)
    }

    /// The oldest status, if it is time to send it again.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<&TaskStatus> {
        let oldest = self.pending.front()?;
        let resend = self.resend.get_or_insert(Resend::from(now));
        if resend.at > now {
            return None;
        }
        let delay = (resend.delay * 2).min(RESEND_MAX);
        *resend = Resend { at: now + delay, delay };
        Some(oldest)
    }
}

impl Resend {
    fn from(now: Instant) -> Self {
        Self { at: now + RESEND_FIRST, delay: RESEND_FIRST }
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, StatusSource, TaskId, TaskKey, TaskState, Timestamp};

    use super::*;

    fn status(state: TaskState, uuid: u128) -> TaskStatus {
        TaskStatus {
            task: TaskKey::new(FrameworkId::new("f"), TaskId::new("t")),
            agent: None,
            state,
            source: StatusSource::SourceExecutor,
            reason: None,
            message: String::new(),
            timestamp: Timestamp::default(),
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: None,
            addresses: Vec::new(),
            uuid: Some(Uuid::from_u128(uuid)),
        }
    }

    /// Sends what is due each second. Returns the seconds and states.
    fn run(queue: &mut StatusQueue, start: Instant, seconds: std::ops::Range<u64>) -> Vec<(u64, TaskState)> {
        seconds
            .filter_map(|second| {
                let due = queue.take_due(start + Duration::from_secs(second));
                due.map(|status| (second, status.state))
            })
            .collect()
    }

    #[test]
    fn the_oldest_status_is_sent_again_with_growing_delay() {
        let start = Instant::now();
        let mut queue = StatusQueue::new(status(TaskState::Starting, 1), start);
        queue.push(status(TaskState::Running, 2), start);
        let sent = run(&mut queue, start, 0..3000);
        let expected = [10, 30, 70, 150, 310, 630, 1230, 1830, 2430];
        assert_eq!(sent, expected.map(|second| (second, TaskState::Starting)));
    }

    #[test]
    fn an_acknowledged_status_makes_way_for_the_next() {
        let start = Instant::now();
        let mut queue = StatusQueue::new(status(TaskState::Starting, 1), start);
        queue.push(status(TaskState::Running, 2), start);
        assert_eq!(run(&mut queue, start, 0..20), [(10, TaskState::Starting)]);
        assert!(queue.acknowledge(Uuid::from_u128(1), start + Duration::from_secs(20)));
        assert!(!queue.acknowledge(Uuid::from_u128(1), start + Duration::from_secs(20)));
        assert_eq!(run(&mut queue, start, 20..40), [(30, TaskState::Running)]);
        assert!(queue.acknowledge(Uuid::from_u128(2), start + Duration::from_secs(40)));
        assert_eq!(run(&mut queue, start, 40..2000), []);
        assert!(!queue.is_settled());
    }

    #[test]
    fn only_the_last_word_of_checks_is_kept() {
        let start = Instant::now();
        let mut queue = StatusQueue::new(status(TaskState::Running, 1), start);
        let health = |healthy, uuid| TaskStatus {
            healthy: Some(healthy),
            reason: Some(StatusReason::ReasonTaskHealthCheckStatusUpdated),
            ..status(TaskState::Running, uuid)
        };
        assert_eq!(queue.push_checked(health(true, 2), start), None);
        assert_eq!(queue.push_checked(health(false, 3), start), Some(Uuid::from_u128(2)));
        let ids = |queue: &StatusQueue| queue.pending().filter_map(|status| status.uuid).collect::<Vec<_>>();
        assert_eq!(ids(&queue), [1, 3].map(Uuid::from_u128));
        assert!(queue.acknowledge(Uuid::from_u128(1), start));
        let later = start + Duration::from_secs(9);
        assert_eq!(queue.push_checked(health(true, 4), later), Some(Uuid::from_u128(3)));
        assert!(!queue.acknowledge(Uuid::from_u128(3), later), "it may still come");
        assert_eq!(run(&mut queue, start, 0..30), [(19, TaskState::Running)]);
        assert_eq!(queue.latest().healthy, Some(true));
    }

    #[test]
    fn a_task_is_settled_once_its_end_is_acknowledged() {
        let start = Instant::now();
        let mut queue = StatusQueue::new(status(TaskState::Running, 1), start);
        queue.push(status(TaskState::Failed, 2), start);
        assert!(!queue.is_settled());
        queue.acknowledge(Uuid::from_u128(2), start);
        assert!(queue.is_settled());
    }

    #[test]
    fn a_queue_read_from_disk_goes_on_sending() {
        let start = Instant::now();
        let queue = StatusQueue::new(status(TaskState::Running, 1), start);
        let text = serde_json::to_string(&queue).expect("encodes");
        let mut queue: StatusQueue = serde_json::from_str(&text).expect("decodes");
        assert_eq!(run(&mut queue, start, 0..20), [(10, TaskState::Running)]);
    }
}
