//! Answers: JSON bodies and the headers that clients read.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use mesonet_model::Revision;
use serde::Serialize;

/// Names the deployment that a write began.
pub(crate) const DEPLOYMENT_ID: HeaderName = HeaderName::from_static("marathon-deployment-id");
/// Names the leading Marathon.
pub(crate) const LEADER: HeaderName = HeaderName::from_static("x-marathon-leader");
/// The revision at which a write is committed.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("mesonet-revision");

/// The longest text of a `Warning` header; longer ones are cut, since proxies refuse headers above 8 KiB.
const WARNING_LENGTH_MAX: usize = 2048;

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => with_type(status, "application/json", bytes),
        Err(error) => {
            tracing::error!(%error, "Cannot write an answer as JSON");
            with_type(
                StatusCode::INTERNAL_SERVER_ERROR,
                "application/json",
                br#"{"message":"The answer is no JSON"}"#.to_vec(),
            )
        }
    }
}

/// A JSON answer with status 200.
pub(crate) fn ok(body: &impl Serialize) -> Response {
    json(StatusCode::OK, body)
}

/// A text answer with status 200.
pub(crate) fn text(content_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
    with_type(StatusCode::OK, content_type, body.into())
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Adds a header, unless the text cannot be one.
pub(crate) fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Adds the revision at which a write is committed.
pub(crate) fn set_revision(response: &mut Response, revision: Revision) {
    set(response, REVISION, &revision.to_string());
}

/// Adds a `Warning` header that names fields without effect and keys without meaning.
pub(crate) fn set_warning(response: &mut Response, unacted: &BTreeSet<String>, unknown: &BTreeSet<String>) {
    let mut parts = Vec::new();
    if !unacted.is_empty() {
        parts.push(format!("stored but not acted upon: {}", joined(unacted)));
    }
    if !unknown.is_empty() {
        parts.push(format!("unknown and ignored: {}", joined(unknown)));
    }
    if !parts.is_empty() {
        let text: String = parts.join("; ").chars().map(header_character).take(WARNING_LENGTH_MAX).collect();
        set(response, header::WARNING, &format!("299 mesonet \"{text}\""));
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What may stand in a quoted string of a header.
fn header_character(character: char) -> char {
    match character {
        '"' | '\\' => '\'',
        ' '..='~' => character,
        _ => '?',
    }
}

fn with_type(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
