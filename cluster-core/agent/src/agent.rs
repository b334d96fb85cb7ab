//! The agent's loop: commands and news of supervisors in, reports out.
//!
//! It has a thread of its own, since starting processes and writing checkpoints block. On that thread run the loop
//! and one small task per supervisor connection (`link`), which passes on lines and holds no state that is lost when it
//! is dropped, one per check of a task (`health`), and one per task that is
//! about to listen (`listening`).

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesonet_model::{
    AgentCommand, AgentId, AgentInfo, AgentReport, ReadinessResult, RunningTask, StatusReason, TaskKey,
    TaskSpec, TaskState, TaskStatus, UuidSource,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::addresses::Addresses;
use crate::cgroup::{self, Hierarchies};
use crate::checkpoint::{self, Durability};
use crate::ended::EndedTasks;
use crate::health::Probes;
use crate::joined::Joined;
use crate::layout::{EXIT_FILE, Layout, STATUSES_FILE};
use crate::link::{Link, Notice, What};
use crate::listening::{self, HostListeners};
use crate::metrics::AgentMetrics;
use crate::place;
use crate::protocol::{self, Event, Exit, Launch, Request};
use crate::rounds::Rounds;
use crate::status_queue::StatusQueue;
use crate::task::{AgentTask, Finding, Run};
use crate::task_networks::PlannedNetwork;
use crate::{Config, clock, collector, launcher, leftovers};

/// News of supervisors on their way to the loop. Links wait when it is full; each has a few lines in its whole life.
const NOTICES_DEPTH: usize = 256;

/// How long it is waited for the agent to have again what it takes to connect to a supervisor.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Everything the agent knows.
pub(crate) struct Agent {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    /// Held as long as this agent is the one of its directory.
    pub(crate) _lock: File,
    pub(crate) id: Option<AgentId>,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) uuids: UuidSource,
    pub(crate) tasks: BTreeMap<TaskKey, AgentTask>,
    pub(crate) ended: EndedTasks,
    /// Reports that the master has not yet taken. There are at most a few per task: a status is sent again only when
    /// ten seconds have passed, and only if the channel moves.
    pub(crate) outbox: VecDeque<AgentReport>,
    pub(crate) notices: mpsc::Sender<Notice>,
    pub(crate) addresses: Addresses,
    /// The rights that it lacks to give tasks addresses of their own, for people.
    pub(crate) lacking: String,
    pub(crate) probes: Probes,
    pub(crate) listeners: HostListeners,
    pub(crate) joined: Joined,
}

/// The channel that links speak through.
pub(crate) fn notice_channel() -> (mpsc::Sender<Notice>, mpsc::Receiver<Notice>) {
    mpsc::channel(NOTICES_DEPTH)
}

impl Agent {
    /// Registers and serves until either channel to the master closes.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<AgentCommand>,
        reports: mpsc::Sender<AgentReport>,
        mut notices: mpsc::Receiver<Notice>,
    ) {
        self.look_at_containers();
        self.register();
        let mut rounds = Rounds::from(Instant::now());
        let mut places = self.config.places.take();
        loop {
            let wake = self.next_resend().into_iter().fold(rounds.next(), Instant::min);
            tokio::select! {
                // Reports first: what has happened is worth more than what is to be done. Then the ends of tasks.
                biased;
                permit = reports.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(report) = self.outbox.pop_front() {
                            permit.send(report);
                        }
                    }
                    Err(_) => return,
                },
                Some(notice) = notices.recv() => self.notice(notice),
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                place = place::next(&mut places) => self.move_to(place),
                () = tokio::time::sleep_until(wake.into()) => {
                    let now = Instant::now();
                    self.resend(now);
                    self.make_rounds(&mut rounds, now);
                }
            }
        }
    }

    pub(crate) fn register(&mut self) {
        // The registration says it, too.
        self.outbox.retain(|report| !matches!(report, AgentReport::Containers { .. }));
        let running = |task: &AgentTask| RunningTask {
            spec: task.spec.clone(),
            status: task.statuses.latest().clone(),
        };
        self.outbox.push_back(AgentReport::Register {
            agent: self.id.clone(),
            info: AgentInfo {
                hostname: self.config.hostname.clone(),
                address: self.config.address,
                port: self.config.port,
                resources: self.config.resources.clone(),
                attributes: self.config.attributes.clone(),
                container_networks: self.lacking.is_empty(),
            },
            tasks: self.tasks.values().map(running).collect(),
            containers: self.id.iter().flat_map(|agent| self.joined.containers(agent)).collect(),
        });
        self.config.metrics.registered();
        for status in self.tasks.values().flat_map(|task| task.statuses.pending()) {
            self.outbox.push_back(AgentReport::Status(Box::new(status.clone())));
        }
    }

    fn command(&mut self, command: AgentCommand) {
        match command {
            AgentCommand::Registered { agent } => self.registered(agent),
            AgentCommand::Reregister => self.register(),
            AgentCommand::Launch(spec) => self.launch(*spec),
            AgentCommand::Kill { task, grace } => self.kill(&task, grace),
            AgentCommand::EndReadiness { task } => self.end_readiness(&task),
            AgentCommand::Acknowledge { task, uuid } => self.acknowledge(&task, uuid),
        }
    }

    fn registered(&mut self, agent: AgentId) {
        tracing::info!(%agent, "The agent is registered");
        if let Err(error) = checkpoint::write(&self.layout.agent_file(), &agent, Durability::Disk) {
            tracing::error!(error = checkpoint::in_full(&error), "Cannot keep the agent's id");
        }
        self.id = Some(agent);
    }

    // === Launch ===

    fn launch(&mut self, spec: TaskSpec) {
        let key = spec.key.clone();
        if let Some(known) =
            self.tasks.get(&key).map(|task| task.statuses.latest()).or(self.ended.status(&key))
        {
            let status = known.clone();
            return self.send(status);
        }
        self.config.metrics.launched();
        let now = clock::now();
        if let Err(error) = launcher::check(&spec) {
            let message = checkpoint::in_full(&error);
            let finding = Finding::refusal(TaskState::Error, StatusReason::ReasonTaskInvalid, message, now);
            return self.adopt(spec, None, finding);
        }
        let container = self.uuids.next_uuid();
        let prepared = self.plan_network(&spec, container).map_err(launcher::LaunchError::from);
        let prepare = |planned: PlannedNetwork| {
            launcher::prepare(&self.config, &self.layout, spec.clone(), container, planned.network.clone())
        };
        match prepared.and_then(prepare) {
            Ok(launch) => self.start(spec, launch),
            Err(error) => {
                // Without a checkpoint the task's end cannot be kept either; it is repeated from memory.
                let _ = fs::remove_dir_all(self.layout.checkpoint(&key));
                self.addresses.free(container);
                self.adopt(spec, None, launch_failure(&error));
            }
        }
    }

    fn start(&mut self, spec: TaskSpec, launch: Launch) {
        let key = spec.key.clone();
        let run = Run { launch, link: None, supervisor: None, watch: None, lookout: None };
        self.adopt(spec, Some(run), Finding::step(TaskState::Starting, clock::now()));
        let Some(run) = self.tasks.get_mut(&key).and_then(|task| task.run.as_mut()) else { return };
        let started = launcher::start(&self.config, &self.layout, &self.hierarchies, &mut run.launch);
        match started {
            Ok((supervisor, stream)) => {
                run.supervisor = Some(supervisor);
                if let Err(error) = self.link(&key, stream) {
                    tracing::error!(%error, "Cannot reach a supervisor");
                    self.reconnect_later(&key);
                }
            }
            Err(error) => {
                cgroup::remove(&run.launch.cgroups);
                self.find(&key, launch_failure(&error));
            }
        }
    }

    /// Takes up a task with its first status.
    fn adopt(&mut self, spec: TaskSpec, run: Option<Run>, finding: Finding) {
        let mut status = finding.status(&spec, Some(self.uuids.next_uuid()));
        status.addresses = run.as_ref().map_or_else(Vec::new, Run::addresses);
        note(&self.config.metrics, &status);
        let statuses = StatusQueue::new(status.clone(), Instant::now());
        let key = spec.key.clone();
        self.tasks.insert(key.clone(), AgentTask { spec, statuses, run });
        self.keep_statuses(&key);
        self.send(status);
    }

    /// Takes note of a task's next state, unless the task has ended.
    pub(crate) fn find(&mut self, key: &TaskKey, finding: Finding) {
        let uuid = self.uuids.next_uuid();
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.statuses.latest().state.is_terminal() {
            return;
        }
        let mut status = finding.status(&task.spec, Some(uuid));
        status.addresses = task.run.as_ref().map_or_else(Vec::new, Run::addresses);
        if !status.state.is_terminal() {
            status.healthy = task.statuses.latest().healthy;
            status.health_results.clone_from(&task.statuses.latest().health_results);
        }
        if status.state == TaskState::Running {
            status.readiness = task.spec.readiness_check.as_ref().map(|_| ReadinessResult::default());
        }
        if let Some(run) = task.run.as_mut().filter(|_| status.state != TaskState::Running) {
            run.watch = None;
            run.lookout = None;
        }
        note(&self.config.metrics, &status);
        task.statuses.push(status.clone(), Instant::now());
        if status.state.is_terminal() {
            self.release_network(key);
        }
        self.keep_statuses(key);
        self.send(status);
    }

    // === Kill and acknowledge ===

    fn kill(&mut self, key: &TaskKey, grace: Option<Duration>) {
        let Some(task) = self.tasks.get_mut(key) else { return self.kill_unknown(key) };
        let latest = task.statuses.latest().clone();
        if latest.state.is_terminal() {
            return self.send(latest);
        }
        let grace = grace.unwrap_or(task.spec.kill_grace);
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        if let Some(link) = task.run.as_ref().and_then(|run| run.link.as_ref()) {
            link.send(Request::Kill { grace_millis });
        }
        if latest.state != TaskState::Killing {
            self.find(key, Finding::step(TaskState::Killing, clock::now()));
        }
    }

    fn kill_unknown(&mut self, key: &TaskKey) {
        if let Some(status) = self.ended.status(key).cloned() {
            return self.send(status);
        }
        let message = "The agent does not know the task".to_owned();
        let finding =
            Finding::refusal(TaskState::Gone, StatusReason::ReasonTaskUnknown, message, clock::now());
        let status = TaskStatus {
            task: key.clone(),
            agent: self.id.clone(),
            state: finding.state,
            source: finding.source,
            reason: finding.reason,
            message: finding.message,
            timestamp: finding.at,
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: None,
            addresses: Vec::new(),
            uuid: None,
        };
        self.send(status);
    }

    fn acknowledge(&mut self, key: &TaskKey, uuid: Uuid) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if !task.statuses.acknowledge(uuid, Instant::now()) {
            return;
        }
        if task.statuses.is_settled() {
            self.forget(key);
        } else {
            self.keep_statuses(key);
        }
    }

    /// The master knows that the task has ended: its checkpoint goes, its sandbox stays for a while.
    fn forget(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.remove(key) else { return };
        if let Some(run) = task.run {
            reap(run.supervisor);
            let directory = self.layout.checkpoint(key);
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(%error, directory = %directory.display(), "Cannot remove a checkpoint");
            }
        }
        self.ended.push(task.statuses.latest().clone());
    }

    // === News of supervisors ===

    fn notice(&mut self, notice: Notice) {
        let Notice { task: key, container, what } = notice;
        let Some(task) = self.tasks.get(&key) else { return };
        if task.run.as_ref().is_none_or(|run| run.launch.container != container) {
            return;
        }
        let state = task.statuses.latest().state;
        match what {
            What::Event(Event::Running { pid }) if state == TaskState::Starting => {
                tracing::debug!(task = %key, pid, "A task's process runs");
                let listening = listening::expected(&task.spec);
                self.find(&key, Finding { listening, ..Finding::step(TaskState::Running, clock::now()) });
                self.begin_checks(&key);
                self.begin_to_look(&key, pid);
            }
            What::Event(Event::Running { pid }) => {
                self.begin_checks(&key);
                self.begin_to_look(&key, pid);
            }
            What::Event(Event::Checked { id, failure }) => self.command_ended(&key, id, failure),
            What::Event(Event::ForwarderEnded { cause }) => {
                tracing::warn!(task = %key, ?cause, "What forwards ports to a task has ended and is started again");
                self.config.metrics.restored();
            }
            What::Health(news) => self.health_news(&key, news),
            What::Looked { listening } => self.looked(&key, listening),
            What::Event(Event::Ended(exit)) => self.find(&key, Finding::end(&exit)),
            What::Closed if state.is_terminal() => self.reap_supervisor(&key),
            What::Closed => self.reconnect(&key),
            What::Cleared { nothing_left } => self.find(&key, self.supervisor_failure(&key, nothing_left)),
        }
    }

    /// Finds out how things are with a task to whose supervisor there is no connection.
    pub(crate) fn reconnect(&mut self, key: &TaskKey) {
        let directory = self.layout.checkpoint(key);
        if self.find_recorded_end(key) {
            return;
        }
        match protocol::connect(&directory).and_then(|stream| self.link(key, stream)) {
            Ok(()) => {
                // The connection before may have gone before the request had arrived.
                if self.state(key) == Some(TaskState::Killing) {
                    self.kill(key, None);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                // The record is written before the socket goes, so it is looked for once more.
                if !self.find_recorded_end(key) {
                    self.reap_supervisor(key);
                    self.clear(key);
                }
            }
            Err(error) => {
                tracing::error!(%error, "Cannot reach a supervisor");
                self.reconnect_later(key);
            }
        }
    }

    /// Takes note of the end that a supervisor has written down, if it has.
    fn find_recorded_end(&mut self, key: &TaskKey) -> bool {
        match checkpoint::read::<Exit>(&self.layout.checkpoint(key).join(EXIT_FILE)) {
            Ok(Some(exit)) => {
                self.reap_supervisor(key);
                self.find(key, Finding::end(&exit));
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(error = checkpoint::in_full(&error), "Cannot read an exit record");
                false
            }
        }
    }

    fn link(&mut self, key: &TaskKey, stream: UnixStream) -> io::Result<()> {
        if let Some(run) = self.tasks.get_mut(key).and_then(|task| task.run.as_mut()) {
            let container = run.launch.container;
            run.link = Some(Link::open(stream, key.clone(), container, self.notices.clone())?);
        }
        Ok(())
    }

    fn state(&self, key: &TaskKey) -> Option<TaskState> {
        self.tasks.get(key).map(|task| task.statuses.latest().state)
    }

    /// The supervisor lives and it is the agent that lacks something, such as descriptors: only time helps.
    fn reconnect_later(&self, key: &TaskKey) {
        let Some(run) = self.tasks.get(key).and_then(|task| task.run.as_ref()) else { return };
        let notice = Notice { task: key.clone(), container: run.launch.container, what: What::Closed };
        let notices = self.notices.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RECONNECT_DELAY).await;
            // The loop may have ended; whoever recovers the task connects again.
            let _ = notices.send(notice).await;
        });
    }

    /// Ends what a killed supervisor has left, in the background.
    fn clear(&mut self, key: &TaskKey) {
        let Some(run) = self.tasks.get(key).and_then(|task| task.run.as_ref()) else { return };
        self.config.metrics.lost_supervisor();
        tracing::warn!(task = %key, "The supervisor of a task is gone");
        let (task, launch, notices) = (key.clone(), run.launch.clone(), self.notices.clone());
        tokio::task::spawn_blocking(move || {
            let nothing_left = leftovers::kill(&launch);
            let what = What::Cleared { nothing_left };
            // The loop may have ended; whoever recovers the task clears it again.
            let _ = notices.blocking_send(Notice { task, container: launch.container, what });
        });
    }

    fn supervisor_failure(&self, key: &TaskKey, nothing_left: bool) -> Finding {
        let mut message = "The task's supervisor ended unexpectedly".to_owned();
        if let Some(words) = launcher::last_words(&self.layout.checkpoint(key)) {
            message = format!("{message}: {words}");
        }
        if !nothing_left {
            message.push_str("; processes of the task that cannot be killed are left");
        }
        let killing = self.state(key) == Some(TaskState::Killing);
        let state = if killing { TaskState::Killed } else { TaskState::Failed };
        Finding::refusal(state, StatusReason::ReasonCommandExecutorFailed, message, clock::now())
    }

    fn reap_supervisor(&mut self, key: &TaskKey) {
        if let Some(run) = self.tasks.get_mut(key).and_then(|task| task.run.as_mut()) {
            reap(run.supervisor.take());
            run.link = None;
        }
    }

    // === Reports ===

    fn send(&mut self, status: TaskStatus) {
        self.outbox.push_back(AgentReport::Status(Box::new(status)));
    }

    /// Nothing is repeated behind what waits itself, such as while there is no master.
    fn repeats_wait(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn next_resend(&self) -> Option<Instant> {
        if self.repeats_wait() {
            return None;
        }
        self.tasks.values().filter_map(|task| task.statuses.next_resend()).min()
    }

    fn resend(&mut self, now: Instant) {
        if self.repeats_wait() {
            return;
        }
        let due = self.tasks.values_mut().filter_map(|task| task.statuses.take_due(now).cloned());
        let due: Vec<TaskStatus> = due.collect();
        due.into_iter().for_each(|status| self.send(status));
    }

    /// Writes a task's statuses down, so that the next agent goes on sending them.
    pub(crate) fn keep_statuses(&self, key: &TaskKey) {
        let Some(task) = self.tasks.get(key).filter(|task| task.run.is_some()) else { return };
        let path = self.layout.checkpoint(key).join(STATUSES_FILE);
        if let Err(error) = checkpoint::write(&path, &task.statuses, Durability::Process) {
            tracing::warn!(error = checkpoint::in_full(&error), "Cannot keep a task's status");
        }
    }

    pub(crate) fn collect(&self) {
        let live: Vec<PathBuf> = self
            .tasks
            .values()
            .filter_map(|task| task.run.as_ref().map(|run| run.launch.sandbox.clone()))
            .collect();
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || collector::collect(&layout, &live, clock::now()));
    }
}

fn launch_failure(error: &launcher::LaunchError) -> Finding {
    let message = checkpoint::in_full(error);
    Finding::refusal(TaskState::Failed, StatusReason::ReasonContainerLaunchFailed, message, clock::now())
}

/// Waits for a supervisor that has ended or is about to, so that it does not stay a zombie. It may take its time to
/// write its record when the disk is full, hence a thread and not this one.
fn reap(supervisor: Option<std::process::Child>) {
    if let Some(mut supervisor) = supervisor {
        std::thread::spawn(move || supervisor.wait());
    }
}

fn note(metrics: &AgentMetrics, status: &TaskStatus) {
    metrics.reached(status.state);
    tracing::debug!(task = %status.task, state = %status.state, message = status.message, "A task changes");
}
