//! How fast the pure master places tasks, and how long it takes to hand a full cluster to others and to itself.
//!
//! Every task is one offer, one accept, one launch and one status update, as a framework that fills a cluster task by
//! task would cause them. Nothing is stored or sent: what is measured is the decisions and the encoding of records.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mesonet_master::{Config, Effect, FailureDetection, Input, Master};
use mesonet_model::{
    AgentCommand, AgentInfo, AgentReport, ClusterId, ClusterView, Command, Discovery, DiscoveryPort,
    Framework, FrameworkId, MasterId, Offer, PortRanges, Resources, Revision, Scalar, SchedulerCall,
    SchedulerEvent, StatusSource, Table, TaskId, TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp,
    Visibility,
};

use crate::report::{Bar, bar, table};

/// Nomad's published figure for its scheduler: one million containers in 266 s.
const PLACEMENTS_PER_SECOND_BAR: f64 = 3_750.0;

/// A standby must serve within three seconds of the leader's death; this is what loading may take of them.
const RELOAD_SECONDS_BAR: f64 = 2.0;

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

    let started = Instant::now();
    let snapshot = serde_json::to_vec(cluster.master.view())?;
    let encoded = started.elapsed();
    let memory_before = resident_kib()?;
    let started = Instant::now();
    let view: ClusterView = serde_json::from_slice(&snapshot)?;
    let decoded = started.elapsed();
    let memory = resident_kib()?.saturating_sub(memory_before);

    let per_second = f64::from(tasks) / placed.as_secs_f64();
    let (records, written, bytes) = (cluster.recovered(), cluster.records_written, cluster.bytes_written);
    let started = Instant::now();
    let reloaded = Master::recover(config()?, view.cluster.clone(), view.revision, &records)?;
    let reload = started.elapsed();
    ensure!(reloaded.view().tasks.len() == view.tasks.len(), "tasks are lost by a reload");

    table(&[
        ("agents", agents.to_string()),
        ("tasks placed and running", view.tasks.len().to_string()),
        ("services, endpoints", format!("{}, {}", view.services.len(), view.endpoints.len())),
        ("registration of all agents", format!("{registered:.2?}")),
        ("placement of all tasks", format!("{placed:.2?}")),
        ("time per placement", format!("{:.1?}", placed / tasks.max(1))),
        ("records written", format!("{written} ({} MiB)", bytes >> 20)),
        (
            "snapshot as JSON",
            format!("{} MiB, encoded in {encoded:.2?}, decoded in {decoded:.2?}", snapshot.len() >> 20),
        ),
        ("memory of a view", format!("{} MiB", memory >> 10)),
        ("reload from records", format!("{} records in {reload:.2?}", records.len())),
    ]);
    bar("master_placements_per_second", per_second, Bar::AtLeast, PLACEMENTS_PER_SECOND_BAR);
    bar("master_failover_reload_s", reload.as_secs_f64(), Bar::Below, RELOAD_SECONDS_BAR);
    Ok(())
}

fn config() -> anyhow::Result<Config> {
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

/// The memory that this process uses, in KiB.
fn resident_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in /proc/self/status")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}

struct Cluster {
    master: Master,
    framework: FrameworkId,
    offers: VecDeque<Offer>,
    running: u32,
    records: BTreeMap<(Table, String), Vec<u8>>,
    records_written: u64,
    bytes_written: u64,
    now: i64,
}

impl Cluster {
    fn new() -> anyhow::Result<Self> {
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
    fn recovered(&self) -> Vec<(Table, String, Vec<u8>)> {
        self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect()
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
