//! The data plane that only keeps the table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, Attribute, Endpoint, Locality, NODE_ATTRIBUTE, Resources, Service,
    ServiceKey, Timestamp, Weighing,
};

use crate::fixture::Node;

/// The agent of a node with a name.
fn agent(id: &str, name: &str) -> Agent {
    Agent {
        id: AgentId::new(id),
        info: AgentInfo {
            hostname: name.to_owned(),
            address: [10, 0, 0, 1].into(),
            port: 0,
            resources: Resources::default(),
            container_networks: false,
            attributes: vec![Attribute { name: NODE_ATTRIBUTE.to_owned(), value: name.to_owned() }],
        },
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    }
}

#[tokio::test]
async fn the_table_follows_the_view() {
    let mut node = Node::memory();
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    let web = node.put_service("tcp", "web", address);
    let (a, b) = (SocketAddr::from(([10, 0, 0, 2], 80)), SocketAddr::from(([10, 0, 0, 3], 80)));
    node.put_endpoint(&web, "a", a, Ready);
    node.put_endpoint(&web, "b", b, Draining);
    assert!(node.apply().await.is_empty());
    let spec = node.balancer.table().service(&web).expect("the service is in effect");
    assert_eq!((spec.listeners.contains(&address), spec.endpoints.len()), (true, 2));
    assert_eq!(node.metric("mesonet_lb_endpoints", "ready"), 1.0);
    assert_eq!(node.metric("mesonet_lb_endpoints", "draining"), 1.0);

    node.remove_endpoint(&web, "b", b);
    node.view.endpoints.clear();
    node.view.services.clear();
    node.apply().await;
    assert_eq!(node.balancer.table().services().len(), 0);
    assert_eq!(node.metric("mesonet_lb_endpoints", ""), 0.0);
    assert_eq!(node.metric("mesonet_lb_services", ""), 0.0);
}

#[tokio::test]
async fn a_delta_that_starts_elsewhere_makes_everything_planned_again() {
    let mut node = Node::memory();
    let web = node.put_service("tcp", "web", SocketAddr::from(([10, 0, 0, 1], 80)));
    node.apply().await;
    let other = node.put_service("tcp", "other", SocketAddr::from(([10, 0, 0, 2], 80)));
    node.view.services.remove(&web);
    node.lose_deltas();
    node.apply().await;
    let keys: Vec<_> = node.balancer.table().services().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, [other]);
}

#[tokio::test]
async fn what_is_near_follows_the_agents() {
    let mut node = Node::memory().on_node("n1");
    let web = node.put_service("tcp", "web", SocketAddr::from(([10, 0, 0, 1], 80)));
    let weighing = Weighing { locality: Locality::Node, ..Weighing::default() };
    let near = Service { weighing, ..node.view.services[&web].as_ref().clone() };
    node.view.services.insert(web.clone(), Arc::new(near));
    for (task, agent, host) in [("a", "s1", 2), ("b", "s2", 3)] {
        let address = SocketAddr::from(([10, 0, 0, host], 80));
        node.put_endpoint(&web, task, address, Ready);
        let of_agent = Endpoint::new(AgentId::new(agent), Ready, 1);
        let key = node.view.endpoints.keys().find(|key| key.address == address).expect("it is there").clone();
        node.view.endpoints.insert(key, Arc::new(of_agent));
    }
    let weights = |node: &Node| -> Vec<u32> {
        let spec = node.balancer.table().service(&web).expect("the service is in effect");
        spec.endpoints.values().map(|each| each.weight).collect()
    };
    node.apply().await;
    assert_eq!(weights(&node), [100, 100], "the node has no agent yet");
    for (names, expected) in [(["n1", "n2"], [100, 0]), (["n2", "n1"], [0, 100]), (["n2", "n3"], [100, 100])]
    {
        for (id, name) in ["s1", "s2"].into_iter().zip(names) {
            node.view.agents.insert(AgentId::new(id), Arc::new(agent(id, name)));
        }
        node.apply().await;
        assert_eq!(weights(&node), expected, "{names:?}");
    }
    // A delta that starts elsewhere says nothing of agents.
    node.view.agents.insert(AgentId::new("s2"), Arc::new(agent("s2", "n1")));
    node.lose_deltas();
    node.apply().await;
    assert_eq!(weights(&node), [0, 100]);
}

#[tokio::test]
async fn a_service_that_the_view_gives_no_address_fails_with_the_reason() {
    let mut node = Node::memory();
    let web = node.put_service("tcp", "web", SocketAddr::from(([10, 0, 0, 1], 80)));
    node.put_endpoint(&web, "a", SocketAddr::from(([10, 0, 0, 2], 80)), Ready);
    let chosen: ServiceKey = "tcp/10.0.0.1:80".parse().expect("a key");
    node.view.services.insert(chosen.clone(), Arc::new(Service::new(chosen.clone())));
    node.put_endpoint(&chosen, "b", SocketAddr::from(([10, 0, 0, 3], 80)), Ready);
    let reason = "10.0.0.1 with this port is that of tcp/web@marathon:80".to_owned();
    let expected = BTreeMap::from([(chosen.clone(), reason)]);
    assert_eq!(node.apply().await, expected);
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 1.0);
    assert_eq!(node.balancer.observe().await, expected, "it is told for as long as it is so");
    assert_eq!(node.balancer.table().service(&web).map(|spec| spec.listeners.len()), Some(1));

    node.view.services.remove(&web);
    node.remove_endpoint(&web, "a", SocketAddr::from(([10, 0, 0, 2], 80)));
    let addressed = Service { ipv4: Some([10, 0, 0, 1].into()), ..Service::new(chosen.clone()) };
    node.view.services.insert(chosen, Arc::new(addressed));
    assert_eq!(node.apply().await, BTreeMap::new());
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 0.0);
}
