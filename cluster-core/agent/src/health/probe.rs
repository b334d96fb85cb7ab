//! Probes over the network, and how many run at a time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
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

/// How long a body is read of which nothing is kept. Most are there with the head, and some never end.
const DRAIN_LIMIT: Duration = Duration::from_millis(100);

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
        let (informed, mut answer) = (Arc::new(AtomicBool::new(false)), None);
        let probing = async {
            match probe {
                HealthProbe::Tcp { port } => {
                    connect(SocketAddr::new(address, *port)).await.map(|_| Outcome::Success)
                }
                HealthProbe::Http { port, path, tls, ignore_informational } => {
                    let to = SocketAddr::new(address, *port);
                    let head = answer.insert(self.ask(to, path, *tls, &informed).await?);
                    judge(to, head.status, *ignore_informational)
                }
                HealthProbe::Command { .. } => Ok(Outcome::Nothing),
            }
        };
        let done = within(limit, probing).await;
        if let Some(answer) = answer {
            answer.drain().await;
        }
        let lacking = done.as_ref().and_then(|done| done.as_ref().err()).filter(|error| error.is_of_agent());
        self.note_lack(lacking);
        let is_ignored = matches!(probe, HealthProbe::Http { ignore_informational: true, .. })
            && informed.load(Ordering::Relaxed);
        match done {
            Some(Ok(outcome)) => outcome,
            Some(Err(ProbeError::Http { .. })) | None if is_ignored => Outcome::Nothing,
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
        let mut unread = None;
        let asking = async {
            let to = SocketAddr::new(address, check.port);
            let answer = self.ask(to, &check.path, check.tls, &Arc::default()).await?;
            let (status, content_type) = (answer.status.as_u16(), answer.content_type.clone());
            let body = if check.keeps_response {
                // One byte more than is kept shows that there is more.
                answer.body(readiness::BODY_BYTES_MAX + 1).await
            } else {
                unread = Some(answer);
                Vec::new()
            };
            Ok::<_, ProbeError>(Answer::Response { status, content_type, body })
        };
        let done = within(check.timeout, asking).await;
        if let Some(answer) = unread {
            answer.drain().await;
        }
        match done {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => Answer::Failure(checkpoint::in_full(&error)),
            None => Answer::Failure(lateness(check.timeout)),
        }
    }

    /// Asks, and notes whether there are informational answers before the final one.
    async fn ask(
        &self,
        to: SocketAddr,
        path: &str,
        tls: bool,
        informed: &Arc<AtomicBool>,
    ) -> Result<Response, ProbeError> {
        let stream = connect(to).await?;
        if !tls {
            return exchange(stream, to, path, informed).await;
        }
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(ServerName::from(to.ip()), stream).await;
        exchange(stream.map_err(|source| ProbeError::Tls { to, source })?, to, path, informed).await
    }
}

/// An answer whose head is there.
struct Response {
    status: StatusCode,
    /// The media type without its parameters; empty if it is not given.
    content_type: String,
    body: Incoming,
    _connection: Connection,
}

impl Response {
    /// Reads the body, and keeps so many bytes of its beginning.
    async fn body(mut self, kept: usize) -> Vec<u8> {
        let mut beginning = Vec::new();
        let mut left = BODY_BYTES_MAX;
        while !self.body.is_end_stream() && left > 0 {
            // A body that breaks off has nothing to do with the status.
            let Some(Ok(frame)) = self.body.frame().await else { break };
            let data = frame.data_ref().map_or(&[][..], |data| data);
            left = left.saturating_sub(data.len().max(1) as u64);
            let room = kept.saturating_sub(beginning.len()).min(data.len());
            beginning.extend_from_slice(&data[..room]);
        }
        beginning
    }

    /// Reads the body and keeps nothing of it.
    async fn drain(self) {
        // What takes longer is closed.
        let _ = tokio::time::timeout(DRAIN_LIMIT, self.body(0)).await;
    }
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

async fn exchange<S>(
    stream: S,
    to: SocketAddr,
    path: &str,
    informed: &Arc<AtomicBool>,
) -> Result<Response, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| ProbeError::Http { to, source };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut request = Request::get(format!("{slash}{path}"))
        .header(HOST, to.to_string())
        .header(USER_AGENT, PRODUCT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Path { path: path.to_owned(), source })?;
    let informed = Arc::clone(informed);
    hyper::ext::on_informational(&mut request, move |_| informed.store(true, Ordering::Relaxed));
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let connection = Connection(tokio::spawn(connection).abort_handle());
    let answer = sender.send_request(request).await.map_err(failed)?;
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let (status, content_type) = (answer.status(), media_type.trim().to_owned());
    Ok(Response { status, content_type, body: answer.into_body(), _connection: connection })
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
    use std::io::{Read as _, Write as _};
    use std::sync::mpsc;

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

    /// Answers the first request so, and keeps the connection open as long as the sender is there.
    fn serve(answer: &'static str) -> (u16, mpsc::Sender<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("address").port();
        let (sender, end) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                asked.extend(byte);
            }
            stream.write_all(answer.as_bytes()).expect("answers");
            // Ends when the test has dropped its end.
            let _ = end.recv();
        });
        (port, sender)
    }

    async fn probe(port: u16, ignore_informational: bool, limit: Duration) -> Outcome {
        let probe = HealthProbe::Http { port, path: "/".to_owned(), tls: false, ignore_informational };
        Probes::new().probe(&probe, [127, 0, 0, 1].into(), limit).await
    }

    /// Longer than an answer takes on a busy machine.
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_body_that_does_not_end_is_not_waited_for() {
        let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n";
        let (port, _open) = serve(events);
        assert_eq!(probe(port, false, LONG).await, Outcome::Success);
        let (port, _open) = serve(events);
        let check = ReadinessCheck {
            port,
            path: "/".to_owned(),
            tls: false,
            interval: LONG,
            timeout: LONG,
            ready_statuses: vec![200],
            keeps_response: false,
        };
        let expected =
            Answer::Response { status: 200, content_type: "text/event-stream".to_owned(), body: Vec::new() };
        assert_eq!(Probes::new().ask_readiness(&check, [127, 0, 0, 1].into()).await, expected);
    }

    #[tokio::test]
    async fn an_informational_answer_without_a_final_one_is_no_result_if_asked_for() {
        const HINTS: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let (port, open) = serve(HINTS);
        drop(open);
        assert_eq!(probe(port, true, LONG).await, Outcome::Nothing);
        let (port, open) = serve(HINTS);
        drop(open);
        assert!(matches!(probe(port, false, LONG).await, Outcome::Failure(_)));

        // A final answer that does not come. On a busy machine the first one may be late, too.
        let mut outcomes = Vec::new();
        while outcomes.last() != Some(&Outcome::Nothing) && outcomes.len() < 20 {
            let (port, _open) = serve(HINTS);
            outcomes.push(probe(port, true, Duration::from_secs(1)).await);
        }
        assert_eq!(outcomes.last(), Some(&Outcome::Nothing));

        // A final answer counts.
        let (port, _open) = serve("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 Not now\r\n\r\n");
        let expected = format!("127.0.0.1:{port} answers with status 503 Service Unavailable");
        assert_eq!(probe(port, true, LONG).await, Outcome::Failure(expected));
    }
}
