//! HTTP as a client of Mesos masters: one connection per request, redirects to the leader, everything bounded.

use std::net::IpAddr;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::Endpoint;

/// How long a connection may take to be made. A master that is not there refuses at once; one whose host is gone says
/// nothing, and the next one is to be asked.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Redirects that are followed: one leads to the leader, a second if there is a new one meanwhile.
const REDIRECTS_MAX: usize = 3;

/// Of an error's body, what is shown.
const REASON_MAX: usize = 200;

/// What masters are told of who asks.
const PRODUCT: &str = concat!("mesonet/", env!("CARGO_PKG_VERSION"));

/// Asks Mesos masters, always with the same credentials.
#[derive(Debug, Clone, Default)]
pub struct MesosClient {
    authorization: Option<HeaderValue>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The path, such as `/master/state`.
    pub path: &'static str,
    /// A JSON body; with one, the request is a POST.
    pub body: Option<&'static str>,
    /// How long a master may take for the head of its answer.
    pub timeout: Duration,
}

/// An answer with status 200 whose body has not been read.
#[derive(Debug)]
pub struct Reply {
    /// Who gave it, after redirects.
    pub from: Endpoint,
    /// Its address.
    pub peer: IpAddr,
    body: Incoming,
    _connection: Connection,
}

/// A master did not answer as it should.
#[derive(Debug, Error)]
pub enum RequestError {
    /// There is no connection.
    #[error("cannot connect to {master}")]
    Connect {
        /// The master.
        master: Endpoint,
        /// The system's words.
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{master} did not {what} within {} s", limit.as_secs_f32())]
    Timeout {
        /// The master.
        master: Endpoint,
        /// What it did not do.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The conversation failed.
    #[error("the conversation with {master} failed")]
    Http {
        /// The master.
        master: Endpoint,
        /// Why.
        source: hyper::Error,
    },
    /// It refused.
    #[error("{master} answers {path} with status {status}{reason}")]
    Status {
        /// The master.
        master: Endpoint,
        /// What was asked for.
        path: &'static str,
        /// The status.
        status: u16,
        /// What it said, as the end of a sentence.
        reason: String,
    },
    /// It sends the client somewhere where it cannot go.
    #[error("{master} redirects to '{location}', which is no http address of a master")]
    Redirect {
        /// The master.
        master: Endpoint,
        /// Where to.
        location: String,
    },
    /// Masters send the client to and fro.
    #[error("redirected more than {REDIRECTS_MAX} times, last by {master}: no master leads")]
    Redirects {
        /// The last master.
        master: Endpoint,
    },
    /// The answer is too large.
    #[error("the answer of {master} is larger than {size_max} bytes")]
    TooLarge {
        /// The master.
        master: Endpoint,
        /// The largest that is read.
        size_max: usize,
    },
}

/// The task that drives a connection; it ends with this.
#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl MesosClient {
    /// A client that sends this `Authorization` header, if any, with every request.
    pub fn new(mut authorization: Option<HeaderValue>) -> Self {
        if let Some(value) = &mut authorization {
            // So that no debug output shows it.
            value.set_sensitive(true);
        }
        Self { authorization }
    }

    /// Asks a master, and the one that it redirects to.
    ///
    /// # Errors
    /// When no answer with status 200 comes in time.
    pub async fn ask(&self, master: &Endpoint, question: &Question) -> Result<Reply, RequestError> {
        let mut master = master.clone();
        for _ in 0..=REDIRECTS_MAX {
            let (response, peer, connection) = self.ask_once(&master, question).await?;
            let status = response.status();
            if status.is_redirection() {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let location = location.unwrap_or_default();
                let Some(next) = redirected(location) else {
                    let location = location.to_owned();
                    return Err(RequestError::Redirect { master, location });
                };
                tracing::debug!(%master, leader = %next, "Redirected to the leading master");
                master = next;
                continue;
            }
            let body = response.into_body();
            let reply = Reply { from: master.clone(), peer, body, _connection: connection };
            if status.as_u16() == 200 {
                return Ok(reply);
            }
            let path = question.path;
            let reason = reply.reason(question.timeout).await;
            return Err(RequestError::Status { master, path, status: status.as_u16(), reason });
        }
        Err(RequestError::Redirects { master })
    }

    async fn ask_once(
        &self,
        master: &Endpoint,
        question: &Question,
    ) -> Result<(Response<Incoming>, IpAddr, Connection), RequestError> {
        let late =
            |what, limit| move |_elapsed| RequestError::Timeout { master: master.clone(), what, limit };
        let unreachable = |source| RequestError::Connect { master: master.clone(), source };
        let broken = |source| RequestError::Http { master: master.clone(), source };
        let connecting = TcpStream::connect((master.host.as_str(), master.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(late("accept a connection", CONNECT_TIMEOUT))?
            .map_err(unreachable)?;
        let peer = stream.peer_addr().map_err(unreachable)?.ip();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection to a master has failed");
            }
        });
        let connection = Connection(driver.abort_handle());
        let request = self.request(master, question);
        let response = timeout(question.timeout, sender.send_request(request))
            .await
            .map_err(late("answer", question.timeout))?
            .map_err(broken)?;
        Ok((response, peer, connection))
    }

    fn request(&self, master: &Endpoint, question: &Question) -> Request<Full<Bytes>> {
        let body = question.body.unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from_static(body.as_bytes())));
        *request.uri_mut() = hyper::Uri::from_static(question.path);
        let headers = request.headers_mut();
        let host = HeaderValue::try_from(master.to_string()).expect("BUG: an endpoint's host is checked");
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if question.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.method_mut() = Method::POST;
        }
        request
    }
}

impl Reply {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// When none comes in time, or the connection breaks.
    pub async fn piece(&mut self, limit: Duration) -> Result<Option<Bytes>, RequestError> {
        loop {
            let frame = timeout(limit, self.body.frame()).await.map_err(|_| RequestError::Timeout {
                master: self.from.clone(),
                what: "say anything",
                limit,
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(source)) => return Err(RequestError::Http { master: self.from.clone(), source }),
                Some(Ok(frame)) => {
                    // Trailers say nothing of interest.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// When it does not come in time, or is larger than `size_max` bytes.
    pub async fn whole(mut self, size_max: usize, limit: Duration) -> Result<Vec<u8>, RequestError> {
        let master = self.from.clone();
        let reading = async {
            let mut whole = Vec::new();
            while let Some(piece) = self.piece(limit).await? {
                if whole.len() + piece.len() > size_max {
                    return Err(RequestError::TooLarge { master: self.from.clone(), size_max });
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        };
        let late = |_elapsed| RequestError::Timeout { master, what: "send the whole answer", limit };
        timeout(limit, reading).await.map_err(late)?
    }

    /// What a master says of its refusal, as the end of a sentence.
    async fn reason(mut self, limit: Duration) -> String {
        match self.piece(limit).await {
            Ok(Some(piece)) if !piece.is_empty() => {
                let text = String::from_utf8_lossy(&piece);
                let text: String = text.chars().take(REASON_MAX).collect();
                format!(": {}", text.trim().replace(char::is_control, " "))
            }
            Ok(_) | Err(_) => String::new(),
        }
    }
}

/// Where a `Location` of a Mesos master leads: `//host:port/path` or `http://host:port/path`.
fn redirected(location: &str) -> Option<Endpoint> {
    let rest = location.strip_prefix("http:").unwrap_or(location).strip_prefix("//")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    authority.parse().ok()
}

/// The header of HTTP's basic authentication (RFC 7617).
pub fn basic_authorization(principal: &str, secret: &str) -> Result<HeaderValue, InvalidCredentials> {
    let encoded = BASE64_STANDARD.encode(format!("{principal}:{secret}"));
    HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| InvalidCredentials)
}

/// The header of DC/OS' authentication.
pub fn token_authorization(token: &str) -> Result<HeaderValue, InvalidCredentials> {
    HeaderValue::try_from(format!("token={token}")).map_err(|_| InvalidCredentials)
}

/// Credentials have characters that no header can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the credentials have characters that a header cannot carry")]
pub struct InvalidCredentials;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn question() -> Question {
        Question { path: "/master/state", body: None, timeout: LIMIT }
    }

    /// A server that gives one answer to each connection, in turn, and hands out what it was asked.
    async fn server(answers: Vec<String>) -> (Endpoint, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let port = listener.local_addr().expect("address").port();
        let serving = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("connection");
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.expect("request");
                asked.push(String::from_utf8_lossy(&request[..length]).to_ascii_lowercase());
                stream.write_all(answer.as_bytes()).await.expect("answer");
            }
            asked
        });
        (Endpoint { host: "127.0.0.1".to_owned(), port }, serving)
    }

    #[tokio::test]
    async fn a_redirect_is_followed_with_the_credentials() {
        let (leader, leading) =
            server(vec!["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned()]).await;
        let to_leader = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: //{leader}/master/state\r\nContent-Length: 0\r\n\r\n"
        );
        let (other, _other) = server(vec![to_leader]).await;
        let client = MesosClient::new(Some(basic_authorization("aladdin", "opensesame").expect("valid")));
        assert!(!format!("{client:?}").contains("Basic"), "secrets are not shown");
        let reply = client.ask(&other, &question()).await.expect("answer");
        assert_eq!(reply.from, leader);
        assert_eq!(reply.whole(5, LIMIT).await.expect("whole"), b"hello");
        let asked = leading.await.expect("asked").remove(0);
        assert!(asked.starts_with("get /master/state http/1.1\r\n"), "{asked}");
        // The example of RFC 7617, but for the case of the letters.
        assert!(asked.contains("authorization: basic ywxhzgrpbjpvcgvuc2vzyw1l\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_that_names_the_master() {
        for (answer, expected) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nno leader",
                "with status 503: no leade",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlarger", "larger than 5 bytes"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncut", "the conversation with 127.0.0.1"),
            ("SSH-2.0-x\r\n", "the conversation with 127.0.0.1"),
            (
                "HTTP/1.1 307 T\r\nLocation: https://a/\r\nContent-Length: 0\r\n\r\n",
                "redirects to 'https://a/'",
            ),
        ] {
            let (master, _serving) = server(vec![answer.to_owned()]).await;
            let asked = MesosClient::default().ask(&master, &question()).await;
            let result = match asked {
                Ok(reply) => reply.whole(5, LIMIT).await.map(drop),
                Err(error) => Err(error),
            };
            let error = result.expect_err(answer).to_string();
            assert!(error.contains(expected) && error.contains(&master.to_string()), "{error}");
        }
    }

    #[test]
    fn locations_of_masters_are_understood() {
        for (location, expected) in [
            ("//10.0.0.2:5050/api/v1", Some("10.0.0.2:5050")),
            ("//[fd00::1]:5050", Some("[fd00::1]:5050")),
            ("http://leader.example:81/master/state", Some("leader.example:81")),
            ("https://10.0.0.2:5050/", None),
            ("/elsewhere", None),
            ("", None),
        ] {
            assert_eq!(
                redirected(location).map(|found| found.to_string()).as_deref(),
                expected,
                "{location}"
            );
        }
    }
}
