//! Bad input to a cluster of many nodes: who does it is told why, it is counted, and nobody else is affected.

use std::path::PathBuf;

use serde_json::json;

use crate::harness::cluster::mesonet;
use crate::harness::nodes::MASTER;
use crate::harness::tmpfs::Tmpfs;
use crate::harness::{Nodes, Outcome, app, equal, eventually, program};

/// A cluster with a node that works, on which an app runs.
#[track_caller]
fn with_one_good_node(others: &[&str]) -> Nodes {
    let mut nodes = Nodes::start_patient(&[&["good"], others].concat());
    let token = nodes.token(1);
    nodes.start_agent("good", Some(&token));
    eventually("the agent has joined", || nodes.log_says("good", "agent", "The agent is registered"));
    nodes.start_net("good");
    let mut web = app::web("/web", 1);
    web["unreachableStrategy"] = json!("disabled");
    nodes.deploy(&web);
    nodes
}

/// Looks that the good node's connections have held and its app answers.
#[track_caller]
fn assert_nobody_else_is_affected(nodes: &Nodes) {
    nodes.who_all("good", &nodes.vip("web"), 1);
    for role in ["agent", "net"] {
        let log = nodes.log("good", role);
        assert!(!log.contains("Not connected to a master"), "{role} has lost its connection: {log}");
    }
}

/// How many connections or requests the master has refused for a reason.
#[track_caller]
fn refused(nodes: &Nodes, reason: &str) -> f64 {
    let metrics = nodes.curl(MASTER, "http://127.0.0.1:8080/metrics").expect("metrics");
    let name = format!("mesonet_bus_refused_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0.0)
}

#[track_caller]
fn assert_says(outcome: Outcome, expected: &[&str]) {
    let said = outcome.failure(1);
    for text in expected {
        assert!(said.contains(text), "'{text}' is not in: {said}");
    }
}

#[test]
#[ignore = "needs root"]
fn nodes_that_must_not_join_are_told_why() {
    let nodes = with_one_good_node(&["bad"]);
    let token = nodes.token(1);

    // The name of a node that has another key.
    assert_says(nodes.try_agent_as("bad", "good", &token), &["cannot join", "good", "another key"]);
    assert!(refused(&nodes, "name_taken") >= 1.0);

    // A token that was valid.
    let late = nodes.token_for(1, "1ms");
    assert_says(nodes.try_agent("bad", &late), &["cannot join", "expired"]);
    assert!(refused(&nodes, "token") >= 1.0);

    // A token of another cluster.
    let foreign = nodes.token_of_another_cluster();
    assert_says(nodes.try_agent("bad", &foreign), &["cannot join", "different clusters"]);
    assert!(refused(&nodes, "cluster") >= 1.0);

    // A clock that is so far behind that the master's certificate is of the future.
    assert_says(nodes.try_agent_at("-5h", "bad", &token), &["certificate", "the time of this node's clock"]);
    assert!(refused(&nodes, "certificate_time") >= 1.0);

    assert_nobody_else_is_affected(&nodes);
}

#[test]
#[ignore = "needs root"]
fn a_clock_that_is_wrong_by_hours_is_named_and_tasks_run_on() {
    let mut nodes = with_one_good_node(&["late", "early"]);
    let token = nodes.token(2);
    for host in ["late", "early"] {
        nodes.start_agent(host, Some(&token));
        eventually("the agent has joined", || nodes.log_says(host, "agent", "The agent is registered"));
        nodes.stop(host, "agent");
    }
    // What is valid at both times is used, with a warning.
    nodes.start_agent_at("+5h", "early");
    eventually("the clocks differ", || nodes.log_says("early", "agent", "clock and the master's differ"));
    // What is not is refused, by the node itself.
    nodes.start_agent_at("-5h", "late");
    eventually("the clock is named", || nodes.log_says("late", "agent", "the time of this node's clock"));
    assert_nobody_else_is_affected(&nodes);
}

#[test]
#[ignore = "needs root"]
fn a_revoked_node_is_cut_off_and_told_why() {
    let mut nodes = with_one_good_node(&["bad"]);
    let token = nodes.token(1);
    nodes.start_agent("bad", Some(&token));
    eventually("the agent has joined", || nodes.log_says("bad", "agent", "The agent is registered"));
    nodes.start_net("bad");
    nodes.wait_for_planes(4);
    nodes.revoke("bad");
    for role in ["agent", "net"] {
        eventually("it is told why", || nodes.log_says("bad", role, "revoked"));
    }
    assert!(refused(&nodes, "revoked") >= 2.0);
    eventually("the node's planes are shown as away", || {
        let list = nodes.mesonet(&["node", "list"]).success();
        let line = list.lines().find(|line| line.starts_with("bad")).unwrap_or_default();
        if line.contains("not connected for") { Ok(()) } else { Err(list.clone()) }
    });
    let unknown = nodes.try_revoke("nobody").failure(1);
    assert!(unknown.contains("nobody"), "{unknown}");
    assert_nobody_else_is_affected(&nodes);
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_costs_a_node_the_view_for_its_next_start_and_nothing_else() {
    let mut nodes = with_one_good_node(&["full"]);
    let disk = Tmpfs::mount(&nodes.host_dir("full"));
    let token = nodes.token(1);
    nodes.start_net_alone("full", &token);
    eventually("the view is kept", || {
        if nodes.kept_revision("full").is_u64() { Ok(()) } else { Err("no view".to_owned()) }
    });
    disk.fill();
    nodes.deploy(&app::web("/other", 1));
    nodes.who_all("full", &nodes.vip("other"), 1);
    eventually("the failure is counted", || {
        let count = nodes.metric("full", "mesonet_view_cache_failures_total")?;
        if count >= 1.0 { Ok(()) } else { Err(count.to_string()) }
    });
    eventually("the failure is logged", || nodes.log_says("full", "net", "Cannot keep the view on disk"));
    disk.empty();
    nodes.deploy(&app::web("/third", 1));
    eventually("the newest view is kept", || equal(&nodes.kept_revision("full"), &nodes.revision()));
    assert_nobody_else_is_affected(&nodes);
}

#[test]
#[ignore = "needs root"]
fn a_log_is_read_on_its_node_and_is_where_the_error_says_without_an_agent() {
    let mut nodes = with_one_good_node(&[]);
    eventually("the log is passed on", || {
        let read = nodes.mesonet(&["task", "log", "web"]);
        if read.code == Some(0) && read.stdout == "listening\n" { Ok(()) } else { Err(format!("{read:?}")) }
    });
    nodes.stop("good", "agent");
    let said = nodes.mesonet(&["task", "log", "web"]).failure(1);
    assert!(said.contains("node 'good'"), "{said}");
    let path = said.split_whitespace().find(|word| word.starts_with("agent/")).expect("a path");
    let file = PathBuf::from(nodes.host_dir("good")).join(path);
    eventually("the file says what the task has written", || {
        let log = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        equal(&log.as_str(), &"listening\n")
    });
}

#[test]
fn a_master_without_etcd_says_where_it_has_looked() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().display().to_string();
    program::outcome("mesonet", mesonet().args(["init", "--dir", &path]).output()).success();
    // Nobody listens on port 1.
    let mut command = mesonet();
    command.args(["master", "--dir", &path, "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    command.args(["--store", "etcd", "--etcd", "http://127.0.0.1:1"]);
    assert_says(program::outcome("mesonet", command.output()), &["etcd", "http://127.0.0.1:1"]);
}

#[test]
#[ignore = "needs root"]
fn an_agent_whose_metrics_have_no_room_runs_and_shows_them_later() {
    const METRICS: &str = "127.0.0.1:8082";
    let mut nodes = with_one_good_node(&[]);
    nodes.stop("good", "agent");
    nodes.stop("good", "net");
    nodes.start_net_with("good", &["--http", METRICS]);
    let url = format!("http://{METRICS}/metrics");
    eventually("the address is taken", || nodes.curl("good", &url));

    nodes.start_agent("good", None);
    eventually("the operator is told", || nodes.log_says("good", "agent", "runs without metrics"));
    nodes.deploy(&app::web("/more", 1));
    nodes.stop("good", "net");
    eventually("the metrics are shown once there is room", || {
        let shown = nodes.curl("good", &url)?;
        equal(&shown.contains("mesonet_agent_connected 1"), &true)
    });
}
