//! What is counted agrees with what clients did.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::thread;

use mesonet_model::EndpointState::Ready;

use super::{Site, vip};
use crate::fixture::{Node, connect, dead_address, eventually, serve};

const CLIENTS: usize = 4;
const CONNECTIONS: usize = 150;
const REQUEST: usize = 3000;
const ANSWER: usize = 5000;

fn wait_for(node: &Node, metric: &str, label: &str, expected: usize) {
    let mut last = -1.0;
    eventually(&format!("{metric}{{{label}}} is {expected}"), || {
        last = node.metric(metric, label);
        last == expected as f64
    });
}

/// A server that reads requests and answers each, until the client ends, and ends after it.
fn answering() -> std::net::SocketAddr {
    serve(|mut stream| {
        let mut request = [0; REQUEST];
        while stream.read_exact(&mut request).is_ok() {
            if stream.write_all(&[1; ANSWER]).is_err() {
                return;
            }
        }
    })
}

#[test]
#[ignore = "needs root"]
fn sums_agree_with_what_clients_did() {
    let site = Site::new("ledger");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let endpoints = [answering(), answering(), answering()];
    for (number, endpoint) in endpoints.iter().enumerate() {
        node.put_endpoint(&service, &format!("t{number}"), *endpoint, Ready);
    }
    site.run(node.apply());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let path = format!("/run/netns/{}", site.name);
            scope.spawn(move || {
                super::join(&path);
                (0..CONNECTIONS).for_each(|_| exchange(connect(vip(1))));
            });
        }
    });
    let total = CLIENTS * CONNECTIONS;
    let label = service.to_string();
    wait_for(&node, "mesonet_lb_connections_total", &label, total);
    wait_for(&node, "mesonet_lb_active_connections", &label, 0);
    wait_for(&node, "mesonet_lb_endpoint_connections_total", &label, total);
    for endpoint in &endpoints {
        let count = node.metric("mesonet_lb_endpoint_connections_total", &endpoint.to_string());
        assert!(count > total as f64 / 6.0, "{endpoint}: {count} of {total}");
    }
    wait_for(&node, "mesonet_lb_bytes_total", "in", total * REQUEST);
    // The end of the connection may count as an octet.
    let received = node.metric("mesonet_lb_bytes_total", "out");
    let payload = (total * ANSWER) as f64;
    assert!((payload..=payload + total as f64).contains(&received), "{received}, not {payload}");
    assert_eq!(node.metric("mesonet_lb_connect_failures_total", &label), 0.0);
    let mut open: Vec<TcpStream> = (0..7).map(|_| connect(vip(1))).collect();
    wait_for(&node, "mesonet_lb_active_connections", &label, 7);
    open.truncate(3);
    wait_for(&node, "mesonet_lb_active_connections", &label, 3);
    // Another process goes on with the counters, and those of an endpoint that goes are not lost.
    let view = node.view.clone();
    drop(node);
    let mut node = site.node();
    node.view = view;
    site.run(node.apply());
    wait_for(&node, "mesonet_lb_connections_total", &label, total + 7);
    wait_for(&node, "mesonet_lb_active_connections", &label, 3);
    node.remove_endpoint(&service, "t0", endpoints[0]);
    site.run(node.apply());
    let gone = endpoints[0].to_string();
    wait_for(&node, "mesonet_lb_endpoint_connections_total", &gone, 0);
    wait_for(&node, "mesonet_lb_connections_total", &label, total + 7);
}

fn exchange(mut stream: TcpStream) {
    stream.write_all(&[0; REQUEST]).expect("sent");
    stream.read_exact(&mut [0; ANSWER]).expect("an answer");
    stream.shutdown(Shutdown::Write).expect("ended");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
}

#[test]
#[ignore = "needs root"]
fn failures_are_counted() {
    let site = Site::new("failures");
    let mut node = site.node();
    let deaf = node.put_service("tcp", "deaf", vip(1));
    node.put_endpoint(&deaf, "a", dead_address(), Ready);
    let empty = node.put_service("tcp", "empty", vip(2));
    site.run(node.apply());
    for _ in 0..40 {
        assert!(TcpStream::connect(vip(1)).is_err());
        assert!(TcpStream::connect(vip(2)).is_err());
    }
    for service in [&deaf, &empty] {
        let label = service.to_string();
        wait_for(&node, "mesonet_lb_connections_total", &label, 40);
        wait_for(&node, "mesonet_lb_failed_connections_total", &label, 40);
    }
    wait_for(&node, "mesonet_lb_connect_failures_total", &deaf.to_string(), 40);
    assert_eq!(node.metric("mesonet_lb_connect_failures_total", &empty.to_string()), 0.0);
    assert_eq!(node.metric("mesonet_lb_active_connections", ""), 0.0);
}

#[test]
#[ignore = "needs root"]
fn flows_of_datagrams_are_counted() {
    let site = Site::new("flows");
    let mut node = site.node();
    let service = node.put_service("udp", "sink", vip(1));
    let sink = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    node.put_endpoint(&service, "a", sink.local_addr().expect("bound"), Ready);
    site.run(node.apply());
    for _ in 0..10 {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        for _ in 0..5 {
            client.send_to(b"!", vip(1)).expect("sent");
        }
    }
    let label = service.to_string();
    wait_for(&node, "mesonet_lb_connections_total", &label, 10);
    wait_for(&node, "mesonet_lb_packets_total", "in", 50);
}
