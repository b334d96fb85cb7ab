//! What is counted agrees with what clients did.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::Duration;

use mesonet_ebpf_abi::CONNECTIONS_NEAR;
use mesonet_model::EndpointState::Ready;
use rustix::net::sockopt::socket_cookie;
use socket2::SockRef;

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
    wait_for(&node, "mesonet_lb_bytes_total", "out", total * ANSWER);
    for endpoint in &endpoints {
        let of = |name: &str| node.metric(name, &endpoint.to_string());
        let expected = of("mesonet_lb_endpoint_connections_total") * (REQUEST + ANSWER) as f64;
        eventually("the endpoint's bytes", || of("mesonet_lb_endpoint_bytes_total") == expected);
    }
    let packets = |of: &str| node.metric(of, "in") + node.metric(of, "out");
    eventually("the endpoints' packets are the service's", || {
        packets("mesonet_lb_endpoint_packets_total") == packets("mesonet_lb_packets_total")
    });
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
fn a_socket_that_connects_again_counts_each_time() {
    let site = Site::new("again");
    let mut node = site.node();
    let deaf = node.put_service("tcp", "deaf", vip(1));
    node.put_endpoint(&deaf, "a", dead_address(), Ready);
    let web = node.put_service("tcp", "web", vip(2));
    node.put_endpoint(&web, "a", answering(), Ready);
    site.run(node.apply());
    let socket =
        || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let client = socket();
    for _ in 0..2 {
        assert!(client.connect(&vip(1).into()).is_err());
    }
    client.connect(&vip(2).into()).expect("the service listens");
    let mut stream = TcpStream::from(client);
    assert_eq!(stream.peer_addr().expect("connected"), vip(2));
    let (deaf, web) = (deaf.to_string(), web.to_string());
    wait_for(&node, "mesonet_lb_connect_failures_total", &deaf, 2);
    wait_for(&node, "mesonet_lb_active_connections", &web, 1);
    stream.write_all(&[0; REQUEST]).expect("sent");
    stream.read_exact(&mut [0; ANSWER]).expect("an answer");
    drop(stream);
    // One that gives up before it knows, with a socket that does not wait.
    let client = socket();
    client.set_nonblocking(true).expect("valid");
    let _refused = client.connect(&vip(1).into());
    drop(client);
    wait_for(&node, "mesonet_lb_connect_failures_total", &deaf, 3);
    wait_for(&node, "mesonet_lb_connections_total", &deaf, 3);
    wait_for(&node, "mesonet_lb_connections_total", &web, 1);
    wait_for(&node, "mesonet_lb_active_connections", "", 0);
    wait_for(&node, "mesonet_lb_bytes_total", "in", REQUEST);
    wait_for(&node, "mesonet_lb_bytes_total", "out", ANSWER);
    assert_eq!(node.metric("mesonet_lb_connect_failures_total", &web), 0.0);
}

#[test]
#[ignore = "needs root"]
fn what_clients_reset_is_no_failure_of_their_endpoint() {
    let site = Site::new("blameless");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    // It speaks when its client has ended, or not at all.
    let place = serve(|mut stream| {
        while matches!(stream.read(&mut [0]), Ok(1..)) {}
        let _ = stream.write_all(b"a");
    });
    node.put_endpoint(&service, "a", place, Ready);
    site.run(node.apply());
    let linger = |stream: &TcpStream| SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("valid");
    for _ in 0..8 {
        // One resets it by closing it.
        linger(&connect(vip(1)));
        let mut stream = connect(vip(1));
        stream.write_all(b"?").expect("sent");
        linger(&stream);
        // One does not hear the answer.
        let stream = connect(vip(1));
        stream.shutdown(Shutdown::Both).expect("connected");
        eventually("the answer is not wanted", || stream.take_error().expect("a socket").is_some());
        // One takes it back.
        let stream = connect(vip(1));
        disconnect(&stream);
    }
    // Some have nothing to say, and are ended with their endpoint.
    let mut idle: Vec<TcpStream> = (0..8).map(|_| connect(vip(1))).collect();
    node.remove_endpoint(&service, "a", place);
    site.run(node.apply());
    assert!(idle.iter_mut().all(|stream| stream.read(&mut [0]).is_err()));
    drop(idle);
    let label = service.to_string();
    wait_for(&node, "mesonet_lb_reset_connections_total", &label, 40);
    wait_for(&node, "mesonet_lb_active_connections", &label, 0);
    assert_eq!(node.metric("mesonet_lb_connect_failures_total", &label), 0.0);
}

/// Makes a socket one that is not connected.
fn disconnect(stream: &TcpStream) {
    rustix::net::connect_unspec(stream).expect("connected");
}

#[test]
#[ignore = "needs root"]
fn connections_whose_positions_are_taken_are_known_too() {
    let site = Site::new("crowded");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let endpoint = answering();
    node.put_endpoint(&service, "a", endpoint, Ready);
    site.run(node.apply());
    let first = connect(vip(1));
    let position =
        |socket: BorrowedFd<'_>| socket_cookie(socket).expect("a cookie") % u64::from(CONNECTIONS_NEAR);
    // The kernel numbers sockets one after another.
    let mut second = loop {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        if position(socket.as_fd()) == position(first.as_fd()) {
            break socket;
        }
    };
    second.connect(&vip(1).into()).expect("the service listens");
    let third = connect(vip(1));
    let label = service.to_string();
    wait_for(&node, "mesonet_lb_active_connections", &label, 3);
    drop(first);
    wait_for(&node, "mesonet_lb_active_connections", &label, 2);
    assert_eq!(second.peer_addr().expect("connected").as_socket(), Some(vip(1)));
    node.remove_endpoint(&service, "a", endpoint);
    site.run(node.apply());
    assert!(second.write_all(b"!").and_then(|()| second.read_exact(&mut [0])).is_err());
    drop((second, third));
    wait_for(&node, "mesonet_lb_active_connections", &label, 0);
    wait_for(&node, "mesonet_lb_reset_connections_total", &label, 2);
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

#[test]
#[ignore = "needs root"]
fn datagrams_count_for_the_endpoint_that_came_to_the_same_place() {
    let site = Site::new("sameflow");
    let mut node = site.node();
    let service = node.put_service("udp", "sink", vip(1));
    let sink = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let place = sink.local_addr().expect("bound");
    node.put_endpoint(&service, "first", place, Ready);
    site.run(node.apply());
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.send_to(b"!", vip(1)).expect("sent");
    wait_for(&node, "mesonet_lb_endpoint_connections_total", &place.to_string(), 1);
    node.remove_endpoint(&service, "first", place);
    site.run(node.apply());
    node.put_endpoint(&service, "second", place, Ready);
    site.run(node.apply());
    // Nothing is counted for the first one any more.
    wait_for(&node, "mesonet_lb_endpoint_connections_total", &place.to_string(), 0);
    for _ in 0..5 {
        client.send_to(b"!", vip(1)).expect("sent");
    }
    wait_for(&node, "mesonet_lb_packets_total", "in", 6);
}
