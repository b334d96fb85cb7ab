//! `/v2/events`: Marathon's event stream (server-sent events).
//!
//! Each listener has receivers of its own and is served from the connection's task, as fast as the client reads. One
//! that lags behind by more than a channel holds is told so by `event_stream_detached` and dropped.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use mesonet_marathon::Event;
use mesonet_model::AppDefinition;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::{Interval, MissedTickBehavior};

use crate::api::{Api, Post, allow_get};
use crate::call::Call;
use crate::context::{Clock, State};
use crate::failure::Failure;
use crate::output::{app, event};

/// How often an empty line is sent. marathon-lb gives up below one byte per second over 300 s; Marathon sends one
/// about every 10 s.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What keeps a quiet stream alive.
const EMPTY_LINE: Bytes = Bytes::from_static(b"\r\n");

/// The type of the event that says what a user wrote.
const POST: &str = "api_post_event";

/// What a client wants to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    /// Types; all if empty.
    types: BTreeSet<String>,
    /// Whether deployments come without the apps before and after.
    light: bool,
}

/// A client that listens.
struct Listener {
    events: broadcast::Receiver<Arc<Event>>,
    posts: broadcast::Receiver<Arc<Post>>,
    state: watch::Receiver<Option<Arc<State>>>,
    /// The post that is being told, and how many of its apps have been.
    telling: Option<(Arc<Post>, usize)>,
    clock: Arc<dyn Clock>,
    heartbeat: Interval,
    filter: Filter,
    client: String,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The attached event is not yet sent.
    Attaching,
    /// Events are sent.
    Attached,
    /// The detached event is sent.
    Detached,
}

/// Opens the stream.
pub(crate) fn listen(api: &Api, call: &Call) -> Result<Response, Failure> {
    allow_get(call)?;
    if !call.accepts("text/event-stream") {
        return Err(Failure::MethodNotAllowed("GET"));
    }
    api.state()?;
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listener = Listener {
        events: api.context.events.subscribe(),
        posts: api.posts.subscribe(),
        state: api.context.state.clone(),
        telling: None,
        clock: api.context.clock.clone(),
        heartbeat,
        filter: Filter {
            types: call.parameters("event_type").map(str::to_owned).collect(),
            light: call.parameter("plan-format") == Some("light"),
        },
        client: call.client_name(),
        phase: Phase::Attaching,
    };
    let frames = stream::unfold(listener, |mut listener| async move {
        let frame = listener.next().await?;
        Some((Ok::<Bytes, Infallible>(frame), listener))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    Ok(response)
}

impl Listener {
    /// The next bytes for the client; nothing after the end.
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::Attaching => {
                self.phase = Phase::Attached;
                // The filter holds for this event too, as in Marathon; a client that did not ask for it is shown by an
                // empty line that the stream is open.
                return Some(self.own_event("event_stream_attached").unwrap_or(EMPTY_LINE));
            }
            Phase::Detached => return None,
            Phase::Attached => {}
        }
        loop {
            let next = tokio::select! {
                event = self.events.recv() => event.map(|event| self.filter.frame_of_event(&event)),
                () = future::ready(()), if self.telling.is_some() => Ok(tell(&mut self.telling)),
                post = self.posts.recv(), if self.telling.is_none() => post.map(|post| {
                    self.telling = Some((post, 0)).filter(|_| self.filter.wants(POST));
                    None
                }),
                _ = self.heartbeat.tick() => Ok(Some(EMPTY_LINE)),
                _ = self.state.wait_for(|_| false) => Err(broadcast::error::RecvError::Closed),
            };
            match next {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "Event listener dropped");
                    self.phase = Phase::Detached;
                    return self.own_event("event_stream_detached");
                }
            }
        }
    }

    /// An event about this client, if it wants to hear of it.
    fn own_event(&self, event_type: &str) -> Option<Bytes> {
        self.filter.wants(event_type).then(|| {
            frame(
                event_type,
                &event::with_type(event_type, self.clock.now(), json!({"remoteAddress": self.client})),
            )
        })
    }
}

impl Filter {
    fn wants(&self, event_type: &str) -> bool {
        self.types.is_empty() || self.types.contains(event_type)
    }

    fn frame_of_event(&self, each: &Event) -> Option<Bytes> {
        let event_type = event::type_of(&each.kind);
        self.wants(event_type).then(|| frame(event_type, &event::data(each, self.light)))
    }
}

/// The event of the next app of the post that is being told; nothing at its end.
fn tell(telling: &mut Option<(Arc<Post>, usize)>) -> Option<Bytes> {
    let (post, told) = telling.take()?;
    let frame = frame_of_post(&post, post.apps.get(told)?);
    *telling = Some((post, told + 1));
    Some(frame)
}

fn frame_of_post(post: &Post, app: &AppDefinition) -> Bytes {
    let fields = json!({
        "clientIp": post.client,
        "uri": post.uri,
        "appDefinition": app::definition(app),
    });
    frame(POST, &event::with_type(POST, post.timestamp, fields))
}

/// An event as marathon-lb reads it: one line of data after exactly one space.
fn frame(event_type: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {event_type}\r\ndata: {data}\r\n\r\n"))
}
