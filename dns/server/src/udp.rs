//! Queries over UDP that the fast path does not answer.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::datagram::{DatagramSocket, Sender};
use crate::metrics::Transport;
use crate::responder::{Outcome, Step};
use crate::server::{Shared, Verdict};

/// Queries of one socket that wait for the full path: some milliseconds of its work. Further ones are dropped, and
/// their clients ask again.
pub(crate) const QUEUE_LENGTH_MAX: usize = 1024;

/// A query that the fast path hands over.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) packet: Vec<u8>,
    pub(crate) client: Sender,
    /// When it was read.
    pub(crate) received: Instant,
}

/// Answers queries that a socket's fast path hands over, until the server is gone.
pub(crate) async fn serve(
    socket: Arc<DatagramSocket>,
    mut queue: mpsc::Receiver<Handed>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) {
    loop {
        let handed = tokio::select! {
            _ = stop.changed() => return,
            handed = queue.recv() => handed,
        };
        let Some(handed) = handed else {
            return;
        };
        match shared.respond(&handed.packet, handed.client.address.ip(), Transport::Udp) {
            Step::Done(outcome) => answer(&socket, &shared, &handed, outcome).await,
            // Zones are not transferred over UDP.
            Step::Transfer(_) => {}
            Step::Wait(forwarded) => {
                let (socket, shared) = (socket.clone(), shared.clone());
                tokio::spawn(async move {
                    let outcome = forwarded.finish().await;
                    answer(&socket, &shared, &handed, outcome).await;
                });
            }
        }
    }
}

async fn answer(socket: &DatagramSocket, shared: &Shared, handed: &Handed, outcome: Outcome) {
    let asked = shared.asked(&handed.packet, handed.client.address.ip(), Transport::Udp, handed.received);
    let (Verdict::Send(message) | Verdict::SendAndClose(message)) = shared.counted(outcome, asked) else {
        return;
    };
    if let Err(error) = socket.send(&message, &handed.client).await {
        // An address that cannot be answered is the client's matter.
        debug!(%error, client = %handed.client.address, "A DNS answer could not be sent");
    }
}
