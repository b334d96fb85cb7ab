//! The API of one of several masters: whoever is asked, the leader answers.
//!
//! A master that stands by forwards requests to the leader, as Marathon does. It answers for itself what is about
//! itself, and, while nobody leads, what can be read from the records that all masters have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use prometheus::Registry;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, watch};

use crate::api::Api;
use crate::call::Call;
use crate::context::{Context, SandboxReader, State, SystemClock};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::masters::Masters;
use crate::respond;

/// How long a request waits for a leader while there is none. An election takes about as long as the leader's lease,
/// which is 2 s; a client that waits is better off than one that has to ask again.
const ELECTION_MAX: Duration = Duration::from_secs(4);

/// What the API's master is there for.
#[derive(Clone)]
pub enum Duty {
    /// It leads.
    Leading(Leading),
    /// Another one leads, or nobody.
    Standing(Standing),
}

/// The API of a master that leads.
#[derive(Clone)]
pub struct Leading(Api);

/// What a master that stands by knows.
#[derive(Clone)]
pub struct Standing {
    /// Where the leader's API is.
    pub leader: watch::Receiver<Option<SocketAddr>>,
    /// The records that all masters have.
    pub replica: Arc<dyn Replica>,
    /// What `/metrics` shows.
    pub metrics: Registry,
    /// Files of tasks.
    pub sandboxes: Arc<dyn SandboxReader>,
    /// The masters that are known here.
    pub masters: Arc<dyn Masters>,
    /// Where this API is reached.
    pub address: SocketAddr,
}

/// The cluster's state as a master knows it that does not lead.
pub trait Replica: Send + Sync {
    /// The committed state. May take as long as the recovery of a master.
    ///
    /// # Errors
    /// When the records cannot be used; the text is for people.
    fn state(&self) -> Result<Arc<State>, String>;
}

impl Leading {
    /// With all that answers are made from.
    pub fn new(context: Context) -> Self {
        Self(Api::new(context))
    }
}

/// All routes of one of several masters.
pub fn router_on_duty(duty: watch::Receiver<Duty>) -> Router {
    Router::new().fallback(move |request: Request| {
        let duty = duty.borrow().clone();
        async move {
            match duty {
                Duty::Leading(Leading(api)) => api.answer(request).await,
                Duty::Standing(standing) => match standing.answer(request).await {
                    Ok(response) => response,
                    Err(failure) => failure.into_response(),
                },
            }
        }
    })
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answerer {
    /// This master, whoever leads.
    Here,
    /// The leader; without one, this master from its records.
    LeaderOrRecords,
    /// The leader, for whom it is worth to wait.
    Leader,
}

impl Standing {
    async fn answer(&self, request: Request) -> Result<Response, Failure> {
        let forwarder = Forwarder::new(&request, self.address)?;
        let call = Call::read(request).await?;
        let answerer = answerer(&call);
        match answerer {
            Answerer::Here => return self.answer_here(&call).await,
            Answerer::LeaderOrRecords if self.leader.borrow().is_none() => {
                return self.answer_from_records(&call).await;
            }
            Answerer::LeaderOrRecords | Answerer::Leader => {}
        }
        forwarder.forward(call.body.into(), self.leader.clone(), ELECTION_MAX).await
    }

    async fn answer_here(&self, call: &Call) -> Result<Response, Failure> {
        if call.segments.iter().map(String::as_str).eq(["v1", "health", "ready"]) {
            let leader = *self.leader.borrow();
            let Some(leader) = leader else { return Err(Failure::NoLeader) };
            let message = format!("Standing by for {leader}");
            return Ok(respond::ok(&json!({"ready": true, "message": message, "leader": leader})));
        }
        self.api(None).routed_call(call).await
    }

    async fn answer_from_records(&self, call: &Call) -> Result<Response, Failure> {
        let replica = self.replica.clone();
        let reading = tokio::task::spawn_blocking(move || replica.state());
        let state = reading.await.map_err(|error| Failure::Internal(error.to_string()))?;
        let state = state.map_err(|error| {
            tracing::error!(error, "The cluster's records cannot be used");
            Failure::Unavailable("There is no leader, and the records cannot be read, see the log")
        })?;
        self.api(Some(state)).routed_call(call).await
    }

    /// An API that can only read.
    fn api(&self, state: Option<Arc<State>>) -> Api {
        Api::new(Context {
            state: watch::channel(state).1,
            requests: mpsc::channel(1).0,
            nodes: mpsc::channel(1).0,
            events: broadcast::Sender::new(1),
            clock: Arc::new(SystemClock),
            metrics: self.metrics.clone(),
            sandboxes: self.sandboxes.clone(),
            masters: self.masters.clone(),
            address: self.address,
        })
    }
}

fn answerer(call: &Call) -> Answerer {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["ping"] | ["metrics"] | ["v1", "health", ..] => Answerer::Here,
        // Who is told that there is no leader knows more than who is told an old one's address.
        ["v2", "events" | "leader" | "info"] => Answerer::Leader,
        _ if call.method == Method::GET => Answerer::LeaderOrRecords,
        _ => Answerer::Leader,
    }
}
