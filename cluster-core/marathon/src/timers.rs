//! Every timer of the machine in one table.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{AppId, TaskId, Timestamp};

/// What a timer is for. There is at most one of each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The launch delay of an app ends.
    Backoff(AppId),
    /// An instance has to be looked at: it was not confirmed, not killed, or not reachable for too long.
    Instance(TaskId),
    /// Offers refused before may fit, and were asked for only just.
    Revival,
}

/// When each timer fires, and why it was set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: BTreeMap<Timer, (Timestamp, &'static str)>,
    order: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    /// Sets a timer anew, or clears it.
    pub(crate) fn set(&mut self, timer: Timer, due: Option<(Timestamp, &'static str)>) {
        let before = match due {
            Some(due) => self.set.insert(timer.clone(), due),
            None => self.set.remove(&timer),
        };
        if let Some((at, _)) = before {
            self.order.remove(&(at, timer.clone()));
        }
        if let Some((at, _)) = due {
            self.order.insert((at, timer));
        }
    }

    /// The earliest timer's time and reason.
    pub(crate) fn next(&self) -> Option<(Timestamp, &'static str)> {
        let (_, timer) = self.order.first()?;
        self.set.get(timer).copied()
    }

    /// Takes the earliest timer if its time has come.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        let (at, _) = self.order.first()?;
        if *at > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.set.remove(&timer);
        Some(timer)
    }
}
