//! Forwards a request to the leader, and streams the leader's answer back.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::failure::Failure;

/// Names the masters that have forwarded a request, as Marathon's does. A request that comes back has gone in a circle.
const VIA: HeaderName = HeaderName::from_static("x-marathon-via");

/// Masters that may forward a request: leadership may change on its way, but not that often.
const HOPS_MAX: usize = 3;

/// How long the leader may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long the leader may take to begin its answer; a bit longer than it waits for its own store.
const ANSWER_MAX: Duration = Duration::from_secs(35);

/// A leader was asked, and has not answered in that time.
const SILENT: &str = "The leader does not answer in time";

/// Between attempts to connect to a leader that does not listen, unless another is elected.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Headers that are for one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// A request's head, to be forwarded.
#[derive(Debug)]
pub(crate) struct Forwarder {
    method: Method,
    target: Uri,
    headers: HeaderMap,
}

/// Why there is no answer.
enum Trouble {
    /// The leader has not got the request.
    NotSent,
    /// The leader may have got it.
    Unanswered,
}

impl Forwarder {
    /// Takes the head of a request; `own` is the address of this API.
    pub(crate) fn new(request: &Request, own: SocketAddr) -> Result<Self, Failure> {
        let mut headers = request.headers().clone();
        for name in HOP_BY_HOP.into_iter().chain([header::HOST, header::CONTENT_LENGTH, header::EXPECT]) {
            headers.remove(name);
        }
        let own = format!("1.1 {own}");
        let via: Vec<&HeaderValue> = headers.get_all(&VIA).iter().collect();
        if via.len() >= HOPS_MAX || via.iter().any(|value| value.as_bytes() == own.as_bytes()) {
            return Err(Failure::Loop);
        }
        headers.extend(HeaderValue::from_str(&own).ok().map(|own| (VIA, own)));
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let target = target.parse().map_err(|_| Failure::UnknownUri)?;
        Ok(Self { method: request.method().clone(), target, headers })
    }

    /// The leader's answer. While nobody leads, waits so long for somebody who does. A request that the leader has not
    /// got is sent again, also to another one; one that it may have got only if it changes nothing.
    pub(crate) async fn forward(
        &self,
        body: Bytes,
        mut leader: watch::Receiver<Option<SocketAddr>>,
        election_max: Duration,
    ) -> Result<Response, Failure> {
        let deadline = Instant::now() + election_max;
        loop {
            let elected = tokio::time::timeout_at(deadline, leader.wait_for(Option::is_some)).await;
            let address = elected.ok().and_then(Result::ok).and_then(|leader| *leader);
            let Some(address) = address else { return Err(Failure::NoLeader) };
            leader.mark_unchanged();
            // Once another one leads, the one that is asked has nothing to say any more.
            let mut successor = leader.clone();
            let deposed = successor.wait_for(|leader| *leader != Some(address));
            let trouble = match self.ask(address, body.clone(), deposed).await {
                Ok(response) => return Ok(response),
                Err(trouble) => trouble,
            };
            let is_safe = self.method == Method::GET || self.method == Method::HEAD;
            let is_over = Instant::now() >= deadline;
            match trouble {
                Trouble::Unanswered if !is_safe => return Err(Failure::Unknown),
                Trouble::Unanswered if is_over => return Err(Failure::Unavailable(SILENT)),
                Trouble::NotSent if is_over => return Err(Failure::NoLeader),
                Trouble::Unanswered | Trouble::NotSent => {}
            }
            drop(tokio::time::timeout(RETRY_PAUSE, leader.changed()).await);
        }
    }

    async fn ask<Over>(
        &self,
        leader: SocketAddr,
        body: Bytes,
        over: impl Future<Output = Over>,
    ) -> Result<Response, Trouble> {
        tokio::pin!(over);
        let connecting = tokio::select! {
            connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(leader)) => connecting,
            _ = &mut over => return Err(Trouble::NotSent),
        };
        let stream = connecting.ok().and_then(Result::ok).ok_or(Trouble::NotSent)?;
        // Without it answers are merely later.
        let _ = stream.set_nodelay(true);
        let handshake = http1::handshake::<_, Body>(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| Trouble::NotSent)?;
        // Ends with the answer's body, or when the client has gone.
        tokio::spawn(connection);
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(&leader.to_string()).map_err(|_| Trouble::NotSent)?;
        request.headers_mut().insert(header::HOST, host);
        let answer = tokio::select! {
            answer = tokio::time::timeout(ANSWER_MAX, sender.send_request(request)) => answer,
            _ = &mut over => return Err(Trouble::Unanswered),
        };
        let (mut parts, body) = answer.ok().and_then(Result::ok).ok_or(Trouble::Unanswered)?.into_parts();
        for name in HOP_BY_HOP {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}
