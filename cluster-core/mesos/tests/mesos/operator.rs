//! Views from operator events. The rules are those of spec/dcos-networking.md §2.2.

use std::time::Duration;

use mesonet_dns_zone::Name;
use mesonet_mesos::{OperatorFollower, Options};
use mesonet_model::{ClusterView, Timestamp};

use crate::state::NOW;
use crate::zones::{mesos_dns, zone_of};

fn agent(id: &str, address: &str) -> String {
    format!(
        r#"{{"agent_info": {{"hostname": "{address}", "port": 5051, "id": {{"value": "{id}"}}}},
            "active": true, "pid": "slave(1)@{address}:5051"}}"#
    )
}

fn framework(id: &str, name: &str) -> String {
    format!(
        r#"{{"framework_info": {{"user": "root", "name": "{name}", "id": {{"value": "{id}"}}, "hostname": "10.0.0.9"}},
            "active": true, "connected": true}}"#
    )
}

/// A task of framework `f` on agent `c-S0`.
fn task(id: &str, state: &str, rest: &str) -> String {
    format!(
        r#"{{"name": "{id}", "task_id": {{"value": "{id}"}}, "framework_id": {{"value": "f"}},
            "agent_id": {{"value": "c-S0"}}, "state": "{state}"{rest}}}"#
    )
}

fn subscribed(agents: &[String], recovered: &str, frameworks: &[String], tasks: &[String]) -> String {
    format!(
        r#"{{"type": "SUBSCRIBED", "subscribed": {{"heartbeat_interval_seconds": 7.5, "get_state": {{
            "get_agents": {{"agents": [{}], "recovered_agents": [{recovered}]}},
            "get_frameworks": {{"frameworks": [{}]}}, "get_tasks": {{"tasks": [{}]}}}}}}}}"#,
        agents.join(","),
        frameworks.join(","),
        tasks.join(",")
    )
}

fn added(task: &str) -> String {
    format!(r#"{{"type": "TASK_ADDED", "task_added": {{"task": {task}}}}}"#)
}

/// A status of a task of framework `f`, whose own state says something else than the event.
fn updated(id: &str, state: &str, rest: &str) -> String {
    format!(
        r#"{{"type": "TASK_UPDATED", "task_updated": {{"framework_id": {{"value": "f"}}, "state": "{state}",
            "status": {{"task_id": {{"value": "{id}"}}, "state": "TASK_STARTING", "timestamp": 9{rest}}}}}}}"#
    )
}

fn container(address: &str) -> String {
    format!(
        r#", "container_status": {{"network_infos": [{{"ip_addresses": [{{"ip_address": "{address}"}}]}}]}}"#
    )
}

fn running(address: &str) -> String {
    let status = format!(r#"{{"state": "TASK_RUNNING", "timestamp": 1{}}}"#, container(address));
    format!(r#", "statuses": [{status}]"#)
}

fn following(records: &[String]) -> (OperatorFollower, Option<ClusterView>) {
    let mut follower = OperatorFollower::new(Options::default());
    let mut last = None;
    for record in records {
        last = follower.apply(record.as_bytes(), NOW).expect(record).or(last);
    }
    (follower, last)
}

fn apply(follower: &mut OperatorFollower, record: &str, now: Timestamp) -> Option<ClusterView> {
    follower.apply(record.as_bytes(), now).expect(record)
}

/// What the three names of a task lead to, and its ports.
fn names(view: &ClusterView, task: &str) -> String {
    let zone = zone_of(view, &mesos_dns());
    let at = |kind: &str| {
        let name = format!("{task}.marathon.{kind}.dcos.thisdcos.directory");
        let name = Name::root().below(&name).expect("name");
        zone.values(&name).1.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    format!("{} | {} | {}", at("agentip"), at("autoip"), at("containerip"))
}

fn endpoints(view: &ClusterView) -> Vec<String> {
    let show = |(key, endpoint): (&mesonet_model::EndpointKey, &std::sync::Arc<mesonet_model::Endpoint>)| {
        format!("{} {} {} {}", key.service, key.address, endpoint.state.as_str(), endpoint.weight)
    };
    view.endpoints.iter().map(show).collect()
}

/// Networks of tasks as dcos-net's own table has them: status and container, then agentip, autoip and containerip.
#[test]
fn names_follow_the_network() {
    let mapping = r#"{"host_port": 15263, "container_port": 8080, "protocol": "tcp"}"#;
    let discovery = |number: u16, scope: &str| {
        let scope = if scope.is_empty() { String::new() } else { label("network-scope", scope) };
        discovery(&port(number, "tcp", &scope))
    };
    let ucr = format!(
        r#", "container": {{"type": "MESOS", "network_infos": [{{"name": "bridge", "port_mappings": [{mapping}]}}]}}"#
    );
    let docker = format!(
        r#", "container": {{"type": "DOCKER", "docker": {{"network": "BRIDGE", "port_mappings": [{mapping}]}}}}"#
    );
    let pod = format!(
        r#", "statuses": [{{"state": "TASK_RUNNING", "timestamp": 1, "container_status": {{"network_infos": [
            {{"ip_addresses": [{{"ip_address": "172.31.254.4"}}], "port_mappings": [{mapping}]}}]}}}}]"#
    );
    let v6 = r#", "statuses": [{"state": "TASK_RUNNING", "timestamp": 1, "container_status": {"network_infos": [
        {"ip_addresses": [{"ip_address": "172.19.0.2"}, {"ip_address": "fd01:b::2:8000:0:2"}]}]}}]"#;
    let agent_ip = "172.17.0.3";
    for (name, rest, expected) in [
        (
            "none-on-host",
            running(agent_ip) + &discovery(13977, ""),
            "A 172.17.0.3 | A 172.17.0.3 | A 172.17.0.3",
        ),
        ("none-on-dcos", running("9.0.2.5"), "A 172.17.0.3 | A 9.0.2.5 | A 9.0.2.5"),
        (
            "ucr-on-bridge",
            running("172.31.254.3") + &ucr + &discovery(15263, "host"),
            "A 172.17.0.3 | A 172.17.0.3 | A 172.31.254.3",
        ),
        ("ucr-mapped-only", running("172.31.254.3") + &ucr, "A 172.17.0.3 | A 172.17.0.3 | A 172.31.254.3"),
        (
            "docker-on-bridge",
            running("172.18.0.2") + &docker + &discovery(15263, "host"),
            "A 172.17.0.3 | A 172.17.0.3 | A 172.18.0.2",
        ),
        (
            "docker-on-dcos",
            running("9.0.2.130") + &discovery(8080, "container"),
            "A 172.17.0.3 | A 9.0.2.130 | A 9.0.2.130",
        ),
        (
            "docker-on-ipv6",
            v6.to_owned() + &discovery(8080, "container"),
            "A 172.17.0.3 | A 172.19.0.2 AAAA fd01:b::2:8000:0:2 | A 172.19.0.2 AAAA fd01:b::2:8000:0:2",
        ),
        ("pod-on-bridge", pod, "A 172.17.0.3 | A 172.17.0.3 | A 172.31.254.4"),
        ("no-status", String::new(), "A 172.17.0.3 | A 172.17.0.3 | "),
    ] {
        let records = [subscribed(
            &[agent("c-S0", agent_ip)],
            "",
            &[framework("f", "marathon")],
            &[task(name, "TASK_RUNNING", &rest)],
        )];
        let view = following(&records).1.expect("a view");
        assert_eq!(names(&view, name), expected, "{name}");
    }
}

#[test]
fn events_change_what_they_say_and_nothing_else() {
    let start = subscribed(&[agent("c-S0", "10.0.0.2")], "", &[framework("f", "marathon")], &[]);
    let (mut follower, view) = following(&[start]);
    assert_eq!(view.expect("a view").tasks.len(), 0);
    assert_eq!(follower.heartbeat_interval(), Duration::from_millis(7500));
    let view = apply(&mut follower, &added(&task("web", "TASK_STAGING", "")), NOW).expect("a view");
    assert_eq!(names(&view, "web"), " |  | ");
    // The event's state counts, and an update that lacks something leaves it as it was.
    let view =
        apply(&mut follower, &updated("web", "TASK_RUNNING", &container("9.0.0.1")), NOW).expect("a view");
    assert_eq!(names(&view, "web"), "A 10.0.0.2 | A 9.0.0.1 | A 9.0.0.1");
    let view =
        apply(&mut follower, &updated("web", "TASK_RUNNING", r#", "healthy": true"#), NOW).expect("a view");
    assert_eq!(names(&view, "web"), "A 10.0.0.2 | A 9.0.0.1 | A 9.0.0.1");
    let view = apply(&mut follower, &updated("web", "TASK_KILLING", ""), NOW).expect("a view");
    assert_eq!(names(&view, "web"), " |  | ");
    for nothing in [
        r#"{"type": "HEARTBEAT"}"#.to_owned(),
        r#"{"type": "SOMETHING_NEW", "something_new": {}}"#.to_owned(),
        updated("unknown", "TASK_RUNNING", ""),
        updated("web", "TASK_KILLING", ""),
        format!(
            r#"{{"type": "FRAMEWORK_UPDATED", "framework_updated": {{"framework": {}}}}}"#,
            framework("f", "marathon")
        ),
        format!(r#"{{"type": "AGENT_ADDED", "agent_added": {{"agent": {}}}}}"#, agent("c-S0", "10.0.0.2")),
    ] {
        assert_eq!(apply(&mut follower, &nothing, NOW), None, "{nothing}");
    }
    let view = apply(&mut follower, &updated("web", "TASK_KILLED", ""), NOW).expect("a view");
    assert_eq!(view.tasks.len(), 0);
}

#[test]
fn tasks_wait_for_their_agent_and_framework_and_go_with_them() {
    let web = task("web", "TASK_RUNNING", &running("9.0.0.1"));
    let (mut follower, view) = following(&[subscribed(&[], "", &[], &[web])]);
    assert_eq!(names(&view.expect("a view"), "web"), " |  | ");
    let add_agent =
        format!(r#"{{"type": "AGENT_ADDED", "agent_added": {{"agent": {}}}}}"#, agent("c-S0", "10.0.0.2"));
    let view = apply(&mut follower, &add_agent, NOW).expect("a view");
    assert_eq!(names(&view, "web"), " |  | ");
    let add_framework = format!(
        r#"{{"type": "FRAMEWORK_ADDED", "framework_added": {{"framework": {}}}}}"#,
        framework("f", "marathon")
    );
    let view = apply(&mut follower, &add_framework, NOW).expect("a view");
    assert_eq!(names(&view, "web"), "A 10.0.0.2 | A 9.0.0.1 | A 9.0.0.1");
    let remove = r#"{"type": "AGENT_REMOVED", "agent_removed": {"agent_id": {"value": "c-S0"}}}"#;
    let view = apply(&mut follower, remove, NOW).expect("a view");
    assert_eq!((view.agents.len(), view.tasks.len()), (0, 0));
    apply(&mut follower, &add_agent, NOW).expect("a view");
    apply(&mut follower, &added(&task("web", "TASK_RUNNING", "")), NOW).expect("a view");
    let remove =
        r#"{"type": "FRAMEWORK_REMOVED", "framework_removed": {"framework_info": {"id": {"value": "f"}}}}"#;
    let view = apply(&mut follower, remove, NOW).expect("a view");
    assert_eq!((view.frameworks.len(), view.tasks.len()), (0, 0));
}

#[test]
fn nothing_is_published_until_recovered_agents_are_back() {
    let web = task("web", "TASK_RUNNING", &running("9.0.0.1"));
    let frameworks = [framework("f", "marathon")];
    let whole = subscribed(&[agent("c-S0", "10.0.0.2")], "", &frameworks, std::slice::from_ref(&web));
    let missing = r#"{"id": {"value": "c-S0"}, "hostname": "10.0.0.2"}"#;
    let after_failover = subscribed(&[], missing, &frameworks, &[]);
    let add_agent =
        format!(r#"{{"type": "AGENT_ADDED", "agent_added": {{"agent": {}}}}}"#, agent("c-S0", "10.0.0.2"));
    let (mut follower, before) = following(&[whole.clone(), after_failover]);
    let before = before.expect("the view before the change of the leader");
    assert_eq!(before.tasks.len(), 1);
    assert_eq!(follower.deadline(), Some(NOW.plus(Duration::from_secs(600))));
    let later = NOW.plus(Duration::from_secs(5));
    assert_eq!(apply(&mut follower, &add_agent, later), None);
    assert_eq!(follower.deadline(), Some(later.plus(Duration::from_secs(10))));
    assert_eq!(apply(&mut follower, &added(&web), later), None);
    let view = follower.handle_timeout(later.plus(Duration::from_secs(10))).expect("a view");
    assert_eq!((view.tasks.len(), view.agents.len()), (1, 1));
    assert!(view.revision > before.revision);
    assert_eq!(follower.deadline(), None);
    // Agents that do not come back are given up in the end.
    let mut follower = following(&[subscribed(&[], missing, &frameworks, &[])]).0;
    assert_eq!(follower.handle_timeout(NOW.plus(Duration::from_secs(599))), None);
    assert_eq!(follower.handle_timeout(NOW.plus(Duration::from_secs(600))), None);
    let view = follower.handle_timeout(NOW.plus(Duration::from_secs(610))).expect("a view");
    assert_eq!(view.tasks.len(), 0);
}

#[test]
fn a_new_subscription_replaces_everything() {
    let tasks = [task("web", "TASK_RUNNING", ""), task("old", "TASK_RUNNING", "")];
    let first = subscribed(
        &[agent("c-S0", "10.0.0.2"), agent("c-S1", "10.0.0.3")],
        "",
        &[framework("f", "marathon")],
        &tasks,
    );
    let second = subscribed(&[agent("c-S0", "10.0.0.2")], "", &[framework("f", "marathon")], &tasks[..1]);
    let view = following(&[first, second]).1.expect("a view");
    assert_eq!((view.agents.len(), view.tasks.len()), (1, 1));
}

#[test]
fn records_that_cannot_be_used_say_why_and_change_nothing() {
    let start = subscribed(&[agent("c-S0", "10.0.0.2")], "", &[framework("f", "marathon")], &[]);
    let (mut follower, _) = following(&[start]);
    for (record, expected) in [
        ("", "event is no JSON object of an operator event"),
        ("7", "event is no JSON object of an operator event"),
        (r#"{"type": "TASK_ADDED"}"#, "event of type TASK_ADDED has no member task_added"),
        (r#"{"type": "TASK_UPDATED", "task_updated": {}}"#, "event is no JSON object of an operator event"),
        (r#"{"type": "AGENT_ADDED"}"#, "event of type AGENT_ADDED has no member agent_added"),
        (
            r#"{"type": "FRAMEWORK_REMOVED"}"#,
            "event of type FRAMEWORK_REMOVED has no member framework_removed",
        ),
        (r#"{"type": "SUBSCRIBED"}"#, "event of type SUBSCRIBED has no member subscribed"),
    ] {
        let error = follower.apply(record.as_bytes(), NOW).expect_err(record);
        assert_eq!(error.to_string(), expected, "{record}");
    }
    assert_eq!(apply(&mut follower, r#"{"type": "HEARTBEAT"}"#, NOW), None);
    assert_eq!(apply(&mut follower, r#"{"type": "TASK_ADDED", "task_added": {"task": 5}}"#, NOW), None);
    assert_eq!(follower.rejected(), 1);
    let error = OperatorFollower::new(Options::default()).apply(b"{\"type\": \"HEARTBEAT\"}", NOW);
    assert_eq!(
        error.expect_err("no subscription").to_string(),
        "event of type HEARTBEAT came before SUBSCRIBED"
    );
}

/// Discovery information with these ports.
fn discovery(ports: &str) -> String {
    format!(r#", "discovery": {{"ports": {{"ports": [{ports}]}}}}"#)
}

fn port(number: u16, protocol: &str, labels: &str) -> String {
    format!(
        r#"{{"number": {number}, "protocol": "{protocol}", "name": "p", "labels": {{"labels": [{labels}]}}}}"#
    )
}

fn label(key: &str, value: &str) -> String {
    format!(r#"{{"key": "{key}", "value": "{value}"}}"#)
}

/// The endpoints behind the VIPs of a task on the agent 10.0.0.2: while it runs, when it is killed, and at its end.
#[track_caller]
fn check_endpoints(rest: &str, expected: &[&str]) {
    let start = subscribed(
        &[agent("c-S0", "10.0.0.2")],
        "",
        &[framework("f", "marathon")],
        &[task("web", "TASK_RUNNING", rest)],
    );
    let (mut follower, view) = following(&[start]);
    let view = view.expect("a view");
    assert_eq!(endpoints(&view), expected, "{rest}");
    let addressed = view.services.values().filter(|service| service.ipv4.is_some()).count();
    assert_eq!(addressed, view.services.len(), "{rest}");
    let view = apply(&mut follower, &updated("web", "TASK_KILLING", ""), NOW).expect("a view");
    let draining: Vec<String> =
        expected.iter().map(|line| line[..line.len() - 7].to_owned() + "draining 0").collect();
    assert_eq!(endpoints(&view), draining, "{rest}");
    let view = apply(&mut follower, &updated("web", "TASK_FINISHED", ""), NOW).expect("a view");
    assert!(view.services.is_empty() && view.endpoints.is_empty(), "{rest}");
}

#[test]
fn labels_of_published_ports_make_endpoints() {
    for (address, ports, expected) in [
        (
            "10.0.0.2",
            port(31000, "tcp", &[label("VIP_0", "/web:80"), label("vip_1", "abc:81")].join(",")),
            vec!["tcp/abc@marathon:81 10.0.0.2:31000 ready 1", "tcp/web@marathon:80 10.0.0.2:31000 ready 1"],
        ),
        (
            "9.0.0.1",
            port(80, "TCP", &label("VIP_0", "web:80")),
            vec!["tcp/web@marathon:80 9.0.0.1:80 ready 1"],
        ),
        // The same port of both protocols is two.
        (
            "9.0.0.1",
            [port(53, "tcp", &label("VIP_0", "dns:53")), port(53, "udp", &label("VIP_0", "dns:53"))]
                .join(","),
            vec!["tcp/dns@marathon:53 9.0.0.1:53 ready 1", "udp/dns@marathon:53 9.0.0.1:53 ready 1"],
        ),
        (
            "9.0.0.1",
            port(80, "tcp", &label("VIP_0", "1.2.3.4:80")),
            vec!["tcp/1.2.3.4:80 9.0.0.1:80 ready 1"],
        ),
        // A static VIP has one family.
        ("9.0.0.1", port(80, "tcp", &label("VIP_0", "[fd00::1]:80")), vec![]),
        ("9.0.0.1", port(80, "tcp", &label("VIP_0", "no port")), vec![]),
        ("9.0.0.1", port(80, "tcp", &label("Vip_0", "web:80")), vec![]),
        ("9.0.0.1", port(0, "tcp", &label("VIP_0", "web:80")), vec![]),
        ("9.0.0.1", port(80, "sctp", &label("VIP_0", "web:80")), vec![]),
    ] {
        check_endpoints(&(running(address) + &discovery(&ports)), &expected);
    }
    let checked = running("9.0.0.1") + r#", "health_check": {}"#;
    let ports = discovery(&port(80, "tcp", &label("VIP_0", "web:80")));
    check_endpoints(&(checked + &ports), &["tcp/web@marathon:80 9.0.0.1:80 ready 0"]);
}

#[test]
fn ports_of_mappings_labels_and_discovery_are_joined() {
    let mapped = r#", "container": {"type": "DOCKER", "docker": {"port_mappings": [
        {"host_port": 31000, "container_port": 80, "protocol": "tcp"}]}}"#;
    let web = label("VIP_0", "web:80");
    let on_host = format!("{web},{}", label("network-scope", "host"));
    // The VIP is that of the container's port or of the host's, and the mapping says that they are one.
    for published in [port(80, "tcp", &web), port(31000, "tcp", &on_host)] {
        let rest = running("9.0.0.1") + mapped + &discovery(&published);
        check_endpoints(&rest, &["tcp/web@marathon:80 10.0.0.2:31000 ready 1"]);
    }
    let ports = r#", "resources": [{"name": "cpus", "scalar": {"value": 1}},
        {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31005, "end": 31006}]}}]"#;
    for (key, value, expected) in [
        ("vip_PORT1", "tcp://web:80", vec!["tcp/web@marathon:80 10.0.0.2:31006 ready 1"]),
        ("VIP_PORT0", "udp://web:80", vec!["udp/web@marathon:80 10.0.0.2:31005 ready 1"]),
        // There are two ports.
        ("VIP_PORT2", "tcp://web:80", vec![]),
        ("VIP_PORT0", "web:80", vec![]),
        ("VIP_PORT", "tcp://web:80", vec![]),
    ] {
        let labels = format!(r#", "labels": {{"labels": [{}]}}"#, label(key, value));
        check_endpoints(&(running("10.0.0.2") + ports + &labels), &expected);
    }
}

#[test]
fn named_vips_have_the_addresses_of_dcos() {
    let web = r#", "discovery": {"ports": {"ports": [{"number": 80, "protocol": "tcp", "labels": {"labels": [
        {"key": "VIP_0", "value": "/web:80"}]}}]}}"#;
    let start = subscribed(
        &[agent("c-S0", "10.0.0.2")],
        "",
        &[framework("f", "marathon")],
        &[task("web", "TASK_RUNNING", &(running("9.0.0.1") + web))],
    );
    let view = following(&[start]).1.expect("a view");
    let zone = zone_of(&view, &mesos_dns());
    for suffix in
        ["l4lb.thisdcos.directory", "dclb.thisdcos.directory", "l4lb.thisdcos.global", "dclb.thisdcos.global"]
    {
        let name = Name::root().below(&format!("web.marathon.{suffix}")).expect("name");
        let question = mesonet_dns_zone::Question { name, kind: mesonet_dns_zone::QuestionType::A };
        let answer = zone.answer(&question, 0, 10);
        let shown: Vec<String> = answer.answers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, [format!("web.marathon.{suffix}. 60 IN A 11.225.36.193")]);
    }
}
