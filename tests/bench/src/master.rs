//! How fast the pure master places tasks.
//!
//! Every task is one offer, one accept, one launch and one status update, as a framework that fills a cluster task by
//! task would cause them. Nothing is stored or sent: what is measured is the decisions and the encoding of records.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesonet_master::{Config, Effect, FailureDetection, Input, Master};
use mesonet_model::{
    AgentCommand, AgentInfo, AgentReport, ClusterId, Command, Discovery, DiscoveryPort, Framework,
    FrameworkId, MasterId, Offer, PortRanges, Resources, Revision, Scalar, SchedulerCall, SchedulerEvent,
    StatusSource, TaskId, TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp, Visibility,
};

use crate::report::{Bar, bar, table};

/// Nomad's published figure for its scheduler: one million containers in 266 s.
const PLACEMENTS_PER_SECOND_BAR: f64 = 3_750.0;

const SERVICES: u32 = 1_000;

/// Fills a cluster and prints how long that took.
pub fn run(agents: u32, tasks: u32) -> anyhow::Result<()> {
    let mut cluster = Cluster::new()?;
    let started = Instant::now();
    for number in 0..agents {
        cluster.register(number);
    }
    let registered = started.elapsed();

    let started = Instant::now();
    for number in 0..tasks {
        let offer =
            cluster.offers.pop_front().with_context(|| format!("no offer is left after {number} tasks"))?;
        cluster.place(&offer, number);
    }
    let placed = started.elapsed();
    ensure!(cluster.running == tasks, "only {} of {tasks} tasks run", cluster.running);

    let view = cluster.master.view();
    let per_second = f64::from(tasks) / placed.as_secs_f64();
    table(&[
        ("agents", agents.to_string()),
        ("tasks placed and running", view.tasks.len().to_string()),
        ("services, endpoints", format!("{}, {}", view.services.len(), view.endpoints.len())),
        ("registration of all agents", format!("{registered:.2?}")),
        ("placement of all tasks", format!("{placed:.2?}")),
        ("time per placement", format!("{:.1?}", placed / tasks.max(1))),
        ("records written", format!("{} ({} MiB)", cluster.records, cluster.record_bytes >> 20)),
    ]);
    bar("master_placements_per_second", per_second, Bar::AtLeast, PLACEMENTS_PER_SECOND_BAR);
    Ok(())
}

struct Cluster {
    master: Master,
    framework: FrameworkId,
    offers: VecDeque<Offer>,
    running: u32,
    records: u64,
    record_bytes: u64,
    now: i64,
}

impl Cluster {
    fn new() -> anyhow::Result<Self> {
        let config = Config {
            master: MasterId::new("bench"),
            address: SocketAddr::from(([127, 0, 0, 1], 5050)),
            vip_range_v4: (Ipv4Addr::new(11, 0, 0, 0), Ipv4Addr::new(11, 255, 255, 255)),
            vip_range_v6: ("fd01:c::".parse()?, "fd01:c::ffff:ffff:ffff:ffff".parse()?),
            drain_grace: Duration::from_secs(10),
            failure_detection: FailureDetection::default(),
            seed: 1,
        };
        let master = Master::recover(config, ClusterId::new("bench"), Revision::ZERO, &Vec::new())?;
        let mut cluster = Self {
            master,
            framework: FrameworkId::new(""),
            offers: VecDeque::new(),
            running: 0,
            records: 0,
            record_bytes: 0,
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
            active: true,
            registered_at: Timestamp::from_millis(0),
        }));
        Ok(cluster)
    }

    fn register(&mut self, number: u32) {
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
        };
        self.handle(Input::Agent(AgentReport::Register { agent: None, info, tasks: Vec::new() }));
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
            kill_grace: Duration::from_secs(3),
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
                        self.records += 1;
                        self.record_bytes += write.value.map_or(0, |value| value.len() as u64);
                    }
                    Effect::Agent { command: AgentCommand::Launch(spec), .. } => {
                        self.running += 1;
                        let status = Box::new(running(&spec, self.now));
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

fn running(spec: &TaskSpec, now: i64) -> TaskStatus {
    TaskStatus {
        task: spec.key.clone(),
        agent: Some(spec.agent.clone()),
        state: TaskState::Running,
        source: StatusSource::SourceExecutor,
        reason: None,
        message: String::new(),
        timestamp: Timestamp::from_millis(now),
        healthy: None,
        addresses: Vec::new(),
        uuid: None,
    }
}
