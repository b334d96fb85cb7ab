//! Views for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_dns_zone::{Config, ZoneFollower};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, Discovery, DiscoveryPort,
    Framework, FrameworkId, Master, MasterId, PortRanges, Resources, Revision, Service, Task, TaskId,
    TaskKey, TaskState, Timestamp,
};

/// The framework that tasks belong to if nothing else is said.
pub const FRAMEWORK: &str = "fw-0000";

/// A view with one framework, named marathon.
pub fn view() -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("c"));
    framework(&mut view, FRAMEWORK, "marathon", None);
    view
}

/// The name servers of the zones under test.
pub fn follower() -> ZoneFollower {
    ZoneFollower::new(&Config::default(), &[]).expect("default settings")
}

/// A follower that was given one view.
pub fn following(view: &ClusterView) -> ZoneFollower {
    let mut follower = follower();
    let empty = ClusterView::empty(view.cluster.clone());
    follower.apply(view, &Delta::between(&empty, view));
    follower
}

/// The records of the view's names, one per line, sorted as text: without names of addresses, those of the `zk` zone
/// and those that every node has.
pub fn dump(follower: &ZoneFollower) -> String {
    let is_fixed = |line: &str| {
        let owner = line.split(' ').next().unwrap_or_default();
        [".arpa.", ".zk.", ".spartan.", "localhost.", ".component.thisdcos.directory."]
            .iter()
            .any(|end| owner.ends_with(end))
    };
    let zone = follower.zone();
    let lines = zone.records().map(|record| record.to_string());
    let mut lines: Vec<String> = lines.filter(|line| !is_fixed(line)).collect();
    lines.sort();
    lines.join("\n")
}

pub fn master(view: &mut ClusterView, id: &str, address: &str, leading: bool) {
    let id = MasterId::new(id);
    let master =
        Master { id: id.clone(), address: address.parse().expect(address), leading, removal_held: false };
    view.masters.insert(id, Arc::new(master));
    view.revision = view.revision.next();
}

pub fn agent(view: &mut ClusterView, id: &str, address: &str, port: u16) {
    let id = AgentId::new(id);
    let info = AgentInfo {
        hostname: format!("host-{id}"),
        address: address.parse().expect(address),
        port,
        resources: Resources::default(),
        attributes: Vec::new(),
        container_networks: false,
    };
    let agent = Agent {
        id: id.clone(),
        info,
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    };
    view.agents.insert(id, Arc::new(agent));
    view.revision = view.revision.next();
}

pub fn framework(view: &mut ClusterView, id: &str, name: &str, address: Option<&str>) {
    let id = FrameworkId::new(id);
    let framework = Framework {
        id: id.clone(),
        name: name.to_owned(),
        user: "root".to_owned(),
        role: "*".to_owned(),
        hostname: "a-host".to_owned(),
        address: address.map(|address| address.parse().expect(address)),
        webui_url: None,
        other_addresses: Vec::new(),
        active: true,
        registered_at: Timestamp::default(),
    };
    view.frameworks.insert(id, Arc::new(framework));
    view.revision = view.revision.next();
}

pub fn service(view: &mut ClusterView, key: &str, ipv4: Option<&str>, ipv6: Option<&str>) {
    let service = Service {
        ipv4: ipv4.map(|address| address.parse().expect(address)),
        ipv6: ipv6.map(|address| address.parse().expect(address)),
        ..Service::new(key.parse().expect(key))
    };
    view.services.insert(service.key.clone(), Arc::new(service));
    view.revision = view.revision.next();
}

/// Adds a task, or replaces it.
pub fn task(view: &mut ClusterView, task: Task) {
    view.tasks.insert(task.key.clone(), Arc::new(task));
    view.revision = view.revision.next();
}

/// A running task of the default framework without discovery information.
pub fn running(id: &str, name: &str, agent: &str) -> Task {
    Task {
        key: TaskKey::new(FrameworkId::new(FRAMEWORK), TaskId::new(id)),
        name: name.to_owned(),
        agent: AgentId::new(agent),
        state: TaskState::Running,
        resources: Resources::default(),
        discovery: None,
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        healthy: None,
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        network: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}

/// Discovery information with a name and ports of `number/protocol/name/scope`, each part but the first optional.
pub fn discovery(name: &str, ports: &[&str]) -> Option<Discovery> {
    let port = |text: &&str| {
        let mut parts = text.split('/');
        let number = parts.next().and_then(|number| number.parse().ok()).expect("port number");
        let protocol = parts.next().unwrap_or_default().to_owned();
        let name = parts.next().filter(|name| !name.is_empty()).map(str::to_owned);
        let scope = parts.next().map(|scope| ("network-scope".to_owned(), scope.to_owned()));
        DiscoveryPort { number, name, protocol, labels: scope.into_iter().collect() }
    };
    let ports = ports.iter().map(port).collect();
    Some(Discovery { name: Some(name.to_owned()), ports, ..Discovery::default() })
}

pub fn addresses(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect(address)).collect()
}

pub fn host_ports(ports: &[u16]) -> Resources {
    Resources { ports: ports.iter().copied().collect::<PortRanges>(), ..Resources::default() }
}

/// Sets the revision without changing anything else.
pub fn at(mut view: ClusterView, revision: u64) -> ClusterView {
    view.revision = Revision(revision);
    view
}
