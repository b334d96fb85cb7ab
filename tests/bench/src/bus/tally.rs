//! When the last subscriber had each revision.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};

use super::Order;
use crate::process::{Usage, monotonic_nanos};

/// The longest wait for all subscribers.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether all are there; nothing that is measured depends on it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What the process of the subscribers says at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Followed {
    /// When the last subscriber had each revision after the first, by the common clock.
    pub(super) applied_at: Vec<u64>,
    pub(super) cpu_s: f64,
    pub(super) memory_kib: u64,
}

/// One entry per revision.
#[derive(Debug)]
pub(super) struct Tally {
    first: u64,
    subscribers: u32,
    entries: Vec<Entry>,
    ready: AtomicU32,
}

#[derive(Debug, Default)]
struct Entry {
    subscribers: AtomicU32,
    last: AtomicU64,
}

impl Tally {
    pub(super) fn new(order: &Order) -> Self {
        let entries = (0..order.events).map(|_| Entry::default()).collect();
        Self { first: order.first, subscribers: order.subscribers, entries, ready: AtomicU32::new(0) }
    }

    /// A subscriber has gone on from one revision to another.
    pub(super) fn applied(&self, from: u64, to: u64) {
        let now = monotonic_nanos();
        if from < self.first && to >= self.first {
            self.ready.fetch_add(1, Ordering::Relaxed);
        }
        for revision in from.max(self.first) + 1..=to {
            let index = usize::try_from(revision - self.first - 1).ok();
            let Some(entry) = index.and_then(|index| self.entries.get(index)) else { continue };
            entry.last.fetch_max(now, Ordering::Relaxed);
            entry.subscribers.fetch_add(1, Ordering::Release);
        }
    }

    /// Speaks with the process that makes the events: says when all subscribers are there, and at the end of the
    /// events when they have had them.
    pub(super) async fn converse(&self, input: &mut Lines<BufReader<Stdin>>) -> anyhow::Result<()> {
        self.wait("every subscriber is connected", || &self.ready).await?;
        let before = Usage::of_self()?;
        println!("connected");
        input.next_line().await?.context("the events have no end")?;
        let last = self.entries.last().context("there are no events")?;
        self.wait("every subscriber has everything", || &last.subscribers).await?;
        let after = Usage::of_self()?;
        let followed = Followed {
            applied_at: self.entries.iter().map(|entry| entry.last.load(Ordering::Relaxed)).collect(),
            cpu_s: after.cpu_s - before.cpu_s,
            memory_kib: after.resident_kib,
        };
        println!("{}", serde_json::to_string(&followed)?);
        Ok(())
    }

    async fn wait<'tally>(
        &'tally self,
        what: &str,
        count: impl Fn() -> &'tally AtomicU32,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while count().load(Ordering::Acquire) < self.subscribers {
            if tokio::time::Instant::now() >= deadline {
                bail!("not in time: {what}; {} of {}", count().load(Ordering::Acquire), self.subscribers);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// The lines that this process is told.
pub(super) fn input() -> Lines<BufReader<Stdin>> {
    BufReader::new(tokio::io::stdin()).lines()
}
