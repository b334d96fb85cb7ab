//! Talks to the HTTP API of a running cluster.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

/// An answer that takes longer will not come: the API answers from memory, or after one commit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer that is read: the view of the largest cluster that mesonet is made for fits.
const ANSWER_SIZE_MAX: u64 = 1 << 30;

/// The API of one cluster.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    base: String,
}

/// What the API said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Body; null if there was none.
    pub body: Value,
    /// What it warns of.
    pub warnings: Vec<String>,
}

/// The API could not be asked, or refused.
#[derive(Debug, Error)]
pub enum ApiError {
    /// There is no conversation. It is unknown whether a change was made.
    #[error("cannot reach the API at {base}: {reason}; is `mesonet dev` running?")]
    Unreachable {
        /// The API's address.
        base: String,
        /// Why.
        reason: String,
    },
    /// The API refused. Nothing was changed.
    #[error("{}", refusal_text(message, details))]
    Refused {
        /// HTTP status.
        status: u16,
        /// What the API says.
        message: String,
        /// About which fields, if it says so.
        details: Vec<String>,
    },
    /// What answers is not the API, or of another version.
    #[error("the answer of {base} to {request} is not understood")]
    Unreadable {
        /// The API's address.
        base: String,
        /// Method and path.
        request: String,
        /// Where the answer is not as expected.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether the API says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

impl Client {
    /// The API at an URL such as `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> Self {
        // A proxy of the environment is for the web, not for the cluster's own API.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build();
        Self { agent: config.new_agent(), base: base.trim_end_matches('/').to_owned() }
    }

    /// Reads a resource.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = self.send(Method::GET, path, None)?;
        serde_json::from_value(answer.body).map_err(|source| self.unreadable("GET", path, source))
    }

    /// Reads a resource that is text.
    pub fn text(&self, path: &str) -> Result<String, ApiError> {
        let asked = self.agent.get(format!("{}{path}", self.base)).call();
        let mut response = asked.map_err(|error| self.unreachable(&error))?;
        let text = response.body_mut().with_config().limit(ANSWER_SIZE_MAX).lossy_utf8(true).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            Ok(text)
        } else {
            Err(refusal(response.status().as_u16(), &text))
        }
    }

    /// Sends a request, with a JSON body if there is one.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, ApiError> {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base))
            .header("Accept", "application/json");
        let sent = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/json").body(body.to_string());
                request.map_err(ureq::Error::from).and_then(|request| self.agent.run(request))
            }
            None => request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
        };
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let text = response.body_mut().with_config().limit(ANSWER_SIZE_MAX).lossy_utf8(true).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(refusal(response.status().as_u16(), &text));
        }
        let body = match text.trim() {
            "" => Value::Null,
            text => {
                serde_json::from_str(text).map_err(|source| self.unreadable(method.as_str(), path, source))?
            }
        };
        Ok(Answer { body, warnings: warnings(&response) })
    }

    fn unreachable(&self, error: &ureq::Error) -> ApiError {
        let reason = match error {
            ureq::Error::Io(error) => io_reason(error),
            ureq::Error::HostNotFound => "the host name does not resolve".to_owned(),
            error => error.to_string(),
        };
        ApiError::Unreachable { base: self.base.clone(), reason }
    }

    fn unreadable(&self, method: &str, path: &str, source: serde_json::Error) -> ApiError {
        ApiError::Unreadable { base: self.base.clone(), request: format!("{method} {path}"), source }
    }
}

/// Replaces every byte that has a meaning in a URL path, for ids that users give.
pub fn path_segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The operating system's words without its number.
fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was closed".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    }
}

fn warnings(response: &Response<Body>) -> Vec<String> {
    let values = response.headers().get_all("Warning").iter();
    values.filter_map(|value| value.to_str().ok()).map(warning_text).collect()
}

/// The text of a `Warning: 199 - "text"` header.
fn warning_text(header: &str) -> String {
    let quoted = header.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
    quoted.map_or(header, |(text, _)| text).replace("\\\"", "\"")
}

fn refusal(status: u16, text: &str) -> ApiError {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let message = match (body["message"].as_str(), status) {
        (Some(message), _) => message.to_owned(),
        (None, 404) => {
            "this API has no answer to that: ask a master, or a version that has (--api)".to_owned()
        }
        (None, status) => format!("the API answered with status {status}"),
    };
    let mut details = details_of(&body["details"]);
    if body["deployments"].is_array() && status == 409 {
        details.push("wait until it is done (`mesonet deployment list`), or use --force".to_owned());
    }
    ApiError::Refused { status, message, details }
}

/// The lines in Marathon's `details`: a text, or a list of texts or of `{"path": …, "errors": […]}`.
fn details_of(details: &Value) -> Vec<String> {
    match details {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(detail_lines).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

fn detail_lines(item: &Value) -> Vec<String> {
    let Some(path) = item["path"].as_str() else {
        return vec![item.as_str().map_or_else(|| item.to_string(), str::to_owned)];
    };
    let errors = item["errors"].as_array().into_iter().flatten();
    errors.map(|error| format!("{path}: {}", error.as_str().unwrap_or("is not valid"))).collect()
}

fn refusal_text(message: &str, details: &[String]) -> String {
    let lines = details.iter().map(|detail| format!("\n  {detail}"));
    format!("{}{}", message.trim_end_matches('.'), lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(status: u16, body: &str) -> String {
        refusal(status, body).to_string()
    }

    #[test]
    fn refusals_name_the_fields() {
        assert_eq!(
            shown(
                422,
                r#"{"message":"Object is not valid","details":[{"path":"/id","errors":["error.pattern","b"]},"c"]}"#
            ),
            "Object is not valid\n  /id: error.pattern\n  /id: b\n  c"
        );
        assert_eq!(shown(400, r#"{"message":"Invalid JSON","details":"line 1"}"#), "Invalid JSON\n  line 1");
        assert_eq!(shown(404, r#"{"message":"App '/x' does not exist"}"#), "App '/x' does not exist");
    }

    #[test]
    fn a_locked_app_comes_with_advice() {
        let text = shown(409, r#"{"message":"App is locked.","deployments":[{"id":"d"}]}"#);
        assert!(text.contains("--force"), "{text}");
    }

    #[test]
    fn a_refusal_without_json_shows_its_status() {
        assert_eq!(shown(502, "<html>"), "the API answered with status 502");
        assert!(refusal(404, "").is_not_found());
    }

    #[test]
    fn warnings_are_unquoted() {
        assert_eq!(
            warning_text(r#"199 mesonet "field \"fetch\" has no effect""#),
            r#"field "fetch" has no effect"#
        );
        assert_eq!(warning_text("odd"), "odd");
    }

    #[test]
    fn ids_cannot_leave_their_path_segment() {
        assert_eq!(path_segment("web.instance-1._app.2"), "web.instance-1._app.2");
        assert_eq!(path_segment("../a?b"), "..%2Fa%3Fb");
    }

    #[test]
    fn nobody_listening_is_said_with_advice() {
        // Port 1 of loopback is never served by a test machine.
        let error = Client::new("http://127.0.0.1:1/").get::<Value>("/ping").expect_err("nobody listens");
        assert_eq!(
            error.to_string(),
            "cannot reach the API at http://127.0.0.1:1: connection refused; is `mesonet dev` running?"
        );
    }
}
