//! Connections and datagrams reach endpoints, and see virtual addresses.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use mesonet_model::EndpointState;

use super::{LOOKS, Site, vip, vip6};
use crate::fixture::{PATIENCE, ask, connect, dead_address, eventually, serve_name, task};

#[test]
#[ignore = "needs root"]
fn connections_go_to_ready_endpoints_and_see_the_virtual_address() {
    let site = Site::new("connect");
    let mut node = site.node();
    for vip in [vip(1), vip6(1)] {
        let service = node.put_service("tcp", "web", vip);
        node.put_endpoint(&service, "a", serve_name("a"), EndpointState::Ready);
        node.put_endpoint(&service, "b", serve_name("b"), EndpointState::Ready);
        node.put_endpoint(&service, "c", serve_name("c"), EndpointState::Draining);
        assert_eq!(site.run(node.apply()), [].into());
        let names: Vec<char> = (0..200).map(|_| ask(vip).expect("an answer")).collect();
        for (name, expected) in [('a', 60..140), ('b', 60..140), ('c', 0..1)] {
            let count = names.iter().filter(|each| **each == name).count();
            assert!(expected.contains(&count), "{name}: {count} of 200");
        }
        let stream = connect(vip);
        assert_eq!(stream.peer_addr().expect("a peer"), vip);
        node.view.services.remove(&service);
        for (task, _) in [("a", ()), ("b", ()), ("c", ())] {
            let keys: Vec<_> =
                node.view.endpoints.keys().filter(|key| key.task.task.as_str() == task).cloned().collect();
            keys.iter().for_each(|key| drop(node.view.endpoints.remove(key)));
        }
        site.run(node.apply());
    }
}

#[test]
#[ignore = "needs root"]
fn a_service_without_endpoints_refuses_at_once() {
    let site = Site::new("refuse");
    let mut node = site.node();
    node.put_service("tcp", "web", vip(1));
    site.run(node.apply());
    let error = std::net::TcpStream::connect(vip(1)).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
#[ignore = "needs root"]
fn datagrams_of_a_socket_stay_with_their_endpoint() {
    let site = Site::new("datagrams");
    let mut node = site.node();
    let service = node.put_service("udp", "echo", vip(1));
    let servers: Vec<UdpSocket> = (0..4).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bind")).collect();
    for (number, server) in servers.iter().enumerate() {
        let address = server.local_addr().expect("bound");
        node.put_endpoint(&service, &format!("t{number}"), address, EndpointState::Ready);
        let server = server.try_clone().expect("a second descriptor");
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = server.recv_from(&mut buffer) {
                if server.send_to(&[number as u8], client).is_err() {
                    return;
                }
            }
        });
    }
    site.run(node.apply());
    let mut seen = std::collections::BTreeSet::new();
    for is_connected in [false, true] {
        for _ in 0..40 {
            let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
            client.set_read_timeout(Some(PATIENCE)).expect("valid");
            if is_connected {
                client.connect(vip(1)).expect("connect");
            }
            let answers: Vec<u8> = (0..5).map(|_| datagram(&client, is_connected)).collect();
            assert!(answers.iter().all(|each| *each == answers[0]), "{answers:?}");
            seen.insert(answers[0]);
        }
    }
    assert_eq!(seen.len(), 4);
}

/// Sends one datagram and returns who answers. The answer comes from the virtual address.
fn datagram(client: &UdpSocket, is_connected: bool) -> u8 {
    let mut buffer = [0; 64];
    if is_connected {
        client.send(b"?").expect("sent");
        assert_eq!(client.peer_addr().expect("connected"), vip(1));
    } else {
        client.send_to(b"?", vip(1)).expect("sent");
    }
    let (_, from) = client.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from, vip(1));
    buffer[0]
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_does_not_listen_is_the_clients_error() {
    let site = Site::new("deaf");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "a", dead_address(), EndpointState::Ready);
    site.run(node.apply());
    let error = std::net::TcpStream::connect(vip(1)).expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_joins_others_gets_connections_when_it_listens() {
    let site = Site::new("late");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let a = serve_name("a");
    node.put_endpoint(&service, "a", a, EndpointState::Ready);
    site.run(node.apply());
    let (late, b) = bound();
    node.put_endpoint(&service, "b", b, EndpointState::Ready);
    site.run(node.apply());
    assert!((0..20).all(|_| ask(vip(1)).is_ok_and(|name| name == 'a')));
    // Nor when the other one drains, which stays until then, whether it has a connection at the moment or not.
    node.put_endpoint(&service, "a", a, EndpointState::Draining);
    site.run(node.apply());
    let busy = node.balancer.busy();
    let draining = Instant::now();
    while draining.elapsed() < LOOKS {
        assert!(busy.borrow().contains(&task("a")));
        assert!(ask(vip(1)).is_ok_and(|name| name == 'a'));
    }
    serve(late);
    eventually("it gets connections", || ask(vip(1)).is_ok_and(|name| name == 'b'));
    assert!((0..20).all(|_| ask(vip(1)).is_ok_and(|name| name == 'b')));
    eventually("the other one is free", || busy.borrow().is_empty());
}

#[test]
#[ignore = "needs root"]
fn of_a_new_services_endpoints_those_get_connections_that_listen() {
    let site = Site::new("first");
    let mut node = site.node();
    // A node takes it that those of its first view listen.
    site.run(node.apply());
    let service = node.put_service("tcp", "web", vip(1));
    let (late, b) = bound();
    node.put_endpoint(&service, "a", serve_name("a"), EndpointState::Ready);
    node.put_endpoint(&service, "b", b, EndpointState::Ready);
    site.run(node.apply());
    eventually("one does it alone", || (0..20).all(|_| ask(vip(1)).is_ok_and(|name| name == 'a')));
    assert!((0..20).all(|_| ask(vip(1)).is_ok_and(|name| name == 'a')));
    serve(late);
    eventually("both do it", || ask(vip(1)).is_ok_and(|name| name == 'b'));
}

/// A port that is taken, and nobody listens there yet.
fn bound() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    (socket, address)
}

/// Listens, and says that it is b.
fn serve(socket: socket2::Socket) {
    socket.listen(64).expect("it listens");
    let listener: std::net::TcpListener = socket.into();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"b");
        }
    });
}
