//! A node whose machine gets another address while its tasks run.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Nodes, app, equal, eventually, program};

const HOSTS: [&str; 2] = ["n1", "n2"];

/// Where the first of them moves to.
const ELSEWHERE: &str = "10.77.0.99";

const NET: [&str; 4] = ["--overlay", "on", "--dns-address", "198.51.100.1"];

/// A web server on each host's network, and one in the network of containers.
fn deploy(nodes: &Nodes) {
    let unique = json!([["hostname", "UNIQUE"]]);
    let mut web = app::web("/web", 2);
    // On all addresses, not only on the one that the host has at first.
    let arguments = web["args"].as_array().cloned().unwrap_or_default();
    web["args"] = [vec![json!("env"), json!("HOST=0.0.0.0")], arguments].concat().into();
    web["constraints"] = unique.clone();
    nodes.deploy(&web);
    nodes.deploy(&json!({
        "id": "/inner", "cmd": "exec python3 -m http.server 8080", "instances": 2, "cpus": 0.1, "mem": 32,
        "constraints": unique,
        "networks": [{ "mode": "container", "name": "inner" }],
        "container": { "type": "MESOS", "portMappings": [] },
    }));
}

/// The tasks of an app that run, and the addresses of their own.
fn running(nodes: &Nodes, app: &str) -> BTreeSet<(String, String)> {
    let tasks = nodes.get(&format!("/v2/apps{app}/tasks"))["tasks"].clone();
    let tasks = tasks.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let living = tasks.iter().filter(|task| task["state"] == "TASK_RUNNING");
    living.map(|task| (text(&task["id"]), text(&task["ipAddresses"][0]["ipAddress"]))).collect()
}

/// Makes a host's own address one like any other to who asks the routes, as in a VRF. It stays reachable by TCP.
fn hide_from_local_routes(nodes: &Nodes, host: &str) {
    let own = nodes.network().address(host);
    let line = format!(
        "ip rule add pref 1 ipproto tcp lookup local && ip rule add pref 2 iif lo to {own} lookup main \
         && ip rule add pref 3 lookup local && ip rule del pref 0"
    );
    shell(nodes, host, &line);
}

fn shell(nodes: &Nodes, host: &str, line: &str) {
    let mut shell = nodes.network().command(host, "sh");
    program::outcome("sh", shell.args(["-c", line]).output()).success();
}

#[test]
#[ignore = "needs root"]
fn everything_follows_a_node_to_another_address_while_its_tasks_run() {
    let mut nodes = Nodes::start_patient(&HOSTS);
    hide_from_local_routes(&nodes, "n2");
    nodes.start_agents(&HOSTS);
    HOSTS.iter().for_each(|host| nodes.start_net_with(host, &NET));
    nodes.mesonet(&["network", "create", "inner", "--subnet", "10.128.0.0/16"]).success();
    deploy(&nodes);
    let vip = nodes.vip("web");
    let servers = nodes.who_all("n2", &vip, 2);
    let (webs, inners) = (running(&nodes, "/web"), running(&nodes, "/inner"));
    let reach_all = |when: &str| {
        for (host, (_, address)) in HOSTS.iter().flat_map(|host| inners.iter().map(move |each| (host, each)))
        {
            eventually(&format!("{host} reaches {address} {when}"), || {
                nodes.curl(host, &format!("http://{address}:8080/"))
            });
        }
    };
    reach_all("before");
    let earlier = nodes.network().address("n1");
    // As on hosts with a floating address: what can be bound to is no sign that an address is there.
    shell(&nodes, "n1", "echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind");
    nodes.network().move_to("n1", ELSEWHERE);

    let expected = BTreeSet::from([ELSEWHERE.to_owned(), nodes.network().address("n2")]);
    for host in HOSTS {
        eventually(&format!("the names that {host} serves follow"), || {
            let answer = nodes.dig(host, &["+short", "web.marathon.agentip.dcos.thisdcos.directory"]);
            equal(&answer.lines().map(str::to_owned).collect(), &expected)
        });
    }
    assert_eq!(nodes.who_all("n2", &vip, 2), servers, "the same processes behind the virtual address");
    reach_all("afterwards");
    assert_eq!((running(&nodes, "/web").len(), running(&nodes, "/inner")), (2, inners.clone()));
    let ids = |tasks: &BTreeSet<(String, String)>| tasks.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&running(&nodes, "/web")), ids(&webs));
    for role in ["agent", "net"] {
        let log = nodes.log("n1", role);
        assert_eq!(log.matches("Connected to a master").count(), 1, "the {role}'s connection goes on: {log}");
        let log = nodes.log("n2", role);
        assert!(!log.contains("address is gone"), "the other node's {role} stays where it is: {log}");
    }
    assert!(!nodes.get("/v1/view")["agents"].to_string().contains(&format!("\"{earlier}\"")));
    eventually("the agent shows what it counts", || {
        let shown = nodes.curl("n1", "http://127.0.0.1:8082/metrics")?;
        let expected = ["mesonet_agent_tasks{state=\"TASK_RUNNING\"} 2", "mesonet_agent_connected 1"];
        let has_all = expected.iter().all(|line| shown.lines().any(|each| each == *line));
        if has_all { Ok(()) } else { Err(shown) }
    });
}
