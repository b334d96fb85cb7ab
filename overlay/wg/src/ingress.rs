//! Packets on their way from peers.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::device::Device;
use crate::drops::Drop;
use crate::entry::Entry;
use crate::join::Joiner;
use crate::socket::{ReceivedBatch, UdpSocket};
use crate::tables::Tables;

/// Receives, decrypts, and writes to the device.
#[derive(Debug)]
pub(crate) struct Ingress {
    queue: usize,
    received: ReceivedBatch,
    entry: Entry,
    joiner: Joiner,
}

/// Workers receive one after the other, decrypt at the same time, and hand over in the order in which they received:
/// so several cores work for one peer, and no flow is reordered.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The number of the next batch.
    received: Mutex<u64>,
    handed_over: Mutex<HandedOver>,
    moved_on: Condvar,
}

#[derive(Debug, Default)]
struct HandedOver {
    /// The number of the batch that is handed over next.
    next: u64,
    /// Workers that wait for their turn. Waking nobody would be a call of the system, too.
    waiting: usize,
}

/// The number of a batch. The next one's turn comes when this is dropped.
struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Ingress {
    pub(crate) fn new(queue: usize, joins_datagrams: bool) -> Self {
        let joiner = Joiner::new(joins_datagrams);
        Self { queue, received: ReceivedBatch::default(), entry: Entry::default(), joiner }
    }

    /// Moves what peers sent. Whether the kernel was handed anything.
    pub(crate) fn run(
        &mut self,
        tables: &Tables,
        device: &Device,
        socket: &UdpSocket,
        turns: &Turns,
        now: Instant,
    ) -> bool {
        let Some(turn) = turns.receive(socket, &mut self.received) else {
            return false;
        };
        self.joiner.clear();
        self.entry.admit(tables, &mut self.received, &mut self.joiner, now);
        self.joiner.finish(&mut self.received.octets);
        turn.wait();
        self.hand_over(tables, device);
        !self.joiner.joins().is_empty()
    }

    fn hand_over(&self, tables: &Tables, device: &Device) {
        let octets = &self.received.octets;
        for join in self.joiner.joins() {
            let pieces = self.joiner.places(join).map(|place| &octets[place]);
            if let Err(error) = device.write(self.queue, join.header(), pieces) {
                tables.drops.add(Drop::Device, join.packets as u64);
                tracing::debug!(%error, "A packet could not be written to the device");
            }
        }
    }
}

impl Turns {
    fn receive(&self, socket: &UdpSocket, batch: &mut ReceivedBatch) -> Option<Turn<'_>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        match socket.receive(batch) {
            Ok(()) => {
                let number = *received;
                *received += 1;
                Some(Turn { turns: self, number })
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::debug!(%error, "Nothing could be received from nodes");
                None
            }
        }
    }
}

impl Turn<'_> {
    /// Waits until all earlier batches are handed over.
    fn wait(&self) {
        let mut handed_over = self.turns.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        handed_over.waiting += 1;
        while handed_over.next != self.number {
            handed_over = self.turns.moved_on.wait(handed_over).unwrap_or_else(PoisonError::into_inner);
        }
        handed_over.waiting -= 1;
    }
}

impl std::ops::Drop for Turn<'_> {
    fn drop(&mut self) {
        self.wait();
        let mut handed_over = self.turns.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        handed_over.next += 1;
        if handed_over.waiting > 0 {
            self.turns.moved_on.notify_all();
        }
    }
}
