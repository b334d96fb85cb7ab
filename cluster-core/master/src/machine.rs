//! The master itself: its parts, and how an input goes through them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AgentCommand, AgentId, AgentReport, ClusterId, ClusterView, Framework, FrameworkId, MasterId,
    NetworkName, NetworkRefusal, Plane, PlaneReport, Revision, SchedulerCall, SchedulerEvent, TaskKey,
    Timestamp, VirtualNetwork, Write,
};

use crate::drain::Drains;
use crate::liveness::{Brake, FailureDetection, Liveness};
use crate::networks::Networks;
use crate::offers::Allocator;
use crate::outbox::Outbox;
use crate::recover::Counters;
use crate::services::Services;
use crate::tasks::TaskEntry;
use crate::tunnels::Tunnels;
use crate::vips::Vips;

/// How many revisions are left out above that of a node which is ahead: others may be ahead of it by what was published in
/// its last moments without a master.
const REVISIONS_SKIPPED: u64 = 1 << 16;

/// The master's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// This master.
    pub master: MasterId,
    /// Where its HTTP endpoints are.
    pub address: SocketAddr,
    /// First and last address of named VIPs, IPv4.
    pub vip_range_v4: (Ipv4Addr, Ipv4Addr),
    /// First and last address of named VIPs, IPv6.
    pub vip_range_v6: (Ipv6Addr, Ipv6Addr),
    /// How long a task to be killed may keep its connections after its endpoints are withdrawn, if its ports' labels do
    /// not say.
    pub drain_grace: Duration,
    /// When agents that do not answer are given up.
    pub failure_detection: FailureDetection,
    /// Seed of the ids that it makes; another one at every start.
    pub seed: u64,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A framework subscribes, for the first time or again (found by name).
    Subscribe(Framework),
    /// A framework calls.
    Call {
        /// Which.
        framework: FrameworkId,
        /// What.
        call: SchedulerCall,
    },
    /// An agent reports.
    Agent(AgentReport),
    /// A plane reports.
    Plane(PlaneReport),
    /// A plane's connection is lost: its acknowledgements are not waited for until it reports again.
    PlaneGone {
        /// The node.
        node: AgentId,
        /// The plane.
        plane: Plane,
    },
    /// An operator wants an agent to be empty.
    DrainNode {
        /// Which; unknown ones are ignored.
        agent: AgentId,
    },
    /// An operator wants an agent to be used again.
    UndrainNode {
        /// Which; unknown ones are ignored.
        agent: AgentId,
    },
    /// An operator declares an agent gone for good, with all that ran on it.
    RemoveNode {
        /// Which; unknown ones are ignored.
        agent: AgentId,
    },
    /// An operator confirms that the many agents that do not answer are gone.
    ConfirmRemoval,
    /// An operator wants another virtual network.
    CreateNetwork {
        /// Chosen by the caller; a refusal has it.
        number: u64,
        /// The network.
        network: VirtualNetwork,
    },
    /// An operator wants a virtual network to go.
    RemoveNetwork {
        /// Chosen by the caller; a refusal has it.
        number: u64,
        /// The network.
        name: NetworkName,
    },
    /// A node's certificates were declared void: nobody is to have a tunnel to it.
    NodeRevoked {
        /// The node.
        node: AgentId,
    },
    /// A node has a view of a revision that there is not yet: the records are older ones that somebody has put back.
    Ahead {
        /// The node's revision.
        revision: Revision,
    },
    /// Something outside the view was committed and wants a revision of its own.
    Touch,
    /// Time has passed.
    Tick,
}

/// One thing to be done. Writes are to be committed before any other effect of the same call is released.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keep a record.
    Store(Write),
    /// Tell an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// What.
        command: AgentCommand,
    },
    /// Tell a framework.
    Framework {
        /// Which.
        framework: FrameworkId,
        /// What.
        event: SchedulerEvent,
    },
    /// Tell an operator that part of a task's description has no effect. Said once per task and cause.
    Warn {
        /// The task.
        task: TaskKey,
        /// What is wrong with it, for people.
        message: String,
    },
    /// Tell an operator that so many agents are lost at about the same time that none is given up until enough come
    /// back or [`Input::ConfirmRemoval`].
    RemovalHeld {
        /// How many are lost.
        lost: usize,
        /// Of how many.
        of: usize,
    },
    /// Tell an operator that an order is not carried out.
    Refused {
        /// The order's number.
        number: u64,
        /// Why.
        refusal: NetworkRefusal,
    },
    /// Tell an operator that a network has no part left for an agent.
    NetworkExhausted {
        /// The network.
        network: NetworkName,
        /// The agent.
        agent: AgentId,
    },
}

/// The master of a cluster.
#[derive(Debug)]
pub struct Master {
    pub(crate) config: Config,
    pub(crate) view: ClusterView,
    pub(crate) counters: Counters,
    pub(crate) framework_names: BTreeMap<String, FrameworkId>,
    /// What is not in the view of the tasks that are.
    pub(crate) tasks: BTreeMap<TaskKey, TaskEntry>,
    pub(crate) agent_tasks: BTreeMap<AgentId, BTreeSet<TaskKey>>,
    pub(crate) liveness: Liveness,
    /// The brake as the store has it.
    pub(crate) stored_brake: Brake,
    /// Agents that are to be empty.
    pub(crate) draining: BTreeSet<AgentId>,
    pub(crate) allocator: Allocator,
    pub(crate) services: Services,
    pub(crate) networks: Networks,
    pub(crate) drains: Drains,
    pub(crate) tunnels: Tunnels,
    /// Tasks that drained when the master before this one ended.
    pub(crate) drains_to_resume: BTreeSet<TaskKey>,
    /// Whether there was a master before this one, and nothing has happened since.
    pub(crate) is_restarted: bool,
    pub(crate) out: Outbox,
}

impl Master {
    pub(crate) fn new(config: Config, cluster: ClusterId, revision: Revision) -> Self {
        let mut view = ClusterView { revision, ..ClusterView::empty(cluster.clone()) };
        let this = mesonet_model::Master {
            id: config.master.clone(),
            address: config.address,
            leading: true,
            removal_held: false,
        };
        view.masters.insert(config.master.clone(), Arc::new(this));
        Self {
            view,
            counters: Counters::default(),
            framework_names: BTreeMap::new(),
            tasks: BTreeMap::new(),
            agent_tasks: BTreeMap::new(),
            liveness: Liveness::new(config.failure_detection),
            stored_brake: Brake::default(),
            draining: BTreeSet::new(),
            allocator: Allocator::new(cluster, config.seed),
            services: Services::new(Vips::new(&config)),
            networks: Networks::default(),
            drains: Drains::default(),
            tunnels: Tunnels::default(),
            drains_to_resume: BTreeSet::new(),
            is_restarted: false,
            out: Outbox::default(),
            config,
        }
    }

    /// Reacts to one input. If anything changed, the view has a new revision afterwards.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        self.resume_drains(now);
        self.make_first_networks();
        self.liveness.begin(now);
        match input {
            Input::Subscribe(framework) => self.subscribe(framework, now),
            Input::Call { framework, call } => self.call(framework, call, now),
            Input::Agent(report) => self.agent_report(report, now),
            Input::Plane(report) => self.plane_report(report, now),
            Input::PlaneGone { node, plane } => self.plane_gone(node, plane, now),
            Input::NodeRevoked { node } => self.forget_tunnel(&node),
            Input::DrainNode { agent } => self.set_draining(&agent, true, now),
            Input::UndrainNode { agent } => self.set_draining(&agent, false, now),
            Input::RemoveNode { agent } => self.remove_node(&agent, now),
            Input::ConfirmRemoval => self.liveness.confirm_removal(),
            Input::CreateNetwork { number, network } => self.create_network(number, network),
            Input::RemoveNetwork { number, name } => self.remove_network(number, &name),
            Input::Ahead { revision } => self.go_on_above(revision),
            Input::Touch => self.out.view_changed = true,
            Input::Tick => self.drains.pass_time(now),
        }
        self.pass_time(now);
        self.offer();
        self.finish()
    }

    /// Goes on with revisions that no node has seen with another meaning: nodes refuse to go back.
    fn go_on_above(&mut self, revision: Revision) {
        if revision > self.view.revision {
            self.view.revision = Revision(revision.0.saturating_add(REVISIONS_SKIPPED));
            self.out.view_changed = true;
        }
    }

    /// The cluster as everybody sees it. Cheap to clone.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// When to call `handle` with [`Input::Tick`] at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        if !self.drains_to_resume.is_empty() {
            return Some((Timestamp::default(), "drains to be resumed"));
        }
        let drain = self.drains.deadline().map(|at| (at, "drain"));
        let liveness = self.liveness.deadline().map(|at| (at, "agents that do not answer"));
        let filter = self.allocator.deadline().map(|at| (at, "offer filter"));
        let tunnel = self.tunnels.deadline().map(|at| (at, "an overlay that is not connected"));
        let all = [drain, liveness, filter, self.services.deadline(), tunnel];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    fn pass_time(&mut self, now: Timestamp) {
        self.take_hints(now);
        for (agent, state) in self.liveness.pass_time(now) {
            self.agent_is_lost(&agent, state, now);
        }
        for agent in self.liveness.take_gone() {
            self.agent_is_gone(&agent, now);
        }
        self.show_removal_held();
        for task in self.drains.take_due() {
            self.send_kill(&task);
        }
        self.services.expire(&mut self.view, &mut self.out, now);
        self.allocator.expire(now);
        self.acknowledge_tunnels(now);
    }

    fn offer(&mut self) {
        for (framework, mut offers) in self.allocator.make_offers(&self.view.agents) {
            for offer in &mut offers {
                offer.networks = self.network_room(&offer.agent);
            }
            self.out.offers(&framework, offers);
        }
    }

    /// Counts the change, and puts the writes before everything that is said.
    fn finish(&mut self) -> Vec<Effect> {
        let mut out = std::mem::take(&mut self.out);
        if *self.liveness.brake() != self.stored_brake {
            self.stored_brake = self.liveness.brake().clone();
            out.dirty.brake = true;
        }
        if out.view_changed {
            self.view.revision = self.view.revision.next();
        }
        let writes = self.writes(std::mem::take(&mut out.dirty));
        writes.into_iter().map(Effect::Store).chain(out.take_effects()).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> Config {
        Config {
            master: MasterId::new("m"),
            address: ([127, 0, 0, 1], 5050).into(),
            vip_range_v4: ([11, 0, 0, 0].into(), [11, 255, 255, 255].into()),
            vip_range_v6: (
                "fd01:c::".parse().expect("address"),
                "fd01:c::ffff:ffff:ffff:ffff".parse().expect("address"),
            ),
            drain_grace: Duration::from_secs(10),
            failure_detection: FailureDetection::default(),
            seed: 1,
        }
    }
}
