//! Probes over the network, and how many run at a time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use mesonet_model::{HealthProbe, ReadinessCheck};
use rustix::io::Errno;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};

use super::check::Outcome;
use super::patience::within;
use super::readiness::{self, Answer};
use crate::checkpoint;

/// Probes over the network at a time. Each is a socket and some kilobytes. Further ones are late: tasks that do not
/// answer hold theirs until the timeout, so there are many.
const NETWORK_PROBES_MAX: usize = 512;

/// Commands at a time. Each is a shell and what it runs, which is work for this node. Further ones are late.
const COMMANDS_MAX: usize = 32;

/// The longest head of an answer. A longer one is a failure.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What is read of an answer's body, so that the server can end it in order. Only the status counts.
const BODY_BYTES_MAX: u64 = 64 << 10;

/// What servers are told of who asks.
const PRODUCT: &str = concat!("mesonet/", env!("CARGO_PKG_VERSION"));

/// What all probes of an agent share.
#[derive(Debug, Clone)]
pub(crate) struct Probes {
    network: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    tls: Arc<ClientConfig>,
    /// Whether the last probe could not be made, for want of something of this machine.
    is_lacking: Arc<AtomicBool>,
}

/// A task is not well.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("cannot connect to {to}")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("cannot begin TLS with {to}")]
    Tls { to: SocketAddr, source: io::Error },
    #[error("'{path}' is no path")]
    Path { path: String, source: hyper::http::Error },
    #[error("no HTTP answer from {to}")]
    Http { to: SocketAddr, source: hyper::Error },
    #[error("{to} answers with status {status}")]
    Status { to: SocketAddr, status: StatusCode },
}

impl ProbeError {
    /// Whether it is this process or its machine that lacks something, which says nothing of the task: descriptors,
    /// memory, or ports of its own.
    fn is_of_agent(&self) -> bool {
        const LACKS: [Errno; 5] =
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
        match self {
            Self::Connect { source, .. } => {
                Errno::from_io_error(source).is_some_and(|error| LACKS.contains(&error))
            }
            Self::Tls { .. } | Self::Path { .. } | Self::Http { .. } | Self::Status { .. } => false,
        }
    }
}

impl Probes {
    /// Nothing is probed yet.
    pub(crate) fn new() -> Self {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("BUG: the provider lacks a protocol version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Self {
            network: Arc::new(Semaphore::new(NETWORK_PROBES_MAX)),
            commands: Arc::new(Semaphore::new(COMMANDS_MAX)),
            tls: Arc::new(config),
            is_lacking: Arc::default(),
        }
    }

    /// Waits until a command may be run; it may be as long as what is returned is kept.
    pub(crate) async fn command_permit(&self) -> SemaphorePermit<'_> {
        self.commands.acquire().await.expect("BUG: the semaphore is never closed")
    }

    /// Probes an address, as soon as it may. Commands have no address: they find nothing here.
    pub(super) async fn probe(&self, probe: &HealthProbe, address: IpAddr, limit: Duration) -> Outcome {
        let _permit = self.network.acquire().await.expect("BUG: the semaphore is never closed");
        let probing = async {
            match probe {
                HealthProbe::Tcp { port } => {
                    connect(SocketAddr::new(address, *port)).await.map(|_| Outcome::Success)
                }
                HealthProbe::Http { port, path, tls, ignore_informational } => {
                    let to = SocketAddr::new(address, *port);
                    let response = self.ask(to, path, *tls, 0).await?;
                    judge(to, response.status, *ignore_informational)
                }
                HealthProbe::Command { .. } => Ok(Outcome::Nothing),
            }
        };
        let done = within(limit, probing).await;
        let lacking = done.as_ref().and_then(|done| done.as_ref().err()).filter(|error| error.is_of_agent());
        self.note_lack(lacking);
        match done {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) if error.is_of_agent() => Outcome::Nothing,
            Some(Err(error)) => Outcome::Failure(checkpoint::in_full(&error)),
            None => Outcome::Failure(lateness(limit)),
        }
    }

    /// Says once that probes cannot be made, until one can be made again.
    fn note_lack(&self, lacking: Option<&ProbeError>) {
        let was_lacking = self.is_lacking.swap(lacking.is_some(), Ordering::Relaxed);
        if let Some(error) = lacking.filter(|_| !was_lacking) {
            let error = checkpoint::in_full(error);
            tracing::warn!(error, "Tasks cannot be checked, for want of what connections need");
        }
    }

    /// Asks whether a task at an address is ready, as soon as that may be done.
    pub(super) async fn ask_readiness(&self, check: &ReadinessCheck, address: IpAddr) -> Answer {
        let _permit = self.network.acquire().await.expect("BUG: the semaphore is never closed");
        // One byte more than is kept shows that there is more.
        let kept = if check.keeps_response { readiness::BODY_BYTES_MAX + 1 } else { 0 };
        let asking = self.ask(SocketAddr::new(address, check.port), &check.path, check.tls, kept);
        match within(check.timeout, asking).await {
            Some(Ok(Response { status, content_type, body })) => {
                Answer::Response { status: status.as_u16(), content_type, body }
            }
            Some(Err(error)) => Answer::Failure(checkpoint::in_full(&error)),
            None => Answer::Failure(lateness(check.timeout)),
        }
    }

    /// Asks, and keeps so many bytes of the answer's body.
    async fn ask(&self, to: SocketAddr, path: &str, tls: bool, kept: usize) -> Result<Response, ProbeError> {
        let stream = connect(to).await?;
        if !tls {
            return exchange(stream, to, path, kept).await;
        }
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(ServerName::from(to.ip()), stream).await;
        exchange(stream.map_err(|source| ProbeError::Tls { to, source })?, to, path, kept).await
    }
}

/// An answer.
struct Response {
    status: StatusCode,
    /// The media type without its parameters; empty if it is not given.
    content_type: String,
    /// The beginning of the body.
    body: Vec<u8>,
}

fn lateness(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f64())
}

async fn connect(to: SocketAddr) -> Result<TcpStream, ProbeError> {
    let failed = |source| ProbeError::Connect { to, source };
    let stream = TcpStream::connect(to).await.map_err(failed)?;
    // Where nobody listens on a port that the kernel may choose for clients, a connection can be one to itself.
    match stream.local_addr() {
        Ok(own) if own == to => Err(failed(io::ErrorKind::ConnectionRefused.into())),
        Ok(_) | Err(_) => Ok(stream),
    }
}

async fn exchange<S>(stream: S, to: SocketAddr, path: &str, kept: usize) -> Result<Response, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| ProbeError::Http { to, source };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let request = Request::get(format!("{slash}{path}"))
        .header(HOST, to.to_string())
        .header(USER_AGENT, PRODUCT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Path { path: path.to_owned(), source })?;
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let _connection = Connection(tokio::spawn(connection).abort_handle());
    let answer = sender.send_request(request).await.map_err(failed)?;
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let mut response =
        Response { status: answer.status(), content_type: media_type.trim().to_owned(), body: Vec::new() };
    let mut body = answer.into_body();
    let mut left = BODY_BYTES_MAX;
    while !body.is_end_stream() && left > 0 {
        // A body that breaks off has nothing to do with the status.
        let Some(Ok(frame)) = body.frame().await else { break };
        let data = frame.data_ref().map_or(&[][..], |data| data);
        left = left.saturating_sub(data.len().max(1) as u64);
        let room = kept.saturating_sub(response.body.len()).min(data.len());
        response.body.extend_from_slice(&data[..room]);
    }
    Ok(response)
}

fn judge(to: SocketAddr, status: StatusCode, ignore_informational: bool) -> Result<Outcome, ProbeError> {
    match status.as_u16() {
        200..=399 => Ok(Outcome::Success),
        100..=199 if ignore_informational => Ok(Outcome::Nothing),
        _ => Err(ProbeError::Status { to, status }),
    }
}

/// The task that drives a connection; it ends with this.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes every server for what it says it is. A probe sends nothing secret, and tasks have certificates for their names
/// and not for their addresses.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_says_nothing_of_the_task() {
        let to = SocketAddr::from(([127, 0, 0, 1], 80));
        let is_of_agent = |error: Errno| ProbeError::Connect { to, source: error.into() }.is_of_agent();
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            assert!(is_of_agent(error), "{error}");
        }
        for error in
            [Errno::CONNREFUSED, Errno::CONNRESET, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::TIMEDOUT]
        {
            assert!(!is_of_agent(error), "{error}");
        }
    }
}
