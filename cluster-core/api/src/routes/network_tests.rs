//! Virtual networks, and who has which address.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::StatusCode;
use mesonet_model::{AgentId, JoinedContainer, NetworkName, NetworkRange, NodeSubnets, VirtualNetwork};
use serde_json::json;

use crate::NodeOrder;

use super::fixture::Fixture;
use super::state_tests::add_agent;

#[tokio::test]
async fn networks_are_made_listed_and_removed() {
    let fixture = Fixture::new();
    let body = r#"{"name": "blue", "subnet": "10.7.0.0/16", "subnet6": "fd00:7::/64", "prefix6": 96}"#;
    let network = VirtualNetwork {
        name: "blue".parse().expect("name"),
        ipv4: Some(NetworkRange { subnet: "10.7.0.0/16".parse().expect("range"), node_prefix: 24 }),
        ipv6: Some(NetworkRange { subnet: "fd00:7::/64".parse().expect("range"), node_prefix: 96 }),
    };
    let made = fixture.send("POST", "/v1/networks", body).await;
    assert_eq!((made.status, made.header("location")), (StatusCode::CREATED, "/v1/networks/blue"));
    let orders = fixture.orders.lock().expect("orders").clone();
    assert_eq!(orders, [NodeOrder::CreateNetwork(network.clone())]);
    fixture.change(|state| {
        state.cluster.networks.insert(network.name.clone(), Arc::new(network.clone()));
    });
    let listed = fixture.get("/v1/networks").await.json();
    assert_eq!(listed["networks"][0]["subnet"], "10.7.0.0/16");
    assert_eq!(fixture.get("/v1/networks/blue").await.json()["prefix"], 24);
    fixture.change(|state| {
        add_agent(state);
        add_joined(state);
    });
    let shown = fixture.get("/v1/networks/blue").await.json();
    let part = json!({
        "agent": "c-S0", "node": "c-S0", "subnets": ["10.7.1.0/24"], "tasks": 0, "containers": 1, "free": 252,
    });
    assert_eq!(shown["nodes"], json!([part]));
    assert_eq!((&shown["containers"], &shown["free"]), (&json!(1), &json!(252)));
    for (address, kind, node) in [
        ("10.7.1.2", json!("container"), json!("c-S0")),
        ("10.7.1.1", json!("gateway"), json!("c-S0")),
        ("10.7.1.9", json!("free"), json!("c-S0")),
        ("10.7.9.9", json!("unassigned"), json!(null)),
        ("127.0.0.1", json!("node"), json!("c-S0")),
        ("192.0.2.1", json!(null), json!(null)),
    ] {
        let said = fixture.get(&format!("/v1/addresses/{address}")).await.json();
        assert_eq!((&said["holders"][0]["kind"], &said["holders"][0]["node"]), (&kind, &node), "{address}");
    }
    assert_eq!(fixture.get("/v1/addresses/10.7.1").await.status, StatusCode::BAD_REQUEST);
    let removed = fixture.send("DELETE", "/v1/networks/blue", "").await;
    assert_eq!(removed.json(), json!({ "name": "blue", "revision": 2 }));
    for (body, status) in [
        (r#"{"name": "blue", "subnet": "10.7.0.0"}"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "blue", "subnet": "10.7.0.1/16"}"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "longer-than-13", "subnet": "10.7.0.0/16"}"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "blue", "odd": 1}"#, StatusCode::BAD_REQUEST),
        (r#"["blue", "10.7.0.0/16", 24, null, null]"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "blue", "subnet": "10.7.0.0/16", "prefix": 300}"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "blue", "subnet": "10.7.0.0/16", "prefix6": 80}"#, StatusCode::BAD_REQUEST),
        (r#"{"name": "blue"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (r#"{"name": "blue", "subnet": "fd00::/64"}"#, StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(fixture.send("POST", "/v1/networks", body).await.status, status, "{body}");
    }
    let wrong = fixture.send("POST", "/v1/networks", r#"{"name": "blue", "subnet": 10}"#).await;
    assert_eq!(wrong.json()["message"], "'subnet' is 10: expected a text such as \"10.128.0.0/16\"");
    assert_eq!(fixture.get("/v1/networks/Host").await.status, StatusCode::NOT_FOUND);
    assert_eq!(fixture.send("PUT", "/v1/networks", "").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

/// An agent's part of network `blue`, and a container in it.
fn add_joined(state: &mut crate::State) {
    let (agent, network) = (AgentId::new("c-S0"), "blue".parse::<NetworkName>().expect("name"));
    let parts = vec!["10.7.1.0/24".parse().expect("range")];
    let subnets = NodeSubnets([(network.clone(), parts)].into());
    state.cluster.subnets.insert(agent.clone(), Arc::new(subnets));
    let address = IpAddr::V4([10, 7, 1, 2].into());
    let container = JoinedContainer {
        agent,
        network,
        container: "f00".to_owned(),
        interface: "eth0".to_owned(),
        addresses: vec![address],
    };
    state.cluster.joined.insert(address, Arc::new(container));
}
