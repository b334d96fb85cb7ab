//! A cluster on virtual time: what is due next happens next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use mesonet::control_plane::Input;
use mesonet_marathon::Command;
use mesonet_model::{Plane, PortRanges, Resources, Revision, Scalar, TaskKey, Timestamp};

use crate::agent::ProcessEvent;
use crate::apps::CPUS;
use crate::clocks::MachineClock;
use crate::elections::{Ask, Told};
use crate::journal::Journal;
use crate::kills::Kills;
use crate::leader::Settings;
use crate::ledger::Ledger;
use crate::links::{Client, Link, Side};
use crate::masters::MasterProcess;
use crate::network::{Network, Party, Weather};
use crate::nodes::Node;
use crate::planes::PlaneTwin;
use crate::readiness::Readiness;
use crate::store::Store;
use crate::watch::Watch;

/// Masters: two can be lost.
const MASTERS: usize = 3;

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

/// Until when all have found each other, in milliseconds.
const JOINED_AT: i64 = 15_000;

/// How long a process that has stalled takes to do what has waited, in milliseconds.
const CATCHING_UP_MAX: u64 = 1000;

/// Commits under faults. More find more, and cost as much more.
const TROUBLE_COMMITS: u64 = 50;

/// Time under faults, if so many commits are not made.
const TROUBLE_MAX: Duration = Duration::from_secs(1800);

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
    /// Whether nothing will go wrong any more.
    pub(crate) is_over: bool,
    pub(crate) weather: Weather,
    pub(crate) network: Network,
    /// Milliseconds between faults, at most.
    pub(crate) fault_pause: u64,
    /// Of connections, commands and clients.
    pub(crate) numbers: u64,
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) store_slow_until: Timestamp,
    pub(crate) masters: Vec<MasterProcess>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) planes: Vec<PlaneTwin>,
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) ledger: Ledger,
    pub(crate) watch: Watch,
    pub(crate) readiness: Readiness,
    pub(crate) kills: Kills,
    pub(crate) counts: Counts,
}

/// What a run, or several, have seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Terms in which a master has led.
    pub terms: u64,
    /// Masters that have stepped down.
    pub depositions: u64,
    /// Masters that crashed.
    pub master_crashes: u64,
    /// Batches that were committed.
    pub commits: u64,
    /// Connections to masters of an outdated term that were given up.
    pub outdated: u64,
    /// Reports that came over a master that stands by.
    pub relayed: u64,
    /// Times that machines did not reach each other.
    pub partitions: u64,
    /// Masters that did nothing for a while.
    pub stalls: u64,
    /// Clocks that were set.
    pub clocks_set: u64,
    /// Agents that crashed.
    pub agent_crashes: u64,
    /// Tasks that were launched.
    pub launches: u64,
    /// Tasks that an agent was told to end after a drain that planes acknowledged.
    pub drained: u64,
    /// Commands that users were answered.
    pub answers: u64,
    /// Instances that had to be ready at the end of a deployment.
    pub readied: u64,
    /// Instances that served and were killed where enough others had to be left.
    pub spared: u64,
}

impl Counts {
    /// Counts another run as well.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            events,
            terms,
            depositions,
            master_crashes,
            commits,
            outdated,
            relayed,
            partitions,
            stalls,
            clocks_set,
            agent_crashes,
            launches,
            drained,
            answers,
            readied,
            spared,
        } = other;
        self.events += events;
        self.terms += terms;
        self.depositions += depositions;
        self.master_crashes += master_crashes;
        self.commits += commits;
        self.outdated += outdated;
        self.relayed += relayed;
        self.partitions += partitions;
        self.stalls += stalls;
        self.clocks_set += clocks_set;
        self.agent_crashes += agent_crashes;
        self.launches += launches;
        self.drained += drained;
        self.answers += answers;
        self.readied += readied;
        self.spared += spared;
    }
}

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Happening {
    MasterStarts { master: usize },
    MasterLooks { master: usize, life: u64 },
    MasterRenews { master: usize, term: u64 },
    MasterTurns { master: usize, term: u64 },
    LeaseMayEnd { master: usize, term: u64 },
    CommitRepeats { master: usize, term: u64, revision: Revision },
    StoreHears { master: usize, life: u64, ask: Ask },
    StoreAnswers { master: usize, life: u64, told: Told },
    LeaseEnds { term: u64 },
    UpArrives { link: u64 },
    DownArrives { link: u64 },
    EndLost { link: u64, side: Side },
    HandshakeOver { link: u64 },
    Silent { a: Party, b: Party, since: Timestamp },
    Heals { a: Party, b: Party },
    UserCommandArrives { asked: usize, master: usize, number: u64, command: Command },
    AgentStarts { node: usize },
    AgentConnects { node: usize },
    AgentRepeats { node: usize },
    Process { node: usize, task: TaskKey, event: ProcessEvent },
    PlaneConnects { plane: usize },
    ClientConnects,
    ClientLeaves { plane: usize, connection: u64 },
    UserActs,
    Fault,
}

impl Simulation {
    pub(crate) fn new(seed: u64, journal: Journal) -> Self {
        let mut rng = Rng::with_seed(seed);
        let room = if rng.bool() { ROOMY } else { TIGHT };
        let removed_after = Duration::from_secs(if rng.u32(..4) == 0 { 30 } else { 86_400 });
        Self {
            now: Timestamp::from_millis(0),
            queue: BTreeMap::new(),
            sequence: 0,
            journal,
            is_trouble: false,
            is_over: false,
            weather: Weather::FAIR,
            network: Network::default(),
            fault_pause: 0,
            numbers: 0,
            settings: Settings { seed: seed.wrapping_mul(1000), removed_after },
            store: Store::default(),
            store_slow_until: Timestamp::from_millis(0),
            masters: (0..MASTERS).map(|_| MasterProcess::new(MachineClock::new(&mut rng))).collect(),
            nodes: (0..AGENTS).map(|number| Node::new(number, resources(room), &mut rng)).collect(),
            planes: PLANES.map(|(node, kind)| PlaneTwin::new(node, kind)).into(),
            links: BTreeMap::new(),
            ledger: Ledger::default(),
            watch: Watch::default(),
            readiness: Readiness::default(),
            kills: Kills::default(),
            counts: Counts::default(),
            rng,
        }
    }

    /// Runs through: all find each other, users and faults do their worst, and in the end, with room for all, all is
    /// well.
    pub(crate) fn run(mut self) -> Counts {
        self.begin();
        self.begin_trouble();
        let end = self.now.plus(TROUBLE_MAX);
        while self.counts.commits < TROUBLE_COMMITS && self.now < end {
            self.next_event();
        }
        self.end_trouble();
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
        self.soon_after(0, millis_max, what);
    }

    /// Something happens after so many milliseconds at least and at most.
    pub(crate) fn soon_after(&mut self, millis_min: u64, millis_max: u64, what: Happening) {
        let delay = Duration::from_millis(self.rng.u64(millis_min..=millis_max));
        self.at(self.now.plus(delay), what);
    }

    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        self.journal.note(self.now, what);
    }

    /// True in so many of a hundred cases, as long as things go wrong.
    pub(crate) fn trouble(&mut self, percent: u32) -> bool {
        self.is_trouble && self.rng.u32(..100) < percent
    }

    fn begin(&mut self) {
        for master in 0..self.masters.len() {
            self.start_master(master);
        }
        for node in 0..self.nodes.len() {
            self.soon(100, Happening::AgentConnects { node });
        }
        for plane in 0..self.planes.len() {
            self.soon(1000, Happening::PlaneConnects { plane });
        }
        self.pass_until(Timestamp::from_millis(JOINED_AT));
        assert!(self.nodes.iter().all(|node| node.agent.id.is_some()), "agents have not joined");
    }

    fn begin_trouble(&mut self) {
        self.is_trouble = true;
        self.weather = Weather {
            lost: self.rng.choice([0, 20, 200]).unwrap_or(0),
            delay_max: Duration::from_millis(self.rng.choice([5, 200, 2000]).unwrap_or(5)),
        };
        self.fault_pause = self.rng.choice([2000, 5000, 20_000]).unwrap_or(5000);
        self.note(format_args!("{:?}, faults within {} ms", self.weather, self.fault_pause));
        self.soon(1000, Happening::UserActs);
        self.soon(1000, Happening::ClientConnects);
        self.soon(5000, Happening::Fault);
    }

    /// Everything works again, and agents have room for all.
    fn end_trouble(&mut self) {
        self.note("all faults end");
        (self.is_trouble, self.is_over) = (false, true);
        self.weather = Weather::FAIR;
        self.network.heal_all();
        self.store_slow_until = self.now;
        for master in &mut self.masters {
            master.stalled_until = self.now;
        }
        self.heal_tasks();
        for node in 0..self.nodes.len() {
            self.nodes[node].agent.info.resources = resources(ROOMY);
            if let Some(link) = self.nodes[node].link {
                self.close(link, Side::Client);
                self.redial_soon(Client::Agent(node), link);
            }
        }
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
        if let Some(until) = self.stalled_until(&what).filter(|until| at < *until) {
            // What has waited is done in any order, and not at once: it may act before it notices that its lease is over.
            let late = Duration::from_millis(self.rng.u64(..=CATCHING_UP_MAX));
            return self.at(until.plus(late), what);
        }
        self.counts.events += 1;
        self.happen(what);
    }

    /// Until when the process does nothing that something happens to, if it is a master's.
    fn stalled_until(&self, what: &Happening) -> Option<Timestamp> {
        let at_end = |id: &u64, side: Side| {
            let link = self.links.get(id)?;
            match (side, link.client) {
                (Side::Server, _) => Some(link.server),
                (Side::Client, Client::Standby(master)) => Some(master),
                (Side::Client, Client::Agent(_) | Client::Plane(_)) => None,
            }
        };
        let master = match what {
            Happening::MasterLooks { master, .. }
            | Happening::MasterRenews { master, .. }
            | Happening::MasterTurns { master, .. }
            | Happening::LeaseMayEnd { master, .. }
            | Happening::CommitRepeats { master, .. }
            | Happening::StoreAnswers { master, .. }
            | Happening::UserCommandArrives { master, .. } => Some(*master),
            Happening::UpArrives { link } => at_end(link, Side::Server),
            Happening::DownArrives { link } | Happening::HandshakeOver { link } => at_end(link, Side::Client),
            Happening::EndLost { link, side } => at_end(link, *side),
            Happening::MasterStarts { .. }
            | Happening::StoreHears { .. }
            | Happening::LeaseEnds { .. }
            | Happening::Silent { .. }
            | Happening::Heals { .. }
            | Happening::AgentStarts { .. }
            | Happening::AgentConnects { .. }
            | Happening::AgentRepeats { .. }
            | Happening::Process { .. }
            | Happening::PlaneConnects { .. }
            | Happening::ClientConnects
            | Happening::ClientLeaves { .. }
            | Happening::UserActs
            | Happening::Fault => None,
        };
        Some(self.masters[master?].stalled_until)
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::MasterStarts { master } => self.start_master(master),
            Happening::MasterLooks { master, life } => self.master_looks(master, life),
            Happening::MasterRenews { master, term } => self.master_renews(master, term),
            Happening::MasterTurns { master, term } => self.turn(master, term),
            Happening::LeaseMayEnd { master, term } => self.lease_may_end(master, term),
            Happening::CommitRepeats { master, term, revision } => {
                self.commit_repeats(master, term, revision);
            }
            Happening::StoreHears { master, life, ask } => self.store_hears(master, life, ask),
            Happening::StoreAnswers { master, life, told } => self.store_answers(master, life, told),
            Happening::LeaseEnds { term } => self.lease_ends(term),
            Happening::UpArrives { link } => self.up_arrives(link),
            Happening::DownArrives { link } => self.down_arrives(link),
            Happening::EndLost { link, side } => self.end_lost(link, side),
            Happening::HandshakeOver { link } => self.handshake_over(link),
            Happening::Silent { a, b, since } => self.silent(a, b, since),
            Happening::Heals { a, b } => self.network.heal(a, b),
            Happening::UserCommandArrives { asked, master, number, command } => {
                let is_cut = self.network.is_cut(Party::Master(asked), Party::Master(master));
                if !is_cut && self.masters[asked].is_up {
                    self.arrive(master, Input::Command { number, command }, None);
                }
            }
            Happening::AgentStarts { node } => self.start_agent(node),
            Happening::AgentConnects { node } => self.connect_agent(node),
            Happening::AgentRepeats { node } => self.repeat_statuses(node),
            Happening::Process { node, task, event } => self.process(node, &task, event),
            Happening::PlaneConnects { plane } => self.connect_plane(plane),
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

    /// Why not everything is as users want it, if so.
    fn unsettled(&self) -> Option<String> {
        let leading =
            || self.masters.iter().filter(|master| master.serves()).filter_map(MasterProcess::leading);
        let Some(leader) = leading().next() else { return Some("no master leads".to_owned()) };
        if leading().count() > 1 {
            return Some("several masters lead".to_owned());
        }
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
        if let Some(task) = self.nodes.iter().find_map(|node| node.agent.unready()) {
            return Some(format!("{task} is asked whether it is ready, which nobody waits for"));
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
        self.unsettled_masters(&state)
    }

    /// The leader knows of all planes, and those that stand by have its view.
    fn unsettled_masters(&self, state: &mesonet::control_plane::State) -> Option<String> {
        let is_known =
            |report: &std::sync::Arc<mesonet_model::PlaneReport>| report.applied == state.cluster.revision;
        if state.planes.values().filter(|report| is_known(report)).count() != self.planes.len() {
            return Some(format!("the leader knows planes as {:?}", state.planes));
        }
        let lagging = self.masters.iter().position(|master| {
            master.feed.as_ref().map(|view| view.revision) != Some(state.cluster.revision)
        });
        lagging.map(|master| format!("master {master} is behind"))
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
