//! Bounds and times of a worker, with values that a test can reach.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use mesonet_lb_plan::{EndpointCount, EndpointId, EndpointSpec, RouteState};
use mesonet_model::{FrameworkId, TaskId};
use socket2::SockRef;

use super::udp::SessionIdle;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any test takes.
const NEVER: Duration = Duration::from_secs(3600);

/// Sessions are over whenever they are looked at.
const AT_ONCE: Duration = Duration::ZERO;

/// A proxy with one worker, two connections and two sessions, and one service.
struct SmallProxy {
    proxy: Proxy,
    registry: prometheus::Registry,
    service: ServiceKey,
    address: SocketAddr,
}

impl SmallProxy {
    async fn start(service: &str, session: SessionIdle) -> Self {
        Self::start_with(service, Patience { session, ..Patience::STANDARD }).await
    }

    async fn start_with(service: &str, patience: Patience) -> Self {
        let registry = prometheus::Registry::new();
        let budget = DescriptorBudget { connections: 2, sessions: 2, pipes: 0 };
        let mut proxy = Proxy::start_workers(&Metrics::new(&registry), 1, budget, patience);
        // No outgoing connection has an address of this network, so none takes the port meanwhile.
        let vip = Ipv4Addr::new(127, 11, 255, 1);
        let address = TcpListener::bind((vip, 0)).and_then(|socket| socket.local_addr()).expect("free");
        let service: ServiceKey = service.parse().expect("key");
        let open = Op::OpenListener { service: service.clone(), address };
        assert!(proxy.apply(&[open]).await.is_empty());
        Self { proxy, registry, service, address }
    }

    async fn put_endpoint(&mut self, name: &str, address: SocketAddr, state: RouteState) {
        let endpoint = EndpointId { task: task(name), address };
        let spec = EndpointSpec { state, weight: 1 };
        let op = Op::SetEndpoint { service: self.service.clone(), endpoint, spec };
        assert!(self.proxy.apply(&[op]).await.is_empty());
    }

    fn total(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metrics =
            families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
    }

    /// Waits until every session has ended.
    fn wait_until_silent(&self) {
        let begun = Instant::now();
        while self.total("mesonet_lb_active_connections") > 0.0 {
            assert!(begun.elapsed() < PATIENCE, "sessions stay");
            thread::yield_now();
        }
    }

    fn udp_client(&self) -> UdpSocket {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
        client.connect(self.address).expect("connected");
        client
    }
}

fn task(name: &str) -> TaskKey {
    TaskKey::new(FrameworkId::new("f"), TaskId::new(name))
}

fn udp_server() -> (UdpSocket, SocketAddr) {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    server.set_read_timeout(Some(PATIENCE)).expect("valid");
    let address = server.local_addr().expect("bound");
    (server, address)
}

/// Sends a datagram that has to reach a server.
fn send(client: &UdpSocket, server: &UdpSocket) {
    client.send(b"?").expect("sent");
    server.recv(&mut [0; 8]).expect("forwarded");
}

#[tokio::test]
async fn clients_beyond_the_bound_wait_until_a_connection_ends() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    let mut small = SmallProxy::start("tcp/web@marathon:80", SessionIdle::STANDARD).await;
    small.put_endpoint("t", server.local_addr().expect("bound"), RouteState::Ready).await;
    let clients: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(small.address).expect("the queue has room")).collect();
    let served: Vec<TcpStream> = (0..2).map(|_| server.accept().expect("two are served").0).collect();
    assert_eq!(small.total("mesonet_lb_active_connections"), 2.0);
    assert_eq!(small.total("mesonet_lb_connections_total"), 2.0);

    let [first, second, mut last] = <[TcpStream; 3]>::try_from(clients).expect("three");
    drop((first, second, served));
    let (mut stream, _) = server.accept().expect("there is room");
    last.write_all(b"!").expect("sent");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("forwarded");
    assert_eq!(byte, *b"!");
}

/// A service of one endpoint, and the server behind it.
async fn small_web(half_closed: Duration) -> (SmallProxy, TcpListener) {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
    let patience = Patience { half_closed, ..Patience::STANDARD };
    let mut small = SmallProxy::start_with("tcp/web@marathon:80", patience).await;
    small.put_endpoint("t", server.local_addr().expect("bound"), RouteState::Ready).await;
    (small, server)
}

/// A client that is connected to a server, and the server's side of it.
fn pair(small: &SmallProxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(small.address).expect("the proxy listens");
    let (accepted, _) = server.accept().expect("the proxy connects");
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    }
    (client, accepted)
}

fn read_all(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test]
async fn clients_that_keep_what_their_server_has_ended_take_no_place_for_ever() {
    let (small, server) = small_web(Duration::from_millis(8)).await;
    let mut forgetful = Vec::new();
    for _ in 0..4 {
        let (mut client, mut accepted) = pair(&small, &server);
        accepted.write_all(b"answer").expect("sent");
        accepted.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(read_all(&mut client).expect("an answer and its end"), "answer");
        let error = read_all(&mut accepted).expect_err("what the client says is not at its end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        forgetful.push(client);
    }
    small.wait_until_silent();
}

#[tokio::test]
async fn a_client_that_has_said_all_waits_for_its_answer() {
    let (small, server) = small_web(Duration::from_millis(8)).await;
    let (mut client, mut accepted) = pair(&small, &server);
    client.write_all(b"question").expect("sent");
    client.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(read_all(&mut accepted).expect("a question and its end"), "question");
    let (_forgetful, ended) = pair(&small, &server);
    drop(ended);
    let begun = Instant::now();
    while small.total("mesonet_lb_active_connections") > 1.0 {
        assert!(begun.elapsed() < PATIENCE, "the other connection stays");
        thread::yield_now();
    }
    accepted.write_all(b"answer").expect("sent");
    drop(accepted);
    assert_eq!(read_all(&mut client).expect("an answer and its end"), "answer");
}

#[tokio::test]
async fn a_connection_whose_server_is_gone_for_good_is_over() {
    let (small, server) = small_web(NEVER).await;
    let (mut client, accepted) = pair(&small, &server);
    drop(accepted);
    assert_eq!(read_all(&mut client).expect("an end"), "");
    // The answer to this is a reset.
    client.write_all(b"?").expect("sent");
    small.wait_until_silent();
}

#[tokio::test]
async fn a_connection_whose_client_is_gone_for_good_is_over() {
    let (small, server) = small_web(NEVER).await;
    let (client, mut accepted) = pair(&small, &server);
    client.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(read_all(&mut accepted).expect("an end"), "");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("valid");
    drop(client);
    small.wait_until_silent();
}

#[tokio::test]
async fn the_oldest_session_makes_room_for_a_new_one() {
    let (server, endpoint) = udp_server();
    let idle = SessionIdle { usually: NEVER, draining: NEVER };
    let mut small = SmallProxy::start("udp/echo@marathon:80", idle).await;
    small.put_endpoint("t", endpoint, RouteState::Ready).await;
    let clients: Vec<UdpSocket> = (0..3).map(|_| small.udp_client()).collect();
    clients.iter().for_each(|client| send(client, &server));
    assert_eq!(small.total("mesonet_lb_active_connections"), 2.0);
    send(&clients[2], &server);
    send(&clients[1], &server);
    assert_eq!(small.total("mesonet_lb_connections_total"), 3.0, "the newer sessions go on");
    send(&clients[0], &server);
    assert_eq!(small.total("mesonet_lb_connections_total"), 4.0, "the oldest session was dropped");
}

#[tokio::test]
async fn sessions_count_for_their_endpoint() {
    let (server, endpoint) = udp_server();
    let idle = SessionIdle { usually: NEVER, draining: NEVER };
    let mut small = SmallProxy::start("udp/echo@marathon:80", idle).await;
    small.put_endpoint("t", endpoint, RouteState::Ready).await;
    let clients = [small.udp_client(), small.udp_client()];
    clients.iter().for_each(|client| send(client, &server));
    let id = EndpointId { task: task("t"), address: endpoint };
    let count = EndpointCount { connections: 2, active: 2, failures: 0 };
    assert_eq!(small.proxy.count(&small.service, &id), count);
}

#[tokio::test]
async fn a_client_that_was_silent_for_long_begins_another_session() {
    let (server, endpoint) = udp_server();
    let idle = SessionIdle { usually: AT_ONCE, draining: NEVER };
    let mut small = SmallProxy::start("udp/echo@marathon:80", idle).await;
    small.put_endpoint("t", endpoint, RouteState::Ready).await;
    let client = small.udp_client();
    for sessions in 1..=2 {
        send(&client, &server);
        assert_eq!(small.total("mesonet_lb_connections_total"), f64::from(sessions));
        small.wait_until_silent();
    }
}

#[tokio::test]
async fn a_session_keeps_the_task_of_its_draining_endpoint_busy() {
    let ((a, at_a), (b, at_b)) = (udp_server(), udp_server());
    let idle = SessionIdle { usually: NEVER, draining: NEVER };
    let mut small = SmallProxy::start("udp/echo@marathon:80", idle).await;
    small.put_endpoint("a", at_a, RouteState::Ready).await;
    let (old, new) = (small.udp_client(), small.udp_client());
    send(&old, &a);
    small.put_endpoint("a", at_a, RouteState::Draining).await;
    small.put_endpoint("b", at_b, RouteState::Ready).await;
    send(&new, &b);
    send(&old, &a);
    assert_eq!(*small.proxy.busy().borrow(), BTreeSet::from([task("a")]));
}

#[tokio::test]
async fn a_client_that_was_silent_leaves_a_draining_endpoint() {
    let ((a, at_a), (b, at_b)) = (udp_server(), udp_server());
    let idle = SessionIdle { usually: NEVER, draining: AT_ONCE };
    let mut small = SmallProxy::start("udp/echo@marathon:80", idle).await;
    small.put_endpoint("a", at_a, RouteState::Ready).await;
    let client = small.udp_client();
    send(&client, &a);
    small.put_endpoint("a", at_a, RouteState::Draining).await;
    small.put_endpoint("b", at_b, RouteState::Ready).await;
    let mut busy = small.proxy.busy();
    busy.wait_for(BTreeSet::is_empty).await.expect("the proxy lives");
    send(&client, &b);
}
