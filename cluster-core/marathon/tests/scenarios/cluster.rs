//! The harness: a master with agents, and time that only moves when told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mesonet_marathon::{
    AppBase, AppPut, AppView, Command, Config, Effect, Event, EventKind, Input, Marathon, MarathonView,
    Rejection, Reply,
};
use mesonet_model::{
    AgentId, AgentInfo, AppDefinition, AppId, Attribute, Backoff, DeploymentId, FrameworkId, HealthResult,
    KillSelection, Network, NetworkMode, NetworkRoom, Offer, OfferId, PortDefinition, PortRanges, Protocol,
    ReadinessResult, Resources, Scalar, SchedulerCall, SchedulerEvent, StatusSource, Table, TaskId, TaskKey,
    TaskSpec, TaskState, TaskStatus, Timestamp, UnreachableStrategy, UpgradeStrategy, VersionInfo,
};

/// Inputs after which a scenario that has not come to rest is considered to run for ever.
const TURNS_MAX: usize = 200_000;

/// Marathon and its surroundings.
pub struct Cluster {
    pub marathon: Marathon,
    pub now: Timestamp,
    pub agents: BTreeMap<AgentId, AgentInfo>,
    /// Virtual networks, and how much room each agent offers in them.
    pub networks: NetworkRoom,
    /// Agents that are to be empty.
    pub draining: BTreeSet<AgentId>,
    pub tasks: BTreeMap<TaskId, Running>,
    /// Every launch, in order.
    pub launches: Vec<(Timestamp, TaskSpec)>,
    /// Every kill that Marathon asked for, in order.
    pub kills: Vec<(Timestamp, TaskId)>,
    pub events: Vec<EventKind>,
    pub records: BTreeMap<(Table, String), Vec<u8>>,
    /// Whether launched tasks run at once; else they stay in staging until told.
    pub is_running_at_once: bool,
    /// Whether killed tasks end at once; else they go on until told.
    pub is_killing_at_once: bool,
    pub is_suppressed: bool,
    /// How often all offers were asked for again.
    pub revivals: usize,
    /// Number of all calls to the master.
    pub acknowledged: usize,
    /// Tasks that are not to be checked for readiness any more, in the order in which that was said.
    pub unchecked: Vec<TaskId>,
    pub reconciled: Vec<Vec<TaskId>>,
    /// Least running and most live tasks allowed of an app, looked at after every input.
    pub bounds: Option<(AppId, usize, usize)>,
    refused: BTreeMap<AgentId, Timestamp>,
    inbox: VecDeque<SchedulerEvent>,
    answers: BTreeMap<u64, Result<Reply, Rejection>>,
    number: u64,
}

/// A task that has not ended.
pub struct Running {
    pub spec: TaskSpec,
    pub state: TaskState,
    pub is_kill_asked: bool,
    /// What its health checks have told last.
    pub results: Vec<HealthResult>,
    /// What its readiness check has told last, while it is checked.
    pub readiness: Option<ReadinessResult>,
}

impl Running {
    /// Whether clients are to be sent to it, as its agent sees it.
    fn serves(&self) -> bool {
        let is_healthy =
            self.spec.health_checks.is_empty() || HealthResult::of_all(&self.results) == Some(true);
        self.state == TaskState::Running && is_healthy
    }
}

pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000 + millis)
}

pub fn id(text: &str) -> AppId {
    AppId::parse(text).expect(text)
}

pub fn config(seed: u64) -> Config {
    Config { service_ports: (10_000, 10_009), seed, versions_max: 4 }
}

/// An app with one dynamic port, and defaults as the API fills them in.
pub fn app(path: &str, instances: u32) -> AppDefinition {
    AppDefinition {
        id: id(path),
        version: Timestamp::default(),
        version_info: VersionInfo {
            last_config_change_at: Timestamp::default(),
            last_scaling_at: Timestamp::default(),
        },
        cmd: Some("sleep 1000".into()),
        args: Vec::new(),
        user: None,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        instances,
        cpus: Scalar::from_f64(0.1),
        mem: Scalar::from_units(32),
        disk: Scalar::ZERO,
        gpus: Scalar::ZERO,
        constraints: Vec::new(),
        accepted_resource_roles: None,
        role: None,
        container: None,
        networks: vec![Network { mode: NetworkMode::Host, name: None, labels: BTreeMap::new() }],
        port_definitions: vec![port(0, Some("http"))],
        require_ports: false,
        health_checks: Vec::new(),
        readiness_checks: Vec::new(),
        upgrade_strategy: UpgradeStrategy::default(),
        kill_selection: KillSelection::default(),
        unreachable_strategy: UnreachableStrategy::default(),
        backoff: Backoff::default(),
        kill_grace: None,
        dependencies: Default::default(),
        passthrough: BTreeMap::new(),
    }
}

pub fn port(number: u16, name: Option<&str>) -> PortDefinition {
    PortDefinition {
        port: number,
        protocols: vec![Protocol::Tcp],
        name: name.map(str::to_owned),
        labels: BTreeMap::new(),
    }
}

pub fn agent(hostname: &str, cpus: i64, attributes: &[(&str, &str)]) -> AgentInfo {
    AgentInfo {
        hostname: hostname.into(),
        address: [10, 0, 0, 1].into(),
        port: 5051,
        resources: Resources {
            cpus: Scalar::from_units(cpus),
            mem: Scalar::from_units(cpus * 1024),
            disk: Scalar::from_units(10_000),
            gpus: Scalar::ZERO,
            ports: PortRanges::span(31_000, 31_999),
        },
        attributes: attributes
            .iter()
            .map(|(name, value)| Attribute { name: (*name).into(), value: (*value).into() })
            .collect(),
        container_networks: true,
    }
}

impl Cluster {
    /// One agent with plenty of everything, and a subscribed Marathon.
    pub fn new() -> Self {
        Self::with_agents([agent("a0", 64, &[])])
    }

    pub fn with_agents(agents: impl IntoIterator<Item = AgentInfo>) -> Self {
        let named = |(index, info)| (AgentId::new(format!("c-S{index}")), info);
        let mut cluster = Self {
            marathon: Marathon::recover(config(7), &Vec::new()).expect("no records"),
            now: at(0),
            agents: agents.into_iter().enumerate().map(named).collect(),
            networks: ["n", "blue", "green"].map(|name| (name.parse().expect("name"), 100)).into(),
            draining: BTreeSet::new(),
            tasks: BTreeMap::new(),
            launches: Vec::new(),
            kills: Vec::new(),
            events: Vec::new(),
            records: BTreeMap::new(),
            is_running_at_once: true,
            is_killing_at_once: true,
            is_suppressed: false,
            revivals: 0,
            acknowledged: 0,
            unchecked: Vec::new(),
            reconciled: Vec::new(),
            bounds: None,
            refused: BTreeMap::new(),
            inbox: VecDeque::new(),
            answers: BTreeMap::new(),
            number: 0,
        };
        cluster.subscribe();
        cluster
    }

    pub fn subscribe(&mut self) {
        self.refused.clear();
        self.is_suppressed = false;
        self.inbox.push_back(SchedulerEvent::Subscribed { framework: FrameworkId::new("c-0000") });
        self.inbox.push_back(SchedulerEvent::Draining(self.draining.clone()));
        self.drive();
    }

    /// An operator wants these agents to be empty, and no others.
    pub fn drain(&mut self, agents: impl IntoIterator<Item = usize>) {
        self.draining = agents.into_iter().map(|index| AgentId::new(format!("c-S{index}"))).collect();
        self.inbox.push_back(SchedulerEvent::Draining(self.draining.clone()));
        self.drive();
    }

    /// How many tasks that have not ended are on an agent.
    pub fn tasks_on(&self, index: usize) -> usize {
        let agent = AgentId::new(format!("c-S{index}"));
        self.tasks.values().filter(|task| task.spec.agent == agent).count()
    }

    /// One thing at a time happens, chosen by the numbers: a task begins to run, or a killed one ends.
    pub fn settle_one_by_one(&mut self, choices: impl IntoIterator<Item = usize>) {
        for choice in choices {
            let can_move = |task: &&TaskId| {
                let running = &self.tasks[*task];
                running.is_kill_asked || running.state == TaskState::Staging
            };
            let movable: Vec<TaskId> = self.tasks.keys().filter(can_move).cloned().collect();
            if movable.is_empty() {
                return;
            }
            let task = &movable[choice % movable.len()];
            let is_kill_asked = self.tasks[task].is_kill_asked;
            self.report(task, if is_kill_asked { TaskState::Killed } else { TaskState::Running });
        }
    }

    /// Another Marathon takes over from what was stored; the tasks have gone on meanwhile.
    pub fn restart(&mut self) {
        self.inbox.clear();
        self.number += 1;
        self.marathon = Marathon::recover(config(self.number << 32), &self.stored()).expect("own records");
        self.subscribe();
    }

    pub fn stored(&self) -> Vec<(Table, String, Vec<u8>)> {
        self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect()
    }

    pub fn command(&mut self, command: Command) -> Result<Reply, Rejection> {
        self.number += 1;
        let number = self.number;
        self.handle(Input::Command { number, command });
        self.drive();
        self.answers.remove(&number).expect("every command is answered in its own turn")
    }

    /// Creates or changes apps; their base is the version in force.
    pub fn put_all(
        &mut self,
        definitions: Vec<AppDefinition>,
        force: bool,
    ) -> Result<DeploymentId, Rejection> {
        let view = self.view();
        let put = |definition: AppDefinition| {
            let base = view.apps.get(&definition.id).map(|app| AppBase::Version(app.definition.version));
            AppPut { definition, base: base.unwrap_or(AppBase::Absent) }
        };
        let apps = definitions.into_iter().map(put).collect();
        self.command(Command::Put { apps, force }).map(deployment)
    }

    pub fn put(&mut self, definition: AppDefinition) -> Result<DeploymentId, Rejection> {
        self.put_all(vec![definition], false)
    }

    /// Changes the number of instances as a user does.
    pub fn scale(&mut self, path: &str, instances: u32) -> Result<DeploymentId, Rejection> {
        let mut definition = AppDefinition::clone(&self.app(path).definition);
        definition.instances = instances;
        self.put(definition)
    }

    pub fn delete(&mut self, path: &str, force: bool) -> Result<DeploymentId, Rejection> {
        self.command(Command::Delete { app: id(path), force }).map(deployment)
    }

    pub fn view(&self) -> MarathonView {
        self.marathon.view()
    }

    pub fn app(&self, path: &str) -> AppView {
        AppView::clone(self.view().apps.get(&id(path)).expect(path))
    }

    pub fn has_app(&self, path: &str) -> bool {
        self.view().apps.contains_key(&id(path))
    }

    /// Ids of an app's tasks that have not ended, in the order of their launches.
    pub fn live(&self, path: &str) -> Vec<TaskId> {
        let name = id(path).task_name();
        let launched = self.launches.iter().filter(|(_, spec)| spec.name == name);
        launched.map(|(_, spec)| spec.key.task.clone()).filter(|task| self.tasks.contains_key(task)).collect()
    }

    /// Kills that were asked for since the last time this was called.
    pub fn take_kills(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.kills).into_iter().map(|(_, task)| task).collect()
    }

    /// A task changes its state by itself.
    pub fn report(&mut self, task: &TaskId, state: TaskState) {
        let (status, is_over) = match self.tasks.get_mut(task) {
            Some(running) => {
                running.state = state;
                let status = status(task, Some(&running.spec.agent), state, self.now);
                let readiness = running.readiness.clone().filter(|_| state == TaskState::Running);
                (TaskStatus { readiness, ..status }, state.is_terminal())
            }
            None => (status(task, None, state, self.now), false),
        };
        if is_over && let Some(running) = self.tasks.remove(task) {
            self.refused.remove(&running.spec.agent);
        }
        self.inbox.push_back(SchedulerEvent::Update(Box::new(status)));
        self.drive();
    }

    /// Lets time pass, with everything that falls due on the way.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        for _ in 0..TURNS_MAX {
            let due = self.marathon.deadline().map(|(at, _)| at);
            let refused = self.refused.values().copied().min().filter(|_| !self.is_suppressed);
            let next = due.into_iter().chain(refused).min().filter(|next| *next <= end);
            let Some(next) = next else {
                self.now = end;
                return self.drive();
            };
            self.now = self.now.max(next);
            let now = self.now;
            self.refused.retain(|_, until| *until > now);
            self.handle(Input::Tick);
            self.drive();
        }
        panic!("time does not pass: {:?}", self.marathon.deadline());
    }

    /// Delivers what is under way until nothing is.
    fn drive(&mut self) {
        for _ in 0..TURNS_MAX {
            if let Some(event) = self.inbox.pop_front() {
                self.handle(Input::Event(event));
                continue;
            }
            let offers = self.offers();
            if offers.is_empty() {
                return;
            }
            self.handle(Input::Event(SchedulerEvent::Offers(offers)));
        }
        panic!("the cluster does not come to rest");
    }

    fn offers(&self) -> Vec<Offer> {
        if self.is_suppressed {
            return Vec::new();
        }
        let is_offered =
            |agent: &AgentId| !self.refused.contains_key(agent) && !self.draining.contains(agent);
        let agents = self.agents.iter().filter(|(agent, _)| is_offered(agent));
        let offer = |(agent, info): (&AgentId, &AgentInfo)| Offer {
            id: OfferId::new(agent.as_str()),
            agent: agent.clone(),
            agent_info: info.clone(),
            resources: self.free(agent),
            networks: self.networks.clone(),
        };
        agents.map(offer).filter(|offer| !offer.resources.is_empty()).collect()
    }

    fn free(&self, agent: &AgentId) -> Resources {
        let mut free = self.agents[agent].resources.clone();
        for task in self.tasks.values().filter(|task| task.spec.agent == *agent) {
            free.subtract(&task.spec.resources);
        }
        free
    }

    pub fn handle(&mut self, input: Input) {
        let effects = self.marathon.handle(input, self.now);
        for effect in effects {
            match effect {
                Effect::Store(write) => {
                    let key = (write.table, write.key);
                    match write.value {
                        Some(value) => self.records.insert(key, value),
                        None => self.records.remove(&key),
                    };
                }
                Effect::Call(call) => self.call(call),
                Effect::Answer { number, answer } => {
                    assert!(self.answers.insert(number, answer).is_none(), "answered twice");
                }
                Effect::Publish(Event { timestamp, kind }) => {
                    assert_eq!(timestamp, self.now);
                    self.events.push(kind);
                }
            }
        }
        self.check();
    }

    fn call(&mut self, call: SchedulerCall) {
        match call {
            SchedulerCall::Accept { offer, tasks, refuse } => {
                let agent = AgentId::new(offer.as_str());
                for spec in tasks {
                    self.launch(spec);
                }
                self.refuse(agent, refuse);
            }
            SchedulerCall::Decline { offer, refuse } => self.refuse(AgentId::new(offer.as_str()), refuse),
            SchedulerCall::Kill { task } => self.kill(task),
            SchedulerCall::Acknowledge { .. } => self.acknowledged += 1,
            SchedulerCall::Reconcile { tasks } => self.reconcile(tasks),
            SchedulerCall::Revive => {
                self.revivals += 1;
                self.is_suppressed = false;
                self.refused.clear();
            }
            SchedulerCall::Suppress => self.is_suppressed = true,
            SchedulerCall::EndReadiness { task } => self.end_readiness(task),
            SchedulerCall::SetServing { .. } => panic!("checks are not acted upon"),
        }
    }

    fn refuse(&mut self, agent: AgentId, refuse: Duration) {
        if !refuse.is_zero() {
            self.refused.insert(agent, self.now.plus(refuse));
        }
    }

    fn launch(&mut self, spec: TaskSpec) {
        let free = self.free(&spec.agent);
        assert!(free.contains(&spec.resources), "{spec:?} does not fit into {free:?}");
        let task = spec.key.task.clone();
        self.launches.push((self.now, spec.clone()));
        let state = if self.is_running_at_once { TaskState::Running } else { TaskState::Staging };
        let readiness = spec.readiness_check.as_ref().map(|_| ReadinessResult::default());
        let status = TaskStatus {
            readiness: readiness.clone().filter(|_| state == TaskState::Running),
            ..status(&task, Some(&spec.agent), state, self.now)
        };
        let results = Vec::new();
        let running = Running { spec, state, is_kill_asked: false, results, readiness };
        let before = self.tasks.insert(task, running);
        assert!(before.is_none(), "a task id is used twice");
        self.inbox.push_back(SchedulerEvent::Update(Box::new(status)));
    }

    fn end_readiness(&mut self, task: TaskId) {
        if let Some(running) = self.tasks.get_mut(&task) {
            running.readiness = None;
        }
        self.unchecked.push(task);
    }

    fn kill(&mut self, task: TaskId) {
        self.kills.push((self.now, task.clone()));
        let state = match self.tasks.get_mut(&task) {
            None => TaskState::Unknown,
            Some(running) => {
                running.is_kill_asked = true;
                if !self.is_killing_at_once {
                    return;
                }
                TaskState::Killed
            }
        };
        let agent = self.tasks.remove(&task).map(|running| running.spec.agent);
        self.refused.retain(|refused, _| agent.as_ref() != Some(refused));
        let status = status(&task, agent.as_ref(), state, self.now);
        self.inbox.push_back(SchedulerEvent::Update(Box::new(status)));
    }

    /// Ends every task that Marathon asked to kill.
    pub fn end_killed(&mut self) {
        let asked = self.tasks.iter().filter(|(_, running)| running.is_kill_asked);
        let asked: Vec<TaskId> = asked.map(|(task, _)| task.clone()).collect();
        for task in &asked {
            self.report(task, TaskState::Killed);
        }
    }

    fn reconcile(&mut self, tasks: Vec<TaskId>) {
        let asked = if tasks.is_empty() { self.tasks.keys().cloned().collect() } else { tasks.clone() };
        for task in asked {
            let running = self.tasks.get(&task);
            let state = running.map_or(TaskState::Unknown, |running| running.state);
            let agent = running.map(|running| &running.spec.agent);
            let source = StatusSource::SourceMaster;
            let status = TaskStatus { source, ..status(&task, agent, state, self.now) };
            self.inbox.push_back(SchedulerEvent::Update(Box::new(status)));
        }
        self.reconciled.push(tasks);
    }

    /// What must hold after every input.
    fn check(&self) {
        let view = self.view();
        for app in view.apps.values() {
            let counts = app.counts();
            let states = |wanted: &[TaskState]| {
                app.instances.values().filter(|instance| wanted.contains(&instance.state)).count()
            };
            assert_eq!(counts.running, states(&[TaskState::Running]));
            assert_eq!(counts.staged, states(&[TaskState::Staging, TaskState::Starting]));
            assert_eq!(app.versions.first(), Some(&app.definition));
            assert!(app.versions.len() <= 4);
            assert!(app.versions.is_sorted_by(|newer, older| newer.version > older.version));
        }
        if let Some((app, least, most)) = &self.bounds {
            let name = app.task_name();
            let tasks = || self.tasks.values().filter(|task| task.spec.name == name);
            let kept = tasks().filter(|task| task.serves() && !task.is_kill_asked).count();
            assert!(kept >= *least, "{kept} healthy instances, at least {least} are wanted");
            assert!(tasks().count() <= *most, "{} instances, at most {most} are wanted", tasks().count());
        }
    }
}

pub fn status(task: &TaskId, agent: Option<&AgentId>, state: TaskState, now: Timestamp) -> TaskStatus {
    TaskStatus {
        task: TaskKey::new(FrameworkId::new("c-0000"), task.clone()),
        agent: agent.cloned(),
        state,
        source: StatusSource::SourceExecutor,
        reason: None,
        message: format!("it is {state}"),
        timestamp: now,
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        listening: None,
        addresses: Vec::new(),
        uuid: None,
    }
}

fn deployment(reply: Reply) -> DeploymentId {
    match reply {
        Reply::Deployment { id, .. } => id,
        Reply::Killed(_) | Reply::Done => panic!("not a deployment: {reply:?}"),
    }
}
