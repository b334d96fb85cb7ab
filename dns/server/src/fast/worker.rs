//! The threads of the fast path: one for each socket.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::batch::{BATCH_LENGTH, Batch};
use super::{Circumstances, FastQuery, ThreadCounters, answer};
use crate::datagram::DatagramSocket;
use crate::metrics::CodeLabel;
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
        let mut queries: Vec<FastQuery> = (0..BATCH_LENGTH).map(|_| FastQuery::new()).collect();
        loop {
            let received = batch.receive(&self.socket);
            if self.shared.is_stopping() {
                return;
            }
            match received {
                Ok(count) => self.serve(&mut batch, count, &mut queries),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!(%error, "A DNS socket fails");
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
        }
    }

    /// Answers a batch in three rounds, so that the memory which one query needs comes while others are worked on.
    fn serve(&self, batch: &mut Batch, count: usize, queries: &mut [FastQuery]) {
        let received = Instant::now();
        let zone = self.shared.fast.load();
        let is_stale = self.shared.is_stale();
        let everybody = self.shared.fast_for_all;
        let collapses = self.shared.collapses();
        let mut recursion = [false; BATCH_LENGTH];
        let mut known = [false; BATCH_LENGTH];
        let mut entries = [None; BATCH_LENGTH];
        for (at, (query, known)) in queries.iter_mut().zip(&mut known).take(count).enumerate() {
            let of_client = || Some(self.shared.guard.policy.fast(batch.client_address(at)?));
            let Some(rights) = everybody.or_else(of_client).filter(|rights| rights.is_answered) else {
                continue;
            };
            recursion[at] = rights.recursion;
            *known = query.read(batch.query(at)).and_then(|()| query.locate(&zone)).is_some();
        }
        for ((query, known), entry) in queries.iter().zip(known).zip(&mut entries).take(count) {
            if known {
                *entry = query.entry(&zone);
                if let Some(entry) = entry {
                    entry.prefetch();
                }
            }
        }
        let mut answered = 0;
        for (at, (query, (known, entry))) in
            queries.iter().zip(known.into_iter().zip(entries)).take(count).enumerate()
        {
            let circumstances = Circumstances { is_stale, recursion_available: recursion[at] };
            let reply = batch.answer(at, &self.socket, |packet, place| {
                let reply = known.then(|| answer(&zone, circumstances, query, entry, packet, place))??;
                // A name that does not exist may be one of a search list, which the full path knows.
                let is_settled = reply.code != CodeLabel::NxDomain || !collapses;
                is_settled.then_some((reply.length, reply))
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
