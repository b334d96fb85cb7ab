//! Queries over UDP.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::datagram::DatagramSocket;
use crate::metrics::Transport;
use crate::responder::{Outcome, respond};
use crate::server::Shared;

/// Octets of the longest query that is read whole; the rest is lost, so that it counts as malformed. Queries have one
/// name of at most 255 octets and some options.
const QUERY_LENGTH_MAX: usize = 4096;

/// How long to wait after an error of the socket, so that one that stays does not take a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Answers queries until the server is gone.
pub(crate) async fn serve(socket: DatagramSocket, shared: Arc<Shared>, mut stop: watch::Receiver<()>) {
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
async fn serve_one(socket: &DatagramSocket, shared: &Shared, buffer: &mut [u8]) -> io::Result<()> {
    let (length, client) = socket.receive(buffer).await?;
    let started = Instant::now();
    let message = match respond(&shared.zone.load(), shared.freshness(), &buffer[..length], Transport::Udp) {
        Outcome::Answer { message, kind, code } => {
            shared.metrics.answered(kind, code, Transport::Udp, started.elapsed());
            message
        }
        Outcome::Malformed(Some(message)) => {
            shared.metrics.malformed();
            message
        }
        Outcome::Malformed(None) => {
            shared.metrics.malformed();
            return Ok(());
        }
        Outcome::Ignore => return Ok(()),
    };
    if let Err(error) = socket.send(&message, &client).await {
        // An address that cannot be answered is the client's matter.
        debug!(%error, client = %client.address, "A DNS answer could not be sent");
    }
    Ok(())
}
