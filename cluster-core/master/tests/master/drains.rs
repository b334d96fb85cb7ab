//! A kill waits for the planes.

use std::time::Duration;

use mesonet_model::{AgentId, Plane, Revision, RunningTask, TaskState};

use crate::cluster::{Cluster, GRACE, agent_info, host_port};

const WEB: &str = "tcp/web@marathon:80";

fn cluster_with_task() -> (Cluster, AgentId) {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    (cluster, agent)
}

#[test]
fn without_planes_a_task_is_killed_at_once() {
    let (mut cluster, _) = cluster_with_task();
    cluster.kill("a");
    assert_eq!(cluster.kills(), ["a"]);
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 draining 0"]);
}

#[test]
fn the_kill_waits_for_every_plane_to_apply_the_withdrawal() {
    let (mut cluster, agent) = cluster_with_task();
    let old = cluster.view().revision;
    cluster.plane(&agent, Plane::Dns, old, &[]);
    cluster.plane(&agent, Plane::Lb, old, &[]);
    cluster.kill("a");
    let withdrawn = cluster.view().revision;
    assert_eq!(withdrawn, old.next());
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 draining 0"]);
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane(&agent, Plane::Lb, withdrawn, &[]);
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane(&agent, Plane::Dns, withdrawn, &[]);
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn the_kill_waits_for_connections_but_not_beyond_the_grace() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
    cluster.kill("a");
    let withdrawn = cluster.view().revision;
    cluster.plane(&agent, Plane::Lb, withdrawn, &["a"]);
    cluster.pass(GRACE - Duration::from_millis(1));
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.pass(Duration::from_millis(1));
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_task_that_never_ran_is_killed_at_once() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
    let spec = cluster.spec(&agent, "b", vec![host_port(31001, "/web:80")]);
    cluster.launch(spec);
    cluster.kill("b");
    assert_eq!(cluster.kills(), ["b"]);
    cluster.report("b", TaskState::Running);
    assert!(cluster.endpoint_texts(WEB).contains(&"10.0.0.1:31001 draining 0".to_owned()));
}

#[test]
fn a_second_kill_repeats_the_command_once_it_was_sent() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
    cluster.kill("a");
    let withdrawn = cluster.view().revision;
    cluster.kill("a");
    assert_eq!(cluster.view().revision, withdrawn);
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane(&agent, Plane::Lb, withdrawn, &[]);
    assert_eq!(cluster.kills(), ["a"]);
    cluster.kill("a");
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_kill_that_an_agent_missed_is_sent_when_it_comes_back() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.disconnect(&agent);
    cluster.kill("a");
    cluster.kills();
    let spec = cluster.spec(&agent, "a", Vec::new());
    let task = RunningTask { spec, status: cluster.status(&agent, "a", TaskState::Running) };
    cluster.register(Some(&agent), agent_info(1, 8), vec![task]);
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_drain_survives_the_master_and_waits_for_the_planes_to_come_back() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
    cluster.kill("a");
    cluster.restart();
    assert_eq!(cluster.endpoint_texts(WEB), ["10.0.0.1:31000 draining 0"]);
    cluster.subscribe("marathon");
    assert_eq!(cluster.kills(), Vec::<String>::new());
    let applied = cluster.view().revision;
    cluster.plane(&agent, Plane::Lb, applied, &["a"]);
    cluster.pass(GRACE - Duration::from_millis(1));
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane(&agent, Plane::Lb, applied, &[]);
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_plane_that_joins_is_waited_for_and_one_that_leaves_is_not() {
    let (mut cluster, agent) = cluster_with_task();
    let old = cluster.view().revision;
    cluster.plane(&agent, Plane::Dns, old, &[]);
    cluster.kill("a");
    let withdrawn = cluster.view().revision;
    cluster.plane(&agent, Plane::Lb, old, &[]);
    cluster.plane(&agent, Plane::Dns, withdrawn, &[]);
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane_gone(&agent, Plane::Lb);
    assert_eq!(cluster.kills(), Vec::<String>::new(), "it may connect again, and sends clients until then");
    cluster.pass(Duration::from_secs(5));
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn a_master_that_is_late_hears_what_has_arrived_before_it_gives_a_plane_up() {
    let (mut cluster, agent) = cluster_with_task();
    cluster.plane(&agent, Plane::Lb, Revision::ZERO, &[]);
    cluster.kill("a");
    let withdrawn = cluster.view().revision;
    cluster.plane(&agent, Plane::Lb, withdrawn, &["a"]);
    cluster.plane_gone(&agent, Plane::Lb);
    cluster.stall(Duration::from_secs(6));
    cluster.plane(&agent, Plane::Dns, withdrawn, &[]);
    cluster.plane(&agent, Plane::Lb, withdrawn, &["a"]);
    cluster.pass(Duration::ZERO);
    assert_eq!(cluster.kills(), Vec::<String>::new());
    cluster.plane(&agent, Plane::Lb, withdrawn, &[]);
    assert_eq!(cluster.kills(), ["a"]);
}
