//! The data plane that only keeps the table.

use std::net::SocketAddr;

use mesonet_model::EndpointState::{Draining, Ready};

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
