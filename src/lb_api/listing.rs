//! Lists of services as JSON.

use std::net::SocketAddr;

use mesonet_lb_dataplane::{Datapath, Routes, ServiceRoutes};
use mesonet_lb_plan::{Reach, Standing, WeighedEndpoint};
use mesonet_model::{AgentId, ClusterView, EndpointState, Service, ServiceKey, Vip};
use serde_json::{Value, json};

/// The domain of named VIPs.
const VIP_DOMAIN: &str = "l4lb.thisdcos.directory";

/// The name of a named VIP.
pub(super) fn name(key: &ServiceKey) -> Option<String> {
    key.vip.allocation_name().map(|name| format!("{name}.{VIP_DOMAIN}"))
}

/// As dcos-net shows it: every VIP with its backends.
pub(super) fn vips(view: &ClusterView) -> Value {
    let vip = |key: &ServiceKey| {
        let host = match &key.vip {
            Vip::Static(address) => return SocketAddr::new(*address, key.port).to_string(),
            Vip::Named { .. } => name(key).unwrap_or_default(),
        };
        format!("{host}:{}", key.port)
    };
    let list = view.services.keys().map(|key| {
        let living = view.endpoints_of(key).filter(|(_, endpoint)| endpoint.state != EndpointState::Down);
        let backends: Vec<Value> = living
            .map(|(endpoint, _)| json!({ "ip": endpoint.address.ip(), "port": endpoint.address.port() }))
            .collect();
        json!({ "vip": vip(key), "protocol": key.protocol, "backend": backends })
    });
    Value::Array(list.collect())
}

/// What the node's balancer does.
pub(super) fn routes(node: &AgentId, view: &ClusterView, routes: &Routes) -> Value {
    let services: Vec<Value> = routes.services.iter().map(|(key, each)| service(view, key, each)).collect();
    json!({
        "node": node,
        "revision": view.revision,
        "datapath": datapath(&routes.datapath),
        "services": services,
    })
}

/// Every service of the view, with what the node's balancer makes of it.
pub(super) fn services(node: &AgentId, view: &ClusterView, routes: Option<&Routes>) -> Value {
    let of = |known: &Service| {
        let routes = routes.and_then(|routes| routes.services.get(&known.key));
        match routes {
            Some(routes) => service(view, &known.key, routes),
            None => {
                json!({ "service": known.key, "name": name(&known.key), "endpoints": plain(view, &known.key) })
            }
        }
    };
    let services: Vec<Value> = view.services.values().map(|service| of(service)).collect();
    json!({ "node": node, "revision": view.revision, "services": services })
}

/// One service as the balancer has it.
pub(super) fn service(view: &ClusterView, key: &ServiceKey, routes: &ServiceRoutes) -> Value {
    let endpoints: Vec<Value> = routes
        .weighed
        .endpoints
        .iter()
        .map(|(id, each)| {
            let count = routes.counts.get(id).copied().unwrap_or_default();
            let agent = view.agents.get(&each.agent);
            json!({
                "task": id.task.task,
                "framework": id.task.framework,
                "address": id.address,
                "agent": each.agent,
                "node": agent.map(|agent| agent.node_name()),
                "zone": agent.and_then(|agent| agent.zone()),
                "state": state(each),
                "weight": each.weight,
                "reason": reason(&each.standing),
                "connections": count.connections,
                "active": count.active,
                "failures": count.failures,
            })
        })
        .collect();
    let weighing = view.services.get(key).map(|service| service.weighing).unwrap_or_default();
    json!({
        "service": key,
        "name": name(key),
        "protocol": key.protocol,
        "port": key.port,
        "addresses": routes.listeners.iter().map(|listener| listener.ip()).collect::<Vec<_>>(),
        "policy": {
            "algorithm": routes.policy.algorithm.as_str(),
            "affinitySeconds": routes.policy.affinity.map(|time| time.as_secs()),
            "proxyProtocol": routes.policy.proxy_protocol,
            "locality": weighing.locality.as_str(),
            "spillConnections": weighing.spill_connections,
            "ejectedMaxPercent": weighing.ejected_max_percent,
            "panicPercent": weighing.panic_percent,
        },
        "reach": reach(routes.weighed.reach),
        "panic": routes.weighed.panics,
        "endpoints": endpoints,
        "failure": routes.failure,
    })
}

/// What carries connections.
pub(super) fn datapath(datapath: &Datapath) -> Value {
    json!({ "name": datapath.name, "why": datapath.why, "packets": datapath.packets })
}

/// Endpoints as the view has them.
fn plain(view: &ClusterView, key: &ServiceKey) -> Vec<Value> {
    view.endpoints_of(key)
        .map(|(id, each)| {
            json!({
                "task": id.task.task,
                "framework": id.task.framework,
                "address": id.address,
                "agent": each.agent,
                "state": each.state,
                "weight": each.weight * each.share,
            })
        })
        .collect()
}

fn state(endpoint: &WeighedEndpoint) -> EndpointState {
    match endpoint.standing {
        Standing::Down => EndpointState::Down,
        Standing::Draining => EndpointState::Draining,
        Standing::Serving
        | Standing::SlowStart { .. }
        | Standing::Panic
        | Standing::NotReady
        | Standing::NodeLost
        | Standing::Ejected { .. }
        | Standing::NoShare
        | Standing::Farther => EndpointState::Ready,
    }
}

/// How far connections go, for people and programs.
fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Node => "node",
        Reach::Zone => "zone",
        Reach::Cluster => "cluster",
    }
}

/// Why an endpoint has its weight.
pub(super) fn reason(standing: &Standing) -> String {
    match standing {
        Standing::Serving => "serving".to_owned(),
        Standing::SlowStart { percent } => format!("slow start, at {percent} %"),
        Standing::Panic => "checks fail, but too few others are well (panic threshold)".to_owned(),
        Standing::NotReady => "checks fail or have no result yet".to_owned(),
        Standing::NodeLost => "its node does not answer the master".to_owned(),
        Standing::Ejected { until } => format!("connections from this node failed; tried again at {until}"),
        Standing::NoShare => "its app has weight 0".to_owned(),
        Standing::Farther => "nearer endpoints have room".to_owned(),
        Standing::Draining => "draining: keeps its connections, gets no new ones".to_owned(),
        Standing::Down => "down".to_owned(),
    }
}
