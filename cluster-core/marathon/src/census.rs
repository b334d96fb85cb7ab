//! How the instances of an app stand, counted so that a decision costs the same for any number of instances.

use std::collections::BTreeSet;

use mesonet_model::TaskId;

/// How an instance stands. The first four are wanted; their order is the one in which they are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its agent does not answer, but it is not given up.
    Missing,
    /// It does not run yet.
    Pending,
    /// It runs and a check fails.
    Unhealthy,
    /// It runs.
    Running,
    /// Its end was asked for.
    Doomed,
    /// Its agent does not answer and it is given up.
    Away,
}

/// Where an instance is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Whether it is of the configuration in force.
    pub(crate) is_current: bool,
    /// How it stands.
    pub(crate) standing: Standing,
    /// Its place among those that stand alike: the smallest is killed first.
    pub(crate) age: i64,
    /// Its task.
    pub(crate) task: TaskId,
}

/// The instances of an app, those of older configurations apart from those of the one in force.
#[derive(Debug, Default)]
pub(crate) struct Census {
    old: Generation,
    current: Generation,
}

/// The instances of one configuration or of all older ones.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    kill_order: BTreeSet<(Standing, i64, TaskId)>,
    serving: usize,
    doomed: usize,
}

impl Census {
    /// Counts an instance.
    pub(crate) fn insert(&mut self, entry: Entry) {
        self.generation(entry.is_current).insert(entry);
    }

    /// Counts an instance no more; it must be given as it was counted.
    pub(crate) fn remove(&mut self, entry: Entry) {
        self.generation(entry.is_current).remove(entry);
    }

    /// Instances of older configurations.
    pub(crate) fn old(&self) -> &Generation {
        &self.old
    }

    /// Instances of the configuration in force.
    pub(crate) fn current(&self) -> &Generation {
        &self.current
    }

    /// Instances that are wanted, whatever their configuration.
    pub(crate) fn wanted(&self) -> usize {
        self.old.wanted() + self.current.wanted()
    }

    /// Wanted instances that run.
    pub(crate) fn serving(&self) -> usize {
        self.old.serving + self.current.serving
    }

    /// Instances whose end was asked for.
    pub(crate) fn doomed(&self) -> usize {
        self.old.doomed + self.current.doomed
    }

    /// Instances that take up room: all but those that are given up.
    pub(crate) fn live(&self) -> usize {
        self.wanted() + self.doomed()
    }

    /// The wanted instances to kill first; older configurations go first among those that stand alike.
    pub(crate) fn victims(&self, count: usize) -> Vec<TaskId> {
        let old =
            self.old.kill_order.iter().take(count).map(|(standing, age, task)| (*standing, 0, *age, task));
        let current = self.current.kill_order.iter().take(count);
        let current = current.map(|(standing, age, task)| (*standing, 1, *age, task));
        let mut all: Vec<_> = old.chain(current).collect();
        all.sort_unstable();
        all.into_iter().take(count).map(|(.., task)| task.clone()).collect()
    }

    fn generation(&mut self, is_current: bool) -> &mut Generation {
        if is_current { &mut self.current } else { &mut self.old }
    }
}

impl Generation {
    /// Instances that are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.kill_order.len()
    }

    /// Wanted instances that run.
    pub(crate) fn serving(&self) -> usize {
        self.serving
    }

    /// The wanted instances to kill first.
    pub(crate) fn victims(&self, count: usize) -> Vec<TaskId> {
        self.kill_order.iter().take(count).map(|(.., task)| task.clone()).collect()
    }

    fn insert(&mut self, entry: Entry) {
        match entry.standing {
            Standing::Doomed => self.doomed += 1,
            Standing::Away => {}
            Standing::Missing | Standing::Pending | Standing::Unhealthy | Standing::Running => {
                self.serving += usize::from(entry.standing.is_serving());
                self.kill_order.insert((entry.standing, entry.age, entry.task));
            }
        }
    }

    fn remove(&mut self, entry: Entry) {
        match entry.standing {
            Standing::Doomed => self.doomed -= 1,
            Standing::Away => {}
            Standing::Missing | Standing::Pending | Standing::Unhealthy | Standing::Running => {
                self.serving -= usize::from(entry.standing.is_serving());
                self.kill_order.remove(&(entry.standing, entry.age, entry.task));
            }
        }
    }
}

impl Standing {
    fn is_serving(self) -> bool {
        matches!(self, Self::Unhealthy | Self::Running)
    }
}
