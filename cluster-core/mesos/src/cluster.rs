//! The cluster as a view that follows from facts: one thing changes, and what depends on it changes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;
use mesonet_master::{Published, Vips, endpoints_of};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterView, Framework, FrameworkId, Resources, Task, TaskId,
    TaskKey, TaskNetwork, TaskState, Timestamp,
};

use crate::Options;
use crate::facts::{AgentFacts, FrameworkFacts, TaskFacts};
use crate::hosts::Hosts;
use crate::services::Services;
use crate::{masters, ports};

/// Where an agent's address comes from first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressOrder {
    /// The address that its process listens at, as with mesos-dns; its host name only if that is an address itself.
    ProcessFirst,
    /// Its host name, as with dcos-net.
    HostNameFirst,
}

/// What is known of a cluster, and the view that follows from it.
#[derive(Debug)]
pub(crate) struct Cluster {
    view: ClusterView,
    /// Whether `view` has changed since it was given away.
    has_changed: bool,
    now: Timestamp,
    address_order: AddressOrder,
    hosts: Hosts,
    /// All masters and the leading one, `host:port`.
    masters: (Vec<String>, Option<String>),
    agents: BTreeMap<AgentId, AgentFacts>,
    frameworks: BTreeMap<FrameworkId, FrameworkFacts>,
    tasks: BTreeMap<TaskKey, TaskFacts>,
    placements: BTreeSet<(AgentId, TaskKey)>,
    services: Services,
}

impl Cluster {
    pub(crate) fn new(options: Options, address_order: AddressOrder) -> Self {
        let mut view = ClusterView::empty(options.cluster);
        view.revision = options.first_revision;
        Self {
            view,
            // Even an empty cluster is news at first.
            has_changed: true,
            now: Timestamp::default(),
            address_order,
            hosts: Hosts::default(),
            masters: (options.masters, None),
            agents: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            tasks: BTreeMap::new(),
            placements: BTreeSet::new(),
            services: Services::new(Vips::in_ranges(options.vip_range_v4, options.vip_range_v6)),
        }
    }

    pub(crate) fn advance(&mut self, now: Timestamp) {
        self.now = now;
        self.services.expire(now);
    }

    /// The view, at a revision of its own if anything changed.
    pub(crate) fn commit(&mut self) -> &ClusterView {
        if std::mem::take(&mut self.has_changed) {
            self.view.revision = self.view.revision.next();
        }
        &self.view
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed
    }

    pub(crate) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    // === masters ===

    pub(crate) fn set_masters(&mut self, masters: Vec<String>) {
        self.masters.0 = masters;
        self.rebuild_masters();
    }

    pub(crate) fn set_leader(&mut self, leader: Option<String>) {
        self.masters.1 = leader;
        self.rebuild_masters();
    }

    fn rebuild_masters(&mut self) {
        let (list, leader) = &self.masters;
        let masters = masters::numbered(list, leader.as_deref(), &mut self.hosts);
        let new: OrdMap<_, _> =
            masters.into_iter().map(|master| (master.id.clone(), Arc::new(master))).collect();
        if new != self.view.masters {
            self.view.masters = new;
            self.has_changed = true;
        }
    }

    // === host names ===

    /// Takes what a host name was resolved to, and puts things where they are then.
    pub(crate) fn set_host(&mut self, host: &str, addresses: &[IpAddr]) {
        if !self.hosts.set(host, addresses) {
            return;
        }
        let is_at = |place: &Option<crate::hosts::HostPort>, hostname: &str| {
            hostname == host || place.as_ref().is_some_and(|place| place.host == host)
        };
        let agents = self.agents.values().filter(|agent| is_at(&agent.endpoint, &agent.hostname));
        for id in agents.map(|agent| agent.id.clone()).collect::<Vec<_>>() {
            self.rebuild_agent(&id);
        }
        let frameworks = self.frameworks.values().filter(|each| is_at(&each.endpoint, &each.hostname));
        for id in frameworks.map(|framework| framework.id.clone()).collect::<Vec<_>>() {
            self.rebuild_framework(&id);
        }
        self.rebuild_masters();
    }

    // === agents ===

    pub(crate) fn set_agent(&mut self, facts: AgentFacts) {
        let id = facts.id.clone();
        if self.agents.get(&id) != Some(&facts) {
            self.agents.insert(id.clone(), facts);
            self.rebuild_agent(&id);
        }
    }

    /// Removes an agent. Its tasks stay, to be removed or to wait for it.
    pub(crate) fn remove_agent(&mut self, id: &AgentId) {
        if self.agents.remove(id).is_some() {
            self.view.agents.remove(id);
            self.has_changed = true;
            for task in self.tasks_on(id) {
                self.rebuild_task(&task);
            }
        }
    }

    pub(crate) fn agent_ids(&self) -> Vec<AgentId> {
        self.agents.keys().cloned().collect()
    }

    pub(crate) fn tasks_on(&self, agent: &AgentId) -> Vec<TaskKey> {
        let first = (agent.clone(), first_task_of(&FrameworkId::new("")));
        let on_agent = self.placements.range(first..).take_while(|(other, _)| other == agent);
        on_agent.map(|(_, task)| task.clone()).collect()
    }

    fn rebuild_agent(&mut self, id: &AgentId) {
        let Some(facts) = self.agents.get(id) else { return };
        let new = agent(facts, self.address_order, &mut self.hosts);
        if self.view.agents.get(id).is_some_and(|old| **old == new) {
            return;
        }
        self.view.agents.insert(id.clone(), Arc::new(new));
        self.has_changed = true;
        for task in self.tasks_on(id) {
            self.rebuild_task(&task);
        }
    }

    // === frameworks ===

    pub(crate) fn set_framework(&mut self, facts: FrameworkFacts) {
        let id = facts.id.clone();
        if self.frameworks.get(&id) != Some(&facts) {
            self.frameworks.insert(id.clone(), facts);
            self.rebuild_framework(&id);
        }
    }

    /// Removes a framework. Its tasks stay, to be removed or to wait for it.
    pub(crate) fn remove_framework(&mut self, id: &FrameworkId) {
        if self.frameworks.remove(id).is_some() {
            self.view.frameworks.remove(id);
            self.has_changed = true;
            for task in self.tasks_of(id) {
                self.rebuild_task(&task);
            }
        }
    }

    pub(crate) fn framework_ids(&self) -> Vec<FrameworkId> {
        self.frameworks.keys().cloned().collect()
    }

    pub(crate) fn tasks_of(&self, framework: &FrameworkId) -> Vec<TaskKey> {
        let tasks = self.tasks.range(first_task_of(framework)..);
        tasks.map(|(key, _)| key).take_while(|key| key.framework == *framework).cloned().collect()
    }

    fn rebuild_framework(&mut self, id: &FrameworkId) {
        let Some(facts) = self.frameworks.get(id) else { return };
        let new = framework(facts, &mut self.hosts);
        let old = self.view.frameworks.insert(id.clone(), Arc::new(new.clone()));
        self.has_changed |= old.as_deref() != Some(&new);
        if old.is_none_or(|old| old.name != new.name) {
            for task in self.tasks_of(id) {
                self.rebuild_task(&task);
            }
        }
    }

    // === tasks ===

    pub(crate) fn task(&self, key: &TaskKey) -> Option<&TaskFacts> {
        self.tasks.get(key)
    }

    pub(crate) fn task_keys(&self) -> Vec<TaskKey> {
        self.tasks.keys().cloned().collect()
    }

    /// Adds a task or changes it. One that has ended is removed.
    pub(crate) fn set_task(&mut self, facts: TaskFacts) {
        let key = facts.key.clone();
        if facts.state.is_terminal() {
            self.remove_task(&key);
            return;
        }
        match self.tasks.get(&key) {
            Some(old) if *old == facts => return,
            Some(old) => {
                self.placements.remove(&(old.agent.clone(), key.clone()));
            }
            None => {}
        }
        self.placements.insert((facts.agent.clone(), key.clone()));
        self.tasks.insert(key.clone(), facts);
        self.rebuild_task(&key);
    }

    pub(crate) fn remove_task(&mut self, key: &TaskKey) {
        if let Some(old) = self.tasks.remove(key) {
            self.placements.remove(&(old.agent, key.clone()));
            self.view.tasks.remove(key);
            self.services.replace(&mut self.view, key, Published::default(), self.now);
            self.has_changed = true;
        }
    }

    fn rebuild_task(&mut self, key: &TaskKey) {
        let Some(facts) = self.tasks.get(key) else { return };
        let agent = self.view.agents.get(&facts.agent).cloned();
        let new = task(facts, agent.as_deref(), self.view.tasks.get(key).map(|old| &**old), self.now);
        let known = agent.filter(|agent| !agent.info.address.is_unspecified());
        let endpoints = match (known, self.view.frameworks.get(&key.framework)) {
            (Some(agent), Some(framework)) => endpoints_of(&new, agent.info.address, &framework.name),
            _ => Published::default(),
        };
        self.has_changed |= self.services.replace(&mut self.view, key, endpoints, self.now);
        if self.view.tasks.get(key).is_none_or(|old| **old != new) {
            self.view.tasks.insert(key.clone(), Arc::new(new));
            self.has_changed = true;
        }
    }
}

/// The agent that facts make.
fn agent(facts: &AgentFacts, order: AddressOrder, hosts: &mut Hosts) -> Agent {
    let process = facts.endpoint.as_ref().map(|endpoint| hosts.addresses(&endpoint.host)).unwrap_or_default();
    // A name is only looked up if it is needed: there may be thousands of agents.
    let is_needed = order == AddressOrder::HostNameFirst || process.is_empty();
    let by_name = match crate::hosts::literal(&facts.hostname) {
        Some(address) => vec![address],
        None if is_needed => hosts.addresses(&facts.hostname),
        None => Vec::new(),
    };
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let address = by_name.first().or(process.first()).copied().unwrap_or(unknown);
    Agent {
        id: facts.id.clone(),
        info: AgentInfo {
            hostname: facts.hostname.clone(),
            address,
            port: facts.endpoint.as_ref().map_or(0, |endpoint| endpoint.port),
            resources: Resources::default(),
            attributes: Vec::new(),
            container_networks: false,
        },
        other_addresses: if process == [address] { Vec::new() } else { process },
        state: if facts.active { AgentState::Active } else { AgentState::Suspect },
        draining: false,
        registered_at: Timestamp::default(),
    }
}

/// The framework that facts make. Its scheduler is where its process listens, else where its host name leads.
fn framework(facts: &FrameworkFacts, hosts: &mut Hosts) -> Framework {
    let host = facts.endpoint.as_ref().map_or(&facts.hostname, |endpoint| &endpoint.host);
    let addresses = hosts.addresses(host);
    let port = facts.endpoint.as_ref().map(|endpoint| endpoint.port);
    let address = addresses.first().zip(port).map(|(address, port)| SocketAddr::new(*address, port));
    let is_complete = matches!((&address, addresses.as_slice()), (Some(_), [_]));
    Framework {
        id: facts.id.clone(),
        name: facts.name.clone(),
        user: facts.user.clone(),
        role: facts.role.clone(),
        hostname: facts.hostname.clone(),
        address,
        other_addresses: if is_complete { Vec::new() } else { addresses },
        webui_url: facts.webui_url.clone(),
        active: facts.active,
        registered_at: Timestamp::default(),
    }
}

/// The task that facts make on an agent, whose earlier form may be known.
fn task(facts: &TaskFacts, agent: Option<&Agent>, old: Option<&Task>, now: Timestamp) -> Task {
    let agent_address = agent.map(|agent| agent.info.address).into_iter();
    let agent_addresses: Vec<IpAddr> =
        agent_address.chain(agent.into_iter().flat_map(Agent::endpoint_addresses)).collect();
    let container = facts.latest.netinfo.clone();
    let on_host = ports::is_on_host(&container, &agent_addresses);
    let running = facts.running.as_ref();
    let network = TaskNetwork {
        netinfo: running.map(|status| status.netinfo.clone()).unwrap_or_default(),
        mesos: running.map(|status| status.mesos.clone()).unwrap_or_default(),
        docker: running.map(|status| status.docker.clone()).unwrap_or_default(),
        shared_id: facts.shared_id.clone(),
        ports: ports::of_task(facts, on_host),
        container,
    };
    let runs = facts.state == TaskState::Running;
    let is_same_state = old.is_some_and(|old| old.state == facts.state);
    let task = Task {
        key: facts.key.clone(),
        name: facts.name.clone(),
        agent: facts.agent.clone(),
        state: facts.state,
        resources: Resources { ports: facts.resource_ports.clone(), ..Resources::default() },
        discovery: facts.discovery.clone(),
        labels: facts.labels.clone(),
        addresses: if on_host { Vec::new() } else { network.container.clone() },
        network: Some(Arc::new(network)),
        healthy: facts.healthy(),
        ready: true,
        draining: false,
        ready_since: None,
        suspect: agent.is_some_and(|agent| agent.state.is_lost()),
        staged_at: old.map_or(now, |old| old.staged_at),
        started_at: old.and_then(|old| old.started_at).or(runs.then_some(now)),
        updated_at: old.filter(|_| is_same_state).map_or(now, |old| old.updated_at),
    };
    task.with_readiness(old, now)
}

/// A key that sorts before every task of a framework.
fn first_task_of(framework: &FrameworkId) -> TaskKey {
    TaskKey::new(framework.clone(), TaskId::new(""))
}
