//! The bound on connections of every kind, and how long each may be idle.
//!
//! A client may keep a connection for its next question, so that idle connections are normal and cheap to open again.
//! When there are as many as there may be, the one that has been idle for longest is closed for a new one; only if all
//! are answering something is the new one refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::ConnectionMetrics;

/// Connections at a time. Each takes a task and some KiB, more while an answer of at most 64 KiB is sent.
const CONNECTIONS_MAX: usize = 4_096;

/// Of the process's limit on open files, where that is less: the rest is for the other parts of the process.
const DESCRIPTOR_SHARE: u64 = 10;

/// How long a connection may be idle, or a query be on its way: that of dcos-dns.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections of a server.
#[derive(Debug)]
pub(crate) struct Connections {
    slots: Mutex<BTreeMap<u64, Arc<Slot>>>,
    next: AtomicU64,
    connections_max: usize,
    idle_timeout: Duration,
    started: Instant,
    metrics: ConnectionMetrics,
}

impl Connections {
    /// As many as the limit on open files allows.
    pub(crate) fn new(metrics: ConnectionMetrics) -> Arc<Self> {
        let share =
            getrlimit(Resource::Nofile).current.and_then(|limit| (limit / DESCRIPTOR_SHARE).try_into().ok());
        let connections_max = share.map_or(CONNECTIONS_MAX, |share: usize| share.clamp(1, CONNECTIONS_MAX));
        Self::bounded(connections_max, IDLE_TIMEOUT, metrics)
    }

    pub(crate) fn bounded(
        connections_max: usize,
        idle_timeout: Duration,
        metrics: ConnectionMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            next: AtomicU64::new(0),
            connections_max,
            idle_timeout,
            started: Instant::now(),
            metrics,
        })
    }

    /// Makes room for a new connection. Nothing if every other one is answering something.
    pub(crate) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let now = self.now();
        let mut slots = self.slots();
        if slots.len() >= self.connections_max {
            let idle = slots.iter().filter(|(_, slot)| slot.busy.load(Ordering::Acquire) == 0);
            let idlest = idle.min_by_key(|(_, slot)| slot.last_used.load(Ordering::Relaxed));
            let Some(number) = idlest.map(|(number, _)| *number) else {
                self.metrics.refused();
                return None;
            };
            if let Some(slot) = slots.remove(&number) {
                self.metrics.shed();
                slot.close.notify_one();
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot {
            last_used: AtomicU64::new(now),
            busy: AtomicUsize::new(0),
            close: Notify::new(),
            connections: self.clone(),
        });
        slots.insert(number, slot.clone());
        self.metrics.open(slots.len());
        Some(Seat { number, slot })
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    number: u64,
    pub(crate) slot: Arc<Slot>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let connections = &self.slot.connections;
        let mut slots = connections.slots();
        slots.remove(&self.number);
        connections.metrics.open(slots.len());
    }
}

/// What a connection does.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Milliseconds from the server's start to its last query or answer.
    last_used: AtomicU64,
    /// Queries that are being answered.
    busy: AtomicUsize,
    close: Notify,
    connections: Arc<Connections>,
}

impl Slot {
    /// A query came.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy { slot: self.clone() }
    }

    /// Waits until the connection has been idle for too long, or is closed for another one. Can be cancelled.
    pub(crate) async fn idle(&self) {
        let timeout = self.connections.idle_timeout;
        loop {
            let last_used = Duration::from_millis(self.last_used.load(Ordering::Relaxed));
            let is_busy = self.busy.load(Ordering::Acquire) > 0;
            let deadline = if is_busy {
                Instant::now() + timeout
            } else {
                self.connections.started + last_used + timeout
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                () = self.close.notified() => return,
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}

/// A query that is being answered.
#[derive(Debug)]
pub(crate) struct Busy {
    slot: Arc<Slot>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.slot.last_used.store(self.slot.connections.now(), Ordering::Relaxed);
        self.slot.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use prometheus::Registry;

    use super::*;

    fn connections(max: usize) -> Arc<Connections> {
        let metrics = ConnectionMetrics::register(&Registry::new()).expect("registered");
        Connections::bounded(max, Duration::from_secs(10), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_connection_makes_room() {
        let connections = connections(3);
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(connections.seat().expect("there is room"));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        drop(seats[0].slot.begin());
        let busy = seats[2].slot.begin();
        let fourth = connections.seat().expect("room is made");
        assert!(seats[1].slot.idle().now_or_never().is_some());
        assert!(seats[0].slot.idle().now_or_never().is_none());
        // All are busy: there is no room.
        let all = [seats[0].slot.begin(), fourth.slot.begin()];
        assert!(connections.seat().is_none());
        drop((busy, all));
        // The place of one that ended by itself is free.
        seats.remove(0);
        assert!(connections.seat().is_some());
        assert!(fourth.slot.idle().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_after_its_last_answer_only() {
        let connections = connections(3);
        let seat = connections.seat().expect("there is room");
        let busy = seat.slot.begin();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(seat.slot.idle().now_or_never().is_none());
        drop(busy);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(seat.slot.idle().now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(seat.slot.idle().now_or_never().is_some());
    }
}
