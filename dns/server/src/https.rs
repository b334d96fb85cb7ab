//! Queries over HTTP (RFC 8484).

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, http};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::responder::Step;
use crate::server::{Shared, Verdict};
use crate::stream::{Client, QUERY_LENGTH_MAX};

/// The protocols that are offered in the TLS handshake, the better one first.
pub(crate) const PROTOCOLS: [&[u8]; 2] = [HTTP_2, b"http/1.1"];

const HTTP_2: &[u8] = b"h2";

/// Where queries go; what RFC 8484 has in its examples and clients use if they are told nothing else.
const PATH: &str = "/dns-query";

/// The parameter of GET that has the query.
const PARAMETER: &str = "dns=";

const DNS_MESSAGE: &str = "application/dns-message";

/// Requests of one connection at a time.
const STREAMS_MAX: u32 = 64;

/// Octets of a request's header fields, where a GET has its query.
const HEADERS_LENGTH_MAX: u32 = 16 * 1024;

/// How long a request's body may be on its way.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers the requests of one connection until the client ends it or is idle, or the server is gone.
pub(crate) async fn serve(
    stream: TlsStream<TcpStream>,
    client: Client,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) -> io::Result<()> {
    let is_http_2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let client = Arc::new(client);
    let service = service_fn({
        let client = client.clone();
        move |request| {
            let (client, shared) = (client.clone(), shared.clone());
            async move { Ok::<_, Infallible>(answered(request, &client, &shared).await) }
        }
    });
    let stream = TokioIo::new(stream);
    let over = async {
        tokio::select! {
            _ = stop.changed() => {}
            () = client.slot.idle() => {}
        }
    };
    let served = if is_http_2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEADERS_LENGTH_MAX);
        let connection = builder.serve_connection(stream, service);
        tokio::select! {
            served = connection => served,
            () = over => Ok(()),
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .max_buf_size(HEADERS_LENGTH_MAX as usize)
            .serve_connection(stream, service);
        tokio::select! {
            served = connection => served,
            () = over => Ok(()),
        }
    };
    served.map_err(io::Error::other)
}

async fn answered(request: Request<Incoming>, client: &Client, shared: &Shared) -> Response<Full<Bytes>> {
    let (started, _busy) = (Instant::now(), client.slot.begin());
    let query = match query_of(request).await {
        Ok(query) => query,
        Err(refusal) => return refusal.response(),
    };
    let asked = shared.asked(&query, client.address, client.transport, started);
    let outcome = match shared.respond(&query, client.address, client.transport) {
        Step::Done(outcome) => outcome,
        Step::Wait(forwarded) => forwarded.finish().await,
        // Many messages are no answer to one request.
        Step::Transfer(_) => return Refusal::NoQuery.response(),
    };
    match shared.counted(outcome, asked) {
        Verdict::Send(message) | Verdict::SendAndClose(message) => success(message),
        Verdict::Close => Refusal::NoQuery.response(),
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Nothing is here.
    Path,
    /// Neither GET nor POST.
    Method,
    /// POST of something else than a message.
    MediaType,
    /// Longer than any query.
    TooLong,
    /// There is no query in it.
    NoQuery,
    /// The body did not come.
    Timeout,
}

impl Refusal {
    fn response(self) -> Response<Full<Bytes>> {
        let (status, text) = match self {
            Self::Path => (StatusCode::NOT_FOUND, "queries go to /dns-query\n"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "use GET or POST\n"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/dns-message\n"),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "a query has at most 4096 octets\n"),
            Self::NoQuery => (StatusCode::BAD_REQUEST, "expected a DNS query, in GET as dns=BASE64URL\n"),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "the query did not come\n"),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if self == Self::Method {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        response
    }
}

async fn query_of<B>(request: Request<B>) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if request.uri().path() != PATH {
        return Err(Refusal::Path);
    }
    match *request.method() {
        Method::GET => {
            let mut parameters = request.uri().query().unwrap_or_default().split('&');
            let text = parameters.find_map(|parameter| parameter.strip_prefix(PARAMETER));
            text.and_then(|text| base64url(text.as_bytes())).ok_or(Refusal::NoQuery)
        }
        Method::POST => {
            let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            if media_type.is_none_or(|media_type| !media_type.trim().eq_ignore_ascii_case(DNS_MESSAGE)) {
                return Err(Refusal::MediaType);
            }
            let body = Limited::new(request.into_body(), QUERY_LENGTH_MAX);
            let body = timeout(BODY_TIMEOUT, body.collect()).await.map_err(|_| Refusal::Timeout)?;
            body.map(|body| body.to_bytes().to_vec()).map_err(|_| Refusal::TooLong)
        }
        _ => Err(Refusal::Method),
    }
}

fn success(message: Vec<u8>) -> Response<Full<Bytes>> {
    let max_age = format!("max-age={}", freshness(&message));
    let mut response = Response::new(Full::from(message));
    let headers: &mut http::HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(DNS_MESSAGE));
    if let Ok(max_age) = HeaderValue::try_from(max_age) {
        headers.insert(CACHE_CONTROL, max_age);
    }
    response
}

/// For how many seconds a cache may keep an answer: the shortest time to live, or what the SOA says of negative answers
/// (RFC 8484 §5.1).
fn freshness(message: &[u8]) -> u32 {
    let Ok(message) = Message::from_vec(message) else { return 0 };
    let negative = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    message.answers.iter().map(|record| record.ttl).min().or(negative).unwrap_or(0)
}

/// Reads base64url without padding (RFC 4648 §5), of at most a query's length.
fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() > QUERY_LENGTH_MAX.div_ceil(3) * 4 || text.len() % 4 == 1 {
        return None;
    }
    let mut octets = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for character in group {
            let value = match character {
                b'A'..=b'Z' => character - b'A',
                b'a'..=b'z' => character - b'a' + 26,
                b'0'..=b'9' => character - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        octets.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_read() {
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("AA", Some(&[0])),
            ("Zm8", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYmE", Some(b"fooba")),
            ("-_-_", Some(&[0xfb, 0xff, 0xbf])),
            ("A", None),
            ("Zm9v=", None),
            ("Zm8=", None),
            ("+/+/", None),
        ] {
            assert_eq!(base64url(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn requests_without_a_query_are_refused() {
        let request = |method: &str, uri: &str, media_type: &str, length: usize| {
            Request::builder()
                .method(method)
                .uri(uri)
                .header(CONTENT_TYPE, media_type)
                .body(Full::new(Bytes::from(vec![7; length])))
                .expect("a request")
        };
        for (method, uri, media_type, length, expected) in [
            ("GET", "/dns-query?dns=AAAA", "", 0, Ok(vec![0; 3])),
            ("GET", "/dns-query?a=b&dns=AAAA", "", 0, Ok(vec![0; 3])),
            ("POST", "/dns-query", DNS_MESSAGE, 3, Ok(vec![7; 3])),
            ("POST", "/dns-query", DNS_MESSAGE, 4096, Ok(vec![7; 4096])),
            ("POST", "/dns-query", DNS_MESSAGE, 4097, Err(Refusal::TooLong)),
            ("POST", "/dns-query", "text/plain", 3, Err(Refusal::MediaType)),
            ("GET", "/dns-query", "", 0, Err(Refusal::NoQuery)),
            ("GET", "/dns-query?dns=!", "", 0, Err(Refusal::NoQuery)),
            ("GET", "/", "", 0, Err(Refusal::Path)),
            ("PUT", "/dns-query", DNS_MESSAGE, 3, Err(Refusal::Method)),
        ] {
            let found = query_of(request(method, uri, media_type, length)).await;
            assert_eq!(found, expected, "{method} {uri} {media_type} {length}");
        }
    }
}
