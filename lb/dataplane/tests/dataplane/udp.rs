//! The proxy with real UDP sockets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use crate::fixture::{Node, PATIENCE, eventually, vip};
use mesonet_model::EndpointState::{Draining, Ready};

/// Answers every datagram with its name and the datagram.
fn serve_name(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            socket.send_to(&answer, client).expect("answered");
        }
    });
    address
}

/// A client that only hears the VIP.
fn client(vip: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.connect(vip).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("valid");
    socket
}

fn ask(client: &UdpSocket) -> String {
    client.send(b"?").expect("sent");
    let mut buffer = [0; 2048];
    let length = client.recv(&mut buffer).expect("an answer");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[tokio::test]
async fn a_client_stays_with_its_endpoint_and_clients_are_spread() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("udp", "echo", address);
    node.put_endpoint(&service, "a", serve_name("a"), Ready);
    node.put_endpoint(&service, "b", serve_name("b"), Ready);
    assert!(node.apply().await.is_empty());
    let clients: Vec<UdpSocket> = (0..50).map(|_| client(address)).collect();
    let mut names = BTreeSet::new();
    for client in &clients {
        let first = ask(client);
        assert_eq!(ask(client), first);
        names.insert(first);
    }
    assert_eq!(names, BTreeSet::from(["a?".to_owned(), "b?".to_owned()]));
    assert_eq!(node.metric("mesonet_lb_connections_total", ""), 50.0);
    assert_eq!(node.metric("mesonet_lb_bytes_total", "in"), 100.0);
    eventually("the last answer is counted", || node.metric("mesonet_lb_bytes_total", "out") == 200.0);
    assert_eq!(node.metric("mesonet_lb_endpoint_connections_total", &service.to_string()), 50.0);
    assert_eq!(node.metric("mesonet_lb_endpoint_bytes_total", "in"), 100.0);
    eventually("it is counted of its endpoint", || {
        node.metric("mesonet_lb_endpoint_bytes_total", "out") == 200.0
    });
}

#[tokio::test]
async fn a_client_s_next_datagram_goes_past_an_endpoint_that_refuses() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("udp", "echo", address);
    let dead = vip();
    node.put_endpoint(&service, "dead", dead, Ready);
    node.put_endpoint(&service, "a", serve_name("a"), Ready);
    assert!(node.apply().await.is_empty());
    for _ in 0..20 {
        let client = client(address);
        client.set_read_timeout(Some(std::time::Duration::from_millis(50))).expect("valid");
        eventually("an answer after a lost datagram", || {
            client.send(b"?").expect("sent");
            client.recv(&mut [0; 8]).is_ok()
        });
    }
}

#[tokio::test]
async fn a_client_leaves_a_draining_endpoint_when_its_session_is_idle() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("udp", "echo", address);
    let a = serve_name("a");
    node.put_endpoint(&service, "a", a, Ready);
    assert!(node.apply().await.is_empty());
    let old = client(address);
    assert_eq!(ask(&old), "a?");
    node.put_endpoint(&service, "a", a, Draining);
    node.put_endpoint(&service, "b", serve_name("b"), Ready);
    node.apply().await;
    assert_eq!(ask(&client(address)), "b?");
    let mut busy = node.balancer.busy();
    busy.wait_for(BTreeSet::is_empty).await.expect("the balancer lives");
    assert_eq!(ask(&old), "b?");
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported() {
    let mut node = Node::proxy();
    let taken = UdpSocket::bind(vip()).expect("free");
    let service = node.put_service("udp", "echo", taken.local_addr().expect("bound"));
    let failures = node.apply().await;
    assert!(failures[&service].contains("Address already in use"), "{failures:?}");
}
