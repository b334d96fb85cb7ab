//! Marathon's event stream, read by curl as it comes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use serde_json::Value;

use super::{PATIENCE, program};

/// A subscription; ended when dropped.
pub struct Events {
    curl: Child,
    received: Receiver<(Instant, Value)>,
}

impl Events {
    /// Subscribes and waits until the API says that the stream is attached. `query` is the URL's, such as
    /// `?plan-format=light`.
    #[track_caller]
    pub fn subscribe(api: SocketAddr, query: &str) -> Self {
        let url = format!("http://{api}/v2/events{query}");
        let mut command = Command::new("curl");
        command.args(["--no-buffer", "--silent", "--noproxy", "*", "-H", "Accept: text/event-stream", &url]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut curl = child.unwrap_or_else(|error| program::missing("curl", &error));
        let stdout = BufReader::new(curl.stdout.take().expect("piped"));
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let data = line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
                if data.is_some_and(|event| sender.send((Instant::now(), event)).is_err()) {
                    return;
                }
            }
        });
        let events = Self { curl, received };
        events.wait_for("event_stream_attached", |event| kind(event) == "event_stream_attached");
        events
    }

    /// The next event for which something is true, and when it came. Those before it are dropped.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> (Instant, Value) {
        let mut passed = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((when, event)) if wanted(&event) => return (when, event),
                Ok((_, event)) => passed.push(kind(&event).to_owned()),
                Err(error) => panic!("no event {what} ({error}); there were {passed:?}"),
            }
        }
    }

    /// The events up to and including the first of a kind.
    #[track_caller]
    pub fn until(&self, last: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.received.recv_timeout(left);
            let (_, event) = event.unwrap_or_else(|error| panic!("no event {last} ({error}): {events:#?}"));
            let is_last = kind(&event) == last;
            events.push(event);
            if is_last {
                return events;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

/// An event's type.
pub fn kind(event: &Value) -> &str {
    event["eventType"].as_str().unwrap_or_default()
}
