//! The proxy with real TCP sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::fixture::{
    Node, PATIENCE, ask, connect, dead_address, echoes, eventually, read_name, serve, serve_name, task, vip,
    vip6,
};
use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::ServiceKey;

async fn node_with(endpoints: &[(&str, SocketAddr)]) -> (Node, ServiceKey, SocketAddr) {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("tcp", "web", address);
    for (task, endpoint) in endpoints {
        node.put_endpoint(&service, task, *endpoint, Ready);
    }
    assert!(node.apply().await.is_empty());
    (node, service, address)
}

#[tokio::test]
async fn connections_go_to_every_ready_endpoint() {
    let endpoints = ["a", "b", "c"].map(|name| (name, serve_name(name)));
    let (mut node, service, address) = node_with(&endpoints).await;
    let mut answers = BTreeMap::new();
    for _ in 0..100 {
        *answers.entry(ask(address).expect("an answer").to_string()).or_insert(0) += 1;
    }
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    eventually("all are closed", || node.metric("mesonet_lb_active_connections", "") == 0.0);
    assert_eq!(node.metric("mesonet_lb_connections_total", ""), 100.0);
    assert_eq!(node.metric("mesonet_lb_bytes_total", "out"), 100.0);
    assert_eq!(node.metric("mesonet_lb_bytes_total", "in"), 0.0);
    assert_eq!(node.metric("mesonet_lb_services", ""), 1.0);
    assert_eq!(node.metric("mesonet_lb_endpoints", "ready"), 3.0);
    let of = |node: &Node, name: &str, endpoint: SocketAddr| node.metric(name, &endpoint.to_string());
    for (name, endpoint) in endpoints {
        let given = f64::from(answers[name]);
        assert_eq!(of(&node, "mesonet_lb_endpoint_connections_total", endpoint), given);
        assert_eq!(of(&node, "mesonet_lb_endpoint_bytes_total", endpoint), given);
        assert_eq!(of(&node, "mesonet_lb_endpoint_connect_failures_total", endpoint), 0.0);
    }
    assert_eq!(node.metric("mesonet_lb_endpoint_bytes_total", "in"), 0.0);
    let (name, gone) = endpoints[0];
    node.remove_endpoint(&service, name, gone);
    assert!(node.apply().await.is_empty());
    eventually("nothing is told of it", || of(&node, "mesonet_lb_endpoint_connections_total", gone) == 0.0);
    let (name, stays) = endpoints[1];
    assert_eq!(of(&node, "mesonet_lb_endpoint_connections_total", stays), f64::from(answers[name]));
}

#[tokio::test]
async fn services_are_reached_over_ipv6() {
    let mut node = Node::proxy();
    let address = vip6();
    let service = node.put_service("tcp", "web", address);
    node.put_endpoint(&service, "a", serve_name("a"), Ready);
    assert!(node.apply().await.is_empty());
    assert_eq!(ask(address).expect("an answer"), 'a');
}

#[tokio::test]
async fn a_client_does_not_notice_that_endpoints_refuse() {
    let mut endpoints = vec![("a", serve_name("a"))];
    endpoints.extend((0..20).map(|_| ("dead", dead_address())));
    let (node, _, address) = node_with(&endpoints).await;
    for _ in 0..50 {
        assert_eq!(ask(address).expect("an answer"), 'a');
    }
    assert!(node.metric("mesonet_lb_connect_failures_total", "") > 0.0);
    assert_eq!(node.metric("mesonet_lb_failed_connections_total", ""), 0.0);
}

#[tokio::test]
async fn a_client_waits_for_an_endpoint_that_is_about_to_listen() {
    let address = vip();
    let (node, _, vip) = node_with(&[("a", address)]).await;
    let client = thread::spawn(move || ask(vip));
    eventually("the endpoint has refused", || node.metric("mesonet_lb_connect_failures_total", "") >= 2.0);
    let listener = TcpListener::bind(address).expect("the port is free");
    let (mut stream, _) = listener.accept().expect("the proxy asks again");
    stream.write_all(b"a").expect("sent");
    drop(stream);
    assert_eq!(client.join().expect("no panic").expect("an answer"), 'a');
    assert_eq!(node.metric("mesonet_lb_failed_connections_total", ""), 0.0);
}

#[tokio::test]
async fn clients_of_a_service_that_nobody_serves_are_reset() {
    let (mut node, service, address) = node_with(&[]).await;
    let error = ask(address).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let dead = dead_address();
    node.put_endpoint(&service, "dead", dead, Ready);
    node.apply().await;
    let error = ask(address).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    eventually("both are counted", || node.metric("mesonet_lb_failed_connections_total", "") == 2.0);
}

#[tokio::test]
async fn either_side_may_end_its_half_first() {
    let counter = serve(|mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("the client's half");
        write!(stream, "{}", bytes.len()).expect("the client still listens");
    });
    let (_node, _, address) = node_with(&[("a", counter)]).await;
    let mut stream = connect(address);
    stream.write_all(&[0; 12345]).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "12345");
}

#[tokio::test]
async fn a_dead_endpoint_s_connections_are_reset_and_others_stay() {
    let (a, b) = (serve_name("a"), serve_name("b"));
    let (mut node, service, address) = node_with(&[("a", a), ("b", b)]).await;
    let mut streams: Vec<(char, TcpStream)> = Vec::new();
    eventually("there is a connection to each", || {
        let mut stream = connect(address);
        let name = read_name(&mut stream).expect("a name");
        streams.push((name, stream));
        ['a', 'b'].iter().all(|name| streams.iter().any(|(other, _)| other == name))
    });
    node.remove_endpoint(&service, "a", a);
    node.apply().await;
    for (name, stream) in &mut streams {
        if *name == 'a' {
            let error = read_name(stream).expect_err("the endpoint is dead");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        } else {
            assert!(echoes(stream));
        }
    }
    assert_eq!(ask(address).expect("an answer"), 'b');
}

/// Whether a socket of this machine is connected to a server that has ended its side.
fn has_been_told_the_end_of(server: SocketAddr) -> bool {
    const CLOSE_WAIT: &str = "08";
    let remote = format!("0100007F:{:04X}", server.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the list of sockets");
    // The number of the line, the local and the remote address, the state.
    let mut lines = sockets.lines().map(|line| line.split_whitespace().skip(2));
    lines.any(|mut fields| fields.next() == Some(remote.as_str()) && fields.next() == Some(CLOSE_WAIT))
}

#[tokio::test]
async fn what_an_endpoint_sent_before_it_died_is_delivered() {
    const ANSWER: usize = 8 << 20;
    let (sent, sent_out) = mpsc::channel();
    let address = serve(move |mut stream| {
        stream.write_all(&vec![7; ANSWER]).expect("sent");
        drop(stream);
        sent.send(()).expect("the test waits");
    });
    let (mut node, service, vip) = node_with(&[("a", address)]).await;
    let mut stream = connect(vip);
    let mut bytes = vec![0; ANSWER / 2];
    stream.read_exact(&mut bytes).expect("the first half");
    let more = &mut vec![0; ANSWER / 4];
    stream.read_exact(more).expect("the third quarter");
    bytes.append(more);
    sent_out.recv_timeout(PATIENCE).expect("all is sent");
    eventually("the proxy has been told the end", || has_been_told_the_end_of(address));
    node.remove_endpoint(&service, "a", address);
    node.apply().await;
    stream.read_to_end(&mut bytes).expect("the rest, and a proper end");
    assert_eq!(bytes.len(), ANSWER);
}

#[tokio::test]
async fn a_draining_endpoint_keeps_its_connections_and_gets_no_new_ones() {
    let (a, b) = (serve_name("a"), serve_name("b"));
    let (mut node, service, address) = node_with(&[("a", a)]).await;
    let busy = node.balancer.busy();
    let mut old = connect(address);
    assert_eq!(read_name(&mut old).expect("a name"), 'a');
    assert!(busy.borrow().is_empty());

    node.put_endpoint(&service, "a", a, Draining);
    node.put_endpoint(&service, "b", b, Ready);
    node.apply().await;
    assert_eq!(*busy.borrow(), BTreeSet::from([task("a")]));
    for _ in 0..20 {
        assert_eq!(ask(address).expect("an answer"), 'b');
    }
    assert!(echoes(&mut old));
    assert_eq!(*busy.borrow(), BTreeSet::from([task("a")]));

    drop(old);
    eventually("the last connection's end is noticed", || busy.borrow().is_empty());
}

#[tokio::test]
async fn a_connection_that_its_endpoint_has_ended_keeps_no_task_busy() {
    let brief = serve(|mut stream| stream.write_all(b"a").expect("sent"));
    let (mut node, service, address) = node_with(&[("a", brief)]).await;
    let mut stream = connect(address);
    node.put_endpoint(&service, "a", brief, Draining);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and its end");
    assert_eq!(answer, "a");
    node.apply().await;
    let mut busy = node.balancer.busy();
    busy.wait_for(BTreeSet::is_empty).await.expect("the balancer lives");
    assert_eq!(node.metric("mesonet_lb_active_connections", ""), 1.0);
}

#[tokio::test]
async fn a_client_that_waits_survives_a_change_of_all_endpoints() {
    let (mut node, service, address) = node_with(&[]).await;
    let (a, b) = (serve_name("a"), serve_name("b"));
    node.put_endpoint(&service, "a", a, Ready);
    node.apply().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    ask(address).expect("an answer while endpoints change");
                }
            })
        })
        .collect();
    eventually("clients ask", || node.metric("mesonet_lb_connections_total", "") > 2.0);
    for round in 0..50 {
        let (new, old) = if round % 2 == 0 { (("b", b), ("a", a)) } else { (("a", a), ("b", b)) };
        node.put_endpoint(&service, new.0, new.1, Ready);
        node.put_endpoint(&service, old.0, old.1, Draining);
        node.apply().await;
        let mut busy = node.balancer.busy();
        busy.wait_for(BTreeSet::is_empty).await.expect("the balancer lives");
        node.remove_endpoint(&service, old.0, old.1);
        node.apply().await;
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("no client failed"));
}

#[tokio::test]
async fn a_port_that_is_taken_fails_that_service_alone_until_it_is_free() {
    let mut node = Node::proxy();
    let taken = TcpListener::bind(vip()).expect("free");
    let address = taken.local_addr().expect("bound");
    let failing = node.put_service("tcp", "taken", address);
    node.put_endpoint(&failing, "a", serve_name("a"), Ready);
    let good = vip();
    let working = node.put_service("tcp", "good", good);
    node.put_endpoint(&working, "b", serve_name("b"), Ready);

    let failures = node.apply().await;
    assert_eq!(failures.keys().collect::<Vec<_>>(), [&failing]);
    assert!(failures[&failing].starts_with(&format!("cannot listen on {address}: Address already in use")));
    assert_eq!(ask(good).expect("an answer"), 'b');
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 1.0);
    assert_eq!(node.balancer.observe().await.len(), 1);

    drop(taken);
    assert!(node.balancer.observe().await.is_empty());
    assert_eq!(ask(address).expect("an answer"), 'a');
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 0.0);
}

#[tokio::test]
async fn an_address_that_is_not_here_fails_that_service_alone() {
    let mut node = Node::proxy();
    let elsewhere = node.put_service("tcp", "elsewhere", "192.0.2.1:80".parse().expect("address"));
    let failures = node.apply().await;
    assert!(failures[&elsewhere].contains("Cannot assign requested address"), "{failures:?}");
}

#[tokio::test]
async fn an_address_passes_from_one_service_to_another() {
    let (mut node, service, address) = node_with(&[("a", serve_name("a"))]).await;
    let endpoints: Vec<_> = node.view.endpoints.keys().cloned().collect();
    endpoints.iter().for_each(|key| drop(node.view.endpoints.remove(key)));
    node.view.services.remove(&service);
    let heir = node.put_service("tcp", "heir", address);
    node.put_endpoint(&heir, "b", serve_name("b"), Ready);
    assert!(node.apply().await.is_empty());
    assert_eq!(ask(address).expect("an answer"), 'b');
    assert_eq!(node.metric("mesonet_lb_services", ""), 1.0);
}

#[tokio::test]
async fn much_data_arrives_unchanged_both_ways_at_once() {
    const LENGTH: usize = 64 << 20;
    fn pattern(seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = vec![0; LENGTH];
        random.fill(&mut bytes);
        bytes
    }
    fn exchange(mut stream: TcpStream, sends: Vec<u8>, expects: &[u8]) -> bool {
        let mut writer = stream.try_clone().expect("a clone");
        let writing = thread::spawn(move || {
            writer.write_all(&sends).expect("sent");
            writer.shutdown(Shutdown::Write).expect("half closed");
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("received");
        writing.join().expect("all is sent");
        received == expects
    }
    let (result, result_out) = mpsc::channel();
    let server = serve(move |stream| {
        result.send(exchange(stream, pattern(1), &pattern(2))).expect("the test waits");
    });
    let (node, _, address) = node_with(&[("a", server)]).await;
    assert!(exchange(connect(address), pattern(2), &pattern(1)));
    assert!(result_out.recv().expect("the server has a result"));
    eventually("the connection is closed", || node.metric("mesonet_lb_active_connections", "") == 0.0);
    assert_eq!(node.metric("mesonet_lb_bytes_total", "in"), LENGTH as f64);
    assert_eq!(node.metric("mesonet_lb_bytes_total", "out"), LENGTH as f64);
    assert_eq!(node.metric("mesonet_lb_endpoint_bytes_total", "in"), LENGTH as f64);
    assert_eq!(node.metric("mesonet_lb_endpoint_bytes_total", "out"), LENGTH as f64);
}

#[tokio::test]
async fn a_client_that_listens_first_is_served_beside_many_that_speak_first() {
    const CROWD: usize = 4;
    // Greets, and then answers.
    let server = serve_name("g");
    let (node, _, address) = node_with(&[("a", server)]).await;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let speak = || {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = connect(address);
                stream.write_all(b"!").expect("sent");
                assert_eq!(read_name(&mut stream).expect("a greeting"), 'g');
                assert_eq!(read_name(&mut stream).expect("an answer"), '!');
            }
        };
        let crowd: Vec<_> = (0..CROWD).map(|_| scope.spawn(speak)).collect();
        eventually("the crowd speaks", || node.metric("mesonet_lb_bytes_total", "in") >= 100.0);
        for _ in 0..5 {
            assert_eq!(ask(address).expect("a greeting"), 'g');
        }
        stop.store(true, Ordering::Relaxed);
        crowd.into_iter().for_each(|each| each.join().expect("no panic"));
    });
}

#[tokio::test]
async fn each_of_many_listeners_leads_to_its_own_endpoint() {
    let servers = ["a", "b", "c"].map(|name| (name, serve_name(name)));
    let mut node = Node::proxy();
    let host = vip();
    // Held until all are known, so that no two have one port.
    let ports: Vec<TcpListener> =
        (0..60).map(|_| TcpListener::bind((host.ip(), 0)).expect("a free port")).collect();
    let addresses: Vec<SocketAddr> = ports.iter().map(|port| port.local_addr().expect("bound")).collect();
    drop(ports);
    for (number, address) in addresses.iter().enumerate() {
        let (name, server) = servers[number % servers.len()];
        let service = node.put_service("tcp", &format!("web{number}"), *address);
        node.put_endpoint(&service, name, server, Ready);
    }
    assert_eq!(node.apply().await, BTreeMap::new());
    for (number, address) in addresses.iter().enumerate() {
        let (name, _) = servers[number % servers.len()];
        assert_eq!(ask(*address).expect("an answer").to_string(), name, "{address}");
    }
}

#[tokio::test]
async fn what_follows_urgent_data_arrives() {
    const BEFORE: usize = 4 << 20;
    const AFTER: usize = 256 << 10;
    let (told, server) = mpsc::channel();
    let endpoint = serve(move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("the connection ends well");
        let count = |byte| all.iter().filter(|each| **each == byte).count();
        told.send([count(b'a'), count(b'b')]).expect("somebody waits");
    });
    let (_node, _, address) = node_with(&[("a", endpoint)]).await;
    let mut client = connect(address);
    client.write_all(&vec![b'a'; BEFORE]).expect("sent");
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).expect("sent");
    client.write_all(&vec![b'b'; AFTER]).expect("sent");
    client.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(server.recv_timeout(PATIENCE).expect("the end"), [BEFORE, AFTER]);
}
