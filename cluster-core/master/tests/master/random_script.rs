//! Anything in any order: what must hold after each step of a random script.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesonet_master::{Effect, Input, Master, Recovered};
use mesonet_model::{
    Agent, AgentId, AgentReport, AgentState, Attachment, ClusterId, ClusterView, Endpoint, EndpointKey,
    FrameworkId, NetworkRange, Offer, OfferId, Plane, Resources, Revision, RunningTask, Scalar,
    SchedulerCall, SchedulerEvent, TaskId, TaskKey, TaskNetworking, TaskSpec, TaskState, Timestamp,
    VirtualNetwork,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::cluster::{Cluster, agent_info, config, host_port};
use crate::networks::{check_parts, joined_container};
use crate::reference::{check_lost_tasks, check_services, endpoints_from_scratch};

const AGENTS: u8 = 3;
const FRAMEWORKS: [&str; 2] = ["marathon", "other"];
/// Few, so that ids are used twice.
const TASKS: u8 = 6;
const NETWORKS: u8 = 2;

#[derive(Debug, Clone)]
enum Step {
    Accept { offer: Index, tasks: Vec<Launch>, refuse: u64 },
    Decline { offer: Index, refuse: u64 },
    AcceptUnknown { agent: u8, task: Launch },
    Kill { framework: usize, task: u8 },
    SetServing { framework: usize, task: u8, healthy: Option<bool>, ready: Option<bool> },
    Revive { framework: usize },
    Suppress { framework: usize },
    Reconcile { framework: usize },
    Subscribe { framework: usize },
    Register { agent: u8, cpus: i64, address: u8, keeps: Vec<Index>, state: TaskState },
    Disconnect { agent: u8 },
    Drain { agent: u8, draining: bool },
    Remove { agent: u8 },
    ConfirmRemoval,
    CreateNetwork { network: u8 },
    RemoveNetwork { network: u8 },
    Containers { agent: u8, joined: Vec<(u8, bool)> },
    Report { agent: u8, framework: usize, task: u8, state: TaskState, age: i64, addresses: bool },
    Plane { node: u8, plane: Plane, behind: u64, busy: Vec<u8> },
    PlaneGone { node: u8, plane: Plane },
    Pass { seconds: u64 },
    Touch,
    Restart,
}

#[derive(Debug, Clone)]
struct Launch {
    task: u8,
    cpus: i64,
    port: u16,
    label: &'static str,
    on_host: bool,
    health_checked: bool,
    /// The virtual network that it is in, if any.
    network: Option<u8>,
}

fn launch() -> impl Strategy<Value = Launch> {
    let label = prop::sample::select(vec!["/web:80", "web:443", "/api.v1:80", "11.225.36.193:80", "bad"]);
    let network = prop::option::weighted(0.3, 0..NETWORKS);
    (0..TASKS, 0..4_i64, 31000..31004_u16, label, any::<bool>(), any::<bool>(), network).prop_map(
        |(task, cpus, port, label, on_host, health_checked, network)| Launch {
            task,
            cpus,
            port,
            label,
            on_host,
            health_checked,
            network,
        },
    )
}

fn state() -> impl Strategy<Value = TaskState> {
    use TaskState::{Failed, Finished, Killed, Killing, Running, Staging, Starting};
    prop::sample::select(vec![
        Staging, Starting, Running, Running, Running, Killing, Finished, Failed, Killed,
    ])
}

fn plane() -> impl Strategy<Value = Plane> {
    prop::sample::select(vec![Plane::Dns, Plane::Lb])
}

fn step() -> impl Strategy<Value = Step> {
    let framework = || 0..FRAMEWORKS.len();
    let agent = || 0..AGENTS;
    let refuse = || prop::sample::select(vec![0_u64, 5, 3600]);
    let calls = prop_oneof![
        6 => (any::<Index>(), prop::collection::vec(launch(), 0..3), refuse())
            .prop_map(|(offer, tasks, refuse)| Step::Accept { offer, tasks, refuse }),
        2 => (any::<Index>(), refuse()).prop_map(|(offer, refuse)| Step::Decline { offer, refuse }),
        1 => (agent(), launch()).prop_map(|(agent, task)| Step::AcceptUnknown { agent, task }),
        2 => (framework(), 0..TASKS).prop_map(|(framework, task)| Step::Kill { framework, task }),
        2 => (framework(), 0..TASKS, any::<Option<bool>>(), any::<Option<bool>>())
            .prop_map(|(framework, task, healthy, ready)| Step::SetServing { framework, task, healthy, ready }),
        1 => framework().prop_map(|framework| Step::Revive { framework }),
        1 => framework().prop_map(|framework| Step::Suppress { framework }),
        1 => framework().prop_map(|framework| Step::Reconcile { framework }),
        1 => framework().prop_map(|framework| Step::Subscribe { framework }),
    ];
    let nodes = prop_oneof![
        3 => (agent(), 1..5_i64, 1..9_u8, prop::collection::vec(any::<Index>(), 0..4), state())
            .prop_map(|(agent, cpus, address, keeps, state)| Step::Register { agent, cpus, address, keeps, state }),
        2 => agent().prop_map(|agent| Step::Disconnect { agent }),
        1 => (agent(), any::<bool>()).prop_map(|(agent, draining)| Step::Drain { agent, draining }),
        1 => (0..NETWORKS).prop_map(|network| Step::CreateNetwork { network }),
        1 => (0..NETWORKS).prop_map(|network| Step::RemoveNetwork { network }),
        2 => (agent(), prop::collection::vec((0..NETWORKS, any::<bool>()), 0..4))
            .prop_map(|(agent, joined)| Step::Containers { agent, joined }),
        1 => prop_oneof![3 => Just(Step::ConfirmRemoval), 1 => agent().prop_map(|agent| Step::Remove { agent })],
        8 => (agent(), framework(), 0..TASKS, state(), 0..3_i64, any::<bool>()).prop_map(
            |(agent, framework, task, state, age, addresses)| {
                Step::Report { agent, framework, task, state, age, addresses }
            }
        ),
        2 => (agent(), plane(), 0..3_u64, prop::collection::vec(0..TASKS, 0..2))
            .prop_map(|(node, plane, behind, busy)| Step::Plane { node, plane, behind, busy }),
        1 => (agent(), plane()).prop_map(|(node, plane)| Step::PlaneGone { node, plane }),
    ];
    let rest = prop_oneof![
        4 => prop::sample::select(vec![1_u64, 3, 7, 31, 700, 90_000]).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Touch),
        1 => Just(Step::Restart),
    ];
    prop_oneof![4 => calls, 4 => nodes, 1 => rest]
}

/// A network of two nodes with room for one task each.
fn small_network(number: u8) -> VirtualNetwork {
    let subnet = format!("10.{}.0.0/29", 100 + number).parse().expect("range");
    let ipv4 = Some(NetworkRange { subnet, node_prefix: 30 });
    VirtualNetwork { name: format!("net{number}").parse().expect("name"), ipv4, ipv6: None }
}

struct Script {
    cluster: Cluster,
    agents: BTreeMap<u8, AgentId>,
    frameworks: Vec<FrameworkId>,
    offers: BTreeMap<OfferId, (FrameworkId, Offer)>,
    /// What agents run and the master does not have.
    strangers: BTreeMap<AgentId, BTreeMap<TaskKey, Resources>>,
}

impl Script {
    fn new() -> Self {
        let mut cluster = Cluster::without_framework(config());
        let frameworks = FRAMEWORKS.map(|name| cluster.subscribe(name)).to_vec();
        let (agents, offers, strangers) = Default::default();
        Self { cluster, agents, frameworks, offers, strangers }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Accept { offer, tasks, refuse } => {
                let Some((framework, offer)) = self.take_offer(offer) else { return };
                let specs = tasks.iter().map(|task| self.spec(&framework, &offer.agent, task)).collect();
                let refuse = Duration::from_secs(refuse);
                self.call(framework, SchedulerCall::Accept { offer: offer.id, tasks: specs, refuse });
            }
            Step::Decline { offer, refuse } => {
                let Some((framework, offer)) = self.take_offer(offer) else { return };
                let refuse = Duration::from_secs(refuse);
                self.call(framework, SchedulerCall::Decline { offer: offer.id, refuse });
            }
            Step::AcceptUnknown { agent, task } => {
                let framework = self.frameworks[0].clone();
                let spec = self.spec(&framework, &self.agent(agent), &task);
                let (offer, refuse) = (OfferId::new("none"), Duration::ZERO);
                self.call(framework, SchedulerCall::Accept { offer, tasks: vec![spec], refuse });
            }
            Step::Kill { framework, task } => {
                self.call(self.frameworks[framework].clone(), SchedulerCall::Kill { task: task_id(task) });
            }
            Step::SetServing { framework, task, healthy, ready } => {
                let call = SchedulerCall::SetServing { task: task_id(task), healthy, ready };
                self.call(self.frameworks[framework].clone(), call);
            }
            Step::Revive { framework } => {
                let framework = self.frameworks[framework].clone();
                self.call(framework.clone(), SchedulerCall::Revive);
                self.collect();
                self.check_nothing_is_kept_from(&framework);
            }
            Step::Suppress { framework } => {
                self.call(self.frameworks[framework].clone(), SchedulerCall::Suppress);
            }
            Step::Reconcile { framework } => {
                let call = SchedulerCall::Reconcile { tasks: Vec::new() };
                self.call(self.frameworks[framework].clone(), call);
            }
            Step::Subscribe { framework } => {
                let id = &self.frameworks[framework];
                self.offers.retain(|_, (of, _)| of != id);
                assert_eq!(self.cluster.subscribe(FRAMEWORKS[framework]), *id);
            }
            Step::Pass { seconds } => self.cluster.pass(Duration::from_secs(seconds)),
            Step::Touch => self.cluster.handle(Input::Touch),
            Step::Restart => {
                self.cluster.restart();
                self.offers.clear();
                self.strangers.clear();
                for name in FRAMEWORKS {
                    self.cluster.subscribe(name);
                }
            }
            Step::Register { .. }
            | Step::Disconnect { .. }
            | Step::Drain { .. }
            | Step::Remove { .. }
            | Step::ConfirmRemoval
            | Step::CreateNetwork { .. }
            | Step::RemoveNetwork { .. }
            | Step::Containers { .. }
            | Step::Report { .. }
            | Step::Plane { .. }
            | Step::PlaneGone { .. } => self.run_node(step),
        }
    }

    fn run_node(&mut self, step: Step) {
        match step {
            Step::Register { agent, cpus, address, keeps, state } => {
                self.register(agent, cpus, address, &keeps, state)
            }
            Step::Disconnect { agent } => self.cluster.disconnect(&self.agent(agent)),
            Step::Drain { agent, draining: true } => {
                self.cluster.handle(Input::DrainNode { agent: self.agent(agent) });
            }
            Step::Drain { agent, draining: false } => {
                self.cluster.handle(Input::UndrainNode { agent: self.agent(agent) });
            }
            Step::Remove { agent } => {
                self.cluster.handle(Input::RemoveNode { agent: self.agent(agent) });
                self.agents.remove(&agent);
            }
            Step::ConfirmRemoval => self.cluster.handle(Input::ConfirmRemoval),
            Step::CreateNetwork { network } => {
                let network = small_network(network);
                self.cluster.handle(Input::CreateNetwork { number: 1, network });
            }
            Step::RemoveNetwork { network } => {
                let name = small_network(network).name;
                self.cluster.handle(Input::RemoveNetwork { number: 2, name });
            }
            Step::Containers { agent, joined } => {
                let agent = self.agent(agent);
                let containers = joined.into_iter().map(|(network, is_second)| {
                    let address = [10, 100 + network, 0, if is_second { 6 } else { 2 }];
                    joined_container(&agent, small_network(network).name.as_str(), "c", &[address.into()])
                });
                let containers = containers.collect();
                self.cluster.handle(Input::Agent(AgentReport::Containers { agent, containers }));
            }
            Step::Report { agent, framework, task, state, age, addresses } => {
                self.cluster.framework = self.frameworks[framework].clone();
                let task = task_id(task);
                let agent = self.agent(agent);
                let mut status = self.cluster.status(&agent, task.as_str(), state);
                if state.is_terminal() {
                    self.note_end(&agent, &status.task);
                }
                status.timestamp = Timestamp::from_millis(status.timestamp.as_millis() - age * 1000);
                if addresses {
                    status.addresses = vec![[9, 0, 0, 1].into(), "fd01:b::1".parse().expect("address")];
                }
                self.cluster.handle(Input::Agent(AgentReport::Status(Box::new(status))));
            }
            Step::Plane { node, plane, behind, busy } => {
                let applied = Revision(self.cluster.view().revision.0.saturating_sub(behind));
                let busy: Vec<TaskId> = busy.into_iter().map(task_id).collect();
                let busy: Vec<&str> = busy.iter().map(TaskId::as_str).collect();
                self.cluster.plane(&self.agent(node), plane, applied, &busy);
            }
            Step::PlaneGone { node, plane } => self.cluster.plane_gone(&self.agent(node), plane),
            _ => unreachable!("handled by run"),
        }
    }

    /// The agent comes back with some of the tasks that the master believes to be anywhere, and maybe a stranger.
    fn register(&mut self, agent: u8, cpus: i64, address: u8, keeps: &[Index], state: TaskState) {
        let id = self.agents.get(&agent).cloned();
        let known: Vec<TaskSpec> = self
            .cluster
            .view()
            .tasks
            .values()
            .map(|task| {
                let stranger = Launch {
                    task: 0,
                    cpus: 1,
                    port: 31000,
                    label: "bad",
                    on_host: true,
                    health_checked: false,
                    network: None,
                };
                let spec = self.spec(&task.key.framework, &task.agent, &stranger);
                TaskSpec { key: task.key.clone(), ..spec }
            })
            .collect();
        let mut tasks = Vec::new();
        for spec in keeps.iter().filter(|_| !known.is_empty()).map(|keep| keep.get(&known)) {
            self.cluster.framework = spec.key.framework.clone();
            let status = self.cluster.status(&spec.agent, spec.key.task.as_str(), state);
            tasks.push(RunningTask { spec: spec.clone(), status });
        }
        // One that was away for too long is another one.
        let id = id.filter(|id| self.cluster.view().agents.contains_key(id));
        let given = self.cluster.register(id.as_ref(), agent_info(address, cpus), tasks.clone());
        assert!(id.is_none_or(|id| id == given), "an agent keeps its id");
        let view = self.cluster.view();
        let is_stranger = |key: &TaskKey| view.tasks.get(key).is_none_or(|task| task.agent != given);
        let strangers = tasks.into_iter().map(|task| (task.spec.key, task.spec.resources));
        let strangers = strangers.filter(|(key, _)| !state.is_terminal() && is_stranger(key)).collect();
        self.strangers.insert(given.clone(), strangers);
        self.agents.insert(agent, given);
    }

    /// An agent, maybe by an id that it had before, says that a task has ended.
    fn note_end(&mut self, agent: &AgentId, task: &TaskKey) {
        let agents = &self.cluster.view().agents;
        let running = match agents.get(agent) {
            Some(known) if known.state == AgentState::Active => self.strangers.get_mut(agent),
            Some(_) => None,
            None => {
                let mut there = self.strangers.iter_mut().filter(|(id, _)| agents.contains_key(*id));
                there.find(|(_, tasks)| tasks.contains_key(task)).map(|(_, tasks)| tasks)
            }
        };
        if let Some(running) = running {
            running.remove(task);
        }
    }

    fn call(&mut self, framework: FrameworkId, call: SchedulerCall) {
        self.cluster.handle(Input::Call { framework, call });
    }

    fn agent(&self, agent: u8) -> AgentId {
        self.agents.get(&agent).cloned().unwrap_or_else(|| AgentId::new("c-S99"))
    }

    fn take_offer(&mut self, index: Index) -> Option<(FrameworkId, Offer)> {
        if self.offers.is_empty() {
            return None;
        }
        let id = self.offers.keys().nth(index.index(self.offers.len()))?.clone();
        self.offers.remove(&id)
    }

    fn spec(&self, framework: &FrameworkId, agent: &AgentId, launch: &Launch) -> TaskSpec {
        let mut port = host_port(launch.port, launch.label);
        if !launch.on_host {
            port.labels.remove("network-scope");
        }
        let mut spec = self.cluster.spec(agent, task_id(launch.task).as_str(), vec![port]);
        spec.key.framework = framework.clone();
        spec.resources.cpus = Scalar::from_units(launch.cpus);
        spec.health_checked = launch.health_checked;
        spec.networking = launch.network.map(|network| TaskNetworking {
            attachments: vec![Attachment { network: Some(small_network(network).name), subnets: Vec::new() }],
            mappings: Vec::new(),
        });
        spec
    }

    /// Notes what was offered.
    fn collect(&mut self) {
        for effect in std::mem::take(&mut self.cluster.said) {
            match effect {
                Effect::Framework { framework, event: SchedulerEvent::Offers(offers) } => {
                    self.offers.extend(
                        offers.into_iter().map(|offer| (offer.id.clone(), (framework.clone(), offer))),
                    );
                }
                Effect::Framework { event: SchedulerEvent::Rescind(offer), .. } => {
                    self.offers.remove(&offer).expect("an offer that is held");
                }
                Effect::Store(_)
                | Effect::Agent { .. }
                | Effect::Framework { .. }
                | Effect::RemovalHeld { .. }
                | Effect::Refused { .. }
                | Effect::NetworkExhausted { .. }
                | Effect::Warn { .. } => {}
            }
        }
    }

    /// Everything that an active agent has left is offered, to this framework or to another one.
    fn check_nothing_is_kept_from(&self, framework: &FrameworkId) {
        let is_offered = |agent: &&Arc<Agent>| agent.state == AgentState::Active && !agent.draining;
        for agent in self.cluster.view().agents.values().filter(is_offered) {
            let holds = self.offers.values().any(|(of, offer)| of == framework && offer.agent == agent.id);
            let left = self.left(agent);
            assert!(holds || left.cpus <= Scalar::ZERO, "{} has {left:?} that nobody is offered", agent.id);
        }
    }

    /// What neither tasks nor offers take of an agent.
    fn left(&self, agent: &Agent) -> Resources {
        let mut left = agent.info.resources.clone();
        let offers = self.offers.values().filter(|(_, offer)| offer.agent == agent.id);
        for resources in self.used(agent).chain(offers.map(|(_, offer)| &offer.resources)) {
            left.subtract(resources);
        }
        left
    }

    /// What each task on an agent uses.
    fn used(&self, agent: &Agent) -> impl Iterator<Item = &Resources> {
        let tasks = self.cluster.view().tasks.values().filter(|task| task.agent == agent.id);
        tasks.map(|task| &task.resources).chain(self.of_strangers(agent))
    }

    fn of_strangers(&self, agent: &Agent) -> impl Iterator<Item = &Resources> {
        self.strangers.get(&agent.id).into_iter().flat_map(BTreeMap::values)
    }

    fn check(&mut self) {
        self.collect();
        self.check_resources();
        let view = self.cluster.view();
        let endpoints: BTreeMap<EndpointKey, Endpoint> =
            view.endpoints.iter().map(|(key, endpoint)| (key.clone(), endpoint.as_ref().clone())).collect();
        assert_eq!(endpoints, endpoints_from_scratch(view));
        check_services(view);
        check_lost_tasks(view);
        check_parts(view);
        self.check_recovery();
    }

    /// Nothing is given twice, unless an agent came back with less than its tasks use.
    fn check_resources(&self) {
        let view = self.cluster.view();
        let mut holders = BTreeSet::new();
        for (framework, offer) in self.offers.values() {
            assert!(holders.insert((framework, &offer.agent)), "two offers of one agent to one framework");
            let agent = &view.agents[&offer.agent];
            assert!(agent.state == AgentState::Active && !agent.draining, "{agent:?} is offered");
            assert!(offer.resources.cpus >= Scalar::ZERO && offer.resources.mem >= Scalar::ZERO);
        }
        for agent in view.agents.values() {
            let used: Scalar = self.used(agent).map(|resources| resources.cpus).sum();
            let left = self.left(agent);
            assert!(
                left.cpus >= Scalar::ZERO || used > agent.info.resources.cpus,
                "{} is overbooked by offers",
                agent.id
            );
            let mut ports = BTreeSet::new();
            let of_tasks =
                view.tasks.values().filter(|task| task.agent == agent.id).map(|task| &task.resources);
            let of_offers = self
                .offers
                .values()
                .filter(|(_, offer)| offer.agent == agent.id)
                .map(|(_, offer)| &offer.resources);
            for port in of_tasks.chain(of_offers.clone()).flat_map(|resources| resources.ports.iter()) {
                assert!(ports.insert(port), "port {port} of {} is given twice", agent.id);
            }
            let offered: BTreeSet<u16> = of_offers.flat_map(|resources| resources.ports.iter()).collect();
            for port in self.of_strangers(agent).flat_map(|resources| resources.ports.iter()) {
                assert!(!offered.contains(&port), "port {port} of {} has not been left", agent.id);
            }
        }
    }

    /// A master that begins from what was written so far sees the same cluster.
    fn check_recovery(&self) {
        let records: Recovered = self
            .cluster
            .records
            .iter()
            .map(|((table, key), value)| (*table, key.clone(), value.clone()))
            .collect();
        let view = self.cluster.view();
        let recovered =
            Master::recover(config(), ClusterId::new("c"), view.revision, &records).expect("own records");
        let mut agents = view.agents.clone();
        for (id, agent) in &view.agents {
            if agent.state == AgentState::Active {
                let agent = Agent { state: AgentState::Recovered, ..agent.as_ref().clone() };
                agents.insert(id.clone(), Arc::new(agent));
            }
        }
        let mut masters = view.masters.clone();
        for (id, master) in &view.masters {
            // A master that begins has not looked yet.
            let master = mesonet_model::Master { removal_held: false, ..master.as_ref().clone() };
            masters.insert(id.clone(), Arc::new(master));
        }
        let expected = ClusterView { agents, masters, revision: view.revision.next(), ..view.clone() };
        assert_eq!(*recovered.view(), expected);
    }
}

fn task_id(task: u8) -> TaskId {
    TaskId::new(format!("t{task}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_the_cluster_is_consistent(steps in prop::collection::vec(step(), 1..80)) {
        let mut script = Script::new();
        script.check();
        for step in steps {
            script.run(step);
            script.check();
        }
    }
}
