//! Queries over UDP.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::datagram::{DatagramSocket, Sender};
use crate::metrics::Transport;
use crate::responder::{Outcome, Step};
use crate::server::Shared;

/// Octets of the longest query that is read whole; the rest is lost, so that it counts as malformed. Queries have one
/// name of at most 255 octets and some options.
const QUERY_LENGTH_MAX: usize = 4096;

/// How long to wait after an error of the socket, so that one that stays does not take a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Answers queries until the server is gone.
pub(crate) async fn serve(socket: DatagramSocket, shared: Arc<Shared>, mut stop: watch::Receiver<()>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUERY_LENGTH_MAX];
    loop {
        let served = tokio::select! {
            _ = stop.changed() => return,
            served = serve_one(&socket, &shared, &mut buffer) => served,
        };
        if let Err(error) = served {
            warn!(%error, "A DNS socket fails");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

/// Cancelled between queries only: nothing is awaited from reading a query until its answer is given to the system,
/// unless the system's send buffer is full.
async fn serve_one(socket: &Arc<DatagramSocket>, shared: &Arc<Shared>, buffer: &mut [u8]) -> io::Result<()> {
    let (length, client) = socket.receive(buffer).await?;
    let started = Instant::now();
    match shared.respond(&buffer[..length], Transport::Udp) {
        Step::Done(outcome) => answer(socket, shared, &client, outcome, started).await,
        Step::Wait(forwarded) => {
            let (socket, shared) = (socket.clone(), shared.clone());
            tokio::spawn(async move {
                let outcome = forwarded.finish().await;
                answer(&socket, &shared, &client, outcome, started).await;
            });
        }
    }
    Ok(())
}

async fn answer(
    socket: &DatagramSocket,
    shared: &Shared,
    client: &Sender,
    outcome: Outcome,
    started: Instant,
) {
    let message = match outcome {
        Outcome::Answer { message, kind, code } => {
            shared.metrics.answered(kind, code, Transport::Udp, started.elapsed());
            message
        }
        Outcome::Malformed(reply) => {
            shared.metrics.malformed();
            let Some(message) = reply else { return };
            message
        }
        Outcome::Ignore => return,
    };
    if let Err(error) = socket.send(&message, client).await {
        // An address that cannot be answered is the client's matter.
        debug!(%error, client = %client.address, "A DNS answer could not be sent");
    }
}
