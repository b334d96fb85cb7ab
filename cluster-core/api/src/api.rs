//! The way of a request: taken apart, routed, answered, logged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use mesonet_marathon::Command;
use mesonet_model::{AppDefinition, Revision, Timestamp};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, oneshot};

use crate::call::Call;
use crate::context::{self, Answer, Context, NodeOrder, NodeRequest, State};
use crate::failure::Failure;
use crate::{respond, routes};

/// How long a command may take until it is committed. The store answers in milliseconds; a client that waits longer
/// should rather know that something is wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// There is no answer after that time.
const LATE: &str = "The control plane does not answer in time: it is unknown whether the change will be made";

/// As many commands or orders wait as may.
const CROWDED: &str = "Too many changes wait to be stored; nothing has been changed";

/// The control plane keeps what it has decided and stores it later, unless it ends before.
const UNSTORED: &str = "The change cannot be stored at present, see the log: it may be made later";

/// How many posts a listener of the event stream may lag behind before it is dropped. Each is a request of a user, however
/// many apps it writes, and holds on to their definitions.
const POSTS_BUFFERED_MAX: usize = 256;

/// The context and what the API adds to it.
#[derive(Clone)]
pub(crate) struct Api {
    /// The rest of mesonet.
    pub(crate) context: Context,
    /// Writes of users, for listeners of the event stream.
    pub(crate) posts: broadcast::Sender<Arc<Post>>,
}

/// A user wrote apps (`api_post_event`, one for each).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Post {
    /// When.
    pub(crate) timestamp: Timestamp,
    /// Who.
    pub(crate) client: String,
    /// The path of the request.
    pub(crate) uri: String,
    /// The apps as stored.
    pub(crate) apps: Vec<Arc<AppDefinition>>,
}

/// All routes. Marathon's are at the root and below `/service/marathon` and `/marathon`.
///
/// There is one fallback and no axum route: app ids contain slashes, clients double them and repeat them at the end,
/// and Marathon's answers to unknown paths and methods are JSON. Routes of other crates can be added beside it.
pub fn router(context: Context) -> Router {
    let api = Api::new(context);
    Router::new().fallback(move |request: Request| {
        let api = api.clone();
        async move { api.answer(request).await }
    })
}

impl Api {
    pub(crate) fn new(context: Context) -> Self {
        Self { context, posts: broadcast::Sender::new(POSTS_BUFFERED_MAX) }
    }

    /// The newest committed state.
    pub(crate) fn state(&self) -> Result<Arc<State>, Failure> {
        let state = self.context.state.borrow().clone();
        state.ok_or(Failure::Unavailable("The control plane has not started yet"))
    }

    /// The control plane's time.
    pub(crate) fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    /// Has Marathon carry out a command; the change is visible in the state when this returns.
    pub(crate) async fn send(&self, command: Command) -> Result<Answer, Failure> {
        self.state()?;
        let (answer, answered) = oneshot::channel();
        let request = context::Request { command, answer };
        self.context.requests.try_send(request).map_err(|error| unsent(&error))?;
        let late = |_| Failure::Unavailable(LATE);
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, answered).await.map_err(late)?;
        Ok(answered.map_err(|_| unanswered(self.context.requests.is_closed()))??)
    }

    /// Has the master carry out an order; the change is visible in the state when this returns.
    pub(crate) async fn order(&self, order: NodeOrder) -> Result<Revision, Failure> {
        let (answer, answered) = oneshot::channel();
        self.context.nodes.try_send(NodeRequest { order, answer }).map_err(|error| unsent(&error))?;
        let late = |_| Failure::Unavailable(LATE);
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, answered).await.map_err(late)?;
        Ok(answered.map_err(|_| unanswered(self.context.nodes.is_closed()))??)
    }

    pub(crate) async fn answer(&self, request: Request) -> Response {
        let began = Instant::now();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let mut response = match self.routed(request).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(),
        };
        let leader = HeaderValue::from_str(&format!("http://{}", self.context.address));
        if let Ok(leader) = leader {
            response.headers_mut().insert(respond::LEADER, leader);
        }
        let elapsed_ms = began.elapsed().as_millis();
        tracing::debug!(%method, path, status = response.status().as_u16(), elapsed_ms, "Request answered");
        response
    }

    async fn routed(&self, request: Request) -> Result<Response, Failure> {
        self.routed_call(&Call::read(request).await?).await
    }

    /// Answers a request that is read.
    pub(crate) async fn routed_call(&self, call: &Call) -> Result<Response, Failure> {
        routes::route(self, call).await
    }
}

/// What a user is told whose command was not taken.
fn unsent<T>(error: &TrySendError<T>) -> Failure {
    match error {
        TrySendError::Full(_) => Failure::Unavailable(CROWDED),
        TrySendError::Closed(_) => Failure::Unavailable("The control plane is stopping"),
    }
}

/// What a user is told whose command was taken and is not answered.
fn unanswered(has_ended: bool) -> Failure {
    if has_ended { Failure::Unknown } else { Failure::Unavailable(UNSTORED) }
}

/// Refuses methods that a path does not have. `allowed` is the `Allow` header's text.
pub(crate) fn allow(call: &Call, methods: &[Method], allowed: &'static str) -> Result<(), Failure> {
    if methods.contains(&call.method) { Ok(()) } else { Err(Failure::MethodNotAllowed(allowed)) }
}

/// Refuses everything but GET and HEAD.
pub(crate) fn allow_get(call: &Call) -> Result<(), Failure> {
    allow(call, &[Method::GET], "GET, HEAD")
}
