//! Upstream servers that can stand in for each other.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, Stream, StreamExt, once};
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::xfer::DnsHandle;
use hickory_net::{DnsError, NetError};
use hickory_proto::op::{DnsRequest, DnsResponse};

use super::upstream::{ExchangeError, Upstream};

/// How often a question is sent, whatever the number of servers.
const ATTEMPTS_MIN: usize = 3;

/// How often at most.
const ATTEMPTS_MAX: usize = 6;

/// By then there is an answer or none: before clients, which commonly wait for 5 s, give up.
const DEADLINE: Duration = Duration::from_secs(4);

/// Upstream servers that can stand in for each other. A clone is a pointer copy.
#[derive(Clone)]
pub(crate) struct Pool {
    upstreams: Arc<[Arc<Upstream>]>,
}

impl Pool {
    /// Takes at least one server.
    pub(crate) fn new(upstreams: Vec<Arc<Upstream>>) -> Self {
        Self { upstreams: upstreams.into() }
    }

    /// Asks the server that is expected to be the fastest. If it fails the next one is asked, and if it is slower than
    /// it uses to be, the next one too: the first answer wins.
    pub(crate) async fn ask(&self, request: DnsRequest) -> Result<DnsResponse, ExchangeError> {
        let order = self.in_order(Instant::now());
        let attempts = (order.len() * 2).clamp(ATTEMPTS_MIN, ATTEMPTS_MAX);
        let mut next = order.iter().cycle().take(attempts);
        let mut running = FuturesUnordered::new();
        let mut error = ExchangeError::Timeout;
        let deadline = tokio::time::sleep(DEADLINE);
        let patience = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(deadline, patience);
        let mut may_start = true;
        loop {
            tokio::select! {
                biased;
                Some(result) = running.next() => match result {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => {
                        error = failure;
                        patience.as_mut().reset(tokio::time::Instant::now());
                        if running.is_empty() && !may_start {
                            return Err(error);
                        }
                    }
                },
                () = &mut deadline => return Err(error),
                () = &mut patience, if may_start => match next.next() {
                    Some(upstream) => {
                        patience.as_mut().reset(tokio::time::Instant::now() + upstream.patience());
                        running.push(upstream.ask(request.clone()));
                    }
                    None => {
                        may_start = false;
                        if running.is_empty() {
                            return Err(error);
                        }
                    }
                },
            }
        }
    }

    fn in_order(&self, now: Instant) -> Vec<Arc<Upstream>> {
        let mut order: Vec<(f64, Arc<Upstream>)> =
            self.upstreams.iter().map(|upstream| (upstream.cost(now), upstream.clone())).collect();
        order.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        order.into_iter().map(|(_, upstream)| upstream).collect()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.upstreams.iter().map(|upstream| upstream.address)).finish()
    }
}

/// What hickory's validation asks for keys and signatures.
impl DnsHandle for Pool {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let pool = self.clone();
        Box::pin(once(async move {
            pool.ask(request).await.map_err(|error| match error {
                ExchangeError::Timeout => NetError::Timeout,
                ExchangeError::Network(error) => error,
                ExchangeError::Mismatch => NetError::Message("the answer is no answer to the question"),
                ExchangeError::Code(code) => DnsError::ResponseCode(code).into(),
            })
        }))
    }
}
