//! A cluster on virtual time: what is due next happens next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fastrand::Rng;
use mesonet::control_plane::{Input, State};
use mesonet_marathon::Command;
use mesonet_model::{
    AgentCommand, AgentInfo, AgentReport, Plane, PlaneReport, PortRanges, Resources, Scalar, TaskKey,
    Timestamp,
};

use crate::agent::{Agent, ProcessEvent};
use crate::apps::CPUS;
use crate::journal::Journal;
use crate::leader::Leader;
use crate::ledger::Ledger;
use crate::network::{Lanes, Weather};
use crate::planes::PlaneTwin;
use crate::store::Store;
use crate::watch::Watch;

/// Agents. All apps run on two of them, twice as many during upgrades.
const AGENTS: u8 = 3;

/// Planes and their nodes. Every plane costs a few events per commit, so there are no more than can differ.
const PLANES: [(usize, Plane); 3] = [(0, Plane::Dns), (0, Plane::Lb), (1, Plane::Lb)];

/// Tasks of half a core that an agent has room for, and its host ports: enough for everything, with each port used by
/// several tasks in a run.
const ROOMY: (i64, u16) = (12, 24);

/// So little that instances wait for room.
const TIGHT: (i64, u16) = (3, 4);

/// The first host port of an agent.
const FIRST_PORT: u16 = 31_000;

/// Events under faults. More find more, and cost as much more.
const TROUBLE_EVENTS: u64 = 250;

/// How long it may take at most, when all faults have ended, until everything is as users want it. A lost launch is
/// noticed after five minutes, and an agent repeats a status after ten minutes at the latest.
const CALM_MAX: Duration = Duration::from_secs(3600);

/// One run.
pub(crate) struct Simulation {
    pub(crate) now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    sequence: u64,
    pub(crate) rng: Rng,
    pub(crate) journal: Journal,
    /// Whether things still go wrong.
    pub(crate) is_trouble: bool,
    pub(crate) weather: Weather,
    /// Milliseconds between faults, at most.
    pub(crate) fault_pause: u64,
    pub(crate) lanes: Lanes,
    pub(crate) connections: u64,
    pub(crate) store: Store,
    pub(crate) life: u64,
    pub(crate) leader: Option<Leader>,
    /// As of the last commit.
    pub(crate) committed: Option<State>,
    /// As users and planes see it.
    pub(crate) visible: Option<State>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) planes: Vec<PlaneTwin>,
    pub(crate) ledger: Ledger,
    pub(crate) watch: Watch,
    pub(crate) counts: Counts,
}

/// An agent and its connection.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) agent: Agent,
    /// The connection to the master, if there is one.
    pub(crate) connection: Option<u64>,
    /// When the registration arrives; nothing overtakes it.
    pub(crate) handshake: Timestamp,
    /// Whether the registration is answered: commands come from then on.
    pub(crate) is_open: bool,
    /// When it is looked for statuses to be sent again.
    pub(crate) wake: Option<Timestamp>,
}

/// What a run has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Masters that crashed.
    pub master_crashes: u64,
    /// Batches that were committed.
    pub commits: u64,
    /// Agents that crashed.
    pub agent_crashes: u64,
    /// Tasks that were launched.
    pub launches: u64,
    /// Tasks that an agent was told to end after a drain that planes acknowledged.
    pub drained: u64,
    /// Commands that users were answered.
    pub answers: u64,
}

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Happening {
    MasterStarts,
    MasterTurns { life: u64 },
    MasterCommits { life: u64 },
    ReportArrives { connection: u64, node: usize, report: AgentReport },
    CommandArrives { connection: u64, node: usize, command: AgentCommand },
    UserCommandArrives { life: u64, number: u64, command: Command },
    PlaneReportArrives { life: u64, plane: usize, report: PlaneReport },
    AgentStarts { node: usize },
    AgentConnects { node: usize },
    AgentRepeats { node: usize },
    Process { node: usize, task: TaskKey, event: ProcessEvent },
    PlaneConnects { life: u64, plane: usize },
    PlaneUpdates { plane: usize },
    ClientConnects,
    ClientLeaves { plane: usize, connection: u64 },
    UserActs,
    Fault,
}

impl Simulation {
    pub(crate) fn new(seed: u64, journal: Journal) -> Self {
        let mut rng = Rng::with_seed(seed);
        let room = if rng.bool() { ROOMY } else { TIGHT };
        let nodes = (0..AGENTS).map(|number| Node::new(number, resources(room), &mut rng)).collect();
        let planes = PLANES.map(|(node, kind)| PlaneTwin::new(node, kind)).into();
        Self {
            now: Timestamp::from_millis(0),
            queue: BTreeMap::new(),
            sequence: 0,
            journal,
            is_trouble: false,
            weather: Weather::FAIR,
            fault_pause: 0,
            lanes: Lanes::default(),
            connections: 0,
            store: Store::default(),
            life: seed.wrapping_mul(1000),
            leader: None,
            committed: None,
            visible: None,
            nodes,
            planes,
            ledger: Ledger::default(),
            watch: Watch::default(),
            counts: Counts::default(),
            rng,
        }
    }

    /// Runs through: agents join, users and faults do their worst, and in the end, with room for all, all is well.
    pub(crate) fn run(mut self) -> Counts {
        self.start_master();
        for node in 0..self.nodes.len() {
            self.soon(100, Happening::AgentConnects { node });
        }
        self.pass_until(Timestamp::from_millis(10_000));
        assert!(self.nodes.iter().all(|node| node.is_open), "agents have not joined");
        self.begin_trouble();
        while self.counts.events < TROUBLE_EVENTS {
            self.next_event();
        }
        self.note("all faults end");
        self.is_trouble = false;
        self.weather = Weather::FAIR;
        for node in 0..self.nodes.len() {
            self.nodes[node].agent.info.resources = resources(ROOMY);
            self.disconnect_agent(node);
        }
        let end = self.now.plus(CALM_MAX);
        let mut pause = Duration::from_secs(1);
        while let Some(reason) = self.unsettled() {
            assert!(self.now < end, "not settled after {} s: {reason}", CALM_MAX.as_secs());
            self.pass_until(self.now.plus(pause));
            pause *= 2;
        }
        self.counts
    }

    /// Something happens later.
    pub(crate) fn at(&mut self, at: Timestamp, what: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), what);
    }

    /// Something happens within so many milliseconds.
    pub(crate) fn soon(&mut self, millis_max: u64, what: Happening) {
        let delay = Duration::from_millis(self.rng.u64(..=millis_max));
        self.at(self.now.plus(delay), what);
    }

    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        self.journal.note(self.now, what);
    }

    /// True in so many of a hundred cases, as long as things go wrong.
    pub(crate) fn trouble(&mut self, percent: u32) -> bool {
        self.is_trouble && self.rng.u32(..100) < percent
    }

    fn begin_trouble(&mut self) {
        self.is_trouble = true;
        self.weather = Weather {
            lost: self.rng.choice([0, 0, 20, 100]).unwrap_or(0),
            doubled: self.rng.choice([0, 50, 200]).unwrap_or(0),
            delay_max: Duration::from_millis(self.rng.choice([5, 200, 3000]).unwrap_or(5)),
        };
        self.fault_pause = self.rng.choice([1000, 5000, 20_000]).unwrap_or(5000);
        self.note(format_args!("{:?}, faults within {} ms", self.weather, self.fault_pause));
        self.soon(1000, Happening::UserActs);
        self.soon(1000, Happening::ClientConnects);
        self.soon(5000, Happening::Fault);
    }

    fn pass_until(&mut self, until: Timestamp) {
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.next_event();
        }
        self.now = until;
    }

    fn next_event(&mut self) {
        let ((at, _), what) = self.queue.pop_first().expect("something always follows");
        self.now = at;
        self.counts.events += 1;
        self.happen(what);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::MasterStarts => self.start_master(),
            Happening::MasterTurns { life } => self.turn(life),
            Happening::MasterCommits { life } => self.commit(life),
            Happening::ReportArrives { connection, node, report } => {
                if self.nodes[node].connection == Some(connection) {
                    self.arrive(Input::Agent(report), Some((node, connection)));
                }
            }
            Happening::CommandArrives { connection, node, command } => {
                if self.nodes[node].connection == Some(connection) {
                    self.command_arrives(node, command);
                }
            }
            Happening::UserCommandArrives { life, number, command } if self.leads(life) => {
                self.arrive(Input::Command { number, command }, None);
            }
            Happening::PlaneReportArrives { life, plane, report } if self.leads(life) => {
                self.leader.as_mut().expect("leads").planes_arrived.insert(plane);
                self.arrive(Input::Plane(report), None);
            }
            Happening::UserCommandArrives { .. } | Happening::PlaneReportArrives { .. } => {}
            Happening::AgentStarts { node } => self.start_agent(node),
            Happening::AgentConnects { node } => self.connect_agent(node),
            Happening::AgentRepeats { node } => self.repeat_statuses(node),
            Happening::Process { node, task, event } => self.process(node, &task, event),
            Happening::PlaneConnects { life, plane } if self.leads(life) => self.connect_plane(plane),
            Happening::PlaneConnects { .. } => {}
            Happening::PlaneUpdates { plane } => self.update_plane(plane),
            Happening::ClientConnects => self.client_connects(),
            Happening::ClientLeaves { plane, connection } => {
                if self.planes[plane].leave(connection) {
                    self.report_plane(plane);
                }
            }
            Happening::UserActs => self.user_acts(),
            Happening::Fault => self.fault(),
        }
    }

    pub(crate) fn leads(&self, life: u64) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.life == life)
    }

    /// Why not everything is as users want it, if so.
    fn unsettled(&self) -> Option<String> {
        let Some(leader) = &self.leader else { return Some("no master".to_owned()) };
        let state = leader.control_plane.state();
        if let Some(id) = state.marathon.deployments.keys().next() {
            return Some(format!("deployment {id} is left: {:?}", state.marathon.deployments[id].steps));
        }
        let mut wanted = BTreeSet::new();
        for app in state.marathon.apps.values() {
            let definition = &app.definition;
            let newest = definition.version_info.last_config_change_at;
            let is_mixed = self.ledger.mixed.contains(&definition.id);
            let is_right = app.instances.values().all(|instance| is_mixed || instance.version >= newest);
            let running = app.counts().running;
            if app.queue.is_some() || running != definition.instances as usize || !is_right {
                return Some(format!("{} has {:?}, queue {:?}", definition.id, app.instances, app.queue));
            }
            wanted.extend(app.instances.keys().cloned());
        }
        let processes = self.nodes.iter().flat_map(|node| node.agent.live().map(|(key, _)| key.task.clone()));
        let processes: BTreeSet<_> = processes.collect();
        let tasks: BTreeSet<_> = state.cluster.tasks.keys().map(|key| key.task.clone()).collect();
        if processes != wanted || tasks != wanted {
            return Some(format!("wanted {wanted:?}, known {tasks:?}, there are {processes:?}"));
        }
        if let Some(task) = wanted.iter().find(|task| self.ledger.killed.contains(*task)) {
            return Some(format!("{task} runs although its kill was answered"));
        }
        if let Some(node) = self.nodes.iter().find(|node| !node.agent.is_settled()) {
            return Some(format!("agent {:?} has something to say", node.agent.id));
        }
        let serving: BTreeSet<_> = state.cluster.endpoints.keys().map(|key| key.task.task.clone()).collect();
        for plane in &self.planes {
            let applied = plane.view.as_ref().map(|view| view.revision);
            if applied != Some(state.cluster.revision) {
                return Some(format!("a plane is at {applied:?}, not at {}", state.cluster.revision));
            }
            let ready: BTreeSet<_> = plane.ready().map(|(_, task)| task.task).collect();
            if plane.kind == Plane::Lb && (ready != serving || ready != wanted) {
                return Some(format!("clients are sent to {ready:?}, there are {wanted:?}"));
            }
        }
        None
    }
}

impl Node {
    fn new(number: u8, resources: Resources, rng: &mut Rng) -> Self {
        let address = IpAddr::V4(Ipv4Addr::new(127, 12, 0, number + 1));
        let hostname = address.to_string();
        let info = AgentInfo { hostname, address, port: 0, resources, attributes: Vec::new() };
        let agent = Agent::new(info, rng.u64(..));
        Self { agent, connection: None, handshake: Timestamp::default(), is_open: false, wake: None }
    }
}

fn resources((slots, ports): (i64, u16)) -> Resources {
    Resources {
        cpus: Scalar::from_thousandths(CPUS.thousandths() * slots),
        mem: Scalar::from_units(64 * slots),
        disk: Scalar::ZERO,
        gpus: Scalar::ZERO,
        ports: PortRanges::span(FIRST_PORT, FIRST_PORT + ports - 1),
    }
}
