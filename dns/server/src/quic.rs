//! Queries over QUIC (RFC 9250): one on each stream.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use crate::connections::{IDLE_TIMEOUT, Seat};
use crate::metrics::Transport;
use crate::responder::Step;
use crate::server::{Shared, Verdict};
use crate::stream::{Client, QUERY_LENGTH_MAX, framed};

/// The protocol that is offered in the TLS handshake.
pub(crate) const PROTOCOL: &[u8] = b"doq";

/// Queries of one connection at a time; the RFC wants streams to be plenty.
const STREAMS_MAX: u32 = 64;

/// How long a query may be on its way, and its answer.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// Error codes of RFC 9250 §4.3.
const DOQ_NO_ERROR: u32 = 0;
const DOQ_PROTOCOL_ERROR: u32 = 2;

/// Handshakes that are under way or served without a proof of the client's address. Beyond that clients have to show
/// that they receive what is sent to them, which costs a round trip.
const UNPROVEN_MAX: usize = 64;

/// An endpoint on a socket.
pub(crate) fn endpoint(socket: UdpSocket, tls: rustls::ServerConfig) -> Result<Endpoint, EndpointError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(EndpointError::Tls)?;
    let mut transport = TransportConfig::default();
    // Longer than what the server itself closes after, so that it is the one who says why.
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT * 2).map_err(|_| EndpointError::Timeout)?;
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(QUERY_LENGTH_MAX as u32 + 2))
        .max_idle_timeout(Some(idle));
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
        .map_err(EndpointError::Socket)
}

/// There is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The TLS library has no cipher that QUIC begins with.
    #[error("TLS has no cipher suite for QUIC")]
    Tls(#[source] NoInitialCipherSuite),
    /// The idle timeout is none of QUIC.
    #[error("BUG: the idle timeout is too long for QUIC")]
    Timeout,
    /// The socket cannot be used.
    #[error("the socket cannot be used")]
    Socket(#[source] io::Error),
}

/// Accepts connections until the server is gone.
pub(crate) async fn serve(endpoint: Endpoint, shared: Arc<Shared>, mut stop: watch::Receiver<()>) {
    loop {
        let incoming = tokio::select! {
            _ = stop.changed() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if !incoming.remote_address_validated() && endpoint.open_connections() >= UNPROVEN_MAX {
            // It fails only if the client has shown its address already.
            let _ = incoming.retry();
            continue;
        }
        let Some(seat) = shared.connections.seat() else {
            debug!(client = %incoming.remote_address(), "A DNS connection is refused because there are too many");
            incoming.refuse();
            continue;
        };
        tokio::spawn(serve_connection(incoming, seat, shared.clone(), stop.clone()));
    }
    endpoint.close(VarInt::from_u32(DOQ_NO_ERROR), b"");
}

async fn serve_connection(
    incoming: Incoming,
    seat: Seat,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) {
    let address: SocketAddr = incoming.remote_address();
    let shaken = tokio::select! {
        shaken = timeout(STREAM_TIMEOUT, incoming) => shaken,
        // It is closed for another one.
        () = seat.slot.idle() => return,
    };
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            debug!(%error, client = %address, "A DNS connection failed");
            return;
        }
        Err(_) => return,
    };
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            () = seat.slot.idle() => break,
            accepted = connection.accept_bi() => accepted,
        };
        let Ok((send, receive)) = accepted else { return };
        let client = Client { address: address.ip(), transport: Transport::Quic, slot: seat.slot.clone() };
        tokio::spawn(serve_stream(connection.clone(), send, receive, client, shared.clone()));
    }
    connection.close(VarInt::from_u32(DOQ_NO_ERROR), b"");
}

async fn serve_stream(
    connection: Connection,
    mut send: SendStream,
    mut receive: RecvStream,
    client: Client,
    shared: Arc<Shared>,
) {
    let (started, _busy) = (Instant::now(), client.slot.begin());
    let read = timeout(STREAM_TIMEOUT, receive.read_to_end(QUERY_LENGTH_MAX + 2)).await;
    let Ok(Ok(octets)) = read else {
        // The client has given up, is too slow or sends too much.
        let _ = send.reset(VarInt::from_u32(DOQ_PROTOCOL_ERROR));
        return;
    };
    let Some(query) = query_of(&octets) else {
        connection.close(VarInt::from_u32(DOQ_PROTOCOL_ERROR), b"expected one query with the id 0");
        return;
    };
    let asked = shared.asked(query, client.address, client.transport, started);
    let outcome = match shared.respond(query, client.address, client.transport) {
        Step::Done(outcome) => outcome,
        Step::Wait(forwarded) => forwarded.finish().await,
        Step::Transfer(transfer) => {
            for message in transfer.messages() {
                if send_message(&mut send, &message).await.is_none() {
                    return;
                }
            }
            shared.transferred(asked);
            let _ = send.finish();
            return;
        }
    };
    match shared.counted(outcome, asked) {
        Verdict::Send(message) | Verdict::SendAndClose(message) => {
            if send_message(&mut send, &message).await.is_some() {
                // A client that is gone needs no answer.
                let _ = send.finish();
            }
        }
        Verdict::Close => {
            connection.close(VarInt::from_u32(DOQ_PROTOCOL_ERROR), b"expected a query");
        }
    }
}

/// Nothing if the client is gone or does not take it.
async fn send_message(send: &mut SendStream, message: &[u8]) -> Option<()> {
    let framed = framed(message)?;
    timeout(STREAM_TIMEOUT, send.write_all(&framed)).await.ok()?.ok()
}

/// The one query of a stream: behind its length, and with the id 0 (RFC 9250 §4.2).
fn query_of(octets: &[u8]) -> Option<&[u8]> {
    let (length, query) = octets.split_first_chunk()?;
    let is_whole = usize::from(u16::from_be_bytes(*length)) == query.len();
    (is_whole && query.starts_with(&[0, 0])).then_some(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_one_query_with_the_id_0() {
        for (octets, expected) in [
            (&[0, 3, 0, 0, 9][..], Some(&[0, 0, 9][..])),
            (&[0, 3, 0, 1, 9], None),
            (&[0, 3, 0, 0], None),
            (&[0, 2, 0, 0, 9], None),
            (&[0], None),
            (&[], None),
        ] {
            assert_eq!(query_of(octets), expected, "{octets:?}");
        }
    }
}
