//! One of several masters: what it forwards, and what it answers without a leader.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use futures_util::StreamExt as _;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::fixture::{Fixture, OneFile};
use crate::{Duty, LoneMaster, Replica, Standing, State, router_on_duty};

/// Records that hold what a fixture's state was.
struct Recorded(Arc<State>);

impl Replica for Recorded {
    fn state(&self) -> Result<Arc<State>, String> {
        Ok(self.0.clone())
    }
}

/// A master that stands by.
struct Standby {
    router: Router,
    leader: watch::Sender<Option<SocketAddr>>,
    _duty: watch::Sender<Duty>,
}

/// Where this master says that it is; nobody listens there.
const OWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

impl Standby {
    fn start(records: &Fixture) -> Self {
        let (leader, follows) = watch::channel(None);
        let state = records.state.borrow().clone().expect("a state");
        let (duty, on_duty) = watch::channel(Duty::Standing(Standing {
            leader: follows,
            replica: Arc::new(Recorded(state)),
            metrics: Registry::new(),
            sandboxes: Arc::new(OneFile),
            masters: Arc::new(LoneMaster::default()),
            address: OWN,
        }));
        Self { router: router_on_duty(on_duty), leader, _duty: duty }
    }

    async fn open(&self, method: &str, path: &str, via: &[&str], body: &str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for via in via {
            request = request.header("X-Marathon-Via", *via);
        }
        let request = request.body(Body::from(body.to_owned())).expect("request");
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
        answered(self.open(method, path, &[], body).await).await
    }
}

async fn answered(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("body");
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// Serves the API of a leader on a port.
async fn lead(fixture: &Fixture) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listens");
    let address = listener.local_addr().expect("address");
    let router = fixture.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn web() -> Value {
    json!({"id": "/web", "cmd": "sleep 1"})
}

#[tokio::test]
async fn whoever_is_asked_the_leader_answers() {
    let leader = Fixture::new();
    let standby = Standby::start(&Fixture::new());
    standby.leader.send_replace(Some(lead(&leader).await));
    let response = standby.open("POST", "/v2/apps?force=true", &[], &web().to_string()).await;
    assert_eq!(response.headers()["x-marathon-leader"], "http://127.0.0.1:8080");
    assert!(response.headers().contains_key("marathon-deployment-id"));
    assert_eq!(answered(response).await.0, StatusCode::CREATED);
    assert_eq!(leader.commands.lock().expect("commands").len(), 1);
    let (status, apps) = standby.send("GET", "/v2/apps?embed=apps.counts", "").await;
    assert_eq!((status, apps["apps"][0]["id"].as_str()), (StatusCode::OK, Some("/web")));
    let (status, refused) = standby.send("POST", "/v2/apps", &web().to_string()).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    let (status, body) = standby.send("POST", "/v2/apps", "no json").await;
    assert_eq!((status, body["message"].as_str()), (StatusCode::BAD_REQUEST, Some("Invalid JSON")));
}

#[tokio::test]
async fn events_are_passed_on_as_they_come() {
    let leader = Fixture::new();
    let standby = Standby::start(&Fixture::new());
    standby.leader.send_replace(Some(lead(&leader).await));
    let mut request = Request::get("/v2/events").body(Body::empty()).expect("request");
    request.headers_mut().insert("accept", "text/event-stream".parse().expect("header"));
    let response = standby.router.clone().oneshot(request).await.expect("infallible");
    let mut events = response.into_body().into_data_stream();
    let first = events.next().await.expect("an event").expect("readable");
    assert!(String::from_utf8_lossy(&first).contains("event_stream_attached"));
}

#[tokio::test]
async fn without_a_leader_records_are_read_and_nothing_is_changed() {
    let standby = Standby::start(&Fixture::with_apps(&[web()]).await);
    let (status, app) = standby.send("GET", "/v2/apps//web", "").await;
    assert_eq!((status, app["app"]["cmd"].as_str()), (StatusCode::OK, Some("sleep 1")));
    assert_eq!(standby.send("GET", "/ping", "").await.0, StatusCode::OK);
    assert_eq!(standby.send("GET", "/v1/health/live", "").await.0, StatusCode::OK);
    assert_eq!(standby.send("GET", "/v1/health/ready", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::pause();
    let response = standby.open("DELETE", "/v2/apps//web", &[], "").await;
    assert_eq!(response.headers()["retry-after"], "2");
    let (status, body) = answered(response).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["message"], "There is no leader at present; nothing has been changed");
}

#[tokio::test]
async fn a_change_waits_for_the_leader_that_is_elected_meanwhile() {
    let leader = Fixture::new();
    let standby = Arc::new(Standby::start(&Fixture::new()));
    // The last one is dead, which its host tells.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listens");
    standby.leader.send_replace(closed.local_addr().ok());
    drop(closed);
    let asked = standby.clone();
    let asking = tokio::spawn(async move { asked.send("POST", "/v2/apps", &web().to_string()).await });
    tokio::task::yield_now().await;
    standby.leader.send_replace(None);
    standby.leader.send_replace(Some(lead(&leader).await));
    assert_eq!(asking.await.expect("answered").0, StatusCode::CREATED);
}

#[tokio::test]
async fn who_reads_from_a_leader_that_is_silent_is_told_so() {
    let standby = Standby::start(&Fixture::new());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listens");
    standby.leader.send_replace(listener.local_addr().ok());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        // From here on nothing happens but that time passes.
        tokio::time::pause();
        std::future::pending::<()>().await;
    });
    let (status, body) = standby.send("GET", "/v2/apps", "").await;
    asked.abort();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["message"], "The leader does not answer in time");
}

#[tokio::test]
async fn a_request_does_not_go_in_circles() {
    let standby = Standby::start(&Fixture::new());
    standby.leader.send_replace(Some(OWN));
    for via in [&["1.1 127.0.0.1:1"][..], &["1.1 a:1", "1.1 b:1", "1.1 c:1"]] {
        let (status, body) = answered(standby.open("GET", "/v2/apps", via, "").await).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
    }
}
