//! What labels of ports ask of services and endpoints.

use std::time::Duration;

use mesonet_model::{AgentId, Algorithm, Service, ServiceKey, SlowStart, TaskState, Timestamp};

use crate::cluster::{Cluster, agent_info, host_port};

const WEB: &str = "tcp/web@marathon:80";

fn cluster_with_agent() -> (Cluster, AgentId) {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    (cluster, agent)
}

/// Launches a task behind `WEB` with labels, and lets it run.
fn run(cluster: &mut Cluster, agent: &AgentId, task: &str, host: u16, labels: &[(&str, &str)]) {
    let mut port = host_port(host, "/web:80");
    port.labels.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let spec = cluster.spec(agent, task, vec![port]);
    cluster.launch(spec);
    cluster.report(task, TaskState::Running);
}

fn web(cluster: &Cluster) -> &Service {
    &cluster.view().services[&WEB.parse::<ServiceKey>().expect("service key")]
}

#[test]
fn a_service_does_what_its_tasks_ask_together_whatever_their_order() {
    let asks: [(&str, &[(&str, &str)]); 3] = [
        ("a", &[("MESONET_LB_ALGORITHM", "least-connections"), ("MESONET_LB_PANIC_PERCENT", "10")]),
        ("b", &[("MESONET_LB_ALGORITHM", "maglev"), ("MESONET_LB_AFFINITY_SECONDS", "9")]),
        ("c", &[]),
    ];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let (mut cluster, agent) = cluster_with_agent();
        for (at, port) in order.into_iter().zip(31_000..) {
            let (task, labels) = asks[at];
            run(&mut cluster, &agent, task, port, labels);
        }
        let service = web(&cluster);
        assert_eq!(service.policy.algorithm, Algorithm::Maglev);
        assert_eq!(service.policy.affinity, Some(Duration::from_secs(9)));
        assert_eq!(service.weighing.panic_percent, 10);
    }
}

#[test]
fn tasks_that_take_nothing_new_ask_for_nothing_and_an_empty_service_stays_as_it_is() {
    let (mut cluster, agent) = cluster_with_agent();
    run(&mut cluster, &agent, "old", 31_000, &[("MESONET_LB_ALGORITHM", "maglev")]);
    run(&mut cluster, &agent, "new", 31_001, &[("MESONET_LB_ALGORITHM", "least-connections")]);
    assert_eq!(web(&cluster).policy.algorithm, Algorithm::Maglev);
    cluster.report("old", TaskState::Killing);
    assert_eq!(web(&cluster).policy.algorithm, Algorithm::LeastConnections);
    for task in ["old", "new"] {
        cluster.report(task, TaskState::Killed);
    }
    assert_eq!(cluster.endpoints(WEB), []);
    assert_eq!(web(&cluster).policy.algorithm, Algorithm::LeastConnections);
    cluster.restart();
    assert_eq!(web(&cluster).policy.algorithm, Algorithm::LeastConnections);
}

#[test]
fn an_endpoint_has_the_share_of_its_app_and_warms_up_from_when_it_is_ready() {
    let (mut cluster, agent) = cluster_with_agent();
    let labels = [("MESONET_LB_WEIGHT", "5"), ("MESONET_LB_SLOW_START_SECONDS", "30")];
    let mut port = host_port(31_000, "/web:80");
    port.labels.extend(labels.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let mut spec = cluster.spec(&agent, "a", vec![port]);
    spec.health_checked = true;
    cluster.launch(spec);
    cluster.report("a", TaskState::Running);
    assert_eq!(ramp(&cluster), None, "it has not passed its check");

    cluster.pass(Duration::from_secs(7));
    let ready_at = healthy(&mut cluster, true);
    let begun = Some(SlowStart { since: ready_at, over: Duration::from_secs(30) });
    assert_eq!(ramp(&cluster), begun);
    assert_eq!(cluster.endpoints(WEB)[0].1.share, 5);

    healthy(&mut cluster, false);
    assert_eq!(ramp(&cluster), None);
    cluster.pass(Duration::from_secs(7));
    let again = healthy(&mut cluster, true);
    let again = Some(SlowStart { since: again, over: Duration::from_secs(30) });
    assert_eq!(ramp(&cluster), again);
    cluster.pass(Duration::from_secs(7));
    cluster.restart();
    assert_eq!(ramp(&cluster), again, "another master goes on with it");
}

/// The task's check has a result; when.
fn healthy(cluster: &mut Cluster, healthy: bool) -> Timestamp {
    let agent = cluster.task("a").expect("a known task").agent.clone();
    let mut status = cluster.status(&agent, "a", TaskState::Running);
    status.healthy = Some(healthy);
    let at = status.timestamp;
    cluster.handle(mesonet_master::Input::Agent(mesonet_model::AgentReport::Status(Box::new(status))));
    at
}

fn ramp(cluster: &Cluster) -> Option<SlowStart> {
    cluster.endpoints(WEB)[0].1.slow_start
}

#[test]
fn wrong_labels_of_outside_frameworks_are_told_and_have_no_effect() {
    let (mut cluster, agent) = cluster_with_agent();
    run(
        &mut cluster,
        &agent,
        "a",
        31_000,
        &[("MESONET_LB_ALGORITHM", "rr"), ("MESONET_LB_COLOUR", "red"), ("MESONET_LB_AFFINITY_SECONDS", "1")],
    );
    let warnings = cluster.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("MESONET_LB_ALGORITHM=rr") && warnings[1].contains("MESONET_LB_COLOUR"));
    assert_eq!(web(&cluster).policy.affinity, Some(Duration::from_secs(1)));
}
