//! Master and Marathon together, as one pure state machine.
//!
//! ```text
//!            inputs: agent reports, plane reports, commands
//!                  │                             │
//!              ┌───▼────┐  scheduler events  ┌───▼──────┐
//!              │ master ├───────────────────►│ marathon │
//!              │        │◄───────────────────┤          │
//!              └───┬────┘  scheduler calls   └───┬──────┘
//!                  └── writes, then releases ────┘
//! ```
//!
//! Marathon is a framework like any other; that both live in one process only means that what they say to each other
//! is delivered at once. [`ControlPlane::step`] runs until neither has anything more to say, so that one commit holds
//! everything that follows from its inputs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use mesonet_api::State;
use mesonet_api::{NodeOrder, PlaneHistory, Planes};
use mesonet_marathon::{Command, Event, Marathon, Rejection, Reply};
use mesonet_master::Master;
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, Framework, FrameworkId, NetworkName, NetworkRefusal, Plane,
    PlaneReport, Revision, SchedulerEvent, Table, TaskKey, Timestamp, Write,
};

/// The most messages that one step delivers. What is left is delivered by the next step, so that no commit and no
/// reader waits longer than this takes (some 100 ms); a thousand launches are about three thousand messages.
const MESSAGES_MAX: usize = 16_384;

/// The key of the time of the latest commit in [`Table::Cluster`].
const CLOCK_KEY: &str = "clock";

/// Master and Marathon.
#[derive(Debug)]
pub struct ControlPlane {
    master: Master,
    marathon: Marathon,
    marathon_id: Option<FrameworkId>,
    planes: Planes,
    plane_history: PlaneHistory,
    messages: VecDeque<Message>,
    committed: Revision,
}

/// One thing that happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// An agent reports.
    Agent(AgentReport),
    /// A plane reports.
    Plane(PlaneReport),
    /// A plane's node is not connected any more.
    PlaneGone {
        /// The node.
        node: AgentId,
        /// The plane.
        plane: Plane,
    },
    /// A node has a view of a revision that there is not yet.
    Ahead {
        /// The node's revision.
        revision: Revision,
    },
    /// A node's certificates were declared void.
    NodeRevoked {
        /// The node.
        node: AgentId,
    },
    /// An operator orders.
    Node {
        /// Chosen by the caller; the answer is a [`Release::Ordered`] or [`Release::Refused`] with the same number.
        number: u64,
        /// What.
        order: NodeOrder,
    },
    /// A user commands; the answer is a [`Release::Answer`] with the same number.
    Command {
        /// Chosen by the caller.
        number: u64,
        /// The command.
        command: Command,
    },
}

/// What follows from a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// What is to be committed before anything else happens, if anything is.
    pub commit: Option<Commit>,
    /// What is to be done once it is committed and visible.
    pub releases: Vec<Release>,
}

/// A change to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The revision that it makes.
    pub revision: Revision,
    /// The latest write of each record.
    pub writes: Vec<Write>,
}

/// Something to be done after the commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Release {
    /// Tell an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// What.
        command: AgentCommand,
    },
    /// Answer a command.
    Answer {
        /// The command's number.
        number: u64,
        /// The answer.
        answer: Result<Reply, Rejection>,
    },
    /// Tell those who listen to Marathon.
    Event(Event),
    /// Tell an operator that lost agents are not given up because they are too many.
    RemovalHeld {
        /// How many are lost.
        lost: usize,
        /// Of how many.
        of: usize,
    },
    /// Tell an operator that part of a task's description has no effect.
    Warn {
        /// The task.
        task: TaskKey,
        /// What is wrong with it, for people.
        message: String,
    },
    /// Answer an order that is carried out.
    Ordered {
        /// The order's number.
        number: u64,
    },
    /// Answer an order that is not carried out.
    Refused {
        /// The order's number.
        number: u64,
        /// Why.
        refusal: NetworkRefusal,
    },
    /// Tell an operator that an agent gets no part of a network.
    NetworkExhausted {
        /// The network.
        network: NetworkName,
        /// The agent.
        agent: AgentId,
    },
}

/// Something on its way between the two.
#[derive(Debug)]
enum Message {
    ToMaster(mesonet_master::Input),
    /// An operator's order with its number, to the master.
    Order(u64, mesonet_master::Input),
    ToMarathon(mesonet_marathon::Input),
}

/// The latest value of every record that was written.
#[derive(Debug, Default)]
struct Records(BTreeMap<(Table, String), Option<Vec<u8>>>);

impl ControlPlane {
    /// Couples the two, of which `committed` is the last revision in the store, and subscribes Marathon as a
    /// framework.
    pub fn start(
        master: Master,
        marathon: Marathon,
        marathon_as_framework: Framework,
        committed: Revision,
        now: Timestamp,
    ) -> (Self, Batch) {
        let subscribe = mesonet_master::Input::Subscribe(marathon_as_framework);
        let mut control_plane = Self {
            master,
            marathon,
            marathon_id: None,
            planes: Planes::new(),
            plane_history: PlaneHistory::default(),
            messages: VecDeque::from([Message::ToMaster(subscribe)]),
            committed,
        };
        let batch = control_plane.step([], now);
        (control_plane, batch)
    }

    /// Reacts to what happened and to the time.
    ///
    /// The batch has to be carried out before the next step: what follows builds on it.
    pub fn step(&mut self, inputs: impl IntoIterator<Item = Input>, now: Timestamp) -> Batch {
        for input in inputs {
            self.accept(input, now);
        }
        self.queue_due_ticks(now);
        let mut records = Records::default();
        let mut releases = Vec::new();
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.messages.pop_front() else { break };
            self.deliver(message, now, &mut records, &mut releases);
        }
        if !records.0.is_empty() && self.master.view().revision == self.committed {
            self.deliver(Message::ToMaster(mesonet_master::Input::Touch), now, &mut records, &mut releases);
        }
        Batch { commit: self.commit(records, now), releases }
    }

    /// The state after the latest step.
    pub fn state(&self) -> State {
        let cluster = self.master.view().clone();
        let mut marathon = self.marathon.view();
        marathon.revision = cluster.revision;
        State { cluster, marathon, planes: self.planes.clone(), plane_history: self.plane_history.clone() }
    }

    /// When to step again at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        if !self.messages.is_empty() {
            return Some((Timestamp::from_millis(i64::MIN), "messages are left"));
        }
        [self.master.deadline(), self.marathon.deadline()].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn accept(&mut self, input: Input, now: Timestamp) {
        let message = match input {
            Input::Agent(report) => Message::ToMaster(mesonet_master::Input::Agent(report)),
            Input::Plane(report) => {
                self.plane_history.connected(&report.node, report.plane);
                self.planes.insert((report.node.clone(), report.plane), Arc::new(report.clone()));
                Message::ToMaster(mesonet_master::Input::Plane(report))
            }
            Input::PlaneGone { node, plane } => {
                if let Some(report) = self.planes.remove(&(node.clone(), plane)) {
                    self.plane_history.disconnected(node.clone(), plane, report.applied, now);
                }
                Message::ToMaster(mesonet_master::Input::PlaneGone { node, plane })
            }
            Input::Ahead { revision } => Message::ToMaster(mesonet_master::Input::Ahead { revision }),
            Input::NodeRevoked { node } => Message::ToMaster(mesonet_master::Input::NodeRevoked { node }),
            Input::Node { number, order } => Message::Order(number, self.order(number, order)),
            Input::Command { number, command } => {
                Message::ToMarathon(mesonet_marathon::Input::Command { number, command })
            }
        };
        self.messages.push_back(message);
    }

    /// What an operator's order is to the master.
    fn order(&mut self, number: u64, order: NodeOrder) -> mesonet_master::Input {
        match order {
            NodeOrder::Drain(agent) => mesonet_master::Input::DrainNode { agent },
            NodeOrder::Undrain(agent) => mesonet_master::Input::UndrainNode { agent },
            NodeOrder::Remove(agent) => {
                if let Some(agent) = self.master.view().agents.get(&agent) {
                    self.plane_history.forget(&AgentId::new(agent.node_name()));
                }
                mesonet_master::Input::RemoveNode { agent }
            }
            NodeOrder::ConfirmRemoval => mesonet_master::Input::ConfirmRemoval,
            NodeOrder::CreateNetwork(network) => mesonet_master::Input::CreateNetwork { number, network },
            NodeOrder::RemoveNetwork(name) => mesonet_master::Input::RemoveNetwork { number, name },
        }
    }

    fn queue_due_ticks(&mut self, now: Timestamp) {
        let is_due = |deadline: Option<(Timestamp, _)>| deadline.is_some_and(|(at, _)| at <= now);
        if is_due(self.master.deadline()) {
            self.messages.push_back(Message::ToMaster(mesonet_master::Input::Tick));
        }
        if is_due(self.marathon.deadline()) {
            self.messages.push_back(Message::ToMarathon(mesonet_marathon::Input::Tick));
        }
    }

    fn deliver(
        &mut self,
        message: Message,
        now: Timestamp,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match message {
            Message::ToMaster(input) => {
                for effect in self.master.handle(input, now) {
                    self.take_from_master(effect, records, releases);
                }
            }
            Message::Order(number, input) => {
                let before = releases.len();
                for effect in self.master.handle(input, now) {
                    self.take_from_master(effect, records, releases);
                }
                let is_refusal = |release: &Release| matches!(release, Release::Refused { .. });
                if !releases[before..].iter().any(is_refusal) {
                    releases.push(Release::Ordered { number });
                }
            }
            Message::ToMarathon(input) => {
                for effect in self.marathon.handle(input, now) {
                    self.take_from_marathon(effect, records, releases);
                }
            }
        }
    }

    fn take_from_master(
        &mut self,
        effect: mesonet_master::Effect,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match effect {
            mesonet_master::Effect::Store(write) => records.keep(write),
            mesonet_master::Effect::Agent { agent, command } => {
                releases.push(Release::Agent { agent, command });
            }
            mesonet_master::Effect::RemovalHeld { lost, of } => {
                releases.push(Release::RemovalHeld { lost, of });
            }
            mesonet_master::Effect::Refused { number, refusal } => {
                releases.push(Release::Refused { number, refusal });
            }
            mesonet_master::Effect::NetworkExhausted { network, agent } => {
                releases.push(Release::NetworkExhausted { network, agent });
            }
            mesonet_master::Effect::Warn { task, message } => releases.push(Release::Warn { task, message }),
            mesonet_master::Effect::Framework { framework, event } => {
                if let SchedulerEvent::Subscribed { framework } = &event {
                    self.marathon_id = Some(framework.clone());
                }
                // Only Marathon can be subscribed; any other framework is one of a former life and is not connected.
                if self.marathon_id.as_ref() == Some(&framework) {
                    self.messages.push_back(Message::ToMarathon(mesonet_marathon::Input::Event(event)));
                }
            }
        }
    }

    fn take_from_marathon(
        &mut self,
        effect: mesonet_marathon::Effect,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match effect {
            mesonet_marathon::Effect::Store(write) => records.keep(write),
            mesonet_marathon::Effect::Call(call) => {
                let framework =
                    self.marathon_id.clone().expect("BUG: Marathon calls before it is subscribed");
                self.messages.push_back(Message::ToMaster(mesonet_master::Input::Call { framework, call }));
            }
            mesonet_marathon::Effect::Answer { number, answer } => {
                releases.push(Release::Answer { number, answer });
            }
            mesonet_marathon::Effect::Publish(event) => releases.push(Release::Event(event)),
        }
    }

    /// A new revision is committed even if no record changed with it, because revisions are never used twice.
    fn commit(&mut self, mut records: Records, now: Timestamp) -> Option<Commit> {
        let revision = self.master.view().revision;
        if revision == self.committed {
            return None;
        }
        self.committed = revision;
        self.plane_history.committed(revision, now);
        records.keep(Write::put(Table::Cluster, CLOCK_KEY, &now));
        Some(Commit { revision, writes: records.into_writes() })
    }
}

/// When the last commit was made, by the clock of the control plane that made it. Whoever goes on from these records
/// must not be given an earlier time: what is kept until a time would be kept for too long.
pub fn committed_at(records: &[(Table, String, Vec<u8>)]) -> Timestamp {
    let mut clocks = records.iter().filter(|(table, key, _)| *table == Table::Cluster && key == CLOCK_KEY);
    clocks.find_map(|(_, _, value)| serde_json::from_slice(value).ok()).unwrap_or_default()
}

impl Records {
    fn keep(&mut self, write: Write) {
        self.0.insert((write.table, write.key), write.value);
    }

    fn into_writes(self) -> Vec<Write> {
        self.0.into_iter().map(|((table, key), value)| Write { table, key, value }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesonet_model::{AppId, EndpointState, NetworkRange, TaskState, VirtualNetwork};

    use super::*;
    use crate::master_role::{MasterSettings, marathon_as_framework, recover_marathon, recover_master};
    use crate::{memory_agents, sample_app};
    use mesonet_store::Contents;

    /// A control plane with one agent, on virtual time.
    struct Cluster {
        control_plane: ControlPlane,
        now: Timestamp,
        commits: Vec<Commit>,
        answers: BTreeMap<u64, Result<Reply, Rejection>>,
        events: Vec<Event>,
    }

    impl Cluster {
        fn start(contents: &Contents) -> Self {
            let settings = MasterSettings::at(([127, 0, 0, 1], 8080).into());
            let now = Timestamp::from_millis(1_000_000);
            let (control_plane, first) = ControlPlane::start(
                recover_master(&settings, contents, 1).expect("master"),
                recover_marathon(&settings, contents, 2).expect("marathon"),
                marathon_as_framework(settings.address, now),
                contents.revision,
                now,
            );
            let mut cluster = Self {
                control_plane,
                now,
                commits: Vec::new(),
                answers: BTreeMap::new(),
                events: Vec::new(),
            };
            cluster.settle(first);
            cluster
        }

        fn step(&mut self, inputs: Vec<Input>) {
            let batch = self.control_plane.step(inputs, self.now);
            self.settle(batch);
        }

        /// Carries out a batch and all that follows without time passing. The agent reacts at once.
        fn settle(&mut self, first: Batch) {
            let mut batch = first;
            loop {
                self.commits.extend(batch.commit);
                let mut inputs = Vec::new();
                for release in batch.releases {
                    match release {
                        Release::Agent { agent, command } => {
                            inputs.extend(memory_agents::react(&agent, &command, self.now).map(Input::Agent));
                        }
                        Release::Answer { number, answer } => {
                            assert_eq!(self.answers.insert(number, answer), None, "one answer per command");
                        }
                        Release::Event(event) => self.events.push(event),
                        Release::RemovalHeld { lost, of } => panic!("{lost} of {of} agents are lost"),
                        Release::Warn { task, message } => panic!("{task}: {message}"),
                        Release::Ordered { .. } => panic!("nothing was ordered"),
                        Release::Refused { refusal, .. } => panic!("{refusal}"),
                        Release::NetworkExhausted { network, .. } => panic!("{network}"),
                    }
                }
                if inputs.is_empty() {
                    return;
                }
                batch = self.control_plane.step(inputs, self.now);
            }
        }

        /// Lets time pass from deadline to deadline until something is so.
        fn wait_until(&mut self, what: &str, is_so: impl Fn(&State) -> bool) {
            let until = self.now.plus(Duration::from_secs(600));
            while !is_so(&self.control_plane.state()) {
                let (at, _) = self.control_plane.deadline().unwrap_or_else(|| panic!("never: {what}"));
                self.now = at.max(self.now.plus(Duration::from_millis(1)));
                assert!(self.now < until, "not in ten minutes: {what}");
                self.step(Vec::new());
            }
        }

        fn register_agent(&mut self) {
            let info = memory_agents::info(1);
            self.step(vec![Input::Agent(AgentReport::Register {
                agent: None,
                info,
                tasks: Vec::new(),
                containers: Vec::new(),
            })]);
        }

        fn put(&mut self, number: u64, instances: u32) {
            let command = sample_app::put(&web(), instances);
            self.step(vec![Input::Command { number, command }]);
        }

        /// What a store would hold.
        fn contents(&self) -> Contents {
            let mut records = Records::default();
            for write in self.commits.iter().flat_map(|commit| &commit.writes) {
                records.keep(write.clone());
            }
            let present =
                |((table, key), value): ((Table, String), Option<Vec<u8>>)| Some((table, key, value?));
            Contents {
                revision: self.commits.last().map_or(Revision::ZERO, |commit| commit.revision),
                records: records.0.into_iter().filter_map(present).collect(),
            }
        }
    }

    fn web() -> AppId {
        AppId::parse("/web").expect("valid")
    }

    fn ready_endpoints(state: &State) -> usize {
        state.cluster.endpoints.values().filter(|endpoint| endpoint.state == EndpointState::Ready).count()
    }

    #[test]
    fn a_posted_app_runs_and_has_endpoints() {
        let mut cluster = Cluster::start(&Contents::default());
        cluster.register_agent();
        cluster.put(7, 3);
        assert!(cluster.answers[&7].is_ok(), "{:?}", cluster.answers);
        cluster.wait_until("three endpoints are ready", |state| ready_endpoints(state) == 3);
        cluster.wait_until("the deployment is done", |state| state.marathon.deployments.is_empty());
        let state = cluster.control_plane.state();
        assert!(state.cluster.tasks.values().all(|task| task.state == TaskState::Running));
        assert_eq!(state.marathon.apps[&web()].counts().running, 3);
        assert_eq!(state.marathon.revision, state.cluster.revision);
        assert!(!cluster.events.is_empty());
    }

    #[test]
    fn an_app_that_fits_nowhere_is_stored_at_a_revision_of_its_own() {
        let mut cluster = Cluster::start(&Contents::default());
        let before = cluster.commits.last().map(|commit| commit.revision);
        cluster.put(1, 1);
        let commit = cluster.commits.last().expect("a commit");
        assert!(Some(commit.revision) > before);
        assert!(commit.writes.iter().any(|write| write.table == Table::Apps));
        assert!(cluster.control_plane.state().cluster.tasks.is_empty());
    }

    #[test]
    fn revisions_only_grow_and_no_record_is_written_twice_in_a_commit() {
        let mut cluster = Cluster::start(&Contents::default());
        cluster.register_agent();
        cluster.put(1, 20);
        cluster.wait_until("all run", |state| ready_endpoints(state) == 20);
        assert!(cluster.commits.is_sorted_by(|a, b| a.revision < b.revision));
        for commit in &cluster.commits {
            let keys: std::collections::BTreeSet<_> =
                commit.writes.iter().map(|write| (write.table, &write.key)).collect();
            assert_eq!(keys.len(), commit.writes.len());
        }
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let mut cluster = Cluster::start(&Contents::default());
        cluster.register_agent();
        cluster.put(1, 2);
        cluster.wait_until("both run", |state| ready_endpoints(state) == 2);
        let before = cluster.control_plane.state();
        let after = Cluster::start(&cluster.contents()).control_plane.state();
        assert!(after.cluster.revision > before.cluster.revision, "revisions are never reused");
        assert_eq!(after.cluster.cluster, before.cluster.cluster);
        assert!(after.cluster.tasks.keys().eq(before.cluster.tasks.keys()));
        assert_eq!(after.cluster.services, before.cluster.services, "VIPs keep their addresses");
        assert!(
            after.marathon.apps[&web()].instances.keys().eq(before.marathon.apps[&web()].instances.keys())
        );
    }

    #[test]
    fn the_time_of_the_last_commit_is_kept() {
        let mut cluster = Cluster::start(&Contents::default());
        assert_eq!(committed_at(&cluster.contents().records), cluster.now);
        cluster.now = cluster.now.plus(Duration::from_secs(7));
        cluster.put(1, 1);
        assert_eq!(committed_at(&cluster.contents().records), cluster.now);
        assert_eq!(committed_at(&[]), Timestamp::default(), "a new cluster");
    }

    #[test]
    fn orders_are_answered_by_the_step_that_carries_them_out() {
        let mut cluster = Cluster::start(&Contents::default());
        let name: NetworkName = "blue".parse().expect("name");
        let range = NetworkRange { subnet: "10.9.0.0/16".parse().expect("subnet"), node_prefix: 24 };
        let network = VirtualNetwork { name: name.clone(), ipv4: Some(range), ipv6: None };
        let order = |number| Input::Node { number, order: NodeOrder::CreateNetwork(network.clone()) };
        let gone = Input::PlaneGone { node: AgentId::new("n"), plane: Plane::Dns };
        let backlog = std::iter::repeat_n(gone, MESSAGES_MAX);
        let first = cluster.control_plane.step(backlog.chain([order(1), order(2)]), cluster.now);
        assert_eq!(first.releases, [], "neither has had its turn");
        let second = cluster.control_plane.step([], cluster.now);
        assert!(second.commit.is_some());
        let refused = Release::Refused { number: 2, refusal: NetworkRefusal::Exists(name) };
        assert_eq!(second.releases, [Release::Ordered { number: 1 }, refused]);
    }

    #[test]
    fn a_refused_command_is_answered_without_a_commit() {
        let mut cluster = Cluster::start(&Contents::default());
        cluster.put(1, 1);
        let commits = cluster.commits.len();
        cluster.put(2, 1);
        assert_eq!(cluster.answers[&2], Err(Rejection::AppExists(web())));
        assert_eq!(cluster.commits.len(), commits);
    }
}
