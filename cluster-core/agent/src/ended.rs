//! What is remembered of tasks that have ended.

use std::collections::{BTreeMap, VecDeque};

use mesonet_model::{TaskKey, TaskStatus};

/// How many ended tasks are remembered, so that a command that was repeated on its way does not start one again. The
/// oldest is forgotten; a command so late can only come from a master that has forgotten the task as well.
const REMEMBERED: usize = 1024;

/// The last status of tasks whose end is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct EndedTasks {
    statuses: BTreeMap<TaskKey, TaskStatus>,
    order: VecDeque<TaskKey>,
}

impl EndedTasks {
    /// How a task has ended, to be told without being repeated.
    pub(crate) fn status(&self, task: &TaskKey) -> Option<&TaskStatus> {
        self.statuses.get(task)
    }

    /// Remembers how a task has ended.
    pub(crate) fn push(&mut self, status: TaskStatus) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.statuses.remove(&oldest);
        }
        let key = status.task.clone();
        self.statuses.insert(key.clone(), TaskStatus { uuid: None, ..status });
        self.order.push_back(key);
    }
}
