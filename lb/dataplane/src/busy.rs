//! Which tasks still serve although their endpoints drain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use mesonet_model::TaskKey;
use tokio::sync::watch;

/// Counts the open connections of draining endpoints by task. Shared by all workers; only draining touches it.
#[derive(Debug, Clone)]
pub(crate) struct Busy {
    counts: Arc<Mutex<BTreeMap<TaskKey, usize>>>,
    tasks: Arc<watch::Sender<BTreeSet<TaskKey>>>,
}

impl Busy {
    pub(crate) fn new() -> Self {
        Self { counts: Arc::default(), tasks: Arc::new(watch::Sender::new(BTreeSet::new())) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.tasks.subscribe()
    }

    /// Connections that count from here on.
    pub(crate) fn add(&self, task: &TaskKey, connections: usize) {
        if connections > 0 {
            self.change(task, |count| count + connections);
        }
    }

    /// Connections that have ended, or whose endpoint drains no more.
    pub(crate) fn remove(&self, task: &TaskKey, connections: usize) {
        if connections > 0 {
            self.change(task, |count| {
                count.checked_sub(connections).expect("BUG: more connections end than began")
            });
        }
    }

    /// The set is published under the lock, so that the newest count is never overtaken by an older one.
    fn change(&self, task: &TaskKey, change: impl FnOnce(usize) -> usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let old = counts.get(task).copied().unwrap_or(0);
        match change(old) {
            0 => {
                counts.remove(task);
                self.tasks.send_modify(|tasks| {
                    tasks.remove(task);
                });
            }
            new => {
                counts.insert(task.clone(), new);
                if old == 0 {
                    self.tasks.send_modify(|tasks| {
                        tasks.insert(task.clone());
                    });
                }
            }
        }
    }
}

/// The tasks that either says, some time after it says so. Must be called within a runtime.
pub(crate) fn join(
    mut one: watch::Receiver<BTreeSet<TaskKey>>,
    mut other: watch::Receiver<BTreeSet<TaskKey>>,
) -> watch::Receiver<BTreeSet<TaskKey>> {
    let both = |one: &BTreeSet<TaskKey>, other: &BTreeSet<TaskKey>| one | other;
    let (joined, joined_out) = watch::channel(both(&one.borrow(), &other.borrow()));
    // Ends when one of the three is gone.
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = one.changed() => changed.is_ok(),
                changed = other.changed() => changed.is_ok(),
                () = joined.closed() => false,
            };
            if !changed {
                return;
            }
            let tasks = both(&one.borrow_and_update(), &other.borrow_and_update());
            joined.send_if_modified(|old| {
                let is_new = *old != tasks;
                *old = tasks;
                is_new
            });
        }
    });
    joined_out
}
