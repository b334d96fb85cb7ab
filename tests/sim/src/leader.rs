//! One term of the control plane, from recovery to the end of the term, and its driver's turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesonet::WallClock;
use mesonet::control_plane::{Batch, ControlPlane, Input, State, committed_at};
use mesonet_bus::{PlaneKnown, PlanePaths};
use mesonet_marathon::Marathon;
use mesonet_master::{FailureDetection, Master};
use mesonet_model::{
    AgentId, AgentReport, ClusterId, Framework, FrameworkId, MasterId, Plane, PlaneReport, Revision, Table,
    TaskKey, Timestamp,
};

use crate::clocks::MachineClock;

/// How long a task may keep its connections.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How long after its start, or the loss of their connections, a leader waits for planes to report (`RECONNECT_TIME` of
/// the master's drains). A plane that takes longer is not waited for.
pub(crate) const PLANES_EXPECTED: Duration = Duration::from_secs(5);

/// The part of a time that is sure not to have passed when a clock does not say that all of it has: clocks run too fast by
/// at most a tenth.
const SURE: (u32, u32) = (10, 11);

/// Few addresses, so that names compete for them.
const VIPS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(127, 11, 0, 0), Ipv4Addr::new(127, 11, 0, 15));

/// What the store holds.
pub(crate) type Records = Vec<(Table, String, Vec<u8>)>;

/// The way by which a plane is known: the leader's own connection, or the master that stands by between.
pub(crate) type Path = Option<usize>;

/// What differs between runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How long after it became unreachable an agent is removed.
    pub(crate) removed_after: Duration,
}

/// One term.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) term: u64,
    pub(crate) control_plane: ControlPlane,
    clock: WallClock,
    pub(crate) started_at: Timestamp,
    /// When the latest batch was decided.
    turned_at: Timestamp,
    /// When the one before was: what was there by then is known to every decision of the latest one. What comes with
    /// the same turn is looked at one after the other.
    pub(crate) turned_before: Timestamp,
    /// What has arrived and waits for the next turn.
    pub(crate) inbox: Vec<Input>,
    /// The connection behind each registration that is not answered yet: node and connection.
    pub(crate) registrations: VecDeque<(usize, u64)>,
    /// The batch that is being committed, or carried out.
    pub(crate) batch: Option<Batch>,
    /// The last revision that is known to be committed.
    pub(crate) committed: Revision,
    /// What users and planes see.
    pub(crate) visible: Option<State>,
    paths: PlanePaths<Path>,
    /// Planes whose reports were heard in earlier turns.
    planes_known: BTreeSet<usize>,
    /// Planes whose reports were heard in the last turn.
    planes_heard: BTreeSet<usize>,
    /// Planes whose reports are in the inbox.
    planes_arrived: BTreeSet<usize>,
    /// Planes that are not connected, and since when.
    planes_lost: BTreeMap<usize, Timestamp>,
    /// Since when tasks drain, and at which revision at the latest their endpoints are withdrawn.
    pub(crate) drains: BTreeMap<TaskKey, (Timestamp, Revision)>,
    /// Tasks whose agents were told to end them.
    pub(crate) told: BTreeSet<TaskKey>,
    /// When the next turn is planned.
    pub(crate) wake: Option<Timestamp>,
    /// Until when the lease holds, as the master counts time.
    pub(crate) confirmed_until: Duration,
}

impl Leader {
    /// Begins from what the store holds.
    pub(crate) fn start(
        term: u64,
        settings: Settings,
        (revision, records): (Revision, &Records),
        machine: &MachineClock,
        now: Timestamp,
    ) -> Self {
        let mut clock = WallClock::not_before(committed_at(records));
        let time = clock.advance(machine.wall(now), machine.monotonic(now));
        let (control_plane, first) = ControlPlane::start(
            recover_master(term, settings, revision, records),
            recover_marathon(term, settings, records),
            marathon_as_framework(time),
            revision,
            time,
        );
        let mut leader = Self {
            term,
            control_plane,
            clock,
            started_at: now,
            turned_at: now,
            turned_before: now,
            inbox: Vec::new(),
            registrations: VecDeque::new(),
            batch: Some(first),
            committed: revision,
            visible: None,
            paths: PlanePaths::default(),
            planes_known: BTreeSet::new(),
            planes_heard: BTreeSet::new(),
            planes_arrived: BTreeSet::new(),
            planes_lost: BTreeMap::new(),
            drains: BTreeMap::new(),
            told: BTreeSet::new(),
            wake: None,
            confirmed_until: Duration::ZERO,
        };
        leader.follow_drains(now);
        leader
    }

    /// Takes what has arrived and decides.
    pub(crate) fn turn(&mut self, machine: &MachineClock, now: Timestamp) {
        self.planes_known.append(&mut self.planes_heard);
        self.planes_heard.append(&mut self.planes_arrived);
        let inputs = std::mem::take(&mut self.inbox);
        let time = self.time(machine, now);
        self.batch = Some(self.control_plane.step(inputs, time));
        self.turned_before = std::mem::replace(&mut self.turned_at, now);
        self.follow_drains(now);
    }

    /// When the control plane wants its next turn.
    pub(crate) fn deadline(&mut self, machine: &MachineClock, now: Timestamp) -> Option<Timestamp> {
        let (at, _) = self.control_plane.deadline()?;
        let wait = at.since(self.time(machine, now));
        Some(now.plus(wait.max(Duration::from_millis(1))))
    }

    /// Something arrives.
    pub(crate) fn arrive(&mut self, input: Input, from_agent: Option<(usize, u64)>) {
        if let (Input::Agent(AgentReport::Register { .. }), Some(from)) = (&input, from_agent) {
            self.registrations.push_back(from);
        }
        self.inbox.push(input);
    }

    /// A plane reports.
    pub(crate) fn hear_plane(&mut self, path: Path, plane: usize, report: PlaneReport) {
        let known = self.paths.report(path, report);
        self.planes_arrived.insert(plane);
        self.planes_lost.remove(&plane);
        self.inbox.push(plane_input(known));
    }

    /// A plane is not connected any more where it was.
    pub(crate) fn lose_plane(
        &mut self,
        path: Path,
        plane: usize,
        (node, kind): (&AgentId, Plane),
        now: Timestamp,
    ) {
        let known = self.paths.gone(&path, node, kind);
        if let Some(PlaneKnown::Gone { .. }) = &known {
            self.planes_lost.insert(plane, now);
        }
        self.inbox.extend(known.map(plane_input));
    }

    /// A master that stands by is not connected any more.
    pub(crate) fn lose_path(&mut self, path: Path, planes: &[(AgentId, Plane)], now: Timestamp) {
        for known in self.paths.path_gone(&path) {
            if let PlaneKnown::Gone { node, plane } = &known
                && let Some(number) = planes.iter().position(|id| *id == (node.clone(), *plane))
            {
                self.planes_lost.insert(number, now);
            }
            self.inbox.push(plane_input(known));
        }
    }

    /// The connection whose registration is answered.
    pub(crate) fn take_registration(&mut self, is_from: impl Fn(usize) -> bool) -> Option<(usize, u64)> {
        let position = self.registrations.iter().position(|(agent, _)| is_from(*agent))?;
        self.registrations.remove(position)
    }

    fn time(&mut self, machine: &MachineClock, now: Timestamp) -> Timestamp {
        self.clock.advance(machine.wall(now), machine.monotonic(now))
    }

    /// Whether it had heard of a plane when it decided what it carries out, and has to wait for it: if its connection is
    /// lost, it may come back.
    pub(crate) fn knows(&self, plane: usize, now: Timestamp) -> bool {
        let is_lost =
            self.planes_lost.get(&plane).is_some_and(|since| has_passed(PLANES_EXPECTED, *since, now));
        self.planes_known.contains(&plane) && !is_lost
    }

    fn follow_drains(&mut self, now: Timestamp) {
        let view = self.control_plane.state().cluster;
        self.drains.retain(|task, _| view.tasks.contains_key(task));
        for task in view.tasks.values().filter(|task| task.draining) {
            self.drains.entry(task.key.clone()).or_insert((now, view.revision));
        }
    }
}

/// Whether a time may have passed by the clock of a leader.
pub(crate) fn has_passed(time: Duration, since: Timestamp, now: Timestamp) -> bool {
    now >= since.plus(time * SURE.0 / SURE.1)
}

fn plane_input(known: PlaneKnown) -> Input {
    match known {
        PlaneKnown::Report(report) => Input::Plane(report),
        PlaneKnown::Gone { node, plane } => Input::PlaneGone { node, plane },
    }
}

/// The master of a term, before it has heard of anything.
pub(crate) fn recover_master(term: u64, settings: Settings, revision: Revision, records: &Records) -> Master {
    let config = mesonet_master::Config {
        master: MasterId::new("m"),
        address: ([127, 0, 0, 1], 8080).into(),
        vip_range_v4: VIPS,
        vip_range_v6: ([0xfd01, 0xc, 0, 0, 0, 0, 0, 0].into(), [0xfd01, 0xc, 0, 0, 0, 0, 0, 0xff].into()),
        drain_grace: DRAIN_GRACE,
        failure_detection: FailureDetection {
            removed_after: settings.removed_after,
            ..FailureDetection::default()
        },
        seed: settings.seed.wrapping_add(term).wrapping_mul(2),
    };
    Master::recover(config, ClusterId::new("c"), revision, records).expect("its own records")
}

/// Marathon of a term, before it has heard of anything.
pub(crate) fn recover_marathon(term: u64, settings: Settings, records: &Records) -> Marathon {
    let config = mesonet_marathon::Config {
        service_ports: (10_000, 10_100),
        seed: settings.seed.wrapping_add(term).wrapping_mul(2).wrapping_add(1),
        versions_max: 5,
    };
    Marathon::recover(config, records).expect("its own records")
}

fn marathon_as_framework(now: Timestamp) -> Framework {
    Framework {
        id: FrameworkId::new(""),
        name: "marathon".to_owned(),
        user: "nobody".to_owned(),
        role: "*".to_owned(),
        hostname: "127.0.0.1".to_owned(),
        address: None,
        other_addresses: Vec::new(),
        webui_url: None,
        active: true,
        registered_at: now,
    }
}
