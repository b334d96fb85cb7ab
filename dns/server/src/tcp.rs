//! Queries over TCP: any number per connection, each behind its length (RFC 7766).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::metrics::Transport;
use crate::responder::{Outcome, Step};
use crate::server::Shared;

/// Connections of one address at a time. Each takes a task and at most an answer's 64 KiB. Further ones are closed at
/// once, so that their clients see it and try again.
const CONNECTIONS_MAX: usize = 1024;

/// Of the process's limit on open files, where that is less: the rest is for the other parts of the process.
const DESCRIPTOR_SHARE: u64 = 20;

/// How long a connection may be idle, or a query be on its way: that of dcos-dns.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to receive an answer: that of dcos-dns.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Octets of the longest query. A connection that announces a longer one is closed: its end would have to be waited
/// for.
const QUERY_LENGTH_MAX: usize = 4096;

/// How long to wait after an error of the socket, such as no file descriptor being left.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Accepts connections until the server is gone.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<()>) {
    let permits = Arc::new(Semaphore::new(connections_max()));
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let Ok(permit) = permits.clone().try_acquire_owned() else {
                    debug!(%client, "A DNS connection is refused because there are too many");
                    continue;
                };
                let connection = serve_connection(stream, shared.clone(), stop.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(%error, %client, "A DNS connection failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "A DNS socket accepts no connection");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

fn connections_max() -> usize {
    let share =
        getrlimit(Resource::Nofile).current.and_then(|limit| (limit / DESCRIPTOR_SHARE).try_into().ok());
    share.map_or(CONNECTIONS_MAX, |share: usize| share.clamp(1, CONNECTIONS_MAX))
}

/// Answers the queries of one connection in their order, until the client ends it, is idle or sends what cannot be
/// read, or the server is gone.
async fn serve_connection(
    mut stream: TcpStream,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; QUERY_LENGTH_MAX];
    loop {
        let query = tokio::select! {
            _ = stop.changed() => return Ok(()),
            query = timeout(IDLE_TIMEOUT, read_query(&mut stream, &mut buffer)) => query,
        };
        let Ok(Some(query)) = query.unwrap_or(Ok(None)) else {
            return Ok(());
        };
        let started = Instant::now();
        let outcome = match shared.respond(query, Transport::Tcp) {
            Step::Done(outcome) => outcome,
            Step::Wait(forwarded) => forwarded.finish().await,
        };
        match outcome {
            Outcome::Answer { message, kind, code } => {
                let zone = shared.fast.load().label_of(query);
                shared.metrics.queries.answered(zone, kind, code, Transport::Tcp, started.elapsed());
                send(&mut stream, &message).await?;
            }
            Outcome::Malformed(reply) => {
                shared.metrics.malformed();
                return match reply {
                    Some(message) => send(&mut stream, &message).await,
                    None => Ok(()),
                };
            }
            Outcome::Ignore => return Ok(()),
        }
    }
}

/// Reads one query; nothing at the connection's end or for one that is too long.
async fn read_query<'buffer>(
    stream: &mut TcpStream,
    buffer: &'buffer mut [u8],
) -> io::Result<Option<&'buffer [u8]>> {
    let length = usize::from(stream.read_u16().await?);
    let Some(query) = buffer.get_mut(..length) else {
        return Ok(None);
    };
    stream.read_exact(query).await?;
    Ok(Some(query))
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let framed = [&length.to_be_bytes(), message].concat();
    timeout(SEND_TIMEOUT, stream.write_all(&framed)).await?
}
