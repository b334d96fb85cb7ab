//! One connection of a node, from its first message to its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{AgentId, AgentReport, ClusterId, Plane, PlaneReport, Revision, StatusSource};
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream, TransportErrorCode, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::duty::Duty;
use super::registry::{Link, Registration};
use super::{COMMANDS_MAX, Hall, admission};
use crate::pki::Holder;
use crate::plane_paths::PlaneKnown;
use crate::reason::{Reason, Refusal};
use crate::wire::{self, First, FromMaster, FromNode, Hello, ReceiveError};
use crate::{NodeName, PlaneNews, Report, Role, clock, transport};

/// From the first packet to the end of the first message. Joining includes three small round trips.
const FIRST_MESSAGE_MAX: Duration = Duration::from_secs(5);

/// Commands are sent before views when both wait.
const COMMANDS_PRIORITY: i32 = 1;

/// How far ahead of the newest view a node is believed to be: more changes than a cluster makes in the life of a backup.
/// Without a bound one node could use up the numbers of all revisions.
const AHEAD_MAX: u64 = 1 << 28;

/// How a connection ends.
enum End {
    /// The peer has ended it, or is lost.
    Lost,
    /// It is not allowed to go on.
    Refused(Refusal),
}

/// What a node has said that somebody must know the end of.
#[derive(Default)]
struct Said {
    has_registered: bool,
    /// What each plane has applied: of the node, or of the nodes that are connected to the master.
    planes: BTreeMap<(AgentId, Plane), Revision>,
}

/// A connection whose peer is known.
struct Guest {
    hall: Arc<Hall>,
    connection: Connection,
    node: NodeName,
    role: Role,
    holder: Holder,
    commands: mpsc::Sender<FromMaster>,
}

/// Serves a connection until it ends.
pub(super) async fn serve(hall: Arc<Hall>, incoming: Incoming, newcomer: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let connection = match tokio::time::timeout(FIRST_MESSAGE_MAX, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            if let Some(reason) = refusal_of_handshake(&error) {
                hall.house.counters.refused(reason);
            }
            return tracing::debug!(%remote, %error, "A connection has failed before it began");
        }
        Err(_) => return hall.house.counters.refused(Reason::Timeout),
    };
    let refusal = tokio::select! {
        biased;
        // What the control plane would have to hear of the connection's end is of no use when that has ended.
        elsewhere = hall.over() => Refusal::not_leader(elsewhere),
        end = converse(&hall, &connection, newcomer) => match end {
            Err(End::Refused(refusal)) => refusal,
            Ok(()) | Err(End::Lost) => return,
        },
    };
    cut(&hall, &connection, refusal.reason, &refusal.text);
}

/// Ends the connections of those who follow views, when this master stands by and gets none any more: they may find a
/// master that does.
pub(super) fn cut_unfed(hall: &Hall) {
    let Duty::Standing(standing) = &hall.duty else { return };
    if standing.is_followed() {
        return;
    }
    for (_, role, link) in hall.registry().links() {
        if follows_views(role) {
            cut(hall, &link.connection, Reason::NotLeader, "");
        }
    }
}

fn follows_views(role: Role) -> bool {
    match role {
        Role::Net | Role::Operator | Role::Master => true,
        Role::Agent => false,
    }
}

/// Why TLS has let a connection fail, if it has.
fn refusal_of_handshake(error: &ConnectionError) -> Option<Reason> {
    let by_node = |alert| matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::crypto(alert));
    if by_node(transport::ALERT_CERTIFICATE_EXPIRED) {
        Some(Reason::CertificateTime)
    } else if by_node(transport::ALERT_UNKNOWN_AUTHORITY) {
        Some(Reason::Cluster)
    } else {
        // What this side refuses is usually a certificate of another cluster.
        matches!(error, ConnectionError::TransportError(_)).then_some(Reason::Cluster)
    }
}

/// Ends a connection and tells the node why.
pub(super) fn cut(hall: &Hall, connection: &Connection, reason: Reason, text: &str) {
    if connection.close_reason().is_some() {
        return;
    }
    match reason {
        Reason::NotLeader => {
            tracing::debug!(remote = %connection.remote_address(), leader = text, "A node is sent to the leader");
        }
        _ => tracing::warn!(remote = %connection.remote_address(), %reason, text, "A connection is ended"),
    }
    hall.house.counters.refused(reason);
    connection.close(VarInt::from_u32(reason.code()), text.as_bytes());
}

async fn converse(
    hall: &Arc<Hall>,
    connection: &Connection,
    newcomer: OwnedSemaphorePermit,
) -> Result<(), End> {
    let first = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(|_| End::Lost)?;
        let first: First = wire::receive(&mut receive, wire::FIRST_FRAME_BYTES_MAX).await?;
        Ok::<_, End>((send, receive, first))
    };
    let Ok(first) = tokio::time::timeout(FIRST_MESSAGE_MAX, first).await else {
        return Err(Refusal::new(Reason::Timeout, "nothing was said for too long").into());
    };
    let (mut send, receive, first) = first?;
    match (first, admission::peer(connection)?) {
        (First::Join(join), None) => {
            let answer = admission::join(hall, join).await?;
            wire::send(&mut send, &answer).await.map_err(|_| End::Lost)?;
            drop(send.finish());
            // The node ends the connection when it has the answer.
            drop(tokio::time::timeout(FIRST_MESSAGE_MAX, connection.closed()).await);
            Ok(())
        }
        (First::Join(_), Some(holder)) => {
            Err(Refusal::new(Reason::Role, format!("node {} has joined already", holder.name)).into())
        }
        (First::Hello(_), None) => {
            Err(Refusal::new(Reason::Role, "without a certificate a node can only join").into())
        }
        (First::Hello(hello), Some(holder)) => {
            let (version, agent) = admission::admit(hall, &holder, &hello).await?;
            drop(newcomer);
            if let Duty::Standing(standing) = &hall.duty {
                match hello.role {
                    Role::Agent | Role::Master => return Err(standing.elsewhere().await.into()),
                    Role::Net | Role::Operator if standing.is_followed() => {}
                    Role::Net | Role::Operator => return Err(Refusal::not_leader(None).into()),
                }
            }
            if let Some(agent) = agent {
                hall.registry().bind(&agent, &hello.node);
            }
            wait_and_serve(hall, connection, holder, hello, version, (send, receive)).await
        }
    }
}

/// Waits until all is said of the node's earlier connection, and then serves this one.
async fn wait_and_serve(
    hall: &Arc<Hall>,
    connection: &Connection,
    holder: Holder,
    hello: Hello,
    version: u32,
    (send, receive): (SendStream, RecvStream),
) -> Result<(), End> {
    let (turn, earlier) = hall.registry().arrive(&hello.node, hello.role, connection);
    if let Some(earlier) = earlier {
        let code = VarInt::from_u32(Reason::Superseded.code());
        earlier.close(code, b"the node has connected anew");
    }
    let _turn = tokio::select! {
        turn = turn.lock_owned() => turn,
        _ = connection.closed() => return Err(End::Lost),
    };
    let (commands, outgoing) = mpsc::channel(COMMANDS_MAX);
    let link = Link { connection: connection.clone(), commands: commands.clone(), holder: holder.clone() };
    hall.registry().begin(&hello.node, hello.role, link);
    // From here on a revocation finds the connection; one that has come just before is found here.
    if let Err(refusal) = admission::check(hall, &holder).await {
        hall.registry().end(&hello.node, hello.role, connection);
        return Err(refusal.into());
    }
    connection.set_receive_window(VarInt::from_u32(transport::RECEIVE_WINDOW_BYTES));
    let mut guest = Guest {
        hall: hall.clone(),
        connection: connection.clone(),
        node: hello.node,
        role: hello.role,
        holder,
        commands,
    };
    tracing::info!(node = %guest.node, role = %guest.role, "A node has connected");
    if guest.role == Role::Master {
        hall.standbys.joined(&guest.node, connection);
    }
    let welcome = FromMaster::Welcome { version, time: clock::now(), term: hall.duty.term() };
    // What it was told before is for its earlier connection.
    let mut said = Said::default();
    let views = send_views(hall.clone(), connection.clone(), guest.role, hello.known);
    let end = tokio::select! {
        end = guest.listen(receive, &mut said) => end,
        () = speak(send, welcome, outgoing) => Err(End::Lost),
        () = views => Err(End::Lost),
    };
    if let Err(End::Refused(refusal)) = &end {
        cut(hall, connection, refusal.reason, &refusal.text);
    }
    guest.farewell(said).await;
    Ok(())
}

/// Sends what the node is told.
async fn speak(mut stream: SendStream, welcome: FromMaster, mut outgoing: mpsc::Receiver<FromMaster>) {
    // A stream that has ended is noticed when it is written to.
    let _ = stream.set_priority(COMMANDS_PRIORITY);
    let mut next = Some(welcome);
    while let Some(message) = next {
        if wire::send(&mut stream, &message).await.is_err() {
            return;
        }
        next = outgoing.recv().await;
    }
}

/// Sends views to those who follow them: the next one when the last one is in the stream's window.
async fn send_views(
    hall: Arc<Hall>,
    connection: Connection,
    role: Role,
    known: Option<(ClusterId, Revision)>,
) {
    if !follows_views(role) {
        return std::future::pending().await;
    }
    let cluster = hall.house.authority.cluster();
    let mut from = known.filter(|(known, _)| known == cluster).map(|(_, revision)| revision);
    let mut newest = hall.house.frames.subscribe();
    let Ok(mut stream) = connection.open_uni().await else { return };
    loop {
        let view =
            match newest.wait_for(|view| view.as_ref().is_some_and(|view| Some(view.revision) != from)).await
            {
                Ok(view) => view.clone(),
                Err(_) => return,
            };
        let Some(view) = view else { continue };
        let frame = hall.house.frames.frame(from, &view).await;
        let bytes = frame.bytes.len() as u64;
        if stream.write_chunk(frame.bytes).await.is_err() {
            return;
        }
        from = Some(view.revision);
        hall.house.counters.count(|stats| {
            stats.view_bytes += bytes;
            *if frame.is_snapshot { &mut stats.snapshots } else { &mut stats.deltas } += 1;
        });
    }
}

impl Guest {
    /// Hears what the node says until it ends or says what it must not.
    async fn listen(&mut self, mut stream: RecvStream, said: &mut Said) -> Result<(), End> {
        loop {
            let message: FromNode = wire::receive(&mut stream, wire::FRAME_BYTES_MAX).await?;
            match (self.role, message) {
                (Role::Agent, FromNode::Agent(report)) => self.agent_report(report, said).await?,
                (Role::Net, FromNode::Plane(report)) => {
                    let report = PlaneReport { node: self.as_agent(), ..report };
                    self.plane_report(report, said).await?;
                }
                (Role::Master, FromNode::Relayed(report)) => {
                    self.plane_report(report, said).await?;
                    self.hall.standbys.relays(&self.node, said.planes.len());
                }
                (Role::Master, FromNode::RelayedGone { node, plane }) => {
                    said.planes.remove(&(node.clone(), plane));
                    self.plane_gone(&node, plane).await;
                    self.hall.standbys.relays(&self.node, said.planes.len());
                }
                (Role::Master, FromNode::Standby { revision }) => {
                    self.hall.standbys.reached(&self.node, revision);
                }
                (_, FromNode::Renew { request }) => self.renew(request).await?,
                (role, FromNode::Agent(_)) => return Err(self.not_allowed(role, "an agent's report")),
                (role, FromNode::Plane(_)) => return Err(self.not_allowed(role, "a plane's report")),
                (role, FromNode::Relayed(_) | FromNode::RelayedGone { .. } | FromNode::Standby { .. }) => {
                    return Err(self.not_allowed(role, "a master's report"));
                }
            }
        }
    }

    fn not_allowed(&self, role: Role, what: &str) -> End {
        Refusal::new(Reason::Role, format!("{what} from {}, which is connected as {role}", self.node)).into()
    }

    async fn agent_report(&self, report: AgentReport, said: &mut Said) -> Result<(), End> {
        let report = match report {
            AgentReport::Register { .. } => {
                let view = self.hall.house.frames.newest();
                let registration = self.hall.registry().register(&self.node, report, view.as_deref())?;
                said.has_registered = true;
                match registration {
                    Registration::Forward(report) => report,
                    Registration::UnderWay => return Ok(()),
                }
            }
            AgentReport::Status(mut status) => {
                status.agent = match status.agent {
                    Some(agent) => Some(self.own_agent(agent)?),
                    None => self.hall.registry().agent_of(&self.node),
                };
                if status.source == StatusSource::SourceMaster {
                    status.source = StatusSource::SourceAgent;
                }
                AgentReport::Status(status)
            }
            AgentReport::Containers { agent, containers } => {
                AgentReport::Containers { agent: self.own_agent(agent)?, containers }
            }
            AgentReport::Disconnected { .. } => {
                return Err(self.not_allowed(self.role, "the loss of an agent"));
            }
        };
        match &self.hall.duty {
            Duty::Leading { reports, .. } => reports.send(report).await.map_err(|_| End::Lost),
            Duty::Standing(_) => Err(self.not_allowed(self.role, "what only the leader hears")),
        }
    }

    /// The agent that a node reports for: its own one, which may have had another id when it made the report.
    fn own_agent(&self, given: AgentId) -> Result<AgentId, End> {
        let registry = self.hall.registry();
        if registry.is_foreign(&given, &self.node) {
            let text = format!("node {} reports for the agent of another node", self.node);
            return Err(Refusal::new(Reason::ForeignAgent, text).into());
        }
        Ok(registry.agent_of(&self.node).unwrap_or(given))
    }

    async fn plane_report(&self, report: PlaneReport, said: &mut Said) -> Result<(), End> {
        let applied = self.applied(report.applied).await?;
        // What was committed before the plane reported for the first time has not waited for it.
        let before = said.planes.insert((report.node.clone(), report.plane), applied).unwrap_or(applied);
        let commits = self.hall.feed.commits.between(before, applied);
        let latencies = commits.into_iter().map(|at| at.elapsed()).collect();
        let mut paths = self.hall.paths.lock().await;
        let known = paths.report(self.connection.stable_id(), PlaneReport { applied, ..report });
        self.hall.tell(known, latencies).await
    }

    /// What a plane that claims to have applied a revision has in effect. That of a revision that there is not is a view
    /// of before older records were put back, which says nothing of this master's views.
    async fn applied(&self, claimed: Revision) -> Result<Revision, End> {
        if matches!(self.hall.duty, Duty::Standing(_)) {
            // The leader knows what there is.
            return Ok(claimed);
        }
        let newest = match (self.hall.feed.newest(), self.hall.house.frames.newest()) {
            (Some(view), _) => view.revision,
            // What an earlier leader has published after this master heard of it for the last time is not known yet.
            (None, Some(view)) => return Ok(claimed.min(view.revision)),
            (None, None) => {
                let mut views = self.hall.feed.views.clone();
                let first = views.wait_for(Option::is_some).await.map_err(|_| End::Lost)?;
                first.as_ref().map_or(Revision::ZERO, |view| view.revision)
            }
        };
        if claimed <= newest {
            return Ok(claimed);
        }
        if claimed.0 - newest.0 <= AHEAD_MAX {
            let news = PlaneNews::Ahead { revision: claimed };
            self.hall.feed.reports.send(news).await.map_err(|_| End::Lost)?;
        }
        Ok(Revision::ZERO)
    }

    async fn renew(&mut self, request: Vec<u8>) -> Result<(), End> {
        let (answer, holder) = admission::renew(&self.hall, &self.holder, request).await?;
        self.holder = holder.clone();
        self.hall.registry().renewed(&self.node, self.role, holder);
        self.commands.send(answer).await.map_err(|_| End::Lost)
    }

    /// Tells the control plane that the node is gone. The node's next connection waits for that.
    async fn farewell(self, said: Said) {
        self.hall.registry().end(&self.node, self.role, &self.connection);
        let reason = self.connection.close_reason();
        tracing::info!(node = %self.node, role = %self.role, ?reason, "A node is not connected any more");
        let agent = self.hall.registry().agent_of(&self.node);
        if said.has_registered
            && let Some(agent) = agent
            && let Duty::Leading { reports, .. } = &self.hall.duty
        {
            // Fails only when the control plane has ended.
            let _ = reports.send(AgentReport::Disconnected { agent }).await;
        }
        if self.role == Role::Master {
            self.hall.standbys.left(&self.node, &self.connection);
        }
        let mut paths = self.hall.paths.lock().await;
        for known in paths.path_gone(&self.connection.stable_id()) {
            // Fails only when the control plane has ended.
            let _ = self.hall.tell(known, Vec::new()).await;
        }
    }

    async fn plane_gone(&self, node: &AgentId, plane: Plane) {
        let mut paths = self.hall.paths.lock().await;
        if let Some(known) = paths.gone(&self.connection.stable_id(), node, plane) {
            // Fails only when the control plane has ended.
            let _ = self.hall.tell(known, Vec::new()).await;
        }
    }

    /// The node's name in the place of an agent's id, as planes are named.
    fn as_agent(&self) -> AgentId {
        AgentId::new(self.node.as_str())
    }
}

impl Hall {
    async fn tell(&self, known: PlaneKnown, latencies: Vec<Duration>) -> Result<(), End> {
        let news = match known {
            PlaneKnown::Report(report) => PlaneNews::Report(Report { report, latencies }),
            PlaneKnown::Gone { node, plane } => PlaneNews::Gone { node, plane },
        };
        self.feed.reports.send(news).await.map_err(|_| End::Lost)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ReceiveError> for End {
    fn from(error: ReceiveError) -> Self {
        let reason = match &error {
            ReceiveError::Ended(_) => return Self::Lost,
            ReceiveError::TooLarge { .. } => Reason::TooLarge,
            ReceiveError::UnknownForm(_) | ReceiveError::Malformed(_) | ReceiveError::Expand(_) => {
                Reason::BadMessage
            }
        };
        Self::Refused(Refusal::new(reason, error.to_string()))
    }
}
