//! Bad input: each mistake is named, and nothing else suffers.

use std::net::{TcpListener, UdpSocket};

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::harness::cluster::{find_service, mesonet};
use crate::harness::{Cluster, app, dns, eventually, program};

#[test]
fn refused_requests_name_the_field_and_change_nothing() {
    let cluster = Cluster::start();
    let revision = || cluster.get("/v1/view").expect(200)["revision"].clone();
    let before = revision();
    for (body, status, expected) in [
        ("{ \"id\": ", 400, "Invalid JSON"),
        (r#"{ "cmd": "true" }"#, 422, "/id"),
        (r#"{ "id": "/Web", "cmd": "true" }"#, 422, "/id"),
        (r#"{ "id": "/a", "cmd": "true", "cpus": "many" }"#, 422, "/cpus"),
        (r#"{ "id": "/a", "cmd": "true", "instances": -1 }"#, 422, "/instances"),
        (r#"{ "id": "/a" }"#, 422, "AppDefinition must either contain one of 'cmd' or 'args'"),
        (r#"{ "id": "/a", "cmd": "true", "args": ["x"] }"#, 422, "cmd"),
        (r#"{ "id": "/a", "cmd": "true", "portDefinitions": [{ "port": 70000 }] }"#, 422, "/portDefinitions"),
    ] {
        let reply = cluster.send(Method::POST, "/v2/apps", Some(body));
        assert_eq!(reply.status, status, "{body}: {}", reply.text);
        assert!(reply.text.contains(expected), "{body}: {}", reply.text);
        assert!(reply.json()["message"].is_string(), "{}", reply.text);
    }
    for (method, path, body) in [
        (Method::GET, "/v2/apps/none", None),
        (Method::DELETE, "/v2/apps/none", None),
        (Method::PATCH, "/v2/apps/none", Some("{}")),
        (Method::POST, "/v2/apps/none/restart", None),
        (Method::GET, "/v2/apps/none/tasks", None),
        (Method::DELETE, "/v2/deployments/none", None),
        (Method::GET, "/v1/tasks/none/files/stdout", None),
        (Method::GET, "/v2/nonsense", None),
    ] {
        let reply = cluster.send(method.clone(), path, body);
        assert_eq!(reply.status, 404, "{method} {path}: {}", reply.text);
        assert!(reply.json()["message"].is_string(), "{}", reply.text);
    }
    assert_eq!(revision(), before, "nothing was changed");
    assert_eq!(cluster.get("/v2/apps").expect(200), json!({ "apps": [] }));
}

#[test]
fn an_app_that_fits_nowhere_waits_and_the_queue_says_why() {
    let cluster = Cluster::start();
    let mut greedy = app::idle("/greedy", 1);
    greedy["mem"] = json!(1e9);
    cluster.send(Method::POST, "/v2/apps", Some(&greedy.to_string())).expect(201);
    eventually("the queue says why", || {
        let queue = cluster.get("/v2/queue?embed=lastUnusedOffers").expect(200);
        let rejects = queue["queue"][0]["processedOffersSummary"]["rejectSummaryLastOffers"].clone();
        let is_memory = |reject: &Value| reject["reason"] == "InsufficientMemory" && reject["declined"] == 1;
        let says_why = rejects.as_array().is_some_and(|rejects| rejects.iter().any(is_memory));
        if says_why { Ok(()) } else { Err(queue.to_string()) }
    });
    // It holds up nobody else, and can be withdrawn.
    cluster.send(Method::POST, "/v2/apps", Some(&app::idle("/modest", 1).to_string())).expect(201);
    eventually("the other app runs", || match cluster.tasks("/modest").len() {
        1 => Ok(()),
        count => Err(format!("{count} tasks")),
    });
    cluster.send(Method::DELETE, "/v2/apps/greedy", None).expect(200);
    cluster.wait_until_deployed();
    assert_eq!(cluster.get("/v2/queue").expect(200), json!({ "queue": [] }));
}

#[test]
fn a_label_that_is_no_vip_is_refused_with_its_name() {
    let cluster = Cluster::start();
    for (label, problem) in [("/web:http", "port"), ("web", "port"), ("/:80", "name")] {
        let mut app = app::web("/web", 1);
        app["portDefinitions"][0]["labels"] = json!({ "VIP_0": label });
        let reply = cluster.send(Method::POST, "/v2/apps", Some(&app.to_string()));
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert!(reply.text.contains(label) && reply.text.contains(problem), "{}", reply.text);
    }
    assert_eq!(cluster.get("/v2/apps").expect(200), json!({ "apps": [] }));
}

#[test]
fn questions_about_connections_that_make_no_sense_are_answered_as_such() {
    let cluster = Cluster::start();
    for (query, expected) in [
        ("", "client=ADDRESS"),
        ("?client=10.0.0.1", "to=NAME-OR-VIP:PORT"),
        ("?client=nobody&to=127.11.0.1:80", "the client 'nobody'"),
        ("?client=10.0.0.1&to=127.11.0.1:99999", "127.11.0.1:99999"),
        ("?client=10.0.0.1&to=127.11.0.1:80&protocol=sctp", "neither tcp nor udp"),
        ("?client=10.0.0.1&to=127.11.0.1:80&to=127.11.0.1:80", "to"),
    ] {
        let reply = cluster.send(Method::GET, &format!("/v1/explain{query}"), None);
        assert_eq!(reply.status, 400, "{query}: {}", reply.text);
        let message = reply.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.contains(expected), "{query}: {message}");
    }
    for path in ["/v1/explain", "/v1/routes", "/v1/vips"] {
        let reply = cluster.send(Method::POST, path, Some("{}"));
        assert_eq!(reply.status, 405, "{path}: {}", reply.text);
        assert!(reply.json()["message"].is_string(), "{path}: {}", reply.text);
    }
}

#[test]
fn a_vip_port_of_somebody_else_fails_that_service_alone() {
    let cluster = Cluster::start();
    // An address in 127/8 that no named VIP gets, with a port that this test holds.
    let address = "127.9.9.9";
    let holder = TcpListener::bind((address, 0)).expect("a port");
    let port = holder.local_addr().expect("address").port();
    let mut app = app::web("/web", 1);
    app["portDefinitions"][0]["labels"] =
        json!({ "VIP_0": format!("{address}:{port}"), "VIP_1": "/web:8080" });
    cluster.deploy(&app);
    app::who_all(cluster.vip("web"), 1);

    let key = format!("{address}:{port}");
    eventually("the service is reported as failed", || {
        let services = cluster.get("/v1/services").expect(200);
        let failures = find_service(&services, &key).map(|service| service["failures"].clone());
        let is_reported =
            failures.is_some_and(|failures| failures.as_array().is_some_and(|all| all.len() == 1));
        if is_reported { Ok(()) } else { Err(services.to_string()) }
    });
    let list = cluster.mesonet(&["service", "list"]).success();
    let line = list.lines().find(|line| line.contains(&key)).expect("the service");
    assert!(line.to_lowercase().contains("in use"), "{line}");
    let metrics = cluster.get("/metrics").text;
    assert!(metrics.contains("mesonet_lb_failed_services 1"), "{metrics}");
    assert!(cluster.log().lines().any(|line| line.contains("WARN") && line.contains(&key)));

    drop(holder);
    eventually("the service is balanced once the port is free", || {
        app::who(format!("{address}:{port}").parse().expect("address"))
    });
}

#[test]
fn broken_dns_packets_harm_nobody() {
    let cluster = Cluster::start();
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06leader\x05mesos\x00\x00\x01\x00\x01";
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let mut packets: Vec<Vec<u8>> = (0..question.len()).map(|length| question[..length].to_vec()).collect();
    // A name that points at itself, one that points behind the end, a label longer than the packet.
    for name in [&b"\xc0\x0c"[..], b"\xc0\xff", b"\x3fleader", b"\xff\xff\xff"] {
        packets.push([&question[..12], name, b"\x00\x01\x00\x01"].concat());
    }
    packets.push([&question[..], &[0xaa; 400]].concat());
    packets.push(vec![0xff; 512]);
    for packet in &packets {
        socket.send_to(packet, cluster.dns()).expect("send");
        let answer = dns::ask(cluster.dns(), "leader.mesos", RecordType::A);
        assert_eq!(answer.answers.len(), 1, "after {packet:x?}");
    }
    // A connection that promises more than it sends does not keep others waiting.
    let mut hanging = std::net::TcpStream::connect(cluster.dns()).expect("connect");
    std::io::Write::write_all(&mut hanging, b"\xff\xff\x00").expect("send");
    assert_eq!(dns::dig(cluster.dns(), &["+tcp", "+short", "leader.mesos"]).trim(), "127.0.0.1");
}

#[test]
fn a_second_cluster_in_the_same_directory_is_refused() {
    let cluster = Cluster::start();
    cluster.deploy(&app::idle("/job", 1));
    let dir = cluster.dir().display().to_string();
    let second =
        ["dev", "--dir", &dir, "--http", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--datapath", "none"];
    let outcome = program::outcome("mesonet", mesonet().args(second).output());
    let error = outcome.failure(1);
    assert!(error.contains("use") && error.contains(&dir), "{error}");
    assert_eq!(cluster.tasks("/job").len(), 1);
}

#[test]
fn a_taken_address_is_named_with_the_flag_that_changes_it() {
    let cluster = Cluster::start();
    let (api, dns) = (cluster.api().to_string(), cluster.dns().to_string());
    for (flag, taken, other) in [("--http", &api, "--dns"), ("--dns", &dns, "--http")] {
        let arguments = ["dev", flag, taken, other, "127.0.0.1:0", "--datapath", "none"];
        let error = program::outcome("mesonet", mesonet().args(arguments).output()).failure(1);
        assert!(error.contains(taken.as_str()) && error.contains(flag), "{error}");
    }
}
