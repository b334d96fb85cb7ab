//! Names and services beyond the simplest case: UDP, TCP, EDNS, several ports, the order of events.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::harness::events::{self, Events};
use crate::harness::{Cluster, app, dns, equal, eventually};

#[test]
fn datagrams_reach_every_instance_through_the_vip() {
    let cluster = Cluster::start();
    cluster.deploy(&app::echo_udp("/echo", 2));
    let vip = cluster.vip("echo");
    let mut ports = BTreeSet::new();
    eventually("both instances echo", || {
        ports.insert(echo(vip, "hello")?);
        equal(&ports.len(), &2)
    });
    let srv: BTreeSet<u16> = dns::srv_ports(cluster.dns(), "_echo._udp.marathon.mesos").into_iter().collect();
    assert_eq!(srv, ports);

    cluster.scale("/echo", 1);
    let left: BTreeSet<u16> =
        dns::srv_ports(cluster.dns(), "_echo._udp.marathon.mesos").into_iter().collect();
    assert_eq!(left.len(), 1);
    for _ in 0..10 {
        let port = eventually("the instance that is left echoes", || echo(vip, "hello"));
        assert!(left.contains(&port));
    }
}

#[test]
fn names_are_answered_over_tcp_with_edns_and_with_the_revision_as_serial() {
    let cluster = Cluster::start();
    cluster.deploy(&app::idle("/job", 1));
    let server = cluster.dns();

    let over_tcp = dns::dig(server, &["+tcp", "+short", "job.marathon.mesos"]);
    assert_eq!(over_tcp.trim(), "127.0.0.1");
    let with_edns = dns::dig(server, &["+edns=0", "+bufsize=1232", "job.marathon.mesos"]);
    assert!(with_edns.contains("EDNS: version: 0"), "{with_edns}");
    assert!(with_edns.contains("flags: qr aa"), "{with_edns}");
    let without = dns::dig(server, &["+noedns", "job.marathon.mesos"]);
    assert!(!without.contains("EDNS"), "{without}");
    let unknown = dns::dig(server, &["nothing.marathon.mesos"]);
    assert!(unknown.contains("status: NXDOMAIN") && unknown.contains("SOA"), "{unknown}");
    let other_type = dns::dig(server, &["job.marathon.mesos", "TXT"]);
    assert!(other_type.contains("status: NOERROR") && other_type.contains("SOA"), "{other_type}");

    let serial = |name: &str| {
        let soa = dns::dig(server, &["+short", name, "SOA"]);
        soa.split(' ').nth(2).and_then(|serial| serial.parse::<u64>().ok()).unwrap_or_else(|| panic!("{soa}"))
    };
    eventually("the serial is the revision", || {
        let revision = cluster.get("/v1/view").expect(200)["revision"].as_u64().expect("revision");
        equal(&serial("mesos"), &revision)
    });
    let before = serial("mesos");
    cluster.scale("/job", 2);
    assert!(serial("mesos") > before, "a change is a new serial");
}

#[test]
fn answers_that_do_not_fit_come_over_tcp() {
    let cluster = Cluster::start();
    let mut app = app::idle("/many", 30);
    app["portDefinitions"] = json!([{ "name": "http", "protocol": "tcp", "port": 0 }]);
    cluster.deploy(&app);
    let name = "_http._many._tcp.marathon.mesos";
    let truncated = dns::dig(cluster.dns(), &["+noedns", "+ignore", name, "SRV"]);
    assert!(truncated.contains("flags: qr aa tc"), "{truncated}");
    assert_eq!(dns::short(cluster.dns(), name, "SRV").len(), 30, "dig asks again over TCP");
}

#[test]
fn a_task_has_a_name_for_every_port_and_each_vip_its_own_service() {
    let cluster = Cluster::start();
    let text = include_str!("../../deploy/examples/two-ports.json");
    let app: Value = serde_json::from_str(text).expect("example");
    cluster.deploy(&app);
    let names = [("http", "front.shop"), ("admin", "front.shop")]
        .map(|(port, app)| format!("_{port}._{app}._tcp.marathon.mesos"));
    let [http, admin] = names.map(|name| dns::short(cluster.dns(), &name, "SRV"));
    assert_eq!((http.len(), admin.len()), (2, 2));
    assert!(http.iter().all(|line| !admin.contains(line)));
    for (port, expected) in [(8000, "the shop\n"), (8001, "the back office\n")] {
        let vip = cluster.vip(&format!("shop@marathon:{port}"));
        eventually("the service answers with its own page", || {
            equal(&crate::harness::http::get(vip, "/")?, &expected.to_owned())
        });
    }
}

#[test]
fn the_cluster_itself_has_names() {
    let cluster = Cluster::start();
    for name in ["leader.mesos", "master.mesos", "slave.mesos", "marathon.mesos"] {
        assert_eq!(dns::short(cluster.dns(), name, "A"), ["127.0.0.1"], "{name}");
    }
    let api = dns::srv_ports(cluster.dns(), "_leader._tcp.mesos");
    assert_eq!(api, [cluster.api().port()]);
    assert_eq!(
        dns::srv_ports(cluster.dns(), "_slave._tcp.mesos"),
        api,
        "the agent is reached where the API is"
    );
    let none = dns::ask(cluster.dns(), "leader.mesos", RecordType::AAAA);
    assert!(none.answers.is_empty());
}

#[test]
fn a_deployment_is_told_in_order() {
    let cluster = Cluster::start();
    let events = Events::subscribe(cluster.api(), "");
    cluster.send(Method::POST, "/v2/apps", Some(&app::idle("/job", 1).to_string())).expect(201);
    let told = events.until("deployment_success");
    // The post itself is told by the API, whose place among Marathon's events is not fixed.
    let is_post = |event: &Value| events::kind(event) == "api_post_event";
    let post = told.iter().find(|event| is_post(event)).cloned();
    let post = post.unwrap_or_else(|| events.wait_for("of the post", is_post).1);
    assert_eq!(post["clientIp"], "127.0.0.1");
    let kinds: Vec<&str> = told.iter().map(events::kind).collect();
    let first = |kind: &str| {
        kinds.iter().position(|each| *each == kind).unwrap_or_else(|| panic!("{kind}: {kinds:?}"))
    };
    // Its steps are to start the app, which runs nothing yet, and to scale it.
    let steps: Vec<&str> = kinds.iter().copied().filter(|kind| kind.starts_with("deployment")).collect();
    let of_a_step = ["deployment_info", "deployment_step_success"];
    assert_eq!(steps, [&of_a_step[..], &of_a_step, &["deployment_success"]].concat());
    assert!(first("deployment_step_success") < first("status_update_event"), "{kinds:?}");
    let running = told.iter().find(|event| event["taskStatus"] == "TASK_RUNNING").expect("a running task");
    assert_eq!(running["appId"], "/job");
    for event in &told {
        assert!(event["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
    }
    let plan = &told[first("deployment_info")]["plan"];
    assert!(plan["original"].is_object() && plan["target"].is_object(), "{plan}");

    let light = Events::subscribe(
        cluster.api(),
        "?plan-format=light&event_type=deployment_info&event_type=event_stream_attached",
    );
    cluster.send(Method::DELETE, "/v2/apps/job", None).expect(200);
    let (_, info) = light.wait_for("of the deployment", |event| events::kind(event) == "deployment_info");
    assert!(info["plan"]["original"].is_null(), "{info}");
    events.wait_for("of the end", |event| events::kind(event) == "app_terminated_event");
}

/// Sends a datagram from a socket of its own; returns the port that the echo names.
fn echo(address: SocketAddr, text: &str) -> Result<u16, String> {
    let ask = || -> std::io::Result<String> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(text.as_bytes(), address)?;
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from, address, "the answer comes from the VIP");
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let answer = ask().map_err(|error| format!("{address}: {error}"))?;
    let (port, echoed) = answer.split_once(' ').ok_or_else(|| answer.clone())?;
    assert_eq!(echoed, text);
    port.parse().map_err(|_| answer.clone())
}
