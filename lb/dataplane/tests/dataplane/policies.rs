//! Weights that change by what connections come to.

use std::net::SocketAddr;
use std::time::Instant;

use mesonet_lb_dataplane::{Connection, Question};
use mesonet_lb_plan::{EndpointId, Standing};
use mesonet_model::EndpointState::Ready;
use mesonet_model::{Protocol, ServiceKey};
use tokio::sync::oneshot;

use crate::fixture::{Node, PATIENCE, ask, dead_address, serve_name, task, vip};

fn weight(node: &Node, service: &ServiceKey, name: &str, address: SocketAddr) -> u32 {
    let id = EndpointId { task: task(name), address };
    node.balancer.table().endpoint(service, &id).expect("the endpoint is there").weight
}

#[tokio::test]
async fn an_endpoint_that_refuses_loses_its_weight_on_this_node() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("tcp", "web", address);
    let (good, bad) = (serve_name("g"), dead_address());
    node.put_endpoint(&service, "good", good, Ready);
    node.put_endpoint(&service, "bad", bad, Ready);
    node.apply().await;
    assert_eq!(weight(&node, &service, "bad", bad), 100);
    let begun = Instant::now();
    while weight(&node, &service, "bad", bad) > 0 {
        assert!(begun.elapsed() < PATIENCE, "the endpoint keeps its weight");
        assert_eq!(ask(address).expect("an answer"), 'g');
        assert!(node.balancer.observe().await.is_empty());
    }
    assert_eq!(weight(&node, &service, "good", good), 100);

    let (answer, explained) = oneshot::channel();
    let client = "10.1.2.3:4567".parse().expect("address");
    let connection = Connection { protocol: Protocol::Tcp, client, to: address };
    node.balancer.answer(Question::Explain(connection, answer));
    let explained = explained.await.expect("an answer").expect("the address is that of a service");
    assert_eq!(explained.choice.endpoint.map(|id| id.address), Some(good));
    let excluded = &explained.routes.weighed.endpoints[&EndpointId { task: task("bad"), address: bad }];
    assert!(matches!(excluded.standing, Standing::Ejected { .. }), "{excluded:?}");
}
