//! Calls to etcd's members: one at a time is asked, and the next one when that does not answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
};
use super::{EtcdError, EtcdSettings};

/// How long one member is waited for before the next one is asked. etcd answers in milliseconds; it is slower only
/// while it elects a leader, which takes about as long as this, or while its disk is stuck.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Between rounds in which no member has answered.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a TCP connection may take to come up.
const CONNECT: Duration = Duration::from_secs(1);

/// Bytes under way per stream: a page of records, so that reading everything does not wait for acknowledgements.
const WINDOW: u32 = 8 << 20;

/// The largest answer. etcd's values are 1.5 MiB at most by default, and [`super::replica::PAGE`] of them come at once.
const ANSWER_MAX: usize = 1 << 30;

/// What a certificate in PEM begins with.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Requests under way on a stream; more than one only if etcd does not read.
const STREAM_DEPTH: usize = 4;

/// The way to all members.
#[derive(Debug)]
pub(super) struct Connection {
    members: Vec<Member>,
    /// The one that is asked.
    current: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    url: String,
    channel: Channel,
}

/// A call has failed.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// etcd has refused it; it has had no effect.
    #[error("etcd refuses: {}", .0.message())]
    Refused(Status),
    /// No member has answered in time; it may have had an effect.
    #[error("{url} does not answer: {reason}")]
    Silent {
        /// Who was asked last.
        url: String,
        /// Why there is no answer.
        reason: String,
    },
}

impl Fault {
    /// Whether there is no room in etcd.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Refused(status) if is_full(status))
    }

    /// Whether history was asked for that is gone.
    pub(super) fn is_compacted(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::OutOfRange)
    }
}

/// A stream of changes.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) orders: mpsc::Sender<WatchRequest>,
    pub(super) answers: Streaming<WatchResponse>,
    member: usize,
}

// === impl Connection ===

impl Connection {
    /// Connects when it is first used. Needs a runtime.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, EtcdError> {
        if settings.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let member = |url: &String| {
            let endpoint = endpoint(url, settings)
                .map_err(|reason| EtcdError::Endpoint { endpoint: url.clone(), reason })?;
            Ok(Member { url: url.clone(), channel: endpoint.connect_lazy() })
        };
        let members = settings.endpoints.iter().map(member).collect::<Result<_, EtcdError>>()?;
        Ok(Self { members, current: AtomicUsize::new(0) })
    }

    /// For messages.
    pub(super) fn place(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(|member| member.url.as_str()).collect();
        format!("etcd at {}", urls.join(", "))
    }

    pub(super) async fn range(&self, request: RangeRequest, until: Instant) -> Result<RangeResponse, Fault> {
        self.call("/etcdserverpb.KV/Range", request, until).await
    }

    /// Carries a transaction out, possibly more than once: it must have no effect when it is repeated.
    pub(super) async fn txn(&self, request: TxnRequest, until: Instant) -> Result<TxnResponse, Fault> {
        Ok(self.txn_counted(request, until).await?.0)
    }

    /// The same, and whether it may have been carried out before, so that the answer to that was lost.
    pub(super) async fn txn_counted(
        &self,
        request: TxnRequest,
        until: Instant,
    ) -> Result<(TxnResponse, bool), Fault> {
        let (answer, failed) = self.call_counted("/etcdserverpb.KV/Txn", request, until).await?;
        Ok((answer, failed > 0))
    }

    pub(super) async fn grant(&self, ttl: i64, until: Instant) -> Result<LeaseGrantResponse, Fault> {
        self.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }, until).await
    }

    pub(super) async fn revoke(&self, id: i64, until: Instant) -> Result<LeaseRevokeResponse, Fault> {
        self.call("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id }, until).await
    }

    /// Renews a lease once. One attempt, so that whoever counts on it knows when it was asked for.
    pub(super) async fn keep_alive(&self, id: i64, patience: Duration) -> Result<i64, Fault> {
        let member = self.current.load(Ordering::Relaxed);
        let call = async {
            let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
            let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
            let codec = ProstCodec::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>::default();
            let mut grpc = self.ready(member).await?;
            let mut answers = grpc.streaming(Request::new(requests), path, codec).await?.into_inner();
            answers.message().await?.ok_or_else(|| Status::unavailable("the stream has ended"))
        };
        match self.attempt(member, Instant::now() + patience, call).await {
            Ok(answer) => Ok(answer.ttl),
            Err(fault) => {
                self.leave(member);
                Err(fault)
            }
        }
    }

    /// Opens a stream of changes, in one attempt.
    pub(super) async fn watch(&self, order: WatchRequest) -> Result<Watching, Fault> {
        let member = self.current.load(Ordering::Relaxed);
        let call = async {
            let (orders, requests) = mpsc::channel(STREAM_DEPTH);
            // There is room: the channel is new.
            let _ = orders.try_send(order);
            let mut request = Request::new(ReceiverStream::new(requests));
            // A member that is cut off from the others is to end the stream rather than say nothing.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let mut grpc = self.ready(member).await?;
            let answers = grpc.streaming(request, path, codec).await?.into_inner();
            Ok(Watching { orders, answers, member })
        };
        let watching = self.attempt(member, Instant::now() + ATTEMPT, call).await;
        if watching.is_err() {
            self.leave(member);
        }
        watching
    }

    /// Asks another member from here on, because a stream is of no use.
    pub(super) fn leave_watched(&self, watching: &Watching) {
        self.leave(watching.member);
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q, until: Instant) -> Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        Ok(self.call_counted(path, request, until).await?.0)
    }

    /// Asks one member after the other until one answers; returns also how often none did.
    async fn call_counted<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        until: Instant,
    ) -> Result<(A, usize), Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut failed = 0_usize;
        let mut first_fault: Option<Fault> = None;
        loop {
            let member = self.current.load(Ordering::Relaxed);
            let call = async {
                let codec = ProstCodec::<Q, A>::default();
                let mut grpc = self.ready(member).await?;
                let path = PathAndQuery::from_static(path);
                Ok(grpc.unary(Request::new(request.clone()), path, codec).await?.into_inner())
            };
            let fault = match self.attempt(member, until.min(Instant::now() + ATTEMPT), call).await {
                Err(fault @ Fault::Silent { .. }) => fault,
                answered => return answered.map(|answer| (answer, failed)),
            };
            self.leave(member);
            failed += 1;
            // The last attempt may have had no time to find anything out.
            let fault = first_fault.take().unwrap_or(fault);
            if Instant::now() >= until {
                return Err(fault);
            }
            first_fault = Some(fault);
            if failed.is_multiple_of(self.members.len()) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn attempt<T>(
        &self,
        member: usize,
        until: Instant,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Fault> {
        let silent = |reason: String| Fault::Silent { url: self.members[member].url.clone(), reason };
        match tokio::time::timeout_at(until, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) if is_refusal(&status) => Err(Fault::Refused(status)),
            Ok(Err(status)) => Err(silent(reason(&status))),
            Err(_) => Err(silent("it takes too long".to_owned())),
        }
    }

    async fn ready(&self, member: usize) -> Result<Grpc<Channel>, Status> {
        let channel = self.members[member].channel.clone();
        let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }

    /// Asks the next member from here on, unless somebody has seen to that.
    fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        // If it fails, another member is asked already.
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn endpoint(url: &str, settings: &EtcdSettings) -> Result<Endpoint, String> {
    let is_secure = url.starts_with("https://");
    if !is_secure && !url.starts_with("http://") {
        return Err("it must start with http:// or https://".to_owned());
    }
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| error_chain(&error))?
        .connect_timeout(CONNECT)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true);
    match &settings.tls {
        Some(tls) if is_secure => {
            if !tls.authority.windows(PEM_CERTIFICATE.len()).any(|text| text == PEM_CERTIFICATE) {
                return Err("the file of etcd's authority has no certificate (PEM)".to_owned());
            }
            let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.authority));
            if let Some((certificate, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            endpoint.tls_config(config).map_err(|error| error_chain(&error))
        }
        None if is_secure => Err("https needs the certificate of etcd's authority".to_owned()),
        _ => Ok(endpoint),
    }
}

/// Whether etcd has decided on a request, rather than not been able to.
fn is_refusal(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => true,
        // The same code stands for too many requests, which pass.
        Code::ResourceExhausted => is_full(status),
        _ => false,
    }
}

fn is_full(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("space exceeded")
}

/// The words of a status and of what has caused it.
fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
