//! Drives the control plane: gives it what happens and the time, and carries out what it decides.
//!
//! One task, one loop. Each turn takes what is queued, up to a bound, steps the control plane, commits, makes the new
//! state visible, and only then tells agents, users and listeners. What arrives during a commit makes up the next
//! turn, so the disk's speed decides how much is grouped, and nobody waits for more than two commits.
//!
//! When a commit fails, the turn's batch is kept and tried again until it succeeds: the control plane has already
//! gone on, and nothing of the batch has been said to anybody. Until then state is served as it was last committed,
//! users are refused, and agents and planes wait in their bounded queues. If another master has been elected instead,
//! it never will: then the driver ends, and nothing of the batch is ever said.

mod ending;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use mesonet_api::{Answer, NodeRequest, Request, State};
use mesonet_bus::{PlaneNews, Publisher};
use mesonet_marathon::{Event, Rejection, Reply};
use mesonet_model::{AgentCommand, AgentId, AgentReport, NetworkRefusal, Revision};
use mesonet_store::{CommitError, Store};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::WallClock;
use crate::control_plane::{Batch, Commit, ControlPlane, Input, Release};
use crate::metrics::DriverMetrics;

/// Reports under way from agents. When the queue is full, agents wait with what they have to say.
pub const AGENT_REPORTS_MAX: usize = 1024;

/// Commands under way to agents. When the queue is full, further ones stay in the driver's outbox.
pub const AGENT_COMMANDS_MAX: usize = 1024;

/// Users' commands that wait for their turn. When the queue is full, the API answers 503. A turn takes some
/// milliseconds for a commit, so this is about a second's worth of users who all wait for their answers.
pub const REQUESTS_MAX: usize = 256;

/// Operators' orders that wait for their turn.
pub const NODE_REQUESTS_MAX: usize = 64;

/// Events that a listener may lag behind before it loses some. A deployment of a thousand instances makes about
/// four thousand events.
pub const EVENTS_MAX: usize = 8192;

/// Inputs of one turn, so that a flood of one kind delays the others by one bounded turn only: a quarter of it is as
/// much as the queue of users holds.
const INPUTS_MAX: usize = 1024;

/// Kinds of inputs, of which a turn takes one after the other.
const INPUT_KINDS: usize = 4;

/// Above this many undelivered agent commands users' commands are left in their queue, which refuses when it is full.
/// Agents' reports are always taken: an agent that waits to report reads no commands.
const OUTBOX_MAX: usize = 65_536;

/// Between attempts to commit, at first: a full disk is not emptied faster than people act.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Between attempts to commit, at most: that long after space is made, things go on at the latest.
const RETRY_LAST: Duration = Duration::from_secs(5);

/// The least wait before a deadline is looked at again, so that a deadline in the past cannot make the loop spin.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The wait when nothing is due.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Where inputs come from.
#[derive(Debug)]
pub struct Inlets {
    /// Agents.
    pub agents: mpsc::Receiver<AgentReport>,
    /// Planes.
    pub planes: mpsc::Receiver<PlaneNews>,
    /// Users.
    pub requests: mpsc::Receiver<Request>,
    /// Operators.
    pub nodes: mpsc::Receiver<NodeRequest>,
}

/// Where decisions go.
#[derive(Debug)]
pub struct Outlets {
    /// To agents.
    pub agents: mpsc::Sender<(AgentId, AgentCommand)>,
    /// To planes.
    pub views: Publisher,
    /// To readers.
    pub state: watch::Sender<Option<Arc<State>>>,
    /// To listeners.
    pub events: broadcast::Sender<Arc<Event>>,
}

/// What becomes of the tasks when the driver ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// They run on; whoever opens the store next finds them.
    #[default]
    LeaveTasks,
    /// They are ended.
    EndTasks,
}

/// Why a driver has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Told,
    /// Another master has been elected: nothing can be committed any more.
    Deposed,
}

/// Why the loop ends.
enum Stop {
    Told(Ending),
    Deposed,
}

/// The loop and all that it holds.
#[derive(Debug)]
pub struct Driver<S> {
    control_plane: ControlPlane,
    /// `None` while a commit has it.
    store: Option<S>,
    clock: WallClock,
    inlets: Inlets,
    outlets: Outlets,
    metrics: DriverMetrics,
    outbox: VecDeque<(AgentId, AgentCommand)>,
    /// Operators that wait for their orders to be carried out.
    ordered: BTreeMap<u64, oneshot::Sender<Result<Revision, NetworkRefusal>>>,
    orders_seen: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Answer, Rejection>>>,
    requests_seen: u64,
}

impl<S: Store + 'static> Driver<S> {
    /// A driver with everything that it needs.
    pub fn new(
        control_plane: ControlPlane,
        store: S,
        clock: WallClock,
        inlets: Inlets,
        outlets: Outlets,
        metrics: DriverMetrics,
    ) -> Self {
        Self {
            control_plane,
            store: Some(store),
            clock,
            inlets,
            outlets,
            metrics,
            outbox: VecDeque::new(),
            ordered: BTreeMap::new(),
            orders_seen: 0,
            waiting: BTreeMap::new(),
            requests_seen: 0,
        }
    }

    /// Carries out the control plane's first batch and whatever follows, until it is told how to end, or has to.
    pub async fn run(mut self, first: Batch, mut end: oneshot::Receiver<Ending>) -> Ended {
        let Err(stop) = self.run_until(first, &mut end).await;
        match stop {
            Stop::Told(Ending::LeaveTasks) => Ended::Told,
            Stop::Told(Ending::EndTasks) => {
                self.end_tasks().await;
                Ended::Told
            }
            Stop::Deposed => Ended::Deposed,
        }
    }

    /// Only returns when it has to end.
    async fn run_until(
        &mut self,
        first: Batch,
        end: &mut oneshot::Receiver<Ending>,
    ) -> Result<Infallible, Stop> {
        let mut batch = first;
        loop {
            self.carry_out(batch, end).await?;
            let inputs = tokio::select! {
                biased;
                ending = &mut *end => return Err(Stop::told(ending)),
                inputs = self.collect() => inputs,
            };
            batch = self.control_plane.step(inputs, self.clock.now());
        }
    }

    /// Waits until something happens or is due, and takes what is there.
    async fn collect(&mut self) -> Vec<Input> {
        let due = tokio::time::sleep(self.wait());
        tokio::pin!(due);
        loop {
            let has_mail = !self.outbox.is_empty();
            let takes_requests = self.outbox.len() < OUTBOX_MAX;
            let input = tokio::select! {
                biased;
                () = send_one(&mut self.outbox, &self.outlets.agents), if has_mail => continue,
                Some(report) = self.inlets.agents.recv() => Input::Agent(report),
                Some(news) = self.inlets.planes.recv() => self.plane_input(news),
                Some(request) = self.inlets.requests.recv(), if takes_requests => self.command_input(request),
                Some(request) = self.inlets.nodes.recv() => self.node_input(request),
                () = &mut due => return Vec::new(),
            };
            return self.collect_queued(input);
        }
    }

    fn collect_queued(&mut self, first: Input) -> Vec<Input> {
        let mut inputs = vec![first];
        while inputs.len() + INPUT_KINDS <= INPUTS_MAX {
            let before = inputs.len();
            if let Ok(report) = self.inlets.agents.try_recv() {
                inputs.push(Input::Agent(report));
            }
            if let Ok(news) = self.inlets.planes.try_recv() {
                inputs.push(self.plane_input(news));
            }
            if self.outbox.len() < OUTBOX_MAX
                && let Ok(request) = self.inlets.requests.try_recv()
            {
                inputs.push(self.command_input(request));
            }
            if let Ok(request) = self.inlets.nodes.try_recv() {
                inputs.push(self.node_input(request));
            }
            if inputs.len() == before {
                break;
            }
        }
        inputs
    }

    fn plane_input(&self, news: PlaneNews) -> Input {
        match news {
            PlaneNews::Report(report) => {
                self.metrics.observe_applied(report.report.plane, &report.latencies);
                Input::Plane(report.report)
            }
            PlaneNews::Gone { node, plane } => Input::PlaneGone { node, plane },
            PlaneNews::Revoked { node } => Input::NodeRevoked { node },
            PlaneNews::Ahead { revision } => {
                tracing::warn!(%revision, "Nodes are ahead of the records, which must be older ones; going on above");
                Input::Ahead { revision }
            }
        }
    }

    fn command_input(&mut self, request: Request) -> Input {
        self.requests_seen += 1;
        self.waiting.insert(self.requests_seen, request.answer);
        Input::Command { number: self.requests_seen, command: request.command }
    }

    fn node_input(&mut self, request: NodeRequest) -> Input {
        self.orders_seen += 1;
        self.ordered.insert(self.orders_seen, request.answer);
        Input::Node { number: self.orders_seen, order: request.order }
    }

    fn wait(&mut self) -> Duration {
        match self.control_plane.deadline() {
            Some((at, reason)) => {
                let wait = at.since(self.clock.now());
                tracing::trace!(reason, ?wait, "Waiting for the next deadline");
                wait.clamp(WAIT_MIN, WAIT_MAX)
            }
            None => WAIT_MAX,
        }
    }

    async fn carry_out(&mut self, batch: Batch, end: &mut oneshot::Receiver<Ending>) -> Result<(), Stop> {
        if let Some(commit) = batch.commit {
            self.commit(commit, end).await?;
        }
        let state = Arc::new(self.control_plane.state());
        let revision = state.cluster.revision;
        self.outlets.views.publish(state.cluster.clone());
        self.outlets.state.send_replace(Some(state));
        for release in batch.releases {
            self.release(release, revision);
        }
        Ok(())
    }

    /// Commits, however long it takes.
    async fn commit(&mut self, commit: Commit, end: &mut oneshot::Receiver<Ending>) -> Result<(), Stop> {
        let mut commit = commit;
        let mut wait = RETRY_FIRST;
        let mut attempts_failed = 0_u64;
        loop {
            let (returned, result) = self.try_commit(commit).await;
            let Err(error) = result else {
                if attempts_failed > 0 {
                    tracing::info!(attempts_failed, "The state is stored again");
                }
                return Ok(());
            };
            match error {
                CommitError::Deposed { revision, term } => {
                    tracing::warn!(%revision, term, "Another master leads, the change is not made");
                    return Err(Stop::Deposed);
                }
                CommitError::Undecided { revision, term } => {
                    tracing::warn!(%revision, term, "This term is over, the next leader finds the change or not");
                    return Err(Stop::Deposed);
                }
                CommitError::NotNewer { .. } | CommitError::Full { .. } | CommitError::Storage { .. } => {}
            }
            commit = returned;
            attempts_failed += 1;
            self.metrics.commit_failures.inc();
            let error = anyhow::Error::new(error);
            tracing::error!(error = format!("{error:#}"), ?wait, "Cannot store the state, trying again");
            self.refuse_users(wait, end).await?;
            wait = (wait * 2).min(RETRY_LAST);
        }
    }

    async fn try_commit(&mut self, commit: Commit) -> (Commit, Result<(), CommitError>) {
        let mut store = self.store.take().expect("BUG: the store is missing between commits");
        let timer = self.metrics.commit_seconds.start_timer();
        let committing = tokio::task::spawn_blocking(move || {
            let result = store.commit(commit.revision, &commit.writes);
            (store, commit, result)
        });
        let (store, commit, result) = match committing.await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        timer.observe_duration();
        self.store = Some(store);
        (commit, result)
    }

    /// For a while, lets users know that nothing can be stored: who drops the way to answer refuses.
    async fn refuse_users(
        &mut self,
        wait: Duration,
        end: &mut oneshot::Receiver<Ending>,
    ) -> Result<(), Stop> {
        self.waiting.clear();
        self.ordered.clear();
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                biased;
                ending = &mut *end => return Err(Stop::told(ending)),
                () = tokio::time::sleep_until(until) => return Ok(()),
                Some(request) = self.inlets.requests.recv() => drop(request),
                Some(request) = self.inlets.nodes.recv() => drop(request),
            }
        }
    }

    fn release(&mut self, release: Release, revision: Revision) {
        match release {
            Release::Agent { agent, command } => self.outbox.push_back((agent, command)),
            Release::Answer { number, answer } => self.answer(number, answer, revision),
            // Nobody listens; that is all right.
            Release::Event(event) => drop(self.outlets.events.send(Arc::new(event))),
            Release::RemovalHeld { lost, of } => {
                tracing::warn!(
                    lost,
                    of,
                    "Too many agents are lost at once, none is given up until confirmed"
                );
            }
            Release::Ordered { number } => self.answer_order(number, Ok(revision)),
            Release::Refused { number, refusal } => self.answer_order(number, Err(refusal)),
            Release::NetworkExhausted { network, agent } => {
                self.metrics.network_exhaustions.inc();
                tracing::warn!(%network, %agent, "No part of a network is left for an agent");
            }
            Release::Warn { task, message } => tracing::warn!(%task, message, "Task is only partly served"),
        }
    }

    fn answer_order(&mut self, number: u64, answer: Result<Revision, NetworkRefusal>) {
        if let Some(ordered) = self.ordered.remove(&number) {
            // Whoever ordered may have gone away.
            drop(ordered.send(answer));
        }
    }

    fn answer(&mut self, number: u64, answer: Result<Reply, Rejection>, revision: Revision) {
        if let Some(waiting) = self.waiting.remove(&number) {
            // Whoever asked may have gone away.
            drop(waiting.send(answer.map(|reply| Answer { reply, revision })));
        }
    }
}

impl Stop {
    fn told(ending: Result<Ending, oneshot::error::RecvError>) -> Self {
        Self::Told(ending.unwrap_or_default())
    }
}

/// Sends the first command as soon as there is room. Cancel-safe: the command is taken once there is.
async fn send_one(
    outbox: &mut VecDeque<(AgentId, AgentCommand)>,
    agents: &mpsc::Sender<(AgentId, AgentCommand)>,
) {
    match agents.reserve().await {
        Ok(permit) => {
            if let Some(command) = outbox.pop_front() {
                permit.send(command);
            }
        }
        // Without agents there is nobody to tell.
        Err(_) => outbox.clear(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::time::Duration;

    use mesonet_api::NodeOrder;
    use mesonet_marathon::Command;
    use mesonet_model::{AppId, NetworkName, NetworkRange, TaskKey, TaskState, VirtualNetwork, Write};
    use mesonet_store::Contents;
    use prometheus::Registry;

    use super::*;
    use crate::master_role::{
        AgentLink, Instruments, MasterRole, MasterSettings, marathon_as_framework, recover_marathon,
        recover_master,
    };
    use crate::{memory_agents, sample_app};

    /// What a store in memory has been asked to do.
    #[derive(Debug, Default)]
    struct Journal {
        committed: Vec<Revision>,
        failures_left: u32,
        is_deposed: bool,
    }

    /// A store that fails when its journal says so.
    #[derive(Debug, Clone, Default)]
    struct FlakyStore(Arc<Mutex<Journal>>);

    impl FlakyStore {
        fn fail(&self, times: u32) {
            self.0.lock().expect("journal").failures_left = times;
        }

        fn last(&self) -> Option<Revision> {
            self.0.lock().expect("journal").committed.last().copied()
        }
    }

    impl Store for FlakyStore {
        fn commit(&mut self, revision: Revision, _writes: &[Write]) -> Result<(), CommitError> {
            let mut journal = self.0.lock().expect("journal");
            if journal.is_deposed {
                return Err(CommitError::Deposed { revision, term: 1 });
            }
            if journal.failures_left > 0 {
                journal.failures_left -= 1;
                let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(CommitError::Full {
                    revision,
                    place: "memory".to_owned(),
                    source: source.into(),
                });
            }
            journal.committed.push(revision);
            Ok(())
        }
    }

    fn start(store: FlakyStore) -> (MasterRole, AgentLink) {
        let settings = MasterSettings::at(([127, 0, 0, 1], 8080).into());
        let instruments = Instruments::register(&Registry::new()).expect("registered");
        MasterRole::start(store, &Contents::default(), &settings, &instruments).expect("started")
    }

    fn web() -> AppId {
        AppId::parse("/web").expect("valid")
    }

    async fn command(role: &MasterRole, command: Command) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        role.requests.send(Request { command, answer }).await.expect("the driver takes commands");
        answered.await.ok().map(|answer| answer.expect("accepted"))
    }

    fn register(number: u8) -> AgentReport {
        let info = memory_agents::info(number);
        AgentReport::Register { agent: None, info, tasks: Vec::new(), containers: Vec::new() }
    }

    #[tokio::test]
    async fn a_turn_takes_users_and_operators_beside_a_flood_of_reports() {
        let settings = MasterSettings::at(([127, 0, 0, 1], 8080).into());
        let contents = Contents::default();
        let (control_plane, _) = ControlPlane::start(
            recover_master(&settings, &contents, 1).expect("master"),
            recover_marathon(&settings, &contents, 2).expect("marathon"),
            marathon_as_framework(settings.address, WallClock::default().now()),
            contents.revision,
            WallClock::default().now(),
        );
        let (views, _feed, planes) = mesonet_bus::channel();
        let (reports, agents) = mpsc::channel(2 * INPUTS_MAX);
        let (requests, requests_in) = mpsc::channel(REQUESTS_MAX);
        let (nodes, nodes_in) = mpsc::channel(NODE_REQUESTS_MAX);
        let inlets = Inlets { agents, planes, requests: requests_in, nodes: nodes_in };
        let (events, state) = (broadcast::channel(1).0, watch::Sender::new(None));
        let outlets = Outlets { agents: mpsc::channel(1).0, views, state, events };
        let metrics = DriverMetrics::register(&Registry::new()).expect("registered");
        let clock = WallClock::default();
        let mut driver = Driver::new(control_plane, FlakyStore::default(), clock, inlets, outlets, metrics);
        for _ in 0..2 * INPUTS_MAX {
            reports.try_send(register(1)).expect("room");
        }
        for _ in 0..REQUESTS_MAX {
            let command = Command::Restart { app: web(), force: true };
            requests.try_send(Request { command, answer: oneshot::channel().0 }).expect("room");
        }
        for _ in 0..NODE_REQUESTS_MAX {
            let order = NodeOrder::ConfirmRemoval;
            nodes.try_send(NodeRequest { order, answer: oneshot::channel().0 }).expect("room");
        }
        let inputs = driver.collect().await;
        let count = |is_so: fn(&Input) -> bool| inputs.iter().filter(|input| is_so(input)).count();
        assert!(inputs.len() <= INPUTS_MAX, "{} inputs", inputs.len());
        assert_eq!(count(|input| matches!(input, Input::Node { .. })), NODE_REQUESTS_MAX);
        assert!(count(|input| matches!(input, Input::Command { .. })) > REQUESTS_MAX * 9 / 10);
        assert!(count(|input| matches!(input, Input::Agent(_))) > INPUTS_MAX / 2);
    }

    #[tokio::test]
    async fn an_order_is_answered_with_what_became_of_it() {
        let (role, _link) = start(FlakyStore::default());
        let name: NetworkName = "blue".parse().expect("name");
        let range = NetworkRange { subnet: "10.9.0.0/16".parse().expect("subnet"), node_prefix: 24 };
        let network = VirtualNetwork { name: name.clone(), ipv4: Some(range), ipv6: None };
        let order = async || {
            let (answer, answered) = oneshot::channel();
            let order = NodeOrder::CreateNetwork(network.clone());
            role.nodes.send(NodeRequest { order, answer }).await.expect("the driver takes orders");
            answered.await.expect("answered")
        };
        let revision = order().await.expect("carried out");
        let state = role.state.borrow().clone().expect("a state");
        assert!(state.cluster.revision >= revision);
        assert!(state.cluster.networks.contains_key(&name));
        assert_eq!(order().await, Err(NetworkRefusal::Exists(name)));
        role.end(Ending::LeaveTasks).await;
    }

    async fn wait_until(role: &MasterRole, is_so: impl Fn(&State) -> bool) -> Arc<State> {
        let mut state = role.state.clone();
        let waiting = state.wait_for(|state| state.as_ref().is_some_and(|state| is_so(state)));
        let state = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("in time");
        state.expect("the driver runs").clone().expect("a state")
    }

    #[tokio::test]
    async fn an_answer_comes_after_its_change_is_durable_and_visible() {
        let store = FlakyStore::default();
        let (role, _link) = start(store.clone());
        let answer = command(&role, sample_app::put(&web(), 1)).await.expect("answered");
        assert!(store.last() >= Some(answer.revision));
        let state = role.state.borrow().clone().expect("a state");
        assert!(state.cluster.revision >= answer.revision);
        assert!(state.marathon.apps.contains_key(&web()));
        role.end(Ending::LeaveTasks).await;
    }

    #[tokio::test]
    async fn what_cannot_be_stored_is_refused_unseen_and_stored_later() {
        let store = FlakyStore::default();
        let (role, _link) = start(store.clone());
        wait_until(&role, |_| true).await;
        let before = role.feed.newest().expect("a view").revision;
        store.fail(2);
        assert_eq!(command(&role, sample_app::put(&web(), 1)).await, None, "refused");
        assert_eq!(role.feed.newest().expect("a view").revision, before);
        let state = wait_until(&role, |state| state.marathon.apps.contains_key(&web())).await;
        assert_eq!(store.last(), Some(state.cluster.revision));
        let retried = command(&role, Command::Restart { app: web(), force: true }).await;
        assert!(retried.is_some(), "users are served again");
        role.end(Ending::LeaveTasks).await;
    }

    #[tokio::test]
    async fn a_leader_that_is_deposed_ends_and_has_done_nothing_that_is_not_stored() {
        let store = FlakyStore::default();
        let (mut role, mut link) = start(store.clone());
        let before = wait_until(&role, |_| true).await.cluster.revision;
        store.0.lock().expect("journal").is_deposed = true;
        assert_eq!(command(&role, sample_app::put(&web(), 1)).await, None, "refused");
        assert_eq!(role.ended().await, Ended::Deposed);
        assert_eq!(role.feed.newest().expect("a view").revision, before);
        assert_eq!(link.commands.recv().await, None, "no agent was told anything");
    }

    /// Answers for an agent like `memory_agents::run`, and gives the tasks that it has killed.
    async fn run_agent(mut link: AgentLink) -> BTreeSet<TaskKey> {
        link.reports.send(register(1)).await.expect("the driver runs");
        let mut killed = BTreeSet::new();
        while let Some((agent, command)) = link.commands.recv().await {
            if let AgentCommand::Kill { task, .. } = &command {
                killed.insert(task.clone());
            }
            if let Some(report) = memory_agents::react(&agent, &command, WallClock::default().now()) {
                link.reports.send(report).await.expect("the driver waits for the tasks' ends");
            }
        }
        killed
    }

    #[tokio::test]
    async fn a_cluster_that_ends_kills_its_tasks_and_waits_for_them() {
        let (role, link) = start(FlakyStore::default());
        let agent = tokio::spawn(run_agent(link));
        command(&role, sample_app::put(&web(), 3)).await.expect("answered");
        let is_running = |state: &State| {
            let mut tasks = state.cluster.tasks.values();
            state.cluster.tasks.len() == 3 && tasks.all(|task| task.state == TaskState::Running)
        };
        let state = wait_until(&role, is_running).await;
        role.end(Ending::EndTasks).await;
        let killed = agent.await.expect("the agent ends with the driver");
        assert!(killed.iter().eq(state.cluster.tasks.keys()));
    }
}
