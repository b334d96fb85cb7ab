//! A request, taken apart.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, Request};
use axum::http::{HeaderMap, Method, Uri, header};
use serde_json::Value;

use crate::failure::Failure;

/// The longest request body. An app with 1,000 environment variables has some 100 KiB; longer bodies are answered 413.
pub(crate) const BODY_LENGTH_MAX: usize = 1 << 20;

/// How long a client may take to send the body; slower ones are answered 408. [`BODY_LENGTH_MAX`] takes as long at
/// 300 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A request without prefix, with its path split at slashes and its body read.
#[derive(Debug)]
pub(crate) struct Call {
    /// Method; HEAD counts as GET.
    pub(crate) method: Method,
    /// The path's segments, decoded; empty ones left out, so that double and trailing slashes mean nothing.
    pub(crate) segments: Vec<String>,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body.
    pub(crate) body: Vec<u8>,
    /// The client's address, if the server knows it.
    pub(crate) client: Option<SocketAddr>,
    query: Vec<(String, String)>,
}

impl Call {
    /// Reads the request whole.
    pub(crate) async fn read(request: Request) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let length =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > BODY_LENGTH_MAX) {
            return Err(Failure::TooLarge(BODY_LENGTH_MAX));
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_LENGTH_MAX))
            .await
            .map_err(|_| Failure::TooSlow(BODY_TIMEOUT.as_secs()))?
            .map_err(|_| Failure::TooLarge(BODY_LENGTH_MAX))?;
        Ok(Self {
            method: if parts.method == Method::HEAD { Method::GET } else { parts.method },
            segments: segments_of(&parts.uri),
            headers: parts.headers,
            body: body.into(),
            client: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| *address),
            query: Query::try_from_uri(&parts.uri).map(|Query(pairs)| pairs).unwrap_or_default(),
        })
    }

    /// The body as JSON. Nesting is bounded by the parser at 128 levels.
    pub(crate) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| Failure::Unparsable(error.to_string()))
    }

    /// The first value of a parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| is_parameter(key, name)).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter; `name[]` counts as `name`, as PHP-style clients repeat it.
    pub(crate) fn parameters<'call>(&'call self, name: &'call str) -> impl Iterator<Item = &'call str> {
        self.query.iter().filter(move |(key, _)| is_parameter(key, name)).map(|(_, value)| value.as_str())
    }

    /// A truth value in any case (Python clients send `True`); a fault if it is something else.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.parameter(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("") => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => {
                Err(Failure::BadRequest(format!("parameter '{name}' must be true or false, not '{other}'")))
            }
        }
    }

    /// Whether the client accepts this media type by name.
    pub(crate) fn accepts(&self, media_type: &str) -> bool {
        let accepted = self.headers.get_all(header::ACCEPT).iter();
        accepted.filter_map(|value| value.to_str().ok()).any(|value| value.contains(media_type))
    }

    /// The client's address as events name it.
    pub(crate) fn client_name(&self) -> String {
        self.client.map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string())
    }

    /// The path again, cleaned.
    pub(crate) fn path(&self) -> String {
        format!("/{}", self.segments.join("/"))
    }
}

fn is_parameter(key: &str, name: &str) -> bool {
    key.strip_suffix("[]").unwrap_or(key) == name
}

/// The decoded segments of a path, without the prefixes under which an admin router reaches Marathon.
fn segments_of(uri: &Uri) -> Vec<String> {
    let decoded = percent_decoded(uri.path());
    let segments: Vec<String> =
        decoded.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
    let prefix = match segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["service", "marathon", ..] => 2,
        ["marathon", ..] => 1,
        _ => 0,
    };
    segments[prefix..].to_vec()
}

/// Replaces `%XX`; what is no such escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = if bytes[index] == b'%' { text.get(index + 1..index + 3) } else { None };
        let digits = escape.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_prefixes_and_superfluous_slashes() {
        for (path, expected) in [
            ("/v2/apps//web/nginx", vec!["v2", "apps", "web", "nginx"]),
            ("/service/marathon/v2/apps/", vec!["v2", "apps"]),
            ("/marathon/ping", vec!["ping"]),
            ("/v2/apps/%2Fweb%2Fa", vec!["v2", "apps", "web", "a"]),
            ("/v2/apps/%zz%+4%4", vec!["v2", "apps", "%zz%+4%4"]),
            ("/", vec![]),
        ] {
            assert_eq!(segments_of(&path.parse().expect(path)), expected, "{path}");
        }
    }
}
