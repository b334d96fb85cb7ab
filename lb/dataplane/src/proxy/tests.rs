//! The bounds of a worker, with bounds that a test can reach.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mesonet_lb_plan::{EndpointId, EndpointSpec, RouteState};
use mesonet_model::{FrameworkId, TaskId};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy with one worker, two connections and two sessions, and a service that leads to an address.
async fn small_proxy(service: &str, endpoint: SocketAddr) -> (Proxy, prometheus::Registry, SocketAddr) {
    let registry = prometheus::Registry::new();
    let budget = DescriptorBudget { connections: 2, sessions: 2, pipes: 0 };
    let mut proxy = Proxy::start_workers(&Metrics::new(&registry), 1, budget);
    // No outgoing connection has an address of this network, so none takes the port meanwhile.
    let vip = Ipv4Addr::new(127, 11, 255, 1);
    let address = TcpListener::bind((vip, 0)).and_then(|socket| socket.local_addr()).expect("free");
    let service: ServiceKey = service.parse().expect("key");
    let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
    let endpoint = EndpointId { task, address: endpoint };
    let spec = EndpointSpec { state: RouteState::Ready, weight: 1 };
    let ops =
        [Op::AddEndpoint { service: service.clone(), endpoint, spec }, Op::OpenListener { service, address }];
    assert!(proxy.apply(&ops).await.is_empty());
    (proxy, registry, address)
}

fn total(registry: &prometheus::Registry, name: &str) -> f64 {
    let families = registry.gather();
    let metrics =
        families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
}

#[tokio::test]
async fn clients_beyond_the_bound_wait_until_a_connection_ends() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    let (_proxy, registry, address) =
        small_proxy("tcp/web@marathon:80", server.local_addr().expect("bound")).await;
    let clients: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(address).expect("the queue has room")).collect();
    let served: Vec<TcpStream> = (0..2).map(|_| server.accept().expect("two are served").0).collect();
    assert_eq!(total(&registry, "mesonet_lb_active_connections"), 2.0);
    assert_eq!(total(&registry, "mesonet_lb_connections_total"), 2.0);

    let [first, second, mut last] = <[TcpStream; 3]>::try_from(clients).expect("three");
    drop((first, second, served));
    let (mut stream, _) = server.accept().expect("there is room");
    last.write_all(b"!").expect("sent");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("forwarded");
    assert_eq!(byte, *b"!");
}

#[tokio::test]
async fn the_oldest_session_makes_room_for_a_new_one() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    server.set_read_timeout(Some(PATIENCE)).expect("valid");
    let (_proxy, registry, address) =
        small_proxy("udp/echo@marathon:80", server.local_addr().expect("bound")).await;
    let clients: Vec<UdpSocket> = (0..3)
        .map(|_| {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
            client.connect(address).expect("connected");
            client
        })
        .collect();
    // The proxy's address for each datagram that arrives; a session keeps its own.
    let send = |client: &UdpSocket| {
        client.send(b"?").expect("sent");
        server.recv_from(&mut [0; 8]).expect("forwarded").1
    };
    let first: Vec<SocketAddr> = clients.iter().map(send).collect();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(total(&registry, "mesonet_lb_active_connections"), 2.0);
    assert_eq!(send(&clients[2]), first[2]);
    assert_eq!(send(&clients[1]), first[1]);
    assert_ne!(send(&clients[0]), first[0], "the oldest session was dropped");
    assert_eq!(total(&registry, "mesonet_lb_connections_total"), 4.0);
}
