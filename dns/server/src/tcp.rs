//! Accepts connections: plain ones, and ones over TLS (RFC 7858) that queries or HTTP come over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::connections::Seat;
use crate::https;
use crate::metrics::Transport;
use crate::server::Shared;
use crate::stream::{self, Client};

/// How long a client may take for the TLS handshake: some round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after an error of the socket, such as no file descriptor being left.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What a listener's connections carry.
#[derive(Clone)]
pub(crate) enum Carried {
    /// Queries.
    Plain,
    /// Queries over TLS.
    Tls(TlsAcceptor),
    /// Queries over HTTP over TLS.
    Https(TlsAcceptor),
}

/// Accepts connections until the server is gone.
pub(crate) async fn serve(
    listener: TcpListener,
    carried: Carried,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) {
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let Some(seat) = shared.connections.seat() else {
                    debug!(%client, "A DNS connection is refused because there are too many");
                    continue;
                };
                let connection =
                    serve_connection(stream, client, seat, carried.clone(), shared.clone(), stop.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(%error, %client, "A DNS connection failed");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "A DNS socket accepts no connection");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    client: SocketAddr,
    seat: Seat,
    carried: Carried,
    shared: Arc<Shared>,
    stop: watch::Receiver<()>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = |transport| Client { address: client.ip(), transport, slot: seat.slot.clone() };
    match carried {
        Carried::Plain => stream::serve(stream, client(Transport::Tcp), shared, stop).await,
        Carried::Tls(acceptor) => {
            let stream = shake_hands(&acceptor, stream, &seat).await?;
            stream::serve(stream, client(Transport::Tls), shared, stop).await
        }
        Carried::Https(acceptor) => {
            let stream = shake_hands(&acceptor, stream, &seat).await?;
            https::serve(stream, client(Transport::Https), shared, stop).await
        }
    }
}

/// Fails also if the connection is closed for another one meanwhile.
async fn shake_hands<S>(acceptor: &TlsAcceptor, stream: S, seat: &Seat) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        shaken = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => shaken?,
        () = seat.slot.idle() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::connections::{Connections, IDLE_TIMEOUT};
    use crate::metrics::ConnectionMetrics;

    #[tokio::test(start_paused = true)]
    async fn a_handshake_makes_room_at_once() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let metrics = ConnectionMetrics::register(&Registry::new()).expect("registered");
        let connections = Connections::bounded(1, IDLE_TIMEOUT, metrics);
        let seat = connections.seat().expect("there is room");
        let (stream, _silent) = tokio::io::duplex(64);
        let (shaken, second) =
            tokio::join!(shake_hands(&acceptor, stream, &seat), async { connections.seat() });
        assert!(second.is_some());
        // Not for want of time.
        assert_eq!(shaken.err().map(|error| error.kind()), Some(io::ErrorKind::ConnectionAborted));
    }
}
