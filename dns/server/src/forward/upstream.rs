//! One upstream server: asks it once.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hickory_net::NetError;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsHandle, DnsRequestSender, FirstAnswer};
use hickory_proto::op::{DnsRequest, DnsResponse, Message, ResponseCode};
use thiserror::Error;
use tracing::debug;

use super::standing::Standing;
use crate::metrics::{UpstreamFailure, UpstreamMetrics};

/// An answer over UDP that has not come by then is taken to be lost; another attempt has been on its way for long.
const UDP_TIMEOUT: Duration = Duration::from_millis(3_500);

/// How long a connection, a query and its answer may take over TCP.
const TCP_TIMEOUT: Duration = Duration::from_millis(3_000);

/// How long to wait for a server of unknown latency before another one is asked too.
const PATIENCE_UNKNOWN: Duration = Duration::from_millis(500);

/// Limits of that for servers of known latency.
const PATIENCE_MIN: Duration = Duration::from_millis(150);
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// Answers of a healthy server come within so many times its smoothed latency.
const PATIENCE_FACTOR: u32 = 4;

/// A server did not answer.
#[derive(Debug, Clone, Error)]
pub(crate) enum ExchangeError {
    /// Nothing came.
    #[error("no answer in time")]
    Timeout,
    /// The network or the system refuses.
    #[error("cannot be reached")]
    Network(#[source] NetError),
    /// What came is no answer to the question.
    #[error("the answer is no answer to the question")]
    Mismatch,
    /// It answered that it cannot.
    #[error("answered {0}")]
    Code(ResponseCode),
}

impl ExchangeError {
    fn label(&self) -> UpstreamFailure {
        match self {
            Self::Timeout => UpstreamFailure::Timeout,
            Self::Network(_) => UpstreamFailure::Network,
            Self::Mismatch => UpstreamFailure::Mismatch,
            Self::Code(ResponseCode::ServFail) => UpstreamFailure::ServFail,
            Self::Code(ResponseCode::Refused) => UpstreamFailure::Refused,
            Self::Code(_) => UpstreamFailure::OtherCode,
        }
    }
}

impl From<NetError> for ExchangeError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Timeout => Self::Timeout,
            NetError::Proto(_) => Self::Mismatch,
            error => Self::Network(error),
        }
    }
}

/// One upstream server.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    standing: Mutex<Standing>,
    metrics: UpstreamMetrics,
    /// Holds the tasks of connections: they end with it.
    runtime: TokioRuntimeProvider,
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr, metrics: UpstreamMetrics) -> Self {
        Self { address, standing: Mutex::default(), metrics, runtime: TokioRuntimeProvider::new() }
    }

    /// See [`Standing::cost`].
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        self.standing().cost(now)
    }

    /// How long to wait for it before another one is asked too.
    pub(crate) fn patience(&self) -> Duration {
        let latency = self.standing().latency();
        latency
            .map_or(PATIENCE_UNKNOWN, |latency| (latency * PATIENCE_FACTOR).clamp(PATIENCE_MIN, PATIENCE_MAX))
    }

    /// Asks it once: over UDP, and over TCP if the answer is cut.
    pub(crate) async fn ask(&self, request: DnsRequest) -> Result<DnsResponse, ExchangeError> {
        // Dropped before it has answered, it was slower than another one.
        let mut attempt = Attempt { upstream: self, started: Instant::now(), is_over: false };
        let result = self.exchange(request).await;
        attempt.is_over = true;
        let (latency, now) = (attempt.started.elapsed(), Instant::now());
        match &result {
            Ok(_) => {
                self.standing().answered(latency, now);
                self.metrics.answered(latency);
            }
            Err(error) => {
                debug!(%error, upstream = %self.address, "An upstream DNS server did not answer");
                self.standing().failed(now);
                self.metrics.failed(error.label());
            }
        }
        result
    }

    async fn exchange(&self, request: DnsRequest) -> Result<DnsResponse, ExchangeError> {
        let response = self.over_udp(request.clone()).await?;
        let response = if response.metadata.truncation { self.over_tcp(request).await? } else { response };
        match response.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(response),
            code => Err(ExchangeError::Code(code)),
        }
    }

    async fn over_udp(&self, request: DnsRequest) -> Result<DnsResponse, ExchangeError> {
        // A socket with a random port for each question; whoever guesses an answer has to guess that and the id.
        let mut client = UdpClientStream::builder(self.address, self.runtime.clone())
            .with_timeout(Some(UDP_TIMEOUT))
            .with_max_retries(1)
            .build();
        let asked = request.clone();
        let answer = client.send_message(request).next().await;
        checked(&asked, answer.ok_or(ExchangeError::Timeout)??)
    }

    async fn over_tcp(&self, request: DnsRequest) -> Result<DnsResponse, ExchangeError> {
        let runtime = self.runtime.clone();
        let asked = request.clone();
        let exchange = async {
            let exchange = TcpClientStream::exchange(self.address, None, TCP_TIMEOUT, None, runtime).await?;
            exchange.send(request).first_answer().await
        };
        let answer = tokio::time::timeout(TCP_TIMEOUT, exchange).await;
        checked(&asked, answer.map_err(|_| ExchangeError::Timeout)??)
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that has been sent.
struct Attempt<'upstream> {
    upstream: &'upstream Upstream,
    started: Instant,
    is_over: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let waited = self.started.elapsed();
        if !self.is_over && waited > self.upstream.patience() {
            self.upstream.standing().failed(Instant::now());
            self.upstream.metrics.failed(UpstreamFailure::Timeout);
        }
    }
}

/// The answer, if it is one to the question. hickory has matched its sender and its id, which it may have changed.
fn checked(asked: &Message, answer: DnsResponse) -> Result<DnsResponse, ExchangeError> {
    if answer.queries == asked.queries { Ok(answer) } else { Err(ExchangeError::Mismatch) }
}
