//! A cluster of many nodes, each host a network namespace: joining, serving, and the sudden end of every process.

use std::path::PathBuf;

use serde_json::json;

use crate::harness::nodes::MASTER;
use crate::harness::{Nodes, app, equal, eventually, process};

const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// A cluster with all daemons of all hosts.
#[track_caller]
fn whole_cluster() -> Nodes {
    let mut nodes = Nodes::start(&HOSTS);
    nodes.start_agents(&HOSTS);
    HOSTS.into_iter().for_each(|host| nodes.start_net(host));
    nodes.wait_for_planes(6);
    nodes
}

/// Waits until every plane of every node has applied what is newest.
#[track_caller]
fn converge(nodes: &Nodes) {
    eventually("every plane is at the newest revision", || {
        let outcome = nodes.mesonet(&["converge", "--timeout", "5s"]);
        if outcome.code == Some(0) { Ok(()) } else { Err(outcome.stderr) }
    });
}

#[test]
#[ignore = "needs root"]
fn every_node_serves_every_task_and_nothing_ends_with_a_process_of_the_cluster() {
    let mut nodes = whole_cluster();
    let mut web = app::web("/web", 6);
    // However long this machine takes, no task is given up while its agent is down.
    web["unreachableStrategy"] = json!({ "inactiveAfterSeconds": 600, "expungeAfterSeconds": 900 });
    nodes.deploy(&web);
    let vip = nodes.vip("web");
    converge(&nodes);
    let before = nodes.who_all("n1", &vip, 6);
    for host in HOSTS {
        assert_eq!(nodes.who_all(host, &vip, 6), before, "{host} reaches every instance");
        let name = "web.marathon.l4lb.thisdcos.directory";
        let address = nodes.dig(host, &["+short", name]);
        assert_eq!(format!("{}:8080", address.trim()), vip, "{host} knows the name");
    }
    let tasks = nodes.tasks("/web");

    // An agent: its tasks run on, and the next agent takes them up.
    nodes.kill("n1", "agent");
    assert_eq!(nodes.who_all("n2", &vip, 6), before);
    let registrations = |nodes: &Nodes| nodes.log("n1", "agent").matches("The agent is registered").count();
    let known = registrations(&nodes);
    nodes.start_agent("n1", None);
    // The master may not have noticed that the one before is gone, so its own word would tell nothing.
    eventually("the next agent is registered", || equal(&registrations(&nodes), &(known + 1)));
    assert_eq!(nodes.tasks("/web"), tasks);
    eventually("the newest view is on disk", || equal(&nodes.kept_revision("n2"), &nodes.revision()));

    // The master: names and addresses stay, also for a network daemon that starts without any.
    nodes.kill(MASTER, "master");
    assert_eq!(nodes.who_all("n1", &vip, 6), before);
    nodes.kill("n2", "net");
    nodes.start_net("n2");
    assert_eq!(nodes.who_all("n2", &vip, 6), before);
    eventually("answers are marked stale", || {
        let answer = nodes.dig("n2", &["web.marathon.mesos"]);
        if answer.contains("EDE: 3") { Ok(()) } else { Err(answer) }
    });
    assert!(nodes.metric("n2", "mesonet_view_age_seconds").expect("shown") >= 2.0);

    // It comes back, and nothing has changed for the tasks.
    nodes.start_master(MASTER);
    nodes.wait_for_planes(6);
    eventually("the view is confirmed", || equal(&nodes.metric("n2", "mesonet_view_age_seconds")?, &0.0));
    assert!(!nodes.dig("n2", &["web.marathon.mesos"]).contains("EDE"));
    converge(&nodes);
    assert_eq!(nodes.tasks("/web"), tasks);
    assert_eq!(nodes.vip("web"), vip);
    for who in &before {
        assert!(process::is_alive(who.pid), "{who:?} is the process that was started first");
    }
    // And it goes on as if nothing had happened.
    nodes.mesonet(&["app", "scale", "web", "7"]).success();
    converge(&nodes);
    assert!(nodes.who_all("n3", &vip, 7).is_superset(&before));
}

#[test]
#[ignore = "needs root"]
fn older_records_that_are_put_back_are_followed_by_nodes_that_have_seen_newer_ones() {
    let mut nodes = Nodes::start(&["n1"]);
    nodes.start_agents(&["n1"]);
    nodes.start_net("n1");
    nodes.wait_for_planes(2);
    nodes.deploy(&app::idle("/old", 1));
    let agent = PathBuf::from(nodes.host_dir("n1")).join("agent");
    let processes = || process::working_in(&agent).len();
    nodes.stop(MASTER, "master");
    let known = processes();
    let records = format!("{}/state.redb", nodes.host_dir(MASTER));
    let backup = format!("{records}.backup");
    std::fs::copy(&records, &backup).expect("copied");

    nodes.start_master(MASTER);
    nodes.deploy(&app::idle("/new", 2));
    nodes.deploy(&app::idle("/newer", 2));
    converge(&nodes);
    let seen = nodes.revision();
    eventually("the newest view is on disk", || equal(&nodes.kept_revision("n1"), &nodes.revision()));
    nodes.stop(MASTER, "master");
    std::fs::copy(&backup, &records).expect("put back");

    nodes.start_master(MASTER);
    eventually("the node follows", || {
        let revision = nodes.revision();
        if revision.as_u64() <= seen.as_u64() {
            return Err(format!("{revision}, after {seen}"));
        }
        equal(&nodes.kept_revision("n1"), &revision)
    });
    converge(&nodes);
    eventually("the operator is told", || nodes.log_says(MASTER, "master", "Nodes are ahead of the records"));
    assert!(nodes.dig("n1", &["new.marathon.mesos"]).contains("NXDOMAIN"), "it is not known any more");
    assert_ne!(nodes.dig("n1", &["+short", "old.marathon.mesos"]), "");
    eventually("tasks that nobody knows have ended", || equal(&processes(), &known));
}

#[test]
#[ignore = "needs root"]
fn only_who_has_a_valid_token_joins() {
    let mut nodes = Nodes::start(&["n1", "n2"]);
    let token = nodes.token(1);
    let dot = token.rfind('.').expect("parts");
    let wrong = format!("{}.{}", &token[..dot], token[dot + 1..].chars().rev().collect::<String>());
    let refused = nodes.try_agent("n1", &wrong).failure(1);
    assert!(refused.contains("cannot join the cluster as node 'n1'"), "{refused}");

    nodes.start_agent("n1", Some(&token));
    let agents = || nodes.get("/v1/view")["agents"].as_object().map_or(0, serde_json::Map::len);
    eventually("the agent is registered", || equal(&agents(), &1));
    let refused = nodes.try_agent("n2", &token).failure(1);
    assert!(refused.contains("cannot join the cluster as node 'n2'"), "the token is used up: {refused}");
    assert_eq!(agents(), 1);
}

/// The host on which most tasks run, by its place in the network.
fn busiest(nodes: &Nodes, app: &str) -> &'static str {
    let tasks = nodes.tasks(app);
    let count = |host: &str| {
        let address = nodes.network().address(host);
        tasks.iter().filter(|(on, _)| *on == address).count()
    };
    HOSTS.into_iter().max_by_key(|host| count(host)).expect("hosts")
}

/// The tasks of an app that run elsewhere than on a host.
fn elsewhere(nodes: &Nodes, app: &str, host: &str) -> usize {
    let address = nodes.network().address(host);
    nodes.tasks(app).iter().filter(|(on, _)| *on != address).count()
}

#[test]
#[ignore = "needs root"]
fn the_tasks_of_a_node_that_is_cut_off_are_replaced_and_end_when_it_is_back() {
    let nodes = whole_cluster();
    let mut web = app::web("/web", 6);
    web["unreachableStrategy"] = json!({ "inactiveAfterSeconds": 1, "expungeAfterSeconds": 2 });
    nodes.deploy(&web);
    let vip = nodes.vip("web");
    converge(&nodes);
    let host = busiest(&nodes, "/web");
    let other = HOSTS.into_iter().find(|other| *other != host).expect("hosts");
    let before = nodes.who_all(other, &vip, 6);

    nodes.network().cut(host);
    eventually("six instances run elsewhere", || equal(&elsewhere(&nodes, "/web", host), &6));
    // Before they are given up for good, instances that come back are taken back.
    let known = || nodes.get("/v2/apps/web/tasks")["tasks"].as_array().map(Vec::len);
    eventually("the lost instances are given up", || equal(&known(), &Some(6)));
    let listed = nodes.mesonet(&["node", "list"]).success();
    let line = listed.lines().find(|line| line.starts_with(host)).expect("the node is listed");
    assert!(line.contains("unreachable"), "{listed}");
    assert_eq!(nodes.vip("web"), vip);
    let after = nodes.who_all(other, &vip, 6);
    // The node goes on with what it had, and says that it may be wrong.
    let name = "web.marathon.l4lb.thisdcos.directory";
    assert!(nodes.dig(host, &[name]).contains("EDE: 3"));

    nodes.network().heal(host);
    eventually("the tasks that were given up are ended", || {
        let left: Vec<_> = before.difference(&after).filter(|who| process::is_alive(who.pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    eventually("it is told for how long the node had no master", || {
        let listed = nodes.mesonet(&["node", "list"]).success();
        let line = listed.lines().find(|line| line.starts_with(host)).unwrap_or_default();
        if line.contains(", until ") { Ok(()) } else { Err(listed) }
    });
    converge(&nodes);
    eventually("the node knows the instances that there are", || {
        equal(&nodes.who_all(host, &vip, 6), &nodes.who_all(other, &vip, 6))
    });
}

#[test]
#[ignore = "needs root"]
fn a_drained_node_is_empty_and_used_again_when_it_may() {
    let nodes = whole_cluster();
    nodes.deploy(&app::web("/web", 6));
    let host = busiest(&nodes, "/web");
    nodes.mesonet(&["node", "drain", host, "--timeout", "180s"]).success();
    assert_eq!(elsewhere(&nodes, "/web", host), 6);
    assert!(nodes.mesonet(&["node", "list"]).success().contains("draining"));
    nodes.mesonet(&["node", "undrain", host]).success();
    assert!(!nodes.mesonet(&["node", "list"]).success().contains("draining"));
    let unknown = nodes.mesonet(&["node", "drain", "nobody"]).failure(1);
    assert!(unknown.contains("Node 'nobody' does not exist"), "{unknown}");
}
