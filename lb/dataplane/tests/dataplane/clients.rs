//! Policies that ask who a client is: introduction by the PROXY protocol, choice by address, affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use mesonet_lb_plan::{Algorithm, ServicePolicy};
use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::{Service, ServiceKey};
use socket2::{Domain, Socket, Type};

use crate::fixture::{Node, PATIENCE, echoes, read_name, serve, serve_name, vip, vip6};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn set_policy(node: &mut Node, key: &ServiceKey, policy: ServicePolicy) {
    let service = node.view.services.get(key).expect("the service is there");
    let service = Service { policy, ..service.as_ref().clone() };
    node.view.services.insert(key.clone(), Arc::new(service));
}

/// A connection of a client of loopback with an address of its own.
fn connect_from(client: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let client = SocketAddr::from((Ipv4Addr::new(127, 0, 77, client), 0));
    socket.bind(&client.into()).expect("every address of 127.0.0.0/8 is local");
    socket.connect(&to.into()).expect("the service listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    stream
}

fn ask_from(client: u8, to: SocketAddr) -> char {
    read_name(&mut connect_from(client, to)).expect("an answer")
}

/// Three endpoints that say who they are.
fn put_endpoints(node: &mut Node, key: &ServiceKey) -> BTreeMap<char, SocketAddr> {
    [("a", 'a'), ("b", 'b'), ("c", 'c')]
        .into_iter()
        .map(|(name, letter)| {
            let address = serve_name(name);
            node.put_endpoint(key, name, address, Ready);
            (letter, address)
        })
        .collect()
}

/// A server that tells what it reads first, and whether the client's bytes follow.
fn serve_introduced(length: usize) -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let (tell, told) = mpsc::channel();
    let address = serve(move |mut stream| {
        let mut head = vec![0; length];
        if stream.read_exact(&mut head).is_err() || tell.send(head).is_err() {
            return;
        }
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    (address, told)
}

#[tokio::test]
async fn an_endpoint_is_told_who_the_client_is_before_anything_else() {
    let policy = ServicePolicy { proxy_protocol: true, ..ServicePolicy::default() };
    for (address, length, family) in [(vip(), 28, 0x11), (vip6(), 52, 0x21)] {
        let mut node = Node::proxy();
        let service = node.put_service("tcp", "web", address);
        let (endpoint, told) = serve_introduced(length);
        node.put_endpoint(&service, "a", endpoint, Ready);
        set_policy(&mut node, &service, policy);
        assert!(node.apply().await.is_empty());
        let mut client = TcpStream::connect(address).expect("the service listens");
        client.set_read_timeout(Some(PATIENCE)).expect("valid");
        // Before the client has said anything.
        let head = told.recv_timeout(PATIENCE).expect("an introduction");
        assert_eq!(&head[..12], SIGNATURE);
        assert_eq!(head[12..16], [0x21, family, 0, (length - 16) as u8]);
        let client_address = client.local_addr().expect("connected");
        assert_eq!(head[length - 4..length - 2], client_address.port().to_be_bytes());
        assert_eq!(head[length - 2..], address.port().to_be_bytes());
        assert!(echoes(&mut client) && echoes(&mut client));
        assert_eq!(node.metric("mesonet_lb_bytes_total", "in"), 2.0, "only the client's bytes count");
    }
}

#[tokio::test]
async fn every_datagram_is_introduced() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("udp", "echo", address);
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    server.set_read_timeout(Some(PATIENCE)).expect("valid");
    node.put_endpoint(&service, "a", server.local_addr().expect("bound"), Ready);
    set_policy(&mut node, &service, ServicePolicy { proxy_protocol: true, ..ServicePolicy::default() });
    assert!(node.apply().await.is_empty());
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    client.set_read_timeout(Some(PATIENCE)).expect("valid");
    client.connect(address).expect("connected");
    for _ in 0..2 {
        client.send(b"?").expect("sent");
        let mut datagram = [0; 64];
        let (length, from) = server.recv_from(&mut datagram).expect("forwarded");
        assert_eq!((length, &datagram[..12], datagram[13]), (29, SIGNATURE, 0x12));
        assert_eq!(datagram[24..26], client.local_addr().expect("bound").port().to_be_bytes());
        assert_eq!(datagram[28], b'?');
        server.send_to(b"!", from).expect("sent");
        assert_eq!(client.recv(&mut datagram).expect("an answer"), 1);
    }
}

#[tokio::test]
async fn by_address_a_client_has_one_endpoint_the_same_on_every_node() {
    let policy = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    let (mut here, mut there) = (Node::proxy(), Node::proxy());
    let addresses = [vip(), vip()];
    let first = here.put_service("tcp", "web", addresses[0]);
    let second = there.put_service("tcp", "web", addresses[1]);
    let endpoints = put_endpoints(&mut here, &first);
    for (name, address) in &endpoints {
        there.put_endpoint(&second, &name.to_string(), *address, Ready);
    }
    set_policy(&mut here, &first, policy);
    set_policy(&mut there, &second, policy);
    assert!(here.apply().await.is_empty() && there.apply().await.is_empty());
    let chosen: BTreeMap<u8, char> =
        (1..=60).map(|client| (client, ask_from(client, addresses[0]))).collect();
    assert_eq!(chosen.values().collect::<BTreeSet<_>>().len(), 3, "all endpoints have clients: {chosen:?}");
    for (client, name) in &chosen {
        assert_eq!(ask_from(*client, addresses[0]), *name);
        assert_eq!(ask_from(*client, addresses[1]), *name);
    }
    here.remove_endpoint(&first, "b", endpoints[&'b']);
    here.apply().await;
    for (client, name) in chosen {
        let now = ask_from(client, addresses[0]);
        assert!(now == name || (name == 'b' && now != 'b'), "client {client} has moved from {name} to {now}");
    }
}

#[tokio::test]
async fn a_client_stays_with_its_endpoint_until_that_drains() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("tcp", "web", address);
    let endpoints = put_endpoints(&mut node, &service);
    let policy = ServicePolicy { affinity: Some(Duration::from_secs(3600)), ..ServicePolicy::default() };
    set_policy(&mut node, &service, policy);
    assert!(node.apply().await.is_empty());
    let first = ask_from(1, address);
    for _ in 0..20 {
        assert_eq!(ask_from(1, address), first);
    }
    let all: BTreeSet<char> = (2..=60).map(|client| ask_from(client, address)).collect();
    assert_eq!(all.len(), 3, "clients spread over the endpoints");
    node.put_endpoint(&service, &first.to_string(), endpoints[&first], Draining);
    node.apply().await;
    let second = ask_from(1, address);
    assert_ne!(second, first);
    node.put_endpoint(&service, &first.to_string(), endpoints[&first], Ready);
    node.apply().await;
    for _ in 0..20 {
        assert_eq!(ask_from(1, address), second, "a client does not come back by itself");
    }
}

#[tokio::test]
async fn an_address_that_somebody_shares_with_others_is_taken_all_the_same() {
    let mut node = Node::proxy();
    let address = vip();
    let other = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    other.set_reuse_port(true).expect("valid");
    other.bind(&address.into()).expect("free");
    other.listen(1).expect("bound");
    let service = node.put_service("tcp", "web", address);
    node.put_endpoint(&service, "a", serve_name("a"), Ready);
    assert!(node.apply().await.contains_key(&service));
    drop(other);
    assert!(node.balancer.observe().await.is_empty());
    assert_eq!(ask_from(1, address), 'a');
}
