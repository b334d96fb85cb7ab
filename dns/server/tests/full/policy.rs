//! What which client may ask.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use mesonet_dns_server::{Config, ForwardConfig, Network, Overload, PolicyConfig, Server, View};
use prometheus::{Registry, TextEncoder};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::client::{
    PATIENCE, addresses, ask, ask_a, ask_from, ask_tcp, extended_error, query, receive_framed, send_framed,
};
use crate::upstream::{Behaviour, Upstream, address_of};

const PROHIBITED: Option<u16> = Some(18);

/// Names that every node serves, whatever the cluster.
const OWN_NAME: &str = "ready.spartan.";
const OTHER_OWN_NAME: &str = "localhost.";

fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

async fn start(policy: PolicyConfig, forward: ForwardConfig) -> (Server, SocketAddr, Registry) {
    let registry = Registry::new();
    let config = Config { policy, forward, ..Config::at(([127, 0, 0, 1], 0).into()) };
    let server = Server::start(config, &registry).await.expect("the server starts");
    let address = server.addresses()[0];
    (server, address, registry)
}

async fn only(policy: PolicyConfig) -> (Server, SocketAddr, Registry) {
    start(policy, ForwardConfig::default()).await
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

fn metric(registry: &Registry, line: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_not_allowed_are_refused() {
    let policy = PolicyConfig { allow: networks(&["127.0.0.2", "10.0.0.0/8"]), ..PolicyConfig::default() };
    let (_server, address, _) = only(policy).await;
    for name in [OWN_NAME, "web.marathon.mesos.", "www.example."] {
        let answer = ask_a(address, name).await;
        assert_eq!((code(&answer), extended_error(&answer)), (ResponseCode::Refused, PROHIBITED), "{name}");
    }
    let answer = ask_from("127.0.0.2", address, &query(OWN_NAME, RecordType::A)).await;
    assert_eq!(addresses(&answer), ["127.0.0.1".parse::<std::net::Ipv4Addr>().expect("an address")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_asked_for_some_clients_only() {
    let upstream = Upstream::start(1, Behaviour::Answer(60)).await;
    let policy = PolicyConfig { recursion: networks(&["127.0.0.2"]), ..PolicyConfig::default() };
    let forward = ForwardConfig { upstreams: vec![upstream.address], ..ForwardConfig::default() };
    let (_server, address, _) = start(policy, forward).await;
    let question = query("www.example.", RecordType::A);
    let refused = ask(address, &question).await;
    assert_eq!((code(&refused), extended_error(&refused)), (ResponseCode::Refused, PROHIBITED));
    assert!(!refused.metadata.recursion_available);
    assert_eq!(upstream.asked(), 0);
    let answered = ask_from("127.0.0.2", address, &question).await;
    assert_eq!(addresses(&answered), address_of(1));
    // The fast path says the same of itself.
    for (client, expected) in [("127.0.0.1", false), ("127.0.0.2", true)] {
        let mut question = query(OWN_NAME, RecordType::A);
        question.edns = None;
        let answer = ask_from(client, address, &question).await;
        assert_eq!((answer.answers.len(), answer.metadata.recursion_available), (1, expected), "{client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_answers_say_of_recursion_what_they_are_told_to() {
    let upstream = Upstream::start(1, Behaviour::Answer(60)).await;
    let forwarding = ForwardConfig { upstreams: vec![upstream.address], ..ForwardConfig::default() };
    for (says_recursion, forward, expected) in [
        (None, ForwardConfig::default(), false),
        (None, forwarding.clone(), true),
        (Some(true), ForwardConfig::default(), true),
        (Some(false), forwarding.clone(), false),
    ] {
        let policy = PolicyConfig { says_recursion, ..PolicyConfig::default() };
        let (_server, address, _) = start(policy, forward).await;
        // With a cookie a query takes the full path, without EDNS the fast one.
        for takes_full_path in [true, false] {
            let mut question = query(OWN_NAME, RecordType::A);
            match question.edns.as_mut().filter(|_| takes_full_path) {
                Some(edns) => {
                    edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
                }
                None => question.edns = None,
            }
            let answer = ask(address, &question).await;
            let found = (answer.answers.len(), answer.metadata.recursion_available);
            assert_eq!(found, (1, expected), "{says_recursion:?} {takes_full_path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_some_zones() {
    let view = View { networks: networks(&["127.0.0.2/31"]), zones: vec!["localhost".to_owned()] };
    let policy = PolicyConfig { views: vec![view], ..PolicyConfig::default() };
    let (_server, address, _) = only(policy).await;
    for (client, name, expected) in [
        ("127.0.0.1", OWN_NAME, ResponseCode::NoError),
        ("127.0.0.1", OTHER_OWN_NAME, ResponseCode::NoError),
        ("127.0.0.2", OWN_NAME, ResponseCode::Refused),
        ("127.0.0.3", OTHER_OWN_NAME, ResponseCode::NoError),
    ] {
        let answer = ask_from(client, address, &query(name, RecordType::A)).await;
        assert_eq!(code(&answer), expected, "{client} {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_are_transferred_to_whom_they_may_be() {
    let policy = PolicyConfig { transfer: networks(&["127.0.0.1"]), ..PolicyConfig::default() };
    let (_server, address, registry) = only(policy).await;
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        send_framed(&mut stream, &query("SPARTAN.", kind)).await;
        let mut records = Vec::new();
        while records.iter().filter(|kind| **kind == RecordType::SOA).count() < 2 {
            let message = receive_framed(&mut stream).await;
            assert!(message.metadata.authoritative && !message.answers.is_empty());
            records.extend(message.answers.iter().map(|record| record.record_type()));
        }
        assert_eq!((records.first(), records.last()), (Some(&RecordType::SOA), Some(&RecordType::SOA)));
        assert!(records.contains(&RecordType::NS) && records.contains(&RecordType::A), "{records:?}");
        // The connection goes on.
        send_framed(&mut stream, &query(OWN_NAME, RecordType::A)).await;
        assert_eq!(receive_framed(&mut stream).await.answers.len(), 1);
    }
    let transfers = r#"mesonet_dns_queries_total{path="full",rcode="NOERROR",transport="tcp",type="AXFR""#;
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    assert!(text.lines().any(|line| line.starts_with(transfers) && line.ends_with(" 2")), "{text}");
    for (name, expected) in [("nothing.example.", 20), ("ready.spartan.", 20)] {
        let refused = ask_tcp(address, &query(name, RecordType::AXFR)).await;
        assert_eq!(
            (code(&refused), extended_error(&refused)),
            (ResponseCode::Refused, Some(expected)),
            "{name}"
        );
    }
    assert_eq!(code(&ask(address, &query("spartan.", RecordType::AXFR)).await), ResponseCode::Refused);
    let start = ask(address, &query("spartan.", RecordType::IXFR)).await;
    assert_eq!((start.answers.len(), start.answers[0].record_type()), (1, RecordType::SOA));

    let (_server, address, _) = only(PolicyConfig::default()).await;
    let refused = ask_tcp(address, &query("spartan.", RecordType::AXFR)).await;
    assert_eq!((code(&refused), extended_error(&refused)), (ResponseCode::Refused, PROHIBITED));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_the_limit_are_cut_or_not_sent_but_to_who_has_a_cookie() {
    const QUERIES: usize = 60;
    let policy = PolicyConfig { rate_max: Some(5), ..PolicyConfig::default() };
    let (_server, address, registry) = only(policy).await;
    let mut question = query(OWN_NAME, RecordType::A);
    let cookie = EdnsOption::Unknown(10, vec![7; 8]);
    question.edns.as_mut().expect("EDNS").options_mut().insert(cookie);
    let given = ask(address, &question).await.edns.expect("EDNS").option(EdnsCode::Cookie).cloned();
    let Some(EdnsOption::Unknown(10, given)) = given else { panic!("no cookie but {given:?}") };
    assert_eq!((given.len(), &given[..8]), (24, &[7; 8][..]));

    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    socket.connect(address).await.expect("connected");
    let plain = query(OWN_NAME, RecordType::A).to_vec().expect("encoded");
    for _ in 0..QUERIES {
        socket.send(&plain).await.expect("sent");
    }
    let deadline = Instant::now() + PATIENCE;
    let over = |sent| metric(&registry, &format!("mesonet_dns_limited_total{{sent=\"{sent}\"}}")) as usize;
    // What is allowed meanwhile depends on how long it takes.
    let mut received = 0;
    let mut buffer = [0; 4096];
    while received + over("nothing") < QUERIES {
        assert!(Instant::now() < deadline, "{received} answers");
        if let Ok(length) = timeout(Duration::from_millis(20), socket.recv(&mut buffer)).await {
            let answer = Message::from_vec(&buffer[..length.expect("received")]).expect("an answer");
            assert_eq!(answer.metadata.truncation, answer.answers.is_empty());
            received += 1;
        }
    }
    assert!(over("nothing") > 0 && over("cut") > 0);
    // Over TCP a client has shown where it is, and with a cookie, too.
    for _ in 0..QUERIES {
        assert_eq!(ask_tcp(address, &query(OWN_NAME, RecordType::A)).await.answers.len(), 1);
    }
    let options = question.edns.as_mut().expect("EDNS").options_mut();
    options.remove(EdnsCode::Cookie);
    options.insert(EdnsOption::Unknown(10, given));
    for _ in 0..QUERIES {
        assert_eq!(ask(address, &question).await.answers.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_of_a_wrong_length_is_an_error() {
    let (_server, address, _) = only(PolicyConfig::default()).await;
    let mut question = query(OWN_NAME, RecordType::A);
    question.edns.as_mut().expect("EDNS").options_mut().insert(EdnsOption::Unknown(10, vec![7; 9]));
    assert_eq!(code(&ask(address, &question).await), ResponseCode::FormErr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_its_name_if_it_has_one() {
    let policy = PolicyConfig { identity: Some("node-7".to_owned()), ..PolicyConfig::default() };
    for (policy, expected) in [(policy, true), (PolicyConfig::default(), false)] {
        let (_server, address, _) = only(policy).await;
        for (name, is_known) in [("id.server.", true), ("HOSTNAME.bind.", true), ("version.bind.", false)] {
            let mut question = query(name, RecordType::TXT);
            question.queries[0].query_class = DNSClass::CH;
            let answer = ask(address, &question).await;
            if expected && is_known {
                assert_eq!(answer.answers[0].dns_class, DNSClass::CH);
                assert!(
                    matches!(&answer.answers[0].data, RData::TXT(text) if text.to_string().contains("node-7"))
                );
            } else {
                assert_eq!(code(&answer), ResponseCode::Refused, "{name}");
            }
        }
        let mut question = query(OWN_NAME, RecordType::A);
        question.edns.as_mut().expect("EDNS").options_mut().insert(EdnsOption::Unknown(3, Vec::new()));
        let edns = ask(address, &question).await.edns.expect("EDNS");
        assert_eq!(edns.option(EdnsCode::NSID).is_some(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_and_keeps_no_own_name_from_its_answer() {
    let upstream = Upstream::start(1, Behaviour::Late(Duration::from_millis(1_500))).await;
    let forward =
        ForwardConfig { upstreams: vec![upstream.address], queries_max: 1, ..ForwardConfig::default() };
    let (_server, address, registry) = start(PolicyConfig::default(), forward).await;
    let first = tokio::spawn(async move { ask_a(address, "one.example.").await });
    let deadline = Instant::now() + PATIENCE;
    while upstream.asked() == 0 {
        assert!(Instant::now() < deadline, "nothing is asked");
        tokio::task::yield_now().await;
    }
    let second = ask_a(address, "two.example.").await;
    assert_eq!((code(&second), extended_error(&second)), (ResponseCode::Refused, PROHIBITED));
    assert_eq!(ask_a(address, OWN_NAME).await.answers.len(), 1);
    assert_eq!(addresses(&first.await.expect("answered")), address_of(1));
    assert_eq!(metric(&registry, "mesonet_dns_shed_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_beyond_those_on_their_way_are_dropped_if_so_configured() {
    let upstream = Upstream::start(1, Behaviour::Silent).await;
    let forward = ForwardConfig {
        upstreams: vec![upstream.address],
        overload: Overload::Drop,
        ..ForwardConfig::default()
    };
    let (_server, address, registry) = start(PolicyConfig::default(), forward).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    let mut number = 0;
    while metric(&registry, "mesonet_dns_shed_total") < 100.0 {
        assert!(Instant::now() < deadline, "nothing is too much");
        // To look takes longer than to ask, and the questions on their way fail with time.
        for _ in 0..64 {
            let question = query(&format!("name-{number}.example."), RecordType::A);
            socket.send_to(&question.to_vec().expect("encoded"), address).await.expect("sent");
            number += 1;
            while let Ok((length, _)) = socket.try_recv_from(&mut buffer) {
                let answer = Message::from_vec(&buffer[..length]).expect("an answer");
                assert_eq!(code(&answer), ResponseCode::ServFail, "{answer:?}");
            }
            tokio::task::yield_now().await;
        }
    }
    // A datagram might be one too many for the server's queue.
    assert_eq!(ask_tcp(address, &query(OWN_NAME, RecordType::A)).await.answers.len(), 1);
}
