//! A master with a store, a clock and a framework, all in memory. Every step checks what must always hold.

use std::collections::BTreeMap;
use std::time::Duration;

use mesonet_master::{Config, Effect, FailureDetection, Input, Master, Recovered};
use mesonet_model::{
    AgentCommand, AgentId, AgentInfo, AgentReport, ClusterId, ClusterView, Command, Discovery, DiscoveryPort,
    Endpoint, EndpointKey, Framework, FrameworkId, MasterId, Offer, Plane, PlaneReport, PortRanges,
    Resources, Revision, RunningTask, Scalar, SchedulerCall, SchedulerEvent, StatusSource, Table, Task,
    TaskId, TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp,
};
use uuid::Uuid;

pub const GRACE: Duration = Duration::from_secs(10);

pub struct Cluster {
    config: Config,
    pub master: Master,
    pub now: Timestamp,
    pub records: BTreeMap<(Table, String), Vec<u8>>,
    pub framework: FrameworkId,
    /// What was said since the last look.
    pub said: Vec<Effect>,
    committed: Revision,
    next_uuid: u128,
}

pub fn config() -> Config {
    Config {
        master: MasterId::new("m"),
        address: ([127, 0, 0, 1], 5050).into(),
        vip_range_v4: ([11, 0, 0, 0].into(), [11, 255, 255, 255].into()),
        vip_range_v6: (
            "fd01:c::".parse().expect("address"),
            "fd01:c::ffff:ffff:ffff:ffff".parse().expect("address"),
        ),
        drain_grace: GRACE,
        failure_detection: FailureDetection::default(),
        seed: 7,
    }
}

pub fn framework(name: &str) -> Framework {
    Framework {
        id: FrameworkId::new(""),
        name: name.to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "here".to_owned(),
        address: None,
        webui_url: None,
        other_addresses: Vec::new(),
        active: false,
        registered_at: Timestamp::default(),
    }
}

pub fn resources(cpus: i64, mem: i64, ports: PortRanges) -> Resources {
    Resources { cpus: Scalar::from_units(cpus), mem: Scalar::from_units(mem), ports, ..Resources::default() }
}

/// An agent at 10.0.0.`n` with the given cores, 1 GiB each, and ports 31000 to 31099.
pub fn agent_info(n: u8, cpus: i64) -> AgentInfo {
    AgentInfo {
        hostname: format!("node{n}"),
        address: [10, 0, 0, n].into(),
        port: 0,
        resources: resources(cpus, cpus * 1024, PortRanges::span(31000, 31099)),
        attributes: Vec::new(),
        container_networks: true,
    }
}

/// A discovery of one TCP port on the host with one label.
pub fn host_port(port: u16, label: &str) -> DiscoveryPort {
    DiscoveryPort {
        number: port,
        name: Some("http".to_owned()),
        protocol: "tcp".to_owned(),
        labels: BTreeMap::from([
            ("VIP_0".to_owned(), label.to_owned()),
            ("network-scope".to_owned(), "host".to_owned()),
        ]),
    }
}

impl Cluster {
    /// A new cluster in which Marathon has subscribed.
    pub fn new() -> Self {
        let mut cluster = Self::without_framework(config());
        cluster.framework = cluster.subscribe("marathon");
        cluster
    }

    pub fn without_framework(config: Config) -> Self {
        let records = Recovered::new();
        let master = Master::recover(config.clone(), ClusterId::new("c"), Revision::ZERO, &records)
            .expect("no records");
        Self {
            config,
            master,
            now: Timestamp::from_millis(1_000_000),
            records: BTreeMap::new(),
            framework: FrameworkId::new(""),
            said: Vec::new(),
            committed: Revision::ZERO,
            next_uuid: 1,
        }
    }

    /// Ends the master without warning and starts another one on the same store.
    pub fn restart(&mut self) {
        let records: Recovered =
            self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect();
        let cluster = ClusterId::new("c");
        let config = Config { seed: 8, ..self.config.clone() };
        self.master = Master::recover(config, cluster, self.committed, &records).expect("own records");
        self.said.clear();
    }

    pub fn view(&self) -> &ClusterView {
        self.master.view()
    }

    /// Gives the master an input. The revision counts exactly the changes, and writes come before all else.
    pub fn handle(&mut self, input: Input) {
        let before = self.view().clone();
        let (is_touch, is_jump) = (input == Input::Touch, matches!(input, Input::Ahead { .. }));
        let effects = self.master.handle(input, self.now);
        let after = self.view();
        let same = ClusterView { revision: before.revision, ..after.clone() } == before;
        let expected = if same && !is_touch { before.revision } else { before.revision.next() };
        assert!(after.revision == expected || (is_jump && after.revision > expected), "it counts changes");
        self.committed = after.revision;
        let writes = effects.iter().take_while(|effect| matches!(effect, Effect::Store(_))).count();
        for (index, effect) in effects.into_iter().enumerate() {
            match effect {
                Effect::Store(write) => {
                    assert!(index < writes, "a write after something was said");
                    match write.value {
                        Some(value) => self.records.insert((write.table, write.key), value),
                        None => self.records.remove(&(write.table, write.key)),
                    };
                }
                said => self.said.push(said),
            }
        }
    }

    /// Time passes in which the master does nothing.
    pub fn stall(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Lets time pass, with a tick whenever the master asks for one.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.plus(time);
        // Each tick does at least one thing that is due, so that a few times the number of things is enough.
        for _ in 0..100_000 {
            match self.master.deadline() {
                Some((at, _)) if at <= end => {
                    self.now = self.now.max(at);
                    self.handle(Input::Tick);
                    let next = self.master.deadline().map(|(next, _)| next);
                    assert!(next.is_none_or(|next| next > self.now), "a deadline stays after its tick");
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the master asks for ticks without end");
    }

    // Frameworks.

    pub fn subscribe(&mut self, name: &str) -> FrameworkId {
        self.handle(Input::Subscribe(framework(name)));
        let subscribed = self.said.iter().rev().find_map(|effect| match effect {
            Effect::Framework { event: SchedulerEvent::Subscribed { framework }, .. } => {
                Some(framework.clone())
            }
            _ => None,
        });
        subscribed.expect("a subscription is answered")
    }

    pub fn call(&mut self, call: SchedulerCall) {
        let framework = self.framework.clone();
        self.handle(Input::Call { framework, call });
    }

    pub fn kill(&mut self, task: &str) {
        self.call(SchedulerCall::Kill { task: TaskId::new(task) });
    }

    /// The offers made to a framework since the last look, those rescinded left out.
    pub fn take_offers(&mut self, framework: &FrameworkId) -> Vec<Offer> {
        let mut offers = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::Framework { framework: to, event: SchedulerEvent::Offers(new) } if to == framework => {
                offers.extend(new.clone());
                false
            }
            Effect::Framework { framework: to, event: SchedulerEvent::Rescind(id) } if to == framework => {
                offers.retain(|offer: &Offer| offer.id != *id);
                false
            }
            _ => true,
        });
        offers
    }

    pub fn spec(&self, agent: &AgentId, task: &str, ports: Vec<DiscoveryPort>) -> TaskSpec {
        TaskSpec {
            key: self.key(task),
            name: "web".to_owned(),
            agent: agent.clone(),
            resources: resources(1, 128, ports.iter().map(|port| port.number).collect()),
            command: Command { shell: Some("sleep 1000".to_owned()), ..Command::default() },
            image: None,
            discovery: Some(Discovery { ports, ..Discovery::default() }),
            labels: BTreeMap::new(),
            health_checked: false,
            health_checks: Vec::new(),
            readiness_check: None,
            kill_grace: Duration::from_secs(3),
            networking: None,
        }
    }

    /// Launches a task on the first offer of its agent.
    pub fn launch(&mut self, spec: TaskSpec) {
        let framework = self.framework.clone();
        let offers = self.take_offers(&framework);
        let (mut of_agent, others): (Vec<_>, Vec<_>) =
            offers.into_iter().partition(|offer| offer.agent == spec.agent);
        if !others.is_empty() {
            self.said.push(Effect::Framework { framework, event: SchedulerEvent::Offers(others) });
        }
        let offer = of_agent.pop().expect("an offer of the agent").id;
        self.call(SchedulerCall::Accept { offer, tasks: vec![spec], refuse: Duration::ZERO });
    }

    /// A task that runs and publishes a port with a VIP.
    pub fn run(&mut self, agent: &AgentId, task: &str, port: u16, label: &str) {
        let spec = self.spec(agent, task, vec![host_port(port, label)]);
        self.launch(spec);
        self.report(task, TaskState::Running);
    }

    pub fn updates(&mut self) -> Vec<TaskStatus> {
        let mut updates = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::Framework { event: SchedulerEvent::Update(status), .. } => {
                updates.push(status.as_ref().clone());
                false
            }
            _ => true,
        });
        updates
    }

    pub fn update_states(&mut self) -> Vec<TaskState> {
        self.updates().into_iter().map(|status| status.state).collect()
    }

    // Agents.

    pub fn register(&mut self, given: Option<&AgentId>, info: AgentInfo, tasks: Vec<RunningTask>) -> AgentId {
        self.handle(Input::Agent(AgentReport::Register {
            agent: given.cloned(),
            info,
            tasks,
            containers: Vec::new(),
        }));
        let commands = self.commands();
        let registered = commands.iter().find_map(|(_, command)| match command {
            AgentCommand::Registered { agent } => Some(agent.clone()),
            _ => None,
        });
        let rest =
            commands.into_iter().filter(|(_, command)| !matches!(command, AgentCommand::Registered { .. }));
        self.said.extend(rest.map(|(agent, command)| Effect::Agent { agent, command }));
        registered.expect("a registration is answered")
    }

    pub fn disconnect(&mut self, agent: &AgentId) {
        self.handle(Input::Agent(AgentReport::Disconnected { agent: agent.clone() }));
    }

    pub fn commands(&mut self) -> Vec<(AgentId, AgentCommand)> {
        let mut commands = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::Agent { agent, command } => {
                commands.push((agent.clone(), command.clone()));
                false
            }
            _ => true,
        });
        commands
    }

    /// The tasks that agents were told to kill since the last look.
    pub fn kills(&mut self) -> Vec<String> {
        let commands = self.commands().into_iter();
        commands
            .filter_map(|(_, command)| match command {
                AgentCommand::Kill { task, .. } => Some(task.task.as_str().to_owned()),
                _ => None,
            })
            .collect()
    }

    pub fn status(&mut self, agent: &AgentId, task: &str, state: TaskState) -> TaskStatus {
        self.next_uuid += 1;
        TaskStatus {
            task: self.key(task),
            agent: Some(agent.clone()),
            state,
            source: StatusSource::SourceExecutor,
            reason: None,
            message: String::new(),
            timestamp: self.now,
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: None,
            addresses: Vec::new(),
            uuid: Some(Uuid::from_u128(self.next_uuid)),
        }
    }

    /// The task's agent reports a state.
    pub fn report(&mut self, task: &str, state: TaskState) -> TaskStatus {
        let agent = self.task(task).expect("a known task").agent.clone();
        let status = self.status(&agent, task, state);
        self.handle(Input::Agent(AgentReport::Status(Box::new(status.clone()))));
        status
    }

    // Planes.

    pub fn plane(&mut self, node: &AgentId, plane: Plane, applied: Revision, busy: &[&str]) {
        let report = PlaneReport {
            node: node.clone(),
            plane,
            applied,
            busy: busy.iter().map(|task| self.key(task)).collect(),
            failed: BTreeMap::new(),
            outage: None,
            tunnel: None,
        };
        self.handle(Input::Plane(report));
    }

    pub fn plane_gone(&mut self, node: &AgentId, plane: Plane) {
        self.handle(Input::PlaneGone { node: node.clone(), plane });
    }

    // The view.

    pub fn key(&self, task: &str) -> TaskKey {
        TaskKey::new(self.framework.clone(), TaskId::new(task))
    }

    pub fn task(&self, task: &str) -> Option<&Task> {
        self.view().tasks.get(&self.key(task)).map(AsRef::as_ref)
    }

    pub fn endpoints(&self, service: &str) -> Vec<(EndpointKey, Endpoint)> {
        let service = service.parse().expect("service key");
        let endpoints = self.view().endpoints_of(&service);
        endpoints.map(|(key, endpoint)| (key.clone(), endpoint.as_ref().clone())).collect()
    }

    /// Address, state and weight of a service's endpoints, as text.
    pub fn endpoint_texts(&self, service: &str) -> Vec<String> {
        let text = |(key, endpoint): (EndpointKey, Endpoint)| {
            format!("{} {} {}", key.address, endpoint.state.as_str(), endpoint.weight)
        };
        self.endpoints(service).into_iter().map(text).collect()
    }

    pub fn warnings(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        self.said.retain(|effect| match effect {
            Effect::Warn { message, .. } => {
                warnings.push(message.clone());
                false
            }
            _ => true,
        });
        warnings
    }
}
