//! A master's end with nobody behind it but the test, and nodes.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesonet_model::{
    Agent, AgentCommand, AgentId, AgentInfo, AgentReport, AgentState, ClusterId, ClusterView, Resources,
    Revision, Timestamp,
};
use quinn::{Connection, RecvStream, SendStream};
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::client::dial::{Ground, LinkError, dial};
use crate::wire::{self, First, FromMaster, Hello};
use crate::{
    Authority, Client, ClientSettings, Feed, Files, Identity, JoinError, JoinToken, KnownView, LinkState,
    MasterEnds, NodeName, PlaneNews, Publisher, Reason, Role, Server, ServerError, ServerSettings,
    TokenTerms, channel, clock, join, pki,
};

/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than a busy machine lets a connection's task wait.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) const LONG: Duration = Duration::from_secs(3600);

/// The master's side.
pub(super) struct Site {
    pub(super) dir: TempDir,
    pub(super) authority: Authority,
    pub(super) server: Server,
    pub(super) publisher: Publisher,
    _feed: Feed,
    pub(super) planes: mpsc::Receiver<PlaneNews>,
    pub(super) reports: mpsc::Receiver<AgentReport>,
    pub(super) commands: mpsc::Sender<(AgentId, AgentCommand)>,
    view: ClusterView,
}

/// An agent's side: the test speaks for the agent.
pub(super) struct AgentNode {
    pub(super) client: Client,
    pub(super) commands: mpsc::Receiver<AgentCommand>,
    pub(super) reports: mpsc::Sender<AgentReport>,
}

/// A network daemon's side: the test speaks for its planes.
pub(super) struct NetNode {
    pub(super) client: Client,
    pub(super) feed: Feed,
}

impl Site {
    pub(super) fn start() -> Self {
        Self::with_lifetime(LONG)
    }

    pub(super) fn with_lifetime(lifetime: Duration) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let cluster =
            ClusterId::new(format!("cluster-of-{}", dir.path().file_name().expect("name").display()));
        let authority = Authority::create(&dir.path().join("authority"), &cluster).expect("authority");
        let view = ClusterView::empty(cluster);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Master::start(&authority, lifetime, listen).expect("server").at(dir, authority, view)
    }

    /// Another master process in the place of this one.
    pub(super) async fn restart(self) -> Self {
        let listen = self.server.address();
        self.server.close().await;
        // The system gives the port back when the last connection's task has ended.
        let master = || Master::start(&self.authority, LONG, listen).ok();
        eventually("the port is free", master).await.at(self.dir, self.authority, self.view)
    }

    pub(super) fn master(&self) -> String {
        self.server.address().to_string()
    }

    pub(super) fn token(&self, uses: u32, roles: &[Role]) -> JoinToken {
        self.token_for(LONG, uses, roles)
    }

    pub(super) fn token_for(&self, ttl: Duration, uses: u32, roles: &[Role]) -> JoinToken {
        let terms = TokenTerms { ttl, uses, roles: roles.iter().copied().collect::<BTreeSet<_>>() };
        self.authority.create_token(&terms).expect("token")
    }

    /// Where a node keeps its identity.
    pub(super) fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.path().join("nodes").join(node)
    }

    pub(super) async fn join(&self, node: &str, token: &JoinToken) -> Result<Identity, JoinError> {
        join(&[self.master()], token, &name(node), &self.node_dir(node)).await
    }

    /// A node that has joined with both of a node's roles.
    pub(super) async fn joined(&self, node: &str) -> PathBuf {
        self.join(node, &self.token(1, &[Role::Agent, Role::Net])).await.expect("joined");
        self.node_dir(node)
    }

    pub(super) fn settings(&self, node: &str) -> ClientSettings {
        ClientSettings {
            masters: vec![self.master()],
            identity: self.node_dir(node),
            idle_timeout: IDLE_TIMEOUT,
        }
    }

    pub(super) fn agent(&self, node: &str) -> AgentNode {
        let (commands_in, commands) = mpsc::channel(64);
        let (reports, reports_out) = mpsc::channel(64);
        let client = Client::start_agent(self.settings(node), commands_in, reports_out).expect("client");
        AgentNode { client, commands, reports }
    }

    pub(super) fn agent_with_files(&self, node: &str, files: Arc<dyn Files>) -> AgentNode {
        let (commands_in, commands) = mpsc::channel(64);
        let (reports, reports_out) = mpsc::channel(64);
        let client = Client::start_agent_with_files(self.settings(node), commands_in, reports_out, files);
        AgentNode { client: client.expect("client"), commands, reports }
    }

    pub(super) fn net(&self, node: &str, known: Option<ClusterView>) -> NetNode {
        self.net_with(node, known.map(|view| KnownView { view, confirmed: SystemTime::now() }))
    }

    pub(super) fn net_with(&self, node: &str, known: Option<KnownView>) -> NetNode {
        let (publisher, feed, reports) = channel();
        if let Some(known) = &known {
            publisher.publish(known.view.clone());
        }
        let client = Client::start_net(self.settings(node), known, publisher, reports).expect("client");
        NetNode { client, feed }
    }

    /// Publishes the next revision, in which an agent has this text about itself.
    pub(super) fn publish(&mut self, agent: &str, text: String) -> ClusterView {
        let id = AgentId::new(agent);
        let agent = Agent {
            id: id.clone(),
            info: info(&text),
            other_addresses: Vec::new(),
            state: AgentState::Active,
            draining: false,
            registered_at: Timestamp::from_millis(0),
        };
        self.view.agents.insert(id, agent.into());
        self.view.revision = self.view.revision.next();
        self.publisher.publish(self.view.clone());
        self.view.clone()
    }

    /// The next report of an agent.
    pub(super) async fn report(&mut self) -> AgentReport {
        patiently(self.reports.recv()).await.expect("a report")
    }

    pub(super) async fn plane_news(&mut self) -> PlaneNews {
        patiently(self.planes.recv()).await.expect("news")
    }

    /// Registers an agent as the master does, under this id.
    pub(super) async fn register(&mut self, node: &mut AgentNode, host: &str, id: &str) {
        node.reports.send(registration(None, host)).await.expect("sent");
        assert!(matches!(self.report().await, AgentReport::Register { agent: None, .. }));
        self.publish(id, host.to_owned());
        let agent = AgentId::new(id);
        let command = AgentCommand::Registered { agent: agent.clone() };
        self.commands.send((agent, command.clone())).await.expect("sent");
        assert_eq!(patiently(node.commands.recv()).await, Some(command));
    }

    pub(super) fn refused(&self, reason: Reason) -> u64 {
        self.server.stats().refused.get(&reason).copied().unwrap_or(0)
    }

    /// A connection on which the test says what it wants.
    pub(super) async fn raw(&self, node: &str) -> Raw {
        let identity = Identity::load(&self.node_dir(node)).expect("identity");
        let tls = pki::client_config(identity).expect("tls");
        let (ground, connection) = dial(&self.master(), tls, IDLE_TIMEOUT).await.expect("connected");
        let (send, receive) = connection.open_bi().await.expect("stream");
        Raw { _ground: ground, connection, send, receive }
    }

    /// Like [`Self::raw`], and already welcome.
    pub(super) async fn raw_welcome(&self, node: &str, role: Role) -> Raw {
        let mut raw = self.raw(node).await;
        raw.say(&First::Hello(hello(node, role))).await;
        assert!(matches!(raw.hear().await, FromMaster::Welcome { .. }));
        raw
    }
}

/// What ends with a master's process.
struct Master {
    server: Server,
    publisher: Publisher,
    feed: Feed,
    planes: mpsc::Receiver<PlaneNews>,
    reports: mpsc::Receiver<AgentReport>,
    commands: mpsc::Sender<(AgentId, AgentCommand)>,
}

impl Master {
    fn start(authority: &Authority, lifetime: Duration, listen: SocketAddr) -> Result<Self, ServerError> {
        let (publisher, feed, planes) = channel();
        let (reports_in, reports) = mpsc::channel(1024);
        let (commands, commands_out) = mpsc::channel(1024);
        let settings = ServerSettings {
            listen,
            name: name("master"),
            idle_timeout: IDLE_TIMEOUT,
            certificate_lifetime: lifetime,
        };
        let ends = MasterEnds { feed: feed.clone(), reports: reports_in, commands: commands_out };
        let server = Server::start(settings, authority.clone(), ends)?;
        Ok(Self { server, publisher, feed, planes, reports, commands })
    }

    fn at(self, dir: TempDir, authority: Authority, view: ClusterView) -> Site {
        let Self { server, publisher, feed, planes, reports, commands } = self;
        Site { dir, authority, server, publisher, _feed: feed, planes, reports, commands, view }
    }
}

/// A node's connection without the node's program.
pub(super) struct Raw {
    _ground: Ground,
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
}

impl Raw {
    pub(super) async fn say<T: Serialize>(&mut self, message: &T) {
        wire::send(&mut self.send, message).await.expect("sent");
    }

    pub(super) async fn hear(&mut self) -> FromMaster {
        patiently(wire::receive(&mut self.receive, wire::FRAME_BYTES_MAX)).await.expect("message")
    }

    /// The reason with which the master ends the connection.
    pub(super) async fn end(&self) -> (Option<Reason>, String) {
        match LinkError::from(patiently(self.connection.closed()).await) {
            LinkError::Refused { reason, text } => (reason, text),
            error => panic!("ended by {error}"),
        }
    }
}

impl NetNode {
    /// Waits until the node has a revision.
    pub(super) async fn reaches(&self, revision: Revision) -> ClusterView {
        eventually("the view arrives", || self.feed.newest().filter(|view| view.revision == revision))
            .await
            .as_ref()
            .clone()
    }
}

pub(super) fn name(text: &str) -> NodeName {
    text.parse().expect("name")
}

pub(super) fn hello(node: &str, role: Role) -> Hello {
    Hello { versions: (1, 1), role, node: name(node), known: None, time: clock::now() }
}

pub(super) fn info(hostname: &str) -> AgentInfo {
    AgentInfo {
        hostname: hostname.to_owned(),
        address: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        resources: Resources::default(),
        attributes: Vec::new(),
        container_networks: false,
    }
}

pub(super) fn registration(agent: Option<&str>, host: &str) -> AgentReport {
    AgentReport::Register {
        agent: agent.map(AgentId::new),
        info: info(host),
        tasks: Vec::new(),
        containers: Vec::new(),
    }
}

/// Why a client is not connected, once its error has this text.
pub(super) async fn fails_with(client: &Client, text: &str) {
    let mut state = client.state();
    let has_failed = |state: &LinkState| matches!(state, LinkState::Disconnected { error: Some(error), .. } if error.contains(text));
    patiently(state.wait_for(has_failed)).await.expect("state");
}

pub(super) async fn connects(client: &Client) {
    let mut state = client.state();
    patiently(state.wait_for(|state| matches!(state, LinkState::Connected { .. }))).await.expect("state");
}

pub(super) async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Polls until there is a value.
pub(super) async fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
