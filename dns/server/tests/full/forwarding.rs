//! Names outside the zone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use mesonet_dns_server::{Config, ForwardConfig, ForwardError, Server, StartError};
use mesonet_model::{ClusterId, ClusterView, Delta};
use prometheus::{Registry, TextEncoder};

use crate::client::{PATIENCE, addresses, ask, ask_a, ask_tcp, extended_error, query};
use crate::upstream::{Behaviour, Upstream, address_of};

const ANSWERS: Behaviour = Behaviour::Answer(60);
const NO_REACHABLE_AUTHORITY: Option<u16> = Some(22);

/// How often a question is sent to a server that is late.
const ATTEMPTS_MAX: usize = 3;

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn start(forward: ForwardConfig) -> (Server, SocketAddr, Registry) {
    let registry = Registry::new();
    let server = Server::start(Config { forward, ..Config::at(anywhere()) }, &registry).await;
    let server = server.expect("the server starts");
    let address = server.addresses()[0];
    (server, address, registry)
}

async fn forwarding_to(upstreams: &[&Upstream]) -> (Server, SocketAddr, Registry) {
    let upstreams = upstreams.iter().map(|upstream| upstream.address).collect();
    start(ForwardConfig { upstreams, ..ForwardConfig::default() }).await
}

fn metric(registry: &Registry, line: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_and_come_back_as_the_client_spelt_the_name() {
    let upstream = Upstream::start(1, ANSWERS).await;
    let (_server, address, registry) = forwarding_to(&[&upstream]).await;
    for name in ["www.example.", "WwW.eXample.", "www.EXAMPLE."] {
        let answer = ask_a(address, name).await;
        assert_eq!(
            (addresses(&answer), answer.metadata.response_code),
            (address_of(1), ResponseCode::NoError)
        );
        let expected = Name::from_ascii(name).expect(name);
        assert!(answer.answers[0].name.eq_case(&expected) && answer.queries[0].name.eq_case(&expected));
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
        assert!((1..=60).contains(&answer.answers[0].ttl));
    }
    assert_eq!(addresses(&ask_tcp(address, &query("www.example.", RecordType::A)).await), address_of(1));
    assert_eq!(metric(&registry, "mesonet_dns_cache_lookups_total{result=\"hit\"}"), 3.0);
    assert_eq!(metric(&registry, "mesonet_dns_cache_lookups_total{result=\"miss\"}"), 1.0);
    let count = format!("mesonet_dns_upstream_duration_seconds_count{{upstream=\"{}\"}}", upstream.address);
    assert_eq!(metric(&registry, &count), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_no_recursion_and_names_of_the_zone_are_not_forwarded() {
    let upstream = Upstream::start(1, ANSWERS).await;
    let (_server, address, _) = forwarding_to(&[&upstream]).await;
    let mut message = query("www.example.", RecordType::A);
    message.metadata.recursion_desired = false;
    assert_eq!(ask(address, &message).await.metadata.response_code, ResponseCode::Refused);
    // No view was applied, so that the zone has no answer.
    assert_eq!(ask_a(address, "web.marathon.mesos.").await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(upstream.asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_questions_are_asked_once() {
    let upstream = Upstream::start(1, Behaviour::Late(Duration::from_millis(300))).await;
    let (_server, address, registry) = forwarding_to(&[&upstream]).await;
    let answers = join_all((0..20).map(|_| ask_a(address, "www.example."))).await;
    // All have the same answer, whether or not it came in time.
    let code = answers[0].metadata.response_code;
    assert!(answers.iter().all(|answer| answer.metadata.response_code == code));
    assert!(upstream.asked() <= ATTEMPTS_MAX, "{}", upstream.asked());
    assert!(metric(&registry, "mesonet_dns_coalesced_total") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_answers_are_kept_with_their_soa() {
    let upstream = Upstream::start(1, Behaviour::Code(ResponseCode::NXDomain)).await;
    let (_server, address, registry) = forwarding_to(&[&upstream]).await;
    for _ in 0..2 {
        let answer = ask_a(address, "nothing.example.").await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    upstream.set(Behaviour::Code(ResponseCode::NoError));
    for _ in 0..2 {
        let answer = ask_a(address, "empty.example.").await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    }
    assert_eq!(metric(&registry, "mesonet_dns_cache_lookups_total{result=\"hit\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_stood_in_for() {
    for broken in [
        Behaviour::Silent,
        Behaviour::WrongId,
        Behaviour::WrongQuestion,
        Behaviour::Code(ResponseCode::ServFail),
        Behaviour::Code(ResponseCode::Refused),
    ] {
        let (first, second) = (Upstream::start(1, broken).await, Upstream::start(2, ANSWERS).await);
        let (_server, address, registry) = forwarding_to(&[&first, &second]).await;
        // It is asked first the first time, and then not again for a while, unless the other one is slow.
        ask_until(address, || first.asked() > 0 && second.asked() >= first.asked() + 3).await;
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let failures = text.lines().filter(|line| {
            line.starts_with("mesonet_dns_upstream_failures_total")
                && line.contains(&first.address.to_string())
                && !line.ends_with(" 0")
        });
        assert!(failures.count() > 0, "{broken:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_faster_server_is_preferred() {
    let slow = Upstream::start(1, Behaviour::Late(Duration::from_millis(100))).await;
    let fast = Upstream::start(2, ANSWERS).await;
    let (_server, address, _) = forwarding_to(&[&slow, &fast]).await;
    // The slow one comes first, because nothing is known of either. Whoever is asked only because the fast one is late
    // for once changes nothing in the end.
    ask_until(address, || slow.asked() > 0 && fast.asked() >= slow.asked() + 15).await;
}

/// Asks for one name after the other until a condition holds.
async fn ask_until(address: SocketAddr, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut asked = 0;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition does not hold after {asked} questions");
        ask_a(address, &format!("w{asked}.example.")).await;
        asked += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_answer_the_client_is_told_and_the_failure_is_kept_for_a_moment() {
    let upstream = Upstream::start(1, Behaviour::Code(ResponseCode::ServFail)).await;
    let (_server, address, _) = forwarding_to(&[&upstream]).await;
    let first = ask_a(address, "www.example.").await;
    assert_eq!(
        (first.metadata.response_code, extended_error(&first)),
        (ResponseCode::ServFail, NO_REACHABLE_AUTHORITY)
    );
    let deadline = Instant::now() + PATIENCE;
    // A moment may be over before the next question comes.
    loop {
        let asked = upstream.asked();
        assert_eq!(ask_a(address, "www.example.").await.metadata.response_code, ResponseCode::ServFail);
        if upstream.asked() == asked {
            break;
        }
        assert!(Instant::now() < deadline, "the failure is not kept");
    }
    upstream.set(ANSWERS);
    while addresses(&ask_a(address, "www.example.").await) != address_of(1) {
        assert!(Instant::now() < deadline, "the failure is kept for ever");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_old_is_better_than_none() {
    let upstream = Upstream::start(1, Behaviour::Answer(1)).await;
    let (_server, address, registry) = forwarding_to(&[&upstream]).await;
    assert_eq!(addresses(&ask_a(address, "www.example.").await), address_of(1));
    upstream.set(Behaviour::Code(ResponseCode::ServFail));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask_a(address, "www.example.").await;
        assert_eq!(addresses(&answer), address_of(1));
        if extended_error(&answer) == Some(3) {
            break;
        }
        assert!(Instant::now() < deadline, "the answer never gets stale");
    }
    assert!(metric(&registry, "mesonet_dns_cache_lookups_total{result=\"stale\"}") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_is_asked_again_over_tcp_and_cut_for_the_client() {
    let upstream = Upstream::start(1, Behaviour::Many(300)).await;
    let (_server, address, _) = forwarding_to(&[&upstream]).await;
    let question = query("many.example.", RecordType::A);
    let cut = ask(address, &question).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.answers.len() < 300);
    let whole = ask_tcp(address, &question).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (300, false));
    assert!(upstream.asked() > 0 && upstream.asked_tcp() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_forward_zone_decides() {
    let upstreams = [
        Upstream::start(1, ANSWERS).await,
        Upstream::start(2, ANSWERS).await,
        Upstream::start(3, ANSWERS).await,
    ];
    let [others, corp, lab] = &upstreams;
    let zones: BTreeMap<String, Vec<SocketAddr>> = [
        ("corp.example".to_owned(), vec![corp.address]),
        ("Lab.corp.example.".to_owned(), vec![lab.address]),
    ]
    .into();
    let forward = ForwardConfig { upstreams: vec![others.address], zones, ..ForwardConfig::default() };
    let (_server, address, _) = start(forward).await;
    for (name, number) in [
        ("www.example.", 1),
        ("xcorp.example.", 1),
        ("corp.example.", 2),
        ("a.b.corp.example.", 2),
        ("lab.CORP.example.", 3),
        ("x.lab.corp.example.", 3),
    ] {
        assert_eq!(addresses(&ask_a(address, name).await), address_of(number), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_a_server_are_refused() {
    let corp = Upstream::start(1, ANSWERS).await;
    let zones = [("corp.example".to_owned(), vec![corp.address])].into();
    let (_server, address, _) = start(ForwardConfig { zones, ..ForwardConfig::default() }).await;
    assert_eq!(ask_a(address, "www.example.").await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(addresses(&ask_a(address, "www.corp.example.").await), address_of(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_to_itself_is_refused_and_a_longer_loop_ends() {
    // A port that was free a moment ago.
    let (server, own, _) = start(ForwardConfig::default()).await;
    drop(server);
    let forward = ForwardConfig { upstreams: vec![own], ..ForwardConfig::default() };
    let started = async {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let config = Config { forward: forward.clone(), ..Config::at(own) };
            match Server::start(config, &Registry::new()).await {
                // The sockets of the first server are closed by its tasks.
                Err(StartError::Bind { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
                other => return other,
            }
        }
    };
    assert!(matches!(
        started.await,
        Err(StartError::Forward(ForwardError::Loop { address })) if address == own
    ));

    let relay = tokio::net::UdpSocket::bind(anywhere()).await.expect("a free port");
    let relay_address = relay.local_addr().expect("an address");
    let forward = ForwardConfig { upstreams: vec![relay_address], ..ForwardConfig::default() };
    let (_server, address, _) = start(forward).await;
    let relaying = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        let mut relayed = 0_usize;
        while let Ok((length, from)) = relay.recv_from(&mut buffer).await {
            if from != address {
                relay.send_to(&buffer[..length], address).await.expect("sent");
                relayed += 1;
                assert!(relayed < 100, "the question goes round");
            }
        }
    });
    let answer = ask_a(address, "www.example.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(!relaying.is_finished());
    relaying.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_zones_are_refused() {
    for (zone, servers) in [("a..b", vec![anywhere()]), ("corp", Vec::new())] {
        let forward =
            ForwardConfig { zones: [(zone.to_owned(), servers)].into(), ..ForwardConfig::default() };
        let started = Server::start(Config { forward, ..Config::at(anywhere()) }, &Registry::new()).await;
        assert!(matches!(started, Err(StartError::Forward(_))), "{zone}");
    }
}

/// Any type is forwarded, and what is said stays as it is.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_types_are_forwarded() {
    let upstream = Upstream::start(1, ANSWERS).await;
    let (_server, address, _) = forwarding_to(&[&upstream]).await;
    let answer: Message = ask(address, &query("www.example.", RecordType::Unknown(65_280))).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
}

fn is_absent(answer: &Message) -> bool {
    answer.metadata.response_code == ResponseCode::NXDomain
        && answer.metadata.authoritative
        && answer.answers.is_empty()
        && answer.authorities.iter().any(|record| record.name == Name::from_ascii("mesos.").expect("a name"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_because_of_a_search_list_is_answered_at_once() {
    let upstream = Upstream::start(1, ANSWERS).await;
    let search = vec!["marathon.mesos".to_owned(), "mesos".to_owned()];
    let forward = ForwardConfig { upstreams: vec![upstream.address], search, ..ForwardConfig::default() };
    let (mut server, address, _) = start(forward).await;
    let name = "wWw.example.com.marathon.MESOS.";
    assert_eq!(ask_a(address, name).await.metadata.response_code, ResponseCode::ServFail);
    let empty = ClusterView::empty(ClusterId::new("c"));
    let mut view = empty.clone();
    view.revision = view.revision.next();
    server.apply(&view, &Delta::between(&empty, &view));
    for edns in [true, false] {
        let mut question = query(name, RecordType::A);
        if !edns {
            // As plain as the fast path likes it.
            question.edns = None;
        }
        let answer = ask(address, &question).await;
        let alias = &answer.answers[0];
        assert!(alias.name.eq_case(&Name::from_ascii(name).expect(name)), "{alias}");
        assert!(
            matches!(&alias.data, RData::CNAME(sought) if sought.0 == Name::from_ascii("www.example.com.").expect("a name"))
        );
        assert_eq!((addresses(&answer), answer.metadata.authoritative), (address_of(1), false));
    }
    // Names that are not sought elsewhere: of one label, beyond the list's domains, of another type.
    for (name, kind) in
        [("www.marathon.mesos.", RecordType::A), ("www.example.com.marathon.mesos.", RecordType::TXT)]
    {
        assert!(is_absent(&ask(address, &query(name, kind)).await), "{name} {kind}");
    }
    assert!(ask_a(address, "www.example.com.dcos.thisdcos.directory.").await.answers.is_empty());
    // Whoever checks signatures wants the zone's own answer, and what may be old proves nothing.
    let mut question = query(name, RecordType::A);
    question.edns.as_mut().expect("EDNS").enable_dnssec();
    assert!(is_absent(&ask(address, &question).await));
    server.set_stale(true);
    assert!(is_absent(&ask_a(address, name).await));
    server.set_stale(false);
    // What exists nowhere does not exist here either.
    upstream.set(Behaviour::Code(ResponseCode::NXDomain));
    assert!(is_absent(&ask_a(address, "no.example.com.mesos.").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_signatures_that_should_have_some_are_refused_by_validation() {
    let upstream = Upstream::start(1, ANSWERS).await;
    let upstreams = vec![upstream.address];
    let (_server, address, _) =
        start(ForwardConfig { upstreams, validate: true, ..ForwardConfig::default() }).await;
    let mut question = query("www.example.", RecordType::A);
    let bogus = ask(address, &question).await;
    assert_eq!((bogus.metadata.response_code, extended_error(&bogus)), (ResponseCode::ServFail, Some(6)));
    // Whoever checks itself gets what there is.
    question.metadata.checking_disabled = true;
    let unchecked = ask(address, &question).await;
    assert_eq!((addresses(&unchecked), unchecked.metadata.authentic_data), (address_of(1), false));
}
