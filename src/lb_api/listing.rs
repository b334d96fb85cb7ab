//! Lists of services as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use mesonet_lb_dataplane::{Datapath, Routes, ServiceRoutes};
use mesonet_lb_plan::{Deviation, Observed, Reach, Vantage, WeighedEndpoint, lack_of_address, weigh};
use mesonet_model::{AgentId, ClusterView, EndpointState, Service, ServiceKey, Timestamp, Vip};
use serde_json::{Value, json};

/// The domain of named VIPs.
const VIP_DOMAIN: &str = "l4lb.thisdcos.directory";

/// The name of a named VIP.
pub(super) fn name(key: &ServiceKey) -> Option<String> {
    key.vip.allocation_name().map(|name| format!("{name}.{VIP_DOMAIN}"))
}

/// As dcos-net shows it: every VIP with its backends; and why nobody reaches them, where that is so.
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
        let mut shown = json!({ "vip": vip(key), "protocol": key.protocol, "backend": backends });
        if let Some(lack) = lack_of_address(view, key) {
            shown["failure"] = json!(lack);
        }
        shown
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
    let vantage = Vantage::of(view, node);
    let of = |known: &Service| {
        let mut shown = match routes.and_then(|routes| routes.services.get(&known.key)) {
            Some(routes) => service(view, &known.key, routes),
            None => service(view, &known.key, &unobserved(&vantage, view, known)),
        };
        // Also those that nothing listens at.
        shown["addresses"] = json!(addresses(known).collect::<Vec<_>>());
        shown
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
            let (weight, reason) =
                effective(each, routes.deviations.get(id), routes.packet_deviations.get(id));
            json!({
                "task": id.task.task,
                "framework": id.task.framework,
                "address": id.address,
                "agent": each.agent,
                "node": agent.map(|agent| agent.node_name()),
                "zone": agent.and_then(|agent| agent.zone()),
                "state": each.standing.state(),
                "weight": weight,
                "healthy": each.standing.is_healthy(),
                "reason": reason,
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
            "directReturn": routes.policy.direct_return,
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

/// What an endpoint gets in fact, and why: where hooks choose, and where packets are balanced.
fn effective(
    each: &WeighedEndpoint,
    hooks: Option<&Deviation>,
    packets: Option<&Deviation>,
) -> (u32, String) {
    let WeighedEndpoint { weight, standing, .. } = *each;
    match (hooks, packets) {
        (Some(stands_in @ Deviation::StandsIn), _) => (1, stands_in.as_str().to_owned()),
        // Of one that gets nothing anyway, the reason stands there already.
        (Some(deviation), _) if weight > 0 => (0, deviation.as_str().to_owned()),
        (None, Some(deviation)) if weight > 0 || *deviation == Deviation::StandsIn => {
            (weight, format!("{standing}; for packets from outside: {}", deviation.as_str()))
        }
        _ => (weight, standing.to_string()),
    }
}

/// What carries connections.
pub(super) fn datapath(datapath: &Datapath) -> Value {
    json!({
        "name": datapath.name,
        "why": datapath.why,
        "packets": datapath.packets,
        "beside": datapath.beside,
        "trouble": datapath.trouble,
    })
}

/// A service as a node has it that balances nothing and has seen no connection.
fn unobserved(vantage: &Vantage, view: &ClusterView, known: &Service) -> ServiceRoutes {
    ServiceRoutes {
        listeners: addresses(known).map(|address| SocketAddr::new(address, known.key.port)).collect(),
        policy: known.policy,
        weighed: weigh(view, known, vantage, &Observed::default(), now()),
        counts: BTreeMap::new(),
        deviations: BTreeMap::new(),
        packet_deviations: BTreeMap::new(),
        failure: lack_of_address(view, &known.key),
    }
}

/// A service's virtual addresses.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.ipv4.map(IpAddr::V4).into_iter().chain(service.ipv6.map(IpAddr::V6))
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// How far connections go, for people and programs.
fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Node => "node",
        Reach::Zone => "zone",
        Reach::Cluster => "cluster",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesonet_lb_plan::Standing;
    use mesonet_model::{ClusterId, Endpoint, EndpointKey, FrameworkId, TaskId, TaskKey};

    use super::*;

    /// A service with an endpoint.
    fn put(view: &mut ClusterView, key: &str, ipv4: Option<[u8; 4]>) {
        let key: ServiceKey = key.parse().expect("a key");
        let service = Service { ipv4: ipv4.map(Into::into), ..Service::new(key.clone()) };
        view.services.insert(key.clone(), Arc::new(service));
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        let address = SocketAddr::from(([10, 0, 0, 1], 31000));
        let endpoint = Endpoint::new(AgentId::new("s"), EndpointState::Ready, 1);
        view.endpoints.insert(EndpointKey { service: key, task, address }, Arc::new(endpoint));
    }

    #[test]
    fn a_vip_whose_address_is_anothers_says_so() {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        put(&mut view, "tcp/web@marathon:80", Some([11, 0, 0, 1]));
        put(&mut view, "tcp/11.0.0.1:80", None);
        let backend = json!([{ "ip": "10.0.0.1", "port": 31000 }]);
        let named = "web.marathon.l4lb.thisdcos.directory:80";
        let expected = json!([
            { "vip": named, "protocol": "tcp", "backend": backend },
            { "vip": "11.0.0.1:80", "protocol": "tcp", "backend": backend,
              "failure": "11.0.0.1 with this port is that of tcp/web@marathon:80" },
        ]);
        assert_eq!(vips(&view), expected);
    }

    #[test]
    fn what_an_endpoint_gets_in_fact_is_said_with_the_reason() {
        let endpoint = |weight, standing| {
            let agent = AgentId::new("s");
            WeighedEndpoint { agent, weight, standing, place: Reach::Cluster }
        };
        let serving = endpoint(100, Standing::Serving);
        let draining = endpoint(0, Standing::Draining);
        let not_ready = endpoint(0, Standing::NotReady);
        let [waits, no_way, stands_in] =
            [Deviation::NotListening, Deviation::NoWay, Deviation::StandsIn].map(Some);
        for (each, hooks, packets, weight, reason) in [
            (&serving, None, None, 100, "serving"),
            (&serving, waits, waits, 0, "does not listen yet"),
            (&serving, None, no_way, 100, "serving; for packets from outside: no route leads there"),
            (&draining, stands_in, stands_in, 1, "stands in until another listens"),
            (&not_ready, waits, None, 0, "checks fail or have no result yet"),
        ] {
            let (found, why) = effective(each, hooks.as_ref(), packets.as_ref());
            assert_eq!((found, why.as_str()), (weight, reason));
        }
    }

    #[test]
    fn a_node_that_balances_nothing_lists_services_in_the_same_form() {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        put(&mut view, "tcp/web@marathon:80", Some([127, 11, 0, 1]));
        let listed = services(&AgentId::new("n"), &view, None);
        let service = &listed["services"][0];
        assert_eq!(service["name"], "web.marathon.l4lb.thisdcos.directory");
        assert_eq!((&service["protocol"], &service["port"]), (&json!("tcp"), &json!(80)));
        assert_eq!(service["addresses"], json!(["127.11.0.1"]));
        let endpoint = &service["endpoints"][0];
        assert_eq!((&endpoint["address"], &endpoint["weight"]), (&json!("10.0.0.1:31000"), &json!(100)));
    }
}
