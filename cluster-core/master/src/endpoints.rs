//! The endpoints that follow from a task: the only place where labels become endpoints.
//!
//! Source: spec/dcos-networking.md §2.3.3.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesonet_model::{
    DEFAULT_SHARE, Endpoint, EndpointKey, EndpointState, PortPolicy, ServiceKey, ServicePort, ServiceWish,
    Serving, SlowStart, Task, Vip, VipLabel,
};

/// What a task adds to the view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Its endpoints.
    pub endpoints: BTreeMap<EndpointKey, Arc<Endpoint>>,
    /// What it asks of the services that it gives new connections to take.
    pub wishes: BTreeMap<ServiceKey, ServiceWish>,
}

/// The endpoints of a task at an agent's address. Labels that are no VIP give none. Those of suspect tasks have the
/// weight of a service that has something better.
pub fn endpoints_of(task: &Task, agent: IpAddr, framework_name: &str) -> Published {
    let (state, weight) = match task.serving() {
        Serving::Ready => (EndpointState::Ready, 1),
        Serving::Suspect | Serving::NotReady => (EndpointState::Ready, 0),
        Serving::Draining => (EndpointState::Draining, 0),
        Serving::Down => return Published::default(),
    };
    let mut published = Published::default();
    for port in task.service_ports() {
        let addresses = addresses_of(&port, task, agent);
        let endpoint = Arc::new(Endpoint {
            share: port.policy.share.unwrap_or(DEFAULT_SHARE),
            failing: task.serving() == Serving::NotReady && task.ready_since.is_some(),
            slow_start: slow_start(task, &port.policy),
            ..Endpoint::new(task.agent.clone(), state, weight)
        });
        for label in port.vips.into_iter().flatten() {
            let service = label.service_key(port.protocol, framework_name);
            for address in addresses.iter().filter(|address| is_reachable(&service.vip, address)) {
                let key = EndpointKey { service: service.clone(), task: task.key.clone(), address: *address };
                published.endpoints.insert(key, Arc::clone(&endpoint));
                if state == EndpointState::Ready {
                    let wish = published.wishes.entry(service.clone()).or_insert(port.policy.wish);
                    *wish = wish.and(port.policy.wish);
                }
            }
        }
    }
    published
}

/// The static VIPs of a task that do not lead to it, because it has no address of their family, and why.
pub(crate) fn out_of_reach(task: &Task, agent: IpAddr) -> Vec<String> {
    let mut reasons = Vec::new();
    for port in task.service_ports() {
        let addresses = addresses_of(&port, task, agent);
        for label in port.vips.iter().flatten() {
            let VipLabel::Static { address, port } = label else { continue };
            if addresses.is_empty() || addresses.iter().any(|each| each.is_ipv4() == address.is_ipv4()) {
                continue;
            }
            let has: Vec<String> = addresses.iter().map(|each| each.ip().to_string()).collect();
            reasons.push(format!(
                "VIP label '{}' does not lead to the task: expected an {} address of the task, which has {}",
                SocketAddr::new(*address, *port),
                if address.is_ipv4() { "IPv4" } else { "IPv6" },
                has.join(", ")
            ));
        }
    }
    reasons
}

/// An endpoint whose checks fail begins anew when they pass.
fn slow_start(task: &Task, policy: &PortPolicy) -> Option<SlowStart> {
    if task.serving() == Serving::NotReady {
        return None;
    }
    Some(SlowStart { since: task.ready_since?, over: policy.slow_start? })
}

fn addresses_of(port: &ServicePort, task: &Task, agent: IpAddr) -> Vec<SocketAddr> {
    match (port.host_port, port.port) {
        (Some(host_port), _) => vec![SocketAddr::new(agent, host_port)],
        (None, Some(port)) => task.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect(),
        (None, None) => Vec::new(),
    }
}

/// A static VIP has one family, and so have its endpoints.
fn is_reachable(vip: &Vip, address: &SocketAddr) -> bool {
    match vip {
        Vip::Named { .. } => true,
        Vip::Static(vip) => vip.is_ipv4() == address.is_ipv4(),
    }
}
