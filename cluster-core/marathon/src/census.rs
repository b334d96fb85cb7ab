//! How the instances of an app stand, counted so that a decision costs the same for any number of instances.

use std::collections::BTreeSet;

use mesonet_model::TaskId;

/// How an instance stands. The first five are wanted; their order is the one in which they are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its agent does not answer, but it is not given up.
    Missing,
    /// It does not run yet.
    Pending,
    /// It runs, and a check has not succeeded yet, or it is not ready.
    Unproved,
    /// It runs, and a check fails, or it does not listen yet.
    Unhealthy,
    /// It runs and serves, as far as anybody looks.
    Running,
    /// Its end was asked for.
    Doomed,
    /// Its agent does not answer and it is given up.
    Away,
}

/// What an instance is counted with. Their order is the one in which they are killed among those that stand alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Generation {
    /// It is on an agent that is to be empty, whatever its configuration.
    Leaving,
    /// It is of an older configuration.
    Old,
    /// It is of the configuration in force.
    Current,
}

/// Where an instance is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is counted with.
    pub(crate) generation: Generation,
    /// How it stands.
    pub(crate) standing: Standing,
    /// Its place among those that stand alike: the smallest is killed first.
    pub(crate) age: i64,
    /// Its task.
    pub(crate) task: TaskId,
}

/// The instances of an app by generation.
#[derive(Debug, Default)]
pub(crate) struct Census {
    leaving: Tally,
    old: Tally,
    current: Tally,
}

/// The instances of one generation.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    kill_order: BTreeSet<(Standing, i64, TaskId)>,
    running: usize,
    proved: usize,
    serving: usize,
    doomed: usize,
    away: BTreeSet<TaskId>,
}

impl Generation {
    /// All generations.
    pub(crate) const ALL: [Self; 3] = [Self::Leaving, Self::Old, Self::Current];
}

impl Census {
    /// Counts an instance.
    pub(crate) fn insert(&mut self, entry: Entry) {
        self.tally_mut(entry.generation).count(entry, true);
    }

    /// Counts an instance no more; it must be given as it was counted.
    pub(crate) fn remove(&mut self, entry: Entry) {
        self.tally_mut(entry.generation).count(entry, false);
    }

    /// Instances that are wanted, of these generations.
    pub(crate) fn wanted(&self, generations: &[Generation]) -> usize {
        self.tallies(generations).map(|tally| tally.kill_order.len()).sum()
    }

    /// Wanted instances that run, of these generations.
    pub(crate) fn running(&self, generations: &[Generation]) -> usize {
        self.tallies(generations).map(|tally| tally.running).sum()
    }

    /// Wanted instances that run, are ready and were healthy at least once, of these generations.
    pub(crate) fn proved(&self, generations: &[Generation]) -> usize {
        self.tallies(generations).map(|tally| tally.proved).sum()
    }

    /// Wanted instances that run, are ready and are healthy, of these generations.
    pub(crate) fn serving(&self, generations: &[Generation]) -> usize {
        self.tallies(generations).map(|tally| tally.serving).sum()
    }

    /// Instances whose end was asked for.
    pub(crate) fn doomed(&self) -> usize {
        self.tallies(&Generation::ALL).map(|tally| tally.doomed).sum()
    }

    /// Instances that take up room: all but those that are given up.
    pub(crate) fn live(&self) -> usize {
        self.wanted(&Generation::ALL) + self.doomed()
    }

    /// Instances that are given up.
    pub(crate) fn away(&self) -> impl Iterator<Item = &TaskId> {
        self.tallies(&Generation::ALL).flat_map(|tally| &tally.away)
    }

    /// Whether instances take up room on agents that are to be empty.
    pub(crate) fn is_leaving(&self) -> bool {
        !self.leaving.kill_order.is_empty() || self.leaving.doomed > 0
    }

    /// The wanted instances of these generations to kill first.
    pub(crate) fn victims(&self, generations: &[Generation], count: usize) -> Vec<TaskId> {
        let firsts = generations.iter().flat_map(|generation| {
            let first = self.tally(*generation).kill_order.iter().take(count);
            first.map(|(standing, age, task)| (*standing, *generation, *age, task))
        });
        let mut all: Vec<_> = firsts.collect();
        all.sort_unstable();
        all.into_iter().take(count).map(|(.., task)| task.clone()).collect()
    }

    fn tallies(&self, generations: &[Generation]) -> impl Iterator<Item = &Tally> {
        generations.iter().map(|generation| self.tally(*generation))
    }

    fn tally(&self, generation: Generation) -> &Tally {
        match generation {
            Generation::Leaving => &self.leaving,
            Generation::Old => &self.old,
            Generation::Current => &self.current,
        }
    }

    fn tally_mut(&mut self, generation: Generation) -> &mut Tally {
        match generation {
            Generation::Leaving => &mut self.leaving,
            Generation::Old => &mut self.old,
            Generation::Current => &mut self.current,
        }
    }
}

impl Tally {
    /// Counts an instance, or counts it no more.
    fn count(&mut self, Entry { standing, age, task, .. }: Entry, comes: bool) {
        let step = |count: &mut usize| if comes { *count += 1 } else { *count -= 1 };
        match standing {
            Standing::Doomed => step(&mut self.doomed),
            Standing::Away => {
                if comes {
                    self.away.insert(task)
                } else {
                    self.away.remove(&task)
                };
            }
            Standing::Missing
            | Standing::Pending
            | Standing::Unproved
            | Standing::Unhealthy
            | Standing::Running => {
                let reached = [
                    (Standing::Unproved, &mut self.running),
                    (Standing::Unhealthy, &mut self.proved),
                    (Standing::Running, &mut self.serving),
                ];
                reached
                    .into_iter()
                    .filter(|(least, _)| standing >= *least)
                    .for_each(|(_, count)| step(count));
                let place = (standing, age, task);
                if comes {
                    self.kill_order.insert(place)
                } else {
                    self.kill_order.remove(&place)
                };
            }
        }
    }
}
