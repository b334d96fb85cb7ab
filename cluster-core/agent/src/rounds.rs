//! What the agent looks at again and again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::agent::Agent;

/// How often it is looked for sandboxes that are to go.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is looked which containers of other runtimes have joined networks. It is a list of a directory.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often bridges are compared with what they should be. It is a question to the kernel for each of their ports.
const MEND_INTERVAL: Duration = Duration::from_secs(5);

/// When each is due, and what could not be mended the last time.
#[derive(Debug)]
pub(crate) struct Rounds {
    collect_at: Instant,
    look_at: Instant,
    mend_at: Instant,
    unmended: BTreeSet<String>,
}

impl Rounds {
    /// All are due.
    pub(crate) fn from(now: Instant) -> Self {
        Self { collect_at: now, look_at: now, mend_at: now, unmended: BTreeSet::new() }
    }

    /// The next time that something is due.
    pub(crate) fn next(&self) -> Instant {
        self.collect_at.min(self.look_at).min(self.mend_at)
    }
}

impl Agent {
    /// Does what is due.
    pub(crate) fn make_rounds(&mut self, rounds: &mut Rounds, now: Instant) {
        if rounds.look_at <= now {
            rounds.look_at = now + LOOK_INTERVAL;
            self.look_at_containers();
            self.show_tasks();
        }
        if rounds.mend_at <= now {
            rounds.mend_at = now + MEND_INTERVAL;
            self.mend_bridges(&mut rounds.unmended);
            self.config.metrics.missing(rounds.unmended.len());
        }
        if rounds.collect_at <= now {
            rounds.collect_at = now + COLLECT_INTERVAL;
            self.collect();
        }
    }

    fn show_tasks(&self) {
        let states = self.tasks.values().map(|task| task.statuses.latest().state);
        let unacknowledged = self.tasks.values().map(|task| task.statuses.pending().count()).sum();
        self.config.metrics.show_tasks(states, unacknowledged);
    }
}
