//! An agent without processes: what it keeps, says and does is what the real one does, its tasks are made up.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mesonet_model::{
    AgentCommand, AgentId, AgentInfo, AgentReport, HealthResult, ReadinessResult, Resources, RunningTask,
    StatusReason, StatusSource, TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp, UuidSource,
};
use uuid::Uuid;

/// As in the real agent's status queue.
const RESEND_FIRST: Duration = Duration::from_secs(10);
const RESEND_MAX: Duration = Duration::from_secs(600);

/// An agent: what is on its disk, what its processes do, and what it remembers while it is up.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) id: Option<AgentId>,
    pub(crate) info: AgentInfo,
    pub(crate) is_up: bool,
    tasks: BTreeMap<TaskKey, AgentTask>,
    /// Lost when it goes down.
    ended: BTreeMap<TaskKey, TaskStatus>,
    uuids: UuidSource,
    /// What the node's clock says.
    wall: Timestamp,
}

/// A task that has not ended, or whose end is not acknowledged.
#[derive(Debug)]
struct AgentTask {
    spec: TaskSpec,
    latest: TaskStatus,
    pending: VecDeque<TaskStatus>,
    resend: Option<(Timestamp, Duration)>,
    process: Process,
    is_told_to_end: bool,
    /// How often its health check would fail, in a row.
    failures: u32,
    /// Whether its readiness check would succeed.
    is_ready: bool,
}

/// A process and its supervisor; they do not need the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Starting,
    Running,
    Ended(TaskState),
}

/// What becomes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    Started,
    /// By itself, finished or failed.
    Ended(TaskState),
    /// Because it was told to.
    Killed,
    /// It is well, or fails its health check so many times in a row, if it has one.
    Checked {
        failures: u32,
    },
    /// It has done what it does first.
    Ready,
}

/// What an agent wants to be done.
#[derive(Debug)]
pub(crate) enum AgentEffect {
    Report(AgentReport),
    /// A process is started; somebody has to decide what becomes of it.
    Spawn(TaskKey),
    /// A process is told to end, and is killed after the grace.
    Terminate {
        task: TaskKey,
        grace: Duration,
    },
}

impl Agent {
    pub(crate) fn new(info: AgentInfo, seed: u64) -> Self {
        let (tasks, ended) = (BTreeMap::new(), BTreeMap::new());
        let wall = Timestamp::default();
        Self { id: None, info, is_up: true, tasks, ended, uuids: UuidSource::from_seed(seed), wall }
    }

    /// What it says first on a new connection: itself, then every status that is not acknowledged.
    pub(crate) fn register(&self) -> Vec<AgentReport> {
        let running = |task: &AgentTask| RunningTask { spec: task.spec.clone(), status: task.latest.clone() };
        let register = AgentReport::Register {
            agent: self.id.clone(),
            info: self.info.clone(),
            tasks: self.tasks.values().map(running).collect(),
            containers: Vec::new(),
        };
        let pending = self.tasks.values().flat_map(|task| &task.pending);
        let statuses = pending.map(|status| AgentReport::Status(Box::new(status.clone())));
        std::iter::once(register).chain(statuses).collect()
    }

    /// A command arrives, at a time by the node's clock that statuses are made at, and one that nobody changes.
    pub(crate) fn command(
        &mut self,
        command: AgentCommand,
        wall: Timestamp,
        now: Timestamp,
    ) -> Vec<AgentEffect> {
        self.wall = wall;
        match command {
            AgentCommand::Registered { agent } => {
                self.id = Some(agent);
                Vec::new()
            }
            AgentCommand::Launch(spec) => self.launch(*spec, now),
            AgentCommand::Kill { task, grace } => self.kill(&task, grace, now),
            AgentCommand::EndReadiness { task } => {
                if let Some(task) = self.tasks.get_mut(&task) {
                    task.spec.readiness_check = None;
                    task.latest.readiness = None;
                }
                Vec::new()
            }
            AgentCommand::Acknowledge { task, uuid } => {
                self.acknowledge(&task, uuid, now);
                Vec::new()
            }
            AgentCommand::Reregister => panic!("only an agent's own connection asks it to register again"),
        }
    }

    /// Something becomes of a process, whether the agent is up or not.
    pub(crate) fn process(
        &mut self,
        key: &TaskKey,
        event: ProcessEvent,
        wall: Timestamp,
        now: Timestamp,
    ) -> Vec<AgentEffect> {
        self.wall = wall;
        let Some(task) = self.tasks.get_mut(key) else { return Vec::new() };
        task.process = match (task.process, event) {
            (Process::Ended(_), _) => return Vec::new(),
            (_, ProcessEvent::Killed) => Process::Ended(TaskState::Killed),
            (_, ProcessEvent::Ended(_)) if task.is_told_to_end => Process::Ended(TaskState::Killed),
            (_, ProcessEvent::Ended(state)) => Process::Ended(state),
            (_, ProcessEvent::Started) => Process::Running,
            (process, ProcessEvent::Checked { failures }) => {
                task.failures = failures;
                process
            }
            (process, ProcessEvent::Ready) => {
                task.is_ready = true;
                process
            }
        };
        if self.is_up { self.look_at(key, now) } else { Vec::new() }
    }

    /// It is gone, its processes are not.
    pub(crate) fn crash(&mut self) {
        self.is_up = false;
        self.ended.clear();
    }

    /// It takes up what it finds. What there is to say is said when it registers.
    pub(crate) fn recover(&mut self, wall: Timestamp, now: Timestamp) {
        self.is_up = true;
        self.wall = wall;
        for key in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.look_at(&key, now);
        }
    }

    /// Statuses whose time has come to be sent again.
    pub(crate) fn resend(&mut self, now: Timestamp) -> Vec<AgentEffect> {
        let mut effects = Vec::new();
        for task in self.tasks.values_mut() {
            let (Some(oldest), Some((at, delay))) = (task.pending.front(), task.resend) else { continue };
            if at <= now {
                let delay = (delay * 2).min(RESEND_MAX);
                task.resend = Some((now.plus(delay), delay));
                effects.push(AgentEffect::Report(AgentReport::Status(Box::new(oldest.clone()))));
            }
        }
        effects
    }

    pub(crate) fn next_resend(&self) -> Option<Timestamp> {
        self.tasks.values().filter_map(|task| task.resend.map(|(at, _)| at)).min()
    }

    /// Tasks that have a process, with what is set aside for them.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&TaskKey, &Resources)> {
        let live = self.tasks.iter().filter(|(_, task)| !matches!(task.process, Process::Ended(_)));
        live.map(|(key, task)| (key, &task.spec.resources))
    }

    pub(crate) fn is_running(&self, task: &TaskKey) -> bool {
        self.tasks.get(task).is_some_and(|task| task.process == Process::Running)
    }

    /// A task that is asked whether it is ready.
    pub(crate) fn unready(&self) -> Option<&TaskKey> {
        let is_asked = |task: &AgentTask| task.latest.readiness.as_ref().is_some_and(|result| !result.ready);
        self.tasks.iter().find(|(_, task)| is_asked(task)).map(|(key, _)| key)
    }

    /// Whether the master has heard everything there is to say.
    pub(crate) fn is_settled(&self) -> bool {
        self.tasks.values().all(|task| task.pending.is_empty())
    }

    fn launch(&mut self, spec: TaskSpec, now: Timestamp) -> Vec<AgentEffect> {
        let key = spec.key.clone();
        if let Some(known) = self.tasks.get(&key).map(|task| &task.latest).or(self.ended.get(&key)) {
            return vec![AgentEffect::Report(AgentReport::Status(Box::new(known.clone())))];
        }
        let status = self.status(&key, TaskState::Starting);
        let task = AgentTask {
            spec,
            latest: status.clone(),
            pending: VecDeque::from([status.clone()]),
            resend: Some((now.plus(RESEND_FIRST), RESEND_FIRST)),
            process: Process::Starting,
            is_told_to_end: false,
            failures: 0,
            is_ready: false,
        };
        self.tasks.insert(key.clone(), task);
        vec![AgentEffect::Report(AgentReport::Status(Box::new(status))), AgentEffect::Spawn(key)]
    }

    fn kill(&mut self, key: &TaskKey, grace: Option<Duration>, now: Timestamp) -> Vec<AgentEffect> {
        let Some(task) = self.tasks.get_mut(key) else {
            let mut status = match self.ended.get(key) {
                Some(ended) => ended.clone(),
                None => self.status(key, TaskState::Gone),
            };
            status.uuid = None;
            status.reason = Some(StatusReason::ReasonTaskUnknown);
            return vec![AgentEffect::Report(AgentReport::Status(Box::new(status)))];
        };
        if task.latest.state.is_terminal() {
            return vec![AgentEffect::Report(AgentReport::Status(Box::new(task.latest.clone())))];
        }
        let grace = grace.unwrap_or(task.spec.kill_grace);
        task.is_told_to_end = true;
        let mut effects = vec![AgentEffect::Terminate { task: key.clone(), grace }];
        if task.latest.state != TaskState::Killing {
            effects.extend(self.find(key, TaskState::Killing, now));
        }
        effects
    }

    fn acknowledge(&mut self, key: &TaskKey, uuid: Uuid, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let before = task.pending.len();
        task.pending.retain(|status| status.uuid != Some(uuid));
        if task.pending.len() == before {
            return;
        }
        task.resend = (!task.pending.is_empty()).then_some((now.plus(RESEND_FIRST), RESEND_FIRST));
        let is_settled =
            task.latest.state.is_terminal() && task.pending.iter().all(|s| s.uuid != task.latest.uuid);
        if is_settled {
            let status = TaskStatus { uuid: None, ..task.latest.clone() };
            self.tasks.remove(key);
            self.ended.insert(key.clone(), status);
        }
    }

    /// Finds out how things are with a task's process.
    fn look_at(&mut self, key: &TaskKey, now: Timestamp) -> Vec<AgentEffect> {
        let Some(task) = self.tasks.get(key) else { return Vec::new() };
        match (task.process, task.latest.state) {
            (_, state) if state.is_terminal() => Vec::new(),
            (Process::Ended(state), _) => self.find(key, state, now),
            (Process::Running, TaskState::Starting) => {
                let mut effects = self.find(key, TaskState::Running, now);
                effects.extend(self.check_health(key, now));
                effects.extend(self.check_readiness(key, now));
                effects
            }
            (Process::Running, TaskState::Running) => {
                let health = self.check_health(key, now);
                health.into_iter().chain(self.check_readiness(key, now)).collect()
            }
            (Process::Starting | Process::Running, _) => Vec::new(),
        }
    }

    /// Tells what a health check finds, if that is not what was told.
    fn check_health(&mut self, key: &TaskKey, now: Timestamp) -> Option<AgentEffect> {
        let status = self.status(key, TaskState::Running);
        let task = self.tasks.get_mut(key).filter(|task| !task.spec.health_checks.is_empty())?;
        let told = task.latest.health_results.first();
        if told.map(|told| told.consecutive_failures) == Some(task.failures) {
            return None;
        }
        let first_success = told.and_then(|told| told.first_success);
        let result = HealthResult {
            consecutive_failures: task.failures,
            first_success: first_success.or((task.failures == 0).then_some(status.timestamp)),
            ..HealthResult::default()
        };
        let reason = Some(StatusReason::ReasonTaskHealthCheckStatusUpdated);
        let status = TaskStatus {
            reason,
            healthy: result.is_alive(),
            health_results: vec![result],
            readiness: task.latest.readiness.clone(),
            ..status
        };
        Some(task.checked(status, now))
    }

    /// Tells that a task is ready which is asked for that.
    fn check_readiness(&mut self, key: &TaskKey, now: Timestamp) -> Option<AgentEffect> {
        let status = self.status(key, TaskState::Running);
        let task = self.tasks.get_mut(key).filter(|task| task.is_ready)?;
        task.latest.readiness.as_ref().filter(|result| !result.ready)?;
        let status = TaskStatus {
            reason: Some(StatusReason::ReasonTaskCheckStatusUpdated),
            healthy: task.latest.healthy,
            health_results: task.latest.health_results.clone(),
            readiness: Some(ReadinessResult { ready: true, last_response: None }),
            ..status
        };
        Some(task.checked(status, now))
    }

    fn find(&mut self, key: &TaskKey, state: TaskState, now: Timestamp) -> Vec<AgentEffect> {
        let mut status = self.status(key, state);
        let Some(task) = self.tasks.get_mut(key) else { return Vec::new() };
        if !state.is_terminal() {
            status.healthy = task.latest.healthy;
            status.health_results.clone_from(&task.latest.health_results);
        }
        if state == TaskState::Running {
            status.readiness = task.spec.readiness_check.as_ref().map(|_| ReadinessResult::default());
        }
        task.latest = status.clone();
        task.pending.push_back(status.clone());
        task.resend.get_or_insert((now.plus(RESEND_FIRST), RESEND_FIRST));
        vec![AgentEffect::Report(AgentReport::Status(Box::new(status)))]
    }

    fn status(&mut self, key: &TaskKey, state: TaskState) -> TaskStatus {
        TaskStatus {
            task: key.clone(),
            agent: self.id.clone(),
            state,
            source: StatusSource::SourceExecutor,
            reason: None,
            message: String::new(),
            timestamp: self.wall,
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: None,
            addresses: Vec::new(),
            uuid: Some(self.uuids.next_uuid()),
        }
    }
}

impl AgentTask {
    /// Takes in what a check has found, in the place of what was found before if that is not acknowledged.
    fn checked(&mut self, status: TaskStatus, now: Timestamp) -> AgentEffect {
        // As the real agent does: a clock may be set back.
        let status = TaskStatus { timestamp: status.timestamp.max(self.latest.timestamp), ..status };
        let is_of_check = |status: &TaskStatus| {
            matches!(
                status.reason,
                Some(
                    StatusReason::ReasonTaskHealthCheckStatusUpdated
                        | StatusReason::ReasonTaskCheckStatusUpdated
                )
            )
        };
        if self.pending.back().is_some_and(is_of_check) {
            self.pending.pop_back();
        }
        self.latest = status.clone();
        self.pending.push_back(status.clone());
        self.resend.get_or_insert((now.plus(RESEND_FIRST), RESEND_FIRST));
        AgentEffect::Report(AgentReport::Status(Box::new(status)))
    }
}
