//! The API in front of a Marathon that is played by a task of the test.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use imbl::OrdMap;
use mesonet_marathon::{
    AppBase, AppPut, AppView, Command, Event, InstanceView, MarathonView, Rejection, Reply,
};
use mesonet_model::{
    AgentId, AppId, ClusterId, ClusterView, DeploymentId, FrameworkId, Revision, TaskId, TaskKey, TaskState,
    Timestamp,
};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, watch};
use tower::ServiceExt;

use super::state_tests::TIME;
use crate::{
    Answer, Clock, Context, NodeOrder, NodeRequest, SandboxChunk, SandboxError, SandboxReader, State, router,
};

/// How many events a listener may lag behind.
pub(super) const EVENTS_BUFFERED: usize = 8;

/// An API and what it talks to.
pub(super) struct Fixture {
    pub(super) router: Router,
    pub(super) state: Arc<watch::Sender<Option<Arc<State>>>>,
    pub(super) events: broadcast::Sender<Arc<Event>>,
    /// Refusals that the next commands get.
    pub(super) refusals: Arc<Mutex<VecDeque<Rejection>>>,
    /// Commands that were received.
    pub(super) commands: Arc<Mutex<Vec<Command>>>,
    /// Orders that were received.
    pub(super) orders: Arc<Mutex<Vec<NodeOrder>>>,
}

/// Takes every order, the first at revision 1.
async fn play_master(mut ordered: mpsc::Receiver<NodeRequest>, orders: Arc<Mutex<Vec<NodeOrder>>>) {
    let mut revision = Revision::ZERO;
    while let Some(NodeRequest { order, answer }) = ordered.recv().await {
        orders.lock().expect("orders").push(order);
        revision = Revision(revision.0 + 1);
        answer.send(Ok(revision)).expect("the API waits");
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answered {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

impl Fixture {
    /// Before the control plane has started.
    pub(super) fn not_started() -> Self {
        let state = Arc::new(watch::Sender::new(None));
        let (requests, received) = mpsc::channel(16);
        let (nodes, ordered) = mpsc::channel(16);
        let events = broadcast::Sender::new(EVENTS_BUFFERED);
        let metrics = prometheus::Registry::new();
        let counter = prometheus::IntCounter::new("mesonet_test_total", "A counter").expect("valid");
        metrics.register(Box::new(counter)).expect("new");
        let context = Context {
            state: state.subscribe(),
            requests,
            nodes,
            events: events.clone(),
            clock: Arc::new(StoppedClock),
            metrics,
            sandboxes: Arc::new(OneFile),
            masters: Arc::new(crate::LoneMaster::default()),
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
        };
        let refusals = Arc::new(Mutex::new(VecDeque::new()));
        let commands = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(play_marathon(
            received,
            Arc::clone(&state),
            Arc::clone(&refusals),
            Arc::clone(&commands),
        ));
        let orders = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(play_master(ordered, Arc::clone(&orders)));
        Self { router: router(context), state, events, refusals, commands, orders }
    }

    /// With nothing in it.
    pub(super) fn new() -> Self {
        let fixture = Self::not_started();
        fixture.state.send_replace(Some(Arc::new(State {
            cluster: ClusterView::empty(ClusterId::new("6f6e7a3e-2f1f-4b0e-8d3b-1d0f6a4c9b11")),
            marathon: MarathonView {
                revision: Revision(1),
                framework: Some(FrameworkId::new("c-0000")),
                apps: OrdMap::new(),
                deployments: OrdMap::new(),
            },
            planes: crate::Planes::new(),
            plane_history: crate::PlaneHistory::default(),
        })));
        fixture
    }

    /// With somebody else to carry out what it is asked for.
    pub(super) fn asking(
        self,
        requests: mpsc::Sender<crate::Request>,
        nodes: mpsc::Sender<NodeRequest>,
    ) -> Self {
        let context = Context {
            state: self.state.subscribe(),
            requests,
            nodes,
            events: self.events.clone(),
            clock: Arc::new(StoppedClock),
            metrics: prometheus::Registry::new(),
            sandboxes: Arc::new(OneFile),
            masters: Arc::new(crate::LoneMaster::default()),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
        };
        Self { router: router(context), ..self }
    }

    /// Changes the committed state.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change_state(&self.state, change);
    }

    /// Creates apps from their JSON.
    pub(super) async fn with_apps(apps: &[Value]) -> Self {
        let fixture = Self::new();
        for app in apps {
            let created = fixture.send("POST", "/v2/apps", &app.to_string()).await;
            assert_eq!(created.status, StatusCode::CREATED, "{}", created.text);
        }
        fixture
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.send("GET", path, "").await
    }

    pub(super) async fn send(&self, method: &str, path: &str, body: &str) -> Answered {
        self.send_with(method, path, &[], body).await
    }

    pub(super) async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("body");
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        Answered { status: parts.status, headers: parts.headers, text }
    }

    /// The answer with its body unread.
    pub(super) async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).expect("request");
        self.router.clone().oneshot(request).await.expect("infallible")
    }
}

/// An instance of an app.
pub(super) fn instance(app: &AppView, number: u16, state: TaskState) -> InstanceView {
    let definition = &app.definition;
    let prefix = definition.id.task_id_prefix();
    InstanceView {
        task: TaskId::new(format!("{prefix}.instance-{number}._app.1")),
        app: definition.id.clone(),
        version: definition.version,
        agent: AgentId::new("c-S0"),
        host: format!("127.0.0.{number}"),
        host_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        state,
        ports: definition.ports().iter().map(|_| 31000 + number).collect(),
        service_ports: definition.ports().iter().map(|port| port.service_port).collect(),
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        staged_at: Timestamp::from_millis(1),
        started_at: (state == TaskState::Running).then_some(Timestamp::from_millis(2)),
    }
}

/// The app of this id, to be changed.
pub(super) fn app<'state>(state: &'state mut State, id: &str) -> &'state mut AppView {
    let id = AppId::parse(id).expect("id");
    Arc::make_mut(state.marathon.apps.get_mut(&id).expect("app"))
}

/// Gives an app so many running instances, numbered from 1.
pub(super) fn run(state: &mut State, id: &str, count: u16) {
    let app = app(state, id);
    for number in 1..=count {
        let instance = instance(app, number, TaskState::Running);
        app.instances.insert(instance.task.clone(), Arc::new(instance));
    }
}

/// A clock that says the same always, and not what the host's does.
pub(super) struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        TIME
    }
}

/// A sandbox in which every task has a file `stdout`.
pub(super) struct OneFile;

impl SandboxReader for OneFile {
    fn read(
        &self,
        _agent: Option<&AgentId>,
        task: &TaskKey,
        file: &str,
        offset: Option<u64>,
        length: Option<u64>,
    ) -> Result<SandboxChunk, SandboxError> {
        const TEXT: &[u8] = b"hello sandbox\n";
        if file != "stdout" {
            return Err(SandboxError::NotFound { task: task.task.to_string(), file: file.to_owned() });
        }
        let size = TEXT.len();
        let Some(offset) = offset else {
            return Ok(SandboxChunk { offset: size as u64, data: Vec::new() });
        };
        let from = usize::try_from(offset).unwrap_or(size).min(size);
        let to = length.map_or(size, |length| from.saturating_add(length as usize).min(size));
        Ok(SandboxChunk { offset, data: TEXT[from..to].to_vec() })
    }
}

async fn play_marathon(
    mut received: mpsc::Receiver<crate::Request>,
    state: Arc<watch::Sender<Option<Arc<State>>>>,
    refusals: Arc<Mutex<VecDeque<Rejection>>>,
    commands: Arc<Mutex<Vec<Command>>>,
) {
    while let Some(request) = received.recv().await {
        commands.lock().expect("lock").push(request.command.clone());
        let refusal = refusals.lock().expect("lock").pop_front();
        let mut result = Err(Rejection::UnknownDeployment(DeploymentId::new("none")));
        change_state(&state, |state| {
            result = refusal.map_or_else(|| carry_out(state, request.command), Err);
        });
        let revision = state.borrow().as_ref().expect("started").marathon.revision;
        let answer = result.map(|reply| Answer { reply, revision });
        // A client that has gone away is no fault.
        let _ = request.answer.send(answer);
    }
}

fn change_state(sender: &watch::Sender<Option<Arc<State>>>, change: impl FnOnce(&mut State)) {
    sender.send_modify(|state| {
        let state = Arc::make_mut(state.as_mut().expect("started"));
        state.marathon.revision = state.marathon.revision.next();
        state.cluster.revision = state.marathon.revision;
        change(state);
    });
}

fn carry_out(state: &mut State, command: Command) -> Result<Reply, Rejection> {
    let version = Timestamp::from_millis(1_795_208_400_000 + state.marathon.revision.0 as i64);
    let id = DeploymentId::new(format!("deployment-{}", state.marathon.revision));
    let deployment = |apps| Reply::Deployment { id: id.clone(), version, apps };
    let find = |state: &State, app: &AppId| {
        state.marathon.apps.get(app).cloned().ok_or_else(|| Rejection::UnknownApp(app.clone()))
    };
    match command {
        Command::Put { apps, .. } => {
            let stored: Result<Vec<_>, _> = apps.into_iter().map(|put| store(state, put, version)).collect();
            Ok(deployment(stored?))
        }
        Command::Delete { app, .. } => {
            find(state, &app)?;
            state.marathon.apps.remove(&app);
            Ok(deployment(Vec::new()))
        }
        Command::Restart { app, .. } => find(state, &app).map(|_| deployment(Vec::new())),
        Command::KillTasks { scale: true, .. } => Ok(deployment(Vec::new())),
        Command::KillTasks { tasks, .. } => {
            let all = state.marathon.apps.values().flat_map(|app| app.instances.values());
            Ok(Reply::Killed(all.filter(|each| tasks.contains(&each.task)).cloned().collect()))
        }
        Command::CancelDeployment { deployment: wanted, .. } => {
            match state.marathon.deployments.remove(&wanted) {
                Some(_) => Ok(deployment(Vec::new())),
                None => Err(Rejection::UnknownDeployment(wanted)),
            }
        }
        Command::ResetDelay { app } => match find(state, &app) {
            Ok(found) if found.queue.is_some() => Ok(Reply::Done),
            _ => Err(Rejection::NotQueued(app)),
        },
    }
}

fn store(
    state: &mut State,
    put: AppPut,
    version: Timestamp,
) -> Result<Arc<mesonet_model::AppDefinition>, Rejection> {
    let id = put.definition.id.clone();
    let current = state.marathon.apps.get(&id).map(|app| app.definition.version);
    match (put.base, current) {
        (AppBase::Absent, None) => {}
        (AppBase::Absent, Some(_)) => return Err(Rejection::AppExists(id)),
        (AppBase::Version(base), Some(current)) if base == current => {}
        (AppBase::Version(_), _) => return Err(Rejection::Stale(id)),
    }
    let mut definition = put.definition;
    definition.version = version;
    for (index, port) in definition.port_definitions.iter_mut().enumerate() {
        port.port = if port.port == 0 { 10_000 + index as u16 } else { port.port };
    }
    let definition = Arc::new(definition);
    let mut app = state.marathon.apps.get(&id).map_or_else(
        || AppView {
            definition: Arc::clone(&definition),
            versions: Vec::new(),
            instances: OrdMap::new(),
            last_failure: None,
            deployments: Vec::new(),
            queue: None,
        },
        |app| AppView::clone(app),
    );
    app.definition = Arc::clone(&definition);
    app.versions.insert(0, Arc::clone(&definition));
    state.marathon.apps.insert(id, Arc::new(app));
    Ok(definition)
}
