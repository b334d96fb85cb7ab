//! A master that leads: one life of the control plane, from recovery to crash, and its driver's turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesonet::control_plane::{Batch, ControlPlane, Input};
use mesonet_marathon::Marathon;
use mesonet_master::Master;
use mesonet_model::{AgentReport, ClusterId, Framework, FrameworkId, MasterId, TaskKey, Timestamp};

use crate::store::Store;

/// How long a task may keep its connections.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How long after its start a master waits for planes to report (`RECONNECT_TIME` of the master's drains). A plane that
/// takes longer is not waited for.
pub(crate) const PLANES_EXPECTED: Duration = Duration::from_secs(5);

/// Few addresses, so that names compete for them.
const VIPS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(127, 11, 0, 0), Ipv4Addr::new(127, 11, 0, 15));

/// One life of the control plane.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) life: u64,
    pub(crate) control_plane: ControlPlane,
    pub(crate) started_at: Timestamp,
    /// What has arrived and waits for the next turn.
    pub(crate) inbox: Vec<Input>,
    /// The connection behind each registration that is not answered yet: agent and connection.
    pub(crate) registrations: VecDeque<(usize, u64)>,
    /// The batch that is being committed, or carried out.
    pub(crate) batch: Option<Batch>,
    /// Planes whose reports were heard in earlier turns.
    pub(crate) planes_known: BTreeSet<usize>,
    /// Planes whose reports were heard in the last turn.
    planes_heard: BTreeSet<usize>,
    /// Planes whose reports are in the inbox.
    pub(crate) planes_arrived: BTreeSet<usize>,
    /// Since when tasks drain.
    pub(crate) drains: BTreeMap<TaskKey, Timestamp>,
    /// Tasks whose agents were told to end them.
    pub(crate) told: BTreeSet<TaskKey>,
    /// When the next turn is planned.
    pub(crate) wake: Option<Timestamp>,
}

impl Leader {
    /// Begins from what the store holds.
    pub(crate) fn start(life: u64, store: &Store, now: Timestamp) -> Self {
        let (control_plane, first) = ControlPlane::start(
            recover_master(life, store),
            recover_marathon(life, store),
            marathon_as_framework(now),
            store.revision,
            now,
        );
        let mut leader = Self {
            life,
            control_plane,
            started_at: now,
            inbox: Vec::new(),
            registrations: VecDeque::new(),
            batch: Some(first),
            planes_known: BTreeSet::new(),
            planes_heard: BTreeSet::new(),
            planes_arrived: BTreeSet::new(),
            drains: BTreeMap::new(),
            told: BTreeSet::new(),
            wake: None,
        };
        leader.follow_drains(now);
        leader
    }

    /// Takes what has arrived and decides.
    pub(crate) fn turn(&mut self, now: Timestamp) {
        self.planes_known.append(&mut self.planes_heard);
        self.planes_heard.append(&mut self.planes_arrived);
        let inputs = std::mem::take(&mut self.inbox);
        self.batch = Some(self.control_plane.step(inputs, now));
        self.follow_drains(now);
    }

    /// Something arrives.
    pub(crate) fn arrive(&mut self, input: Input, from_agent: Option<(usize, u64)>) {
        if let (Input::Agent(AgentReport::Register { .. }), Some(from)) = (&input, from_agent) {
            self.registrations.push_back(from);
        }
        self.inbox.push(input);
    }

    /// The connection whose registration is answered.
    pub(crate) fn take_registration(&mut self, is_from: impl Fn(usize) -> bool) -> Option<(usize, u64)> {
        let position = self.registrations.iter().position(|(agent, _)| is_from(*agent))?;
        self.registrations.remove(position)
    }

    fn follow_drains(&mut self, now: Timestamp) {
        let view = self.control_plane.state().cluster;
        self.drains.retain(|task, _| view.tasks.contains_key(task));
        for task in view.tasks.values().filter(|task| task.draining) {
            self.drains.entry(task.key.clone()).or_insert(now);
        }
    }
}

/// The master of a life, before it has heard of anything.
pub(crate) fn recover_master(life: u64, store: &Store) -> Master {
    let config = mesonet_master::Config {
        master: MasterId::new("m"),
        address: ([127, 0, 0, 1], 8080).into(),
        vip_range_v4: VIPS,
        vip_range_v6: ([0xfd01, 0xc, 0, 0, 0, 0, 0, 0].into(), [0xfd01, 0xc, 0, 0, 0, 0, 0, 0xff].into()),
        drain_grace: DRAIN_GRACE,
        failure_detection: mesonet_master::FailureDetection::default(),
        seed: life.wrapping_mul(2),
    };
    let records = store.records();
    Master::recover(config, ClusterId::new("c"), store.revision, &records).expect("its own records")
}

/// Marathon of a life, before it has heard of anything.
pub(crate) fn recover_marathon(life: u64, store: &Store) -> Marathon {
    let config = mesonet_marathon::Config {
        service_ports: (10_000, 10_100),
        seed: life.wrapping_mul(2).wrapping_add(1),
        versions_max: 5,
    };
    Marathon::recover(config, &store.records()).expect("its own records")
}

fn marathon_as_framework(now: Timestamp) -> Framework {
    Framework {
        id: FrameworkId::new(""),
        name: "marathon".to_owned(),
        user: "nobody".to_owned(),
        role: "*".to_owned(),
        hostname: "127.0.0.1".to_owned(),
        address: None,
        webui_url: None,
        other_addresses: Vec::new(),
        active: true,
        registered_at: now,
    }
}
