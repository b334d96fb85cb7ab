//! A cluster as large as one wants, in a pure master: agents and a framework that do what they are told at once.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use mesonet_master::{Config, Effect, FailureDetection, Input, Master};
use mesonet_model::{
    AgentCommand, AgentId, AgentInfo, AgentReport, ClusterId, ClusterView, Command, Discovery, DiscoveryPort,
    Framework, FrameworkId, MasterId, Offer, PortRanges, Resources, Revision, Scalar, SchedulerCall,
    SchedulerEvent, StatusSource, Table, TaskId, TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp,
    Visibility,
};

/// Services that tasks are spread over.
const SERVICES: u32 = 1_000;

/// The master's settings.
pub fn config() -> anyhow::Result<Config> {
    Ok(Config {
        master: MasterId::new("bench"),
        address: SocketAddr::from(([127, 0, 0, 1], 5050)),
        vip_range_v4: (Ipv4Addr::new(11, 0, 0, 0), Ipv4Addr::new(11, 255, 255, 255)),
        vip_range_v6: ("fd01:c::".parse()?, "fd01:c::ffff:ffff:ffff:ffff".parse()?),
        drain_grace: Duration::from_secs(10),
        failure_detection: FailureDetection::default(),
        seed: 1,
    })
}

/// A master, its records, and the agents and framework that it believes in.
pub struct FilledCluster {
    master: Master,
    framework: FrameworkId,
    offers: VecDeque<Offer>,
    running: u32,
    records: BTreeMap<(Table, String), Vec<u8>>,
    pub records_written: u64,
    pub bytes_written: u64,
    now: i64,
}

impl FilledCluster {
    /// No agents, no tasks.
    pub fn new() -> anyhow::Result<Self> {
        let master = Master::recover(config()?, ClusterId::new("bench"), Revision::ZERO, &Vec::new())?;
        let mut cluster = Self {
            master,
            framework: FrameworkId::new(""),
            offers: VecDeque::new(),
            running: 0,
            records: BTreeMap::new(),
            records_written: 0,
            bytes_written: 0,
            now: 0,
        };
        cluster.handle(Input::Subscribe(Framework {
            id: FrameworkId::new(""),
            name: "bench".into(),
            user: "root".into(),
            role: "*".into(),
            hostname: "localhost".into(),
            address: None,
            webui_url: None,
            other_addresses: Vec::new(),
            active: true,
            registered_at: Timestamp::from_millis(0),
        }));
        Ok(cluster)
    }

    /// What a store would hold.
    pub fn recovered(&self) -> Vec<(Table, String, Vec<u8>)> {
        self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect()
    }

    /// Adds an agent.
    pub fn register(&mut self, number: u32) {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number);
        let info = AgentInfo {
            hostname: address.to_string(),
            address: IpAddr::V4(address),
            port: 5051,
            resources: Resources {
                cpus: Scalar::from_units(64),
                mem: Scalar::from_units(262_144),
                disk: Scalar::from_units(1_048_576),
                gpus: Scalar::ZERO,
                ports: PortRanges::span(31_000, 32_000),
            },
            attributes: Vec::new(),
            container_networks: true,
        };
        self.handle(Input::Agent(AgentReport::Register {
            agent: None,
            info,
            tasks: Vec::new(),
            containers: Vec::new(),
        }));
    }

    /// Places so many tasks, all of which run afterwards.
    pub fn fill(&mut self, tasks: u32) -> anyhow::Result<()> {
        for number in 0..tasks {
            let offer =
                self.offers.pop_front().with_context(|| format!("no offer is left after {number} tasks"))?;
            self.place(&offer, number);
        }
        ensure!(self.running == tasks, "only {} of {tasks} tasks run", self.running);
        Ok(())
    }

    /// The newest view.
    pub fn view(&self) -> &ClusterView {
        self.master.view()
    }

    /// A task reports the result of a health check.
    pub fn report_health(&mut self, task: &TaskKey, agent: &AgentId, healthy: bool) {
        let status = TaskStatus { healthy: Some(healthy), ..running(task, agent, self.now) };
        self.handle(Input::Agent(AgentReport::Status(Box::new(status))));
    }

    fn place(&mut self, offer: &Offer, number: u32) {
        let spec = self.spec(offer, number);
        let call =
            SchedulerCall::Accept { offer: offer.id.clone(), tasks: vec![spec], refuse: Duration::ZERO };
        self.handle(Input::Call { framework: self.framework.clone(), call });
    }

    fn spec(&self, offer: &Offer, number: u32) -> TaskSpec {
        let port = offer.resources.ports.iter().next().unwrap_or(31_000);
        let name = format!("app-{}", number % SERVICES);
        let discovery = DiscoveryPort {
            number: port,
            name: Some("http".into()),
            protocol: "tcp".into(),
            labels: [("VIP_0".to_owned(), format!("/{name}:80"))].into(),
        };
        TaskSpec {
            key: TaskKey::new(self.framework.clone(), TaskId::new(format!("{name}.{number}"))),
            name: name.clone(),
            agent: offer.agent.clone(),
            resources: Resources {
                cpus: Scalar::from_f64(0.1),
                mem: Scalar::from_units(64),
                disk: Scalar::ZERO,
                gpus: Scalar::ZERO,
                ports: PortRanges::span(port, port),
            },
            command: Command { shell: Some("sleep 1000".into()), ..Command::default() },
            image: None,
            discovery: Some(Discovery {
                visibility: Visibility::Framework,
                name: Some(name),
                ports: vec![discovery],
                labels: Default::default(),
            }),
            labels: Default::default(),
            health_checked: false,
            health_checks: Vec::new(),
            readiness_check: None,
            kill_grace: Duration::from_secs(3),
            networking: None,
        }
    }

    /// Gives an input to the master and plays agent and framework for what follows from it.
    fn handle(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.now += 1;
            for effect in self.master.handle(input, Timestamp::from_millis(self.now)) {
                match effect {
                    Effect::Store(write) => {
                        self.records_written += 1;
                        self.bytes_written += write.value.as_ref().map_or(0, |value| value.len() as u64);
                        let key = (write.table, write.key);
                        match write.value {
                            Some(value) => self.records.insert(key, value),
                            None => self.records.remove(&key),
                        };
                    }
                    Effect::Agent { command: AgentCommand::Launch(spec), .. } => {
                        self.running += 1;
                        let status = Box::new(running(&spec.key, &spec.agent, self.now));
                        inputs.push_back(Input::Agent(AgentReport::Status(status)));
                    }
                    Effect::Framework { event: SchedulerEvent::Offers(offers), .. } => {
                        self.offers.extend(offers)
                    }
                    Effect::Framework { event: SchedulerEvent::Subscribed { framework }, .. } => {
                        self.framework = framework;
                    }
                    _ => {}
                }
            }
        }
    }
}

fn running(task: &TaskKey, agent: &AgentId, now: i64) -> TaskStatus {
    TaskStatus {
        task: task.clone(),
        agent: Some(agent.clone()),
        state: TaskState::Running,
        source: StatusSource::SourceExecutor,
        reason: None,
        message: String::new(),
        timestamp: Timestamp::from_millis(now),
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        listening: None,
        addresses: Vec::new(),
        uuid: None,
    }
}
