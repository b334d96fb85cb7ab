//! What a view must be, by rules of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesonet_model::{
    AgentState, ClusterView, Endpoint, EndpointKey, EndpointState, Protocol, ServiceKey, TaskState, Vip,
    VipLabel,
};

/// The endpoints by the rules of spec/dcos-networking.md §2.3.3, from the tasks alone.
pub fn endpoints_from_scratch(view: &ClusterView) -> BTreeMap<EndpointKey, Endpoint> {
    let mut endpoints = BTreeMap::new();
    let mut suspects = BTreeSet::new();
    for task in view.tasks.values() {
        let is_lost = view.agents[&task.agent].state.is_lost();
        let may_run = task.state == TaskState::Running
            || (task.state == TaskState::Unreachable && task.started_at.is_some());
        let (state, weight) = match (may_run, task.draining) {
            (true, false) if task.healthy == Some(false) || !task.ready => (EndpointState::Ready, 0),
            (true, false) if is_lost => (EndpointState::Ready, 0),
            (true, false) => (EndpointState::Ready, 1),
            (true, true) => (EndpointState::Draining, 0),
            (false, _) if task.state == TaskState::Killing => (EndpointState::Draining, 0),
            (false, _) => continue,
        };
        let is_suspect =
            is_lost && state == EndpointState::Ready && task.healthy != Some(false) && task.ready;
        let port = &task.discovery.as_ref().expect("set by the script").ports[0];
        let Ok(label) = VipLabel::parse(&port.labels["VIP_0"]) else { continue };
        let service = label.service_key(Protocol::Tcp, &view.frameworks[&task.key.framework].name);
        let on_host = port.labels.contains_key("network-scope") || task.addresses.is_empty();
        let host = [view.agents[&task.agent].info.address];
        let addresses: &[IpAddr] = if on_host { &host } else { &task.addresses };
        for address in addresses {
            if matches!(service.vip, Vip::Static(vip) if vip.is_ipv4() != address.is_ipv4()) {
                continue;
            }
            let address = SocketAddr::new(*address, port.number);
            let key = EndpointKey { service: service.clone(), task: task.key.clone(), address };
            if is_suspect {
                suspects.insert(key.clone());
            }
            let failing = state == EndpointState::Ready
                && (task.healthy == Some(false) || !task.ready)
                && task.ready_since.is_some();
            endpoints.insert(key, Endpoint { failing, ..Endpoint::new(task.agent.clone(), state, weight) });
        }
    }
    let served: BTreeSet<ServiceKey> = endpoints
        .iter()
        .filter(|(_, endpoint)| endpoint.weight > 0)
        .map(|(key, _)| key.service.clone())
        .collect();
    for key in suspects.iter().filter(|key| !served.contains(&key.service)) {
        endpoints.get_mut(key).expect("inserted above").weight = 1;
    }
    endpoints
}

/// Tasks are lost with their agents and come back with them.
pub fn check_lost_tasks(view: &ClusterView) {
    for task in view.tasks.values() {
        let agent = view.agents[&task.agent].state;
        assert_eq!(task.suspect, agent.is_lost(), "{task:?}");
        assert_eq!(task.state == TaskState::Unreachable, agent == AgentState::Unreachable, "{task:?}");
    }
}

pub fn check_services(view: &ClusterView) {
    let used: BTreeSet<_> = view.endpoints.keys().map(|key| &key.service).collect();
    assert!(used.iter().all(|service| view.services.contains_key(*service)), "an endpoint without service");
    let mut owners = BTreeMap::new();
    for (key, service) in &view.services {
        assert_eq!(service.empty_since.is_none(), used.contains(key), "{key}");
        let families = [service.ipv4.map(IpAddr::V4), service.ipv6.map(IpAddr::V6)];
        for address in families.into_iter().flatten().filter(|_| key.vip.allocation_name().is_some()) {
            let owner = owners.entry(address).or_insert(&key.vip);
            assert_eq!(*owner, &key.vip, "one address, two names");
        }
    }
    let mut holders = BTreeMap::new();
    for (key, service) in &view.services {
        for address in [service.ipv4.map(IpAddr::V4), service.ipv6.map(IpAddr::V6)].into_iter().flatten() {
            let by = holders.insert((key.protocol, address, key.port), key);
            assert!(by.is_none(), "{key} and {by:?} have {address}");
        }
    }
    for key in view.endpoints.keys() {
        let service = &view.services[&key.service];
        let has_address = if key.address.is_ipv4() { service.ipv4.is_some() } else { service.ipv6.is_some() };
        assert!(has_address || is_contested(view, key), "{key} has no virtual address");
    }
}

/// Whether another service may have the address that the service of this endpoint needs: users may choose any address
/// for a service, also that of a name, and whoever came first keeps it.
fn is_contested(view: &ClusterView, endpoint: &EndpointKey) -> bool {
    let ServiceKey { protocol, vip, port } = &endpoint.service;
    let mut rivals = view.services.values().filter(|service| {
        service.key != endpoint.service && service.key.protocol == *protocol && service.key.port == *port
    });
    match vip {
        Vip::Static(address) => rivals.any(|service| service.has_address(*address)),
        Vip::Named { .. } => rivals.any(|service| {
            let Vip::Static(address) = service.key.vip else { return false };
            address.is_ipv4() == endpoint.address.is_ipv4() && service.has_address(address)
        }),
    }
}
