//! The threads of the fast path: one for each socket.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::batch::Batch;
use super::{Circumstances, FastQuery, ThreadCounters, answer};
use crate::datagram::DatagramSocket;
use crate::server::Shared;
use crate::udp::Handed;

/// How long to wait after an error of the socket, so that one that stays does not take a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Starts the thread of a socket. It ends when the server stops, see [`DatagramSocket::stop`].
pub(crate) fn spawn(
    socket: Arc<DatagramSocket>,
    shared: Arc<Shared>,
    queue: mpsc::Sender<Handed>,
) -> io::Result<JoinHandle<()>> {
    let counters = shared.metrics.queries.thread();
    let worker = Worker { socket, shared, queue, counters };
    std::thread::Builder::new().name("dns-udp".to_owned()).spawn(move || worker.run())
}

struct Worker {
    socket: Arc<DatagramSocket>,
    shared: Arc<Shared>,
    /// To the full path.
    queue: mpsc::Sender<Handed>,
    counters: Arc<ThreadCounters>,
}

impl Worker {
    fn run(self) {
        let mut batch = Batch::new();
        let mut query = FastQuery::new();
        loop {
            let received = batch.receive(&self.socket);
            if self.shared.is_stopping() {
                return;
            }
            match received {
                Ok(count) => self.serve(&mut batch, count, &mut query),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!(%error, "A DNS socket fails");
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
        }
    }

    /// Answers a batch. Queries of the full path are handed over first, those of the fast path are sent together.
    fn serve(&self, batch: &mut Batch, count: usize, query: &mut FastQuery) {
        let received = Instant::now();
        let zone = self.shared.fast.load();
        let circumstances = Circumstances {
            is_stale: self.shared.is_stale(),
            recursion_available: self.shared.forwarder.is_some(),
        };
        let mut answered = 0;
        for at in 0..count {
            let reply = batch.answer(at, &self.socket, |packet, place| {
                query.read(packet)?;
                let reply = answer(&zone, circumstances, query, packet, place)?;
                Some((reply.length, reply))
            });
            match reply {
                Some(reply) => {
                    answered += 1;
                    self.counters.answered(reply.zone, query.kind_label, reply.code);
                }
                None => self.hand_over(batch, at, received),
            }
        }
        drop(zone);
        if answered > 0 {
            self.counters.took(answered, received.elapsed());
            self.counters.refused(batch.send(&self.socket));
        }
    }

    fn hand_over(&self, batch: &Batch, at: usize, received: Instant) {
        let Some(client) = batch.sender(at, &self.socket) else {
            return;
        };
        let handed = Handed { packet: batch.query(at).to_vec(), client, received };
        if self.queue.try_send(handed).is_err() {
            self.counters.dropped();
        }
    }
}
