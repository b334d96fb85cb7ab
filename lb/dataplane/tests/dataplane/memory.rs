//! The data plane that only keeps the table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::{Service, ServiceKey};

use crate::fixture::Node;

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
