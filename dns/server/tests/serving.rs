//! The server on real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use mesonet_dns_server::{Config, Server, StartError, server_addresses};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, Framework, FrameworkId, Resources,
    Task, TaskId, TaskKey, TaskState, Timestamp,
};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait between looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

fn empty_view() -> ClusterView {
    ClusterView::empty(ClusterId::new("c"))
}

/// A view with so many tasks named web, each with an address of its own.
fn view(tasks: u8) -> ClusterView {
    let mut view = empty_view();
    let framework = FrameworkId::new("fw");
    view.frameworks.insert(
        framework.clone(),
        Arc::new(Framework {
            id: framework.clone(),
            name: "marathon".to_owned(),
            user: "root".to_owned(),
            role: "*".to_owned(),
            hostname: "host".to_owned(),
            address: None,
            webui_url: None,
            other_addresses: Vec::new(),
            active: true,
            registered_at: Timestamp::default(),
        }),
    );
    let agent = AgentId::new("c-S0");
    let info = AgentInfo {
        hostname: "host".to_owned(),
        address: [10, 0, 0, 1].into(),
        port: 0,
        resources: Resources::default(),
        attributes: Vec::new(),
        container_networks: false,
    };
    let state = AgentState::Active;
    let entry = Agent {
        id: agent.clone(),
        info,
        other_addresses: Vec::new(),
        state,
        draining: false,
        registered_at: Timestamp::default(),
    };
    view.agents.insert(agent.clone(), Arc::new(entry));
    for at in 0..tasks {
        let key = TaskKey::new(framework.clone(), TaskId::new(format!("web.{at}")));
        let task = Task {
            key: key.clone(),
            name: "web".to_owned(),
            agent: agent.clone(),
            state: TaskState::Running,
            resources: Resources {
                ports: [31000 + u16::from(at)].into_iter().collect(),
                ..Resources::default()
            },
            discovery: None,
            labels: BTreeMap::new(),
            addresses: vec![[9, 0, 0, at].into()],
            healthy: None,
            ready: true,
            draining: false,
            suspect: false,
            ready_since: None,
            network: None,
            staged_at: Timestamp::default(),
            started_at: None,
            updated_at: Timestamp::default(),
        };
        view.tasks.insert(key, Arc::new(task));
    }
    view.revision = view.revision.next();
    view
}

async fn start(listen: &str, registry: &Registry) -> Server {
    let config = Config::at(listen.parse().expect(listen));
    Server::start(config, registry).await.expect("the server starts")
}

/// A server that has applied a view with so many tasks.
async fn serving(tasks: u8) -> (Server, SocketAddr) {
    let mut server = start("127.0.0.1:0", &Registry::new()).await;
    let view = view(tasks);
    server.apply(&view, &Delta::between(&empty_view(), &view));
    let address = server.addresses()[0];
    (server, address)
}

fn query(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect(name), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a query can be encoded")
}

async fn client(server: SocketAddr) -> UdpSocket {
    let own = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(own).await.expect("a free port");
    socket.connect(server).await.expect("connected");
    socket
}

async fn receive(socket: &UdpSocket) -> (Message, usize) {
    let mut buffer = vec![0; 65_536];
    let length =
        timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer comes").expect("it is received");
    (Message::from_vec(&buffer[..length]).expect("the answer can be read"), length)
}

async fn ask_udp(server: SocketAddr, message: &Message) -> (Message, usize) {
    let socket = client(server).await;
    socket.send(&encode(message)).await.expect("sent");
    receive(&socket).await
}

async fn send_tcp(stream: &mut TcpStream, octets: &[u8]) {
    let length = u16::try_from(octets.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), octets].concat()).await.expect("sent");
}

async fn receive_tcp(stream: &mut TcpStream) -> Message {
    let read = async {
        let mut octets = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut octets).await.expect("an answer");
        octets
    };
    let octets = timeout(PATIENCE, read).await.expect("an answer comes");
    Message::from_vec(&octets).expect("the answer can be read")
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let mut addresses: Vec<Ipv4Addr> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
        .collect();
    addresses.sort();
    addresses
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_over_both_protocols_on_one_port() {
    let (_server, address) = serving(2).await;
    let question = query(4711, "web.marathon.mesos.", RecordType::A);
    let expected = [Ipv4Addr::new(9, 0, 0, 0), Ipv4Addr::new(9, 0, 0, 1)];
    let (answer, _) = ask_udp(address, &question).await;
    assert_eq!(addresses(&answer), expected);
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
    assert!(!answer.metadata.recursion_available && !answer.metadata.truncation);
    assert_eq!(answer.answers[0].ttl, 5);
    assert!(answer.edns.is_none());
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // Several queries, sent before any answer is read, are answered in their order.
    for id in 1..=3 {
        send_tcp(&mut stream, &encode(&query(id, "web.marathon.mesos.", RecordType::A))).await;
    }
    for id in 1..=3 {
        let answer = receive_tcp(&mut stream).await;
        assert_eq!((answer.metadata.id, addresses(&answer)), (id, expected.to_vec()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_view_the_server_fails_with_a_reason() {
    let mut server = start("127.0.0.1:0", &Registry::new()).await;
    let address = server.addresses()[0];
    let question = with_edns(query(1, "web.marathon.mesos.", RecordType::A), 4096);
    let (answer, _) = ask_udp(address, &question).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let edns = answer.edns.expect("EDNS is answered");
    assert_eq!(edns.max_payload(), 1232);
    let reason = edns.option(EdnsCode::Unknown(15)).cloned();
    assert_eq!(reason, Some(EdnsOption::Unknown(15, vec![0, 14])));
    // A client without EDNS is not sent what it does not understand.
    let (answer, _) = ask_udp(address, &query(1, "web.marathon.mesos.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(answer.edns.is_none());
    let view = view(1);
    server.apply(&view, &Delta::between(&empty_view(), &view));
    let (answer, _) = ask_udp(address, &question).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_answered_as_soon_as_it_is_applied() {
    let (mut server, address) = serving(2).await;
    let (old, new) = (view(2), {
        let mut view = view(3);
        view.revision = view.revision.next();
        view
    });
    server.apply(&new, &Delta::between(&old, &new));
    let (answer, _) = ask_udp(address, &query(1, "web.marathon.mesos.", RecordType::A)).await;
    assert_eq!(addresses(&answer).len(), 3);
    let (answer, _) = ask_udp(address, &query(1, "mesos.", RecordType::SOA)).await;
    assert!(matches!(&answer.answers[0].data, RData::SOA(soa) if soa.serial == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spelling_of_the_name_comes_back() {
    let (_server, address) = serving(1).await;
    let (answer, _) = ask_udp(address, &query(1, "wEb.MARATHON.mesos.", RecordType::A)).await;
    assert_eq!(answer.queries[0].name.to_ascii(), "wEb.MARATHON.mesos.");
    assert_eq!(answer.answers[0].name.to_ascii(), "wEb.MARATHON.mesos.");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_cut_over_udp_and_whole_over_tcp() {
    let (_server, address) = serving(128).await;
    let question = query(9, "web.marathon.mesos.", RecordType::A);
    for (message, limit) in [
        (question.clone(), 512),
        (with_edns(question.clone(), 100), 512),
        (with_edns(question.clone(), 800), 800),
        (with_edns(question.clone(), 65_535), 1232),
    ] {
        let (answer, length) = ask_udp(address, &message).await;
        assert!(answer.metadata.truncation);
        // No further record of 16 octets would have fitted.
        assert!(length <= limit && length + 16 > limit, "{length} octets of {limit}");
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
    }
    let mut stream = TcpStream::connect(address).await.expect("connected");
    send_tcp(&mut stream, &encode(&question)).await;
    let answer = receive_tcp(&mut stream).await;
    assert_eq!(addresses(&answer).len(), 128);
    assert!(!answer.metadata.truncation);
    // Ports with the addresses of their hosts take so much that names at their end are too far from those at the start
    // to be compressed.
    let (_server, address) = serving(u8::MAX).await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let question = query(9, "_web._tcp.marathon.mesos.", RecordType::SRV);
    send_tcp(&mut stream, &encode(&question)).await;
    let answer = receive_tcp(&mut stream).await;
    assert_eq!((answer.answers.len(), answer.additionals.len()), (255, 255));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused_by_the_right_code() {
    let (_server, address) = serving(1).await;
    let mut chaos = query(1, "version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    let mut newer = with_edns(query(1, "web.marathon.mesos.", RecordType::A), 1232);
    newer.edns.as_mut().expect("set").set_version(1);
    let mut update = query(1, "mesos.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    let mut notice = query(1, "mesos.", RecordType::SOA);
    notice.metadata.op_code = OpCode::Notify;
    for (message, expected) in [
        (query(1, "no.marathon.mesos.", RecordType::A), ResponseCode::NXDomain),
        (query(1, "_no._tcp.marathon.mesos.", RecordType::SRV), ResponseCode::NXDomain),
        (query(1, "marathon.mesos.", RecordType::A), ResponseCode::NoError),
        (query(1, "example.com.", RecordType::A), ResponseCode::Refused),
        (query(1, ".", RecordType::NS), ResponseCode::Refused),
        (query(1, "mesos.", RecordType::AXFR), ResponseCode::Refused),
        (chaos, ResponseCode::Refused),
        (newer, ResponseCode::BADVERS),
        (update, ResponseCode::Refused),
        (notice, ResponseCode::NotImp),
    ] {
        let (answer, _) = ask_udp(address, &message).await;
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(expected), "{message:?}");
        let is_negative = matches!(expected, ResponseCode::NXDomain | ResponseCode::NoError);
        assert_eq!(answer.authorities.len(), usize::from(is_negative), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_messages_are_told_so_and_answers_are_ignored() {
    let (_server, address) = serving(1).await;
    let socket = client(address).await;
    let whole = encode(&query(0x0102, "web.marathon.mesos.", RecordType::A));
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    let mut two_questions = whole.clone();
    two_questions[5] = 2;
    let looping = [&whole[..12], &[0xc0, 0x0c, 0, 1, 0, 1]].concat();
    for silent in [&answer[..], &whole[..11], &[]] {
        socket.send(silent).await.expect("sent");
    }
    for broken in [&whole[..12], &whole[..whole.len() - 1], &two_questions, &looping] {
        socket.send(broken).await.expect("sent");
        let (reply, _) = receive(&socket).await;
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x0102, ResponseCode::FormErr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_cannot_be_read_is_closed() {
    let (_server, address) = serving(1).await;
    for octets in [&[0xff, 0xff, 1, 2, 3][..], &[0, 3, 1, 2, 3]] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(octets).await.expect("sent");
        let closed = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("it is closed");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named() {
    let (_server, address) = serving(1).await;
    let config = Config::at(address);
    let error = Server::start(config, &Registry::new()).await.expect_err("it is in use");
    assert!(matches!(error, StartError::Bind { address: named, protocol: "TCP", .. } if named == address));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = taken.local_addr().expect("bound");
        let error = Server::start(Config::at(address), &Registry::new()).await.expect_err("it is in use");
        // Somebody else may have the port for TCP.
        if !matches!(error, StartError::Bind { protocol: "TCP", .. }) {
            assert_eq!(error.to_string(), format!("cannot listen on {address} (UDP)"));
            return;
        }
        assert!(Instant::now() < deadline, "every port is taken for TCP");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_server_frees_its_port() {
    let (server, address) = serving(1).await;
    let mut idle = TcpStream::connect(address).await.expect("connected");
    send_tcp(&mut idle, &encode(&query(1, "web.marathon.mesos.", RecordType::A))).await;
    receive_tcp(&mut idle).await;
    drop(server);
    let closed = timeout(PATIENCE, idle.read(&mut [0; 16])).await.expect("it is closed");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    let config = Config::at(address);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = Server::start(config.clone(), &Registry::new()).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_counted_by_zone_type_result_path_and_transport() {
    let registry = Registry::new();
    let mut server = start("127.0.0.1:0", &registry).await;
    let view = view(2);
    server.apply(&view, &Delta::between(&empty_view(), &view));
    let address = server.addresses()[0];
    ask_udp(address, &query(1, "web.marathon.mesos.", RecordType::A)).await;
    ask_udp(address, &query(1, "no.mesos.", RecordType::TXT)).await;
    ask_udp(address, &query(1, "leader.mesos.thisdcos.directory.", RecordType::ANY)).await;
    ask_udp(address, &query(1, "example.com.", RecordType::AAAA)).await;
    let socket = client(address).await;
    socket.send(&[0; 12]).await.expect("sent");
    receive(&socket).await;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).expect("encoded");
    let text = String::from_utf8(text).expect("text");
    // Among them are the five that every node has, such as `ready.spartan`.
    let records = format!("mesonet_dns_records {}", 5 + 1 + 5 + 5 * 2 + 4 * 2);
    for line in [
        r#"mesonet_dns_queries_total{path="fast",rcode="NOERROR",transport="udp",type="A",zone="mesos."} 1"#,
        r#"mesonet_dns_queries_total{path="fast",rcode="NXDOMAIN",transport="udp",type="other",zone="mesos."} 1"#,
        r#"mesonet_dns_queries_total{path="full",rcode="NXDOMAIN",transport="udp",type="ANY",zone="mesos.thisdcos.directory."} 1"#,
        r#"mesonet_dns_queries_total{path="full",rcode="REFUSED",transport="udp",type="AAAA",zone="none"} 1"#,
        r#"mesonet_dns_query_duration_seconds_count{path="fast"} 2"#,
        r#"mesonet_dns_query_duration_seconds_count{path="full"} 2"#,
        r#"mesonet_dns_query_duration_seconds_bucket{path="fast",le="+Inf"} 2"#,
        r#"mesonet_dns_dropped_total{reason="queue_full"} 0"#,
        "mesonet_dns_apply_duration_seconds_count 1",
        "mesonet_dns_malformed_total 1",
        "mesonet_dns_records_left_out{reason=\"label_too_long\"} 0",
        records.as_str(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// Many answers of one length to one client may go through the system together.
#[tokio::test(flavor = "multi_thread")]
async fn queries_of_one_client_at_once_get_their_own_answers() {
    let (_server, address) = serving(3).await;
    for own in ["127.0.0.1:0", "127.0.0.3:0"] {
        let socket = UdpSocket::bind(own).await.expect("a free port");
        socket.connect(address).await.expect("connected");
        let names = ["web.marathon.mesos.", "leader.mesos.", "web.marathon.autoip.dcos.thisdcos.directory."];
        let name_of = |id: u16| names[usize::from(id) % names.len()];
        let mut open: BTreeMap<u16, &str> = (0..120).map(|id| (id, name_of(id))).collect();
        for (id, name) in &open {
            socket.send(&encode(&query(*id, name, RecordType::A))).await.expect("sent");
        }
        while !open.is_empty() {
            let (answer, _) = receive(&socket).await;
            let name = open.remove(&answer.metadata.id).expect("each query is answered once");
            assert_eq!(answer.queries[0].name.to_ascii(), name);
            assert_eq!(answer.answers.len(), if name.starts_with("leader") { 0 } else { 3 });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_wildcard_answers_as_itself() {
    let mut server = start("0.0.0.0:0", &Registry::new()).await;
    let view = view(1);
    server.apply(&view, &Delta::between(&empty_view(), &view));
    let port = server.addresses()[0].port();
    for host in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        // A connected socket receives from the address that it sends to only.
        let (answer, _) =
            ask_udp(SocketAddr::from((host, port)), &query(1, "web.marathon.mesos.", RecordType::A)).await;
        assert_eq!(addresses(&answer).len(), 1);
    }
    // Its own name leads to where others reach it.
    let (answer, _) =
        ask_udp(SocketAddr::from(([127, 0, 0, 1], port)), &query(1, "ns1.mesos.", RecordType::A)).await;
    let found: Vec<IpAddr> = addresses(&answer).into_iter().map(IpAddr::from).collect();
    assert_eq!(found, server_addresses(server.addresses()));
}
