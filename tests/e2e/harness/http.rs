//! HTTP as tests speak it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Method, Request};

/// An answer that takes longer is a failure.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer of the API.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The body as JSON, if this is its status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }
}

/// Sends a request to the API; the body is sent as it is.
#[track_caller]
pub fn send(method: Method, url: &str, body: Option<&str>) -> Reply {
    let config = ureq::Agent::config_builder();
    let agent =
        config.http_status_as_error(false).proxy(None).timeout_global(Some(TIMEOUT)).build().new_agent();
    let request = Request::builder().method(method).uri(url).header("Content-Type", "application/json");
    let answer = match body {
        Some(body) => agent.run(request.body(body.to_owned()).expect("request")),
        None => agent.run(request.body(()).expect("request")),
    };
    let mut answer = answer.unwrap_or_else(|error| panic!("{url}: {error}"));
    let text = answer.body_mut().read_to_string().unwrap_or_else(|error| panic!("{url}: {error}"));
    Reply { status: answer.status().as_u16(), text }
}

/// Asks a web server for a path on a connection of its own and returns the body, if it came whole.
pub fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{address}: {error}"))?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| format!("{address}: cut short: {answer:?}"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let is_whole = length.is_none_or(|length| length.trim() == body.len().to_string());
    match head.split(' ').nth(1) {
        Some("200") if is_whole => Ok(body.to_owned()),
        Some("200") => Err(format!("{address}: cut short: {answer:?}")),
        _ => Err(format!("{address}: {head}")),
    }
}
