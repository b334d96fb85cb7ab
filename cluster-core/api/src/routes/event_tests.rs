//! The event stream.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use futures_util::StreamExt;
use mesonet_marathon::{DeploymentStep, Event, EventKind};
use mesonet_model::{AgentId, AppDefinition, AppId, TaskId, TaskState, Timestamp};
use serde_json::{Value, json};

use super::fixture::{EVENTS_BUFFERED, Fixture};
use super::state_tests::deployment;

const ACCEPT: (&str, &str) = ("accept", "text/event-stream");

/// A client that listens.
struct Listener(BodyDataStream);

impl Listener {
    /// Opens the stream.
    async fn open(fixture: &Fixture, query: &str) -> Self {
        let response = fixture.open("GET", &format!("/v2/events{query}"), &[ACCEPT], "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response.into_body().into_data_stream())
    }

    /// Opens the stream and takes the attached event.
    async fn attach(fixture: &Fixture, query: &str) -> Self {
        let mut listener = Self::open(fixture, query).await;
        let (event_type, data) = listener.event().await.expect("attached");
        assert_eq!(
            (event_type.as_str(), &data["remoteAddress"]),
            ("event_stream_attached", &json!("unknown"))
        );
        listener
    }

    async fn frame(&mut self) -> Option<String> {
        let bytes = self.0.next().await?.expect("infallible");
        Some(String::from_utf8(bytes.to_vec()).expect("text"))
    }

    /// Type and data of the next event, whose framing is checked.
    async fn event(&mut self) -> Option<(String, Value)> {
        let mut frame = self.frame().await?;
        // On a machine that stalls, the heart may beat in between.
        while frame == "\r\n" {
            frame = self.frame().await?;
        }
        let rest = frame.strip_prefix("event: ").expect("begins with the type");
        let (event_type, rest) = rest.split_once("\r\ndata: ").expect("data after the type");
        let data = rest.strip_suffix("\r\n\r\n").expect("ends with an empty line");
        assert!(!data.contains(['\r', '\n']), "data is one line");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["eventType"], *event_type);
        assert!(data["timestamp"].as_str().is_some_and(|text| text.ends_with('Z')));
        Some((event_type.to_owned(), data))
    }
}

fn event(kind: EventKind) -> Arc<Event> {
    Arc::new(Event { timestamp: Timestamp::from_millis(1_795_208_400_000), kind })
}

fn terminated() -> Arc<Event> {
    event(EventKind::AppTerminated { app: AppId::parse("/web").expect("id") })
}

#[tokio::test]
async fn the_stream_needs_its_media_type() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/v2/events").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let posted = fixture.send_with("POST", "/v2/events", &[ACCEPT], "").await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn events_of_marathon_and_posts_are_sent() {
    let fixture = Fixture::new();
    let mut listener = Listener::attach(&fixture, "").await;
    let task = TaskId::new("web.instance-1._app.1");
    let update = EventKind::StatusUpdate {
        task: task.clone(),
        app: AppId::parse("/web").expect("id"),
        agent: AgentId::new("c-S0"),
        host: "127.0.0.1".to_owned(),
        state: TaskState::Running,
        message: "line\nbreak".to_owned(),
        addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()],
        ports: vec![31000],
        version: Timestamp::from_millis(0),
    };
    fixture.events.send(event(update)).expect("listener");
    let (event_type, data) = listener.event().await.expect("event");
    assert_eq!(event_type, "status_update_event");
    assert_eq!(
        data,
        json!({
            "eventType": "status_update_event", "timestamp": "2026-11-20T21:00:00.000Z", "slaveId": "c-S0",
            "taskId": "web.instance-1._app.1", "taskStatus": "TASK_RUNNING", "message": "line\nbreak",
            "appId": "/web", "host": "127.0.0.1", "ports": [31000], "version": "1970-01-01T00:00:00.000Z",
            "ipAddresses": [{"ipAddress": "127.0.0.1", "protocol": "IPv4"}],
        })
    );
    let unknown = EventKind::UnknownInstanceTerminated { task, state: TaskState::Killed };
    fixture.events.send(event(unknown)).expect("listener");
    let (_, data) = listener.event().await.expect("event");
    assert_eq!(
        (&data["instanceId"], &data["runSpecId"], &data["condition"]),
        (&json!("web.instance-1"), &json!("/web"), &json!("Killed"))
    );
    fixture.send("POST", "/v2/apps", r#"{"id":"/web","cmd":"a"}"#).await;
    let (event_type, data) = listener.event().await.expect("event");
    assert_eq!((event_type.as_str(), &data["uri"]), ("api_post_event", &json!("/v2/apps")));
    assert_eq!(data["appDefinition"]["cmd"], "a");
}

#[tokio::test]
async fn listeners_hear_only_what_they_asked_for() {
    let fixture = Fixture::new();
    let query = "?plan-format=light&event_type=api_post_event&event_type=group_change_success";
    let mut listener = Listener::open(&fixture, query).await;
    assert_eq!(listener.frame().await.as_deref(), Some("\r\n"), "a sign that the stream is open");
    fixture.events.send(terminated()).expect("listener");
    fixture
        .events
        .send(event(EventKind::GroupChanged { version: Timestamp::from_millis(0) }))
        .expect("listener");
    let (event_type, data) = listener.event().await.expect("event");
    assert_eq!((event_type.as_str(), &data["groupId"]), ("group_change_success", &json!("/")));
    for _ in 0..=EVENTS_BUFFERED {
        fixture.events.send(terminated()).expect("listener");
    }
    assert!(
        listener.frame().await.is_none(),
        "one that lags behind is dropped without what it does not want"
    );
}

#[tokio::test]
async fn deployments_come_with_the_apps_before_and_after_unless_light() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
    let mut full = Listener::attach(&fixture, "").await;
    let mut light = Listener::attach(&fixture, "?plan-format=light").await;
    let mut plan = deployment("/web");
    let state = fixture.state.borrow().clone().expect("started");
    let app: &Arc<AppDefinition> = &state.marathon.apps.values().next().expect("app").definition;
    plan.target = vec![Arc::clone(app)];
    let step: DeploymentStep = plan.steps[1].clone();
    fixture.events.send(event(EventKind::DeploymentInfo { plan: Arc::new(plan), step })).expect("listeners");
    let (event_type, data) = full.event().await.expect("event");
    assert_eq!(event_type, "deployment_info");
    assert_eq!(data["currentStep"], json!({"actions": [{"action": "ScaleApplication", "app": "/web"}]}));
    assert_eq!(data["plan"]["original"]["apps"], json!([]));
    assert_eq!(data["plan"]["target"]["apps"][0]["id"], "/web");
    let keys: Vec<&String> = data["plan"]["target"].as_object().expect("group").keys().collect();
    assert_eq!(keys, ["apps", "dependencies", "groups", "id", "pods", "version"]);
    let (_, data) = light.event().await.expect("event");
    assert!(data["plan"].get("target").is_none() && data["plan"].get("original").is_none());
    assert_eq!(data["plan"]["steps"].as_array().map(Vec::len), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_beats() {
    let fixture = Fixture::new();
    let mut listener = Listener::attach(&fixture, "").await;
    let began = tokio::time::Instant::now();
    assert_eq!(listener.frame().await.as_deref(), Some("\r\n"));
    assert_eq!(listener.frame().await.as_deref(), Some("\r\n"));
    assert_eq!(began.elapsed().as_secs(), Duration::from_secs(20).as_secs());
}

#[tokio::test]
async fn a_put_of_many_apps_detaches_nobody() {
    let fixture = Fixture::new();
    let mut listener = Listener::attach(&fixture, "").await;
    let mut other = Listener::open(&fixture, "?event_type=app_terminated_event").await;
    assert_eq!(other.frame().await.as_deref(), Some("\r\n"), "the stream is open");
    let apps: Vec<Value> = (0..1000).map(|number| json!({"id": format!("/a{number}"), "cmd": "a"})).collect();
    let put = fixture.send("PUT", "/v2/apps", &json!(apps).to_string()).await;
    assert_eq!(put.status, StatusCode::OK);
    let mut said = Vec::new();
    for _ in &apps {
        let (event_type, data) = listener.event().await.expect("event");
        assert_eq!((event_type.as_str(), &data["uri"]), ("api_post_event", &json!("/v2/apps")));
        said.push(data["appDefinition"]["id"].clone());
    }
    assert_eq!(said, apps.iter().map(|app| app["id"].clone()).collect::<Vec<_>>());
    fixture.events.send(terminated()).expect("listeners");
    for listener in [&mut listener, &mut other] {
        assert_eq!(listener.event().await.expect("event").0, "app_terminated_event");
    }
}

#[tokio::test]
async fn a_slow_listener_is_told_and_dropped_while_others_go_on() {
    let fixture = Fixture::new();
    let mut slow = Listener::attach(&fixture, "").await;
    let mut quick = Listener::attach(&fixture, "").await;
    for _ in 0..=EVENTS_BUFFERED {
        fixture.events.send(terminated()).expect("listeners");
        assert_eq!(quick.event().await.expect("event").0, "app_terminated_event");
    }
    assert_eq!(slow.event().await.expect("event").0, "event_stream_detached");
    assert!(slow.frame().await.is_none());
    fixture.events.send(terminated()).expect("listener");
    assert_eq!(quick.event().await.expect("event").0, "app_terminated_event");
}
