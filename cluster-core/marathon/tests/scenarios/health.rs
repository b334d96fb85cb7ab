//! Instances with health checks.

use std::collections::BTreeMap;
use std::time::Duration;

use mesonet_marathon::{Command, EventKind, Input};
use mesonet_model::{
    AppDefinition, Container, ContainerKind, HealthCheck, HealthProbe, HealthResult, Network, NetworkMode,
    PortMapping, Protocol, SchedulerEvent, StatusReason, StatusSource, TaskId, TaskState, TaskStatus,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::cluster::{Cluster, app, id, status};

fn checked(path: &str, instances: u32) -> AppDefinition {
    let mut definition = app(path, instances);
    definition.health_checks = vec![json!({"protocol": "HTTP", "path": "/", "maxConsecutiveFailures": 3})];
    definition
}

/// The agent tells that the only check of a task succeeds, or has failed so many times in a row.
pub fn report(cluster: &mut Cluster, task: &TaskId, failures: u32) {
    let now = cluster.now;
    let running = cluster.tasks.get_mut(task).expect("it runs");
    let result = running.results.pop().unwrap_or_default();
    running.results.push(match failures {
        0 => HealthResult {
            consecutive_failures: 0,
            first_success: result.first_success.or(Some(now)),
            last_success: Some(now),
            ..result
        },
        _ => HealthResult {
            consecutive_failures: failures,
            last_failure: Some(now),
            last_failure_cause: Some("no answer".to_owned()),
            ..result
        },
    });
    let status = TaskStatus {
        healthy: HealthResult::of_all(&running.results),
        health_results: running.results.clone(),
        readiness: running.readiness.clone(),
        reason: Some(StatusReason::ReasonTaskHealthCheckStatusUpdated),
        ..status(task, Some(&running.spec.agent), running.state, now)
    };
    cluster.handle(Input::Event(SchedulerEvent::Update(Box::new(status))));
    cluster.pass(Duration::ZERO);
}

/// The agent tells that a task runs, and whether it listens.
fn run(cluster: &mut Cluster, task: &TaskId, listening: Option<bool>, source: StatusSource) {
    let now = cluster.now;
    let running = cluster.tasks.get_mut(task).expect("it is there");
    running.state = TaskState::Running;
    let (agent, readiness) = (running.spec.agent.clone(), running.readiness.clone());
    let status =
        TaskStatus { listening, source, readiness, ..status(task, Some(&agent), TaskState::Running, now) };
    cluster.handle(Input::Event(SchedulerEvent::Update(Box::new(status))));
    cluster.pass(Duration::ZERO);
}

fn all_succeed(cluster: &mut Cluster, path: &str) {
    for task in cluster.live(path) {
        if cluster.tasks[&task].results.is_empty() {
            report(cluster, &task, 0);
        }
    }
}

fn events(cluster: &mut Cluster, wanted: fn(&EventKind) -> Option<String>) -> Vec<String> {
    let found = cluster.events.iter().filter_map(wanted).collect();
    cluster.events.clear();
    found
}

fn of_health(kind: &EventKind) -> Option<String> {
    match kind {
        EventKind::StatusUpdate { state, .. } => Some(format!("{state}")),
        EventKind::HealthStatusChanged { alive, .. } => Some(format!("alive: {alive}")),
        EventKind::InstanceHealthChanged { healthy, .. } => Some(format!("healthy: {healthy:?}")),
        EventKind::FailedHealthCheck { check, .. } => Some(format!("failed: {}", check["protocol"])),
        EventKind::UnhealthyInstanceKill { reason, host, .. } => Some(format!("kill on {host}: {reason}")),
        _ => None,
    }
}

#[test]
fn a_deployment_waits_until_its_instances_are_healthy() {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", 2)).expect("accepted");
    let tasks = cluster.live("/web");
    let counts = cluster.app("/web").counts();
    assert_eq!((counts.running, counts.healthy, counts.unhealthy), (2, 0, 0), "nothing is known of them");
    report(&mut cluster, &tasks[0], 0);
    report(&mut cluster, &tasks[1], 1);
    let counts = cluster.app("/web").counts();
    assert_eq!((counts.running, counts.healthy, counts.unhealthy), (2, 1, 1));
    assert_eq!(cluster.view().deployments.len(), 1);
    report(&mut cluster, &tasks[1], 0);
    assert!(cluster.view().deployments.is_empty());
    // One that fails after it was healthy is no reason to wait.
    report(&mut cluster, &tasks[0], 1);
    cluster.scale("/web", 3).expect("accepted");
    assert_eq!(cluster.view().deployments.len(), 1);
    all_succeed(&mut cluster, "/web");
    assert!(cluster.view().deployments.is_empty());
    cluster.take_kills();
    cluster.scale("/web", 2).expect("accepted");
    assert_eq!(cluster.take_kills(), [tasks[0].clone()], "the one that fails goes first");
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn an_instance_that_fails_too_often_is_replaced_without_delay() {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", 1)).expect("accepted");
    let task = cluster.live("/web").remove(0);
    report(&mut cluster, &task, 0);
    assert_eq!(events(&mut cluster, of_health), ["TASK_RUNNING", "alive: true", "healthy: Some(true)"]);
    report(&mut cluster, &task, 1);
    let told = events(&mut cluster, of_health);
    assert_eq!(told, ["failed: \"HTTP\"", "alive: false", "healthy: Some(false)"]);
    assert_eq!(cluster.take_kills(), []);
    cluster.pass(Duration::from_secs(60));
    report(&mut cluster, &task, 3);
    assert_eq!(cluster.take_kills(), [task]);
    let told = events(&mut cluster, of_health);
    let expected = ["failed: \"HTTP\"", "kill on a0: no answer", "TASK_KILLED", "TASK_RUNNING"];
    assert_eq!(told, expected, "another one runs at once");
    let web = cluster.app("/web");
    assert_eq!((web.counts().running, web.last_failure, web.queue), (1, None, None));
}

#[test]
fn an_instance_is_asked_once_to_end() {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", 1)).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.is_killing_at_once = false;
    for failures in [1, 3, 6] {
        report(&mut cluster, &task, failures);
    }
    assert_eq!(cluster.take_kills(), [task]);
}

#[test]
fn health_without_bound_kills_nothing() {
    let mut cluster = Cluster::new();
    let mut web = checked("/web", 1);
    web.health_checks[0]["maxConsecutiveFailures"] = json!(0);
    cluster.put(web).expect("accepted");
    let task = cluster.live("/web").remove(0);
    report(&mut cluster, &task, 1000);
    assert_eq!(cluster.take_kills(), []);
}

#[test]
fn health_is_known_to_the_next_marathon() {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", 2)).expect("accepted");
    all_succeed(&mut cluster, "/web");
    let before = cluster.view();
    cluster.restart();
    assert_eq!(cluster.view(), before);
    let task = cluster.live("/web").remove(0);
    report(&mut cluster, &task, 3);
    assert_eq!(cluster.take_kills(), [task]);
}

#[test]
fn old_instances_stay_until_new_ones_are_healthy() {
    let mut cluster = Cluster::new();
    let mut web = checked("/web", 2);
    cluster.put(web.clone()).expect("accepted");
    all_succeed(&mut cluster, "/web");
    let old = cluster.live("/web");
    web.cmd = Some("sleep 2".into());
    cluster.put(web).expect("accepted");
    assert_eq!(cluster.live("/web").len(), 4, "the new ones run beside");
    assert_eq!(cluster.take_kills(), []);
    let new: Vec<TaskId> = cluster.live("/web").into_iter().filter(|task| !old.contains(task)).collect();
    report(&mut cluster, &new[0], 1);
    assert_eq!(cluster.take_kills(), []);
    report(&mut cluster, &new[0], 3);
    assert_eq!(cluster.take_kills(), [new[0].clone()], "a bad one costs no old one");
    all_succeed(&mut cluster, "/web");
    assert!(cluster.view().deployments.is_empty());
    assert!(cluster.live("/web").iter().all(|task| !old.contains(task)));
}

/// Deployments of new instances do not wait for it, since there is nothing that clients could lose.
#[test]
fn old_instances_stay_until_new_ones_listen() {
    let agent = StatusSource::SourceExecutor;
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    cluster.put(app("/web", 2)).expect("accepted");
    let old = cluster.live("/web");
    old.iter().for_each(|task| run(&mut cluster, task, Some(false), agent));
    assert!(cluster.view().deployments.is_empty());
    old.iter().for_each(|task| run(&mut cluster, task, Some(true), agent));
    cluster.command(Command::Restart { app: id("/web"), force: false }).expect("accepted");
    let new: Vec<TaskId> = cluster.live("/web").into_iter().filter(|task| !old.contains(task)).collect();
    new.iter().for_each(|task| run(&mut cluster, task, Some(false), agent));
    run(&mut cluster, &new[0], None, StatusSource::SourceMaster);
    assert_eq!(cluster.take_kills(), [], "the master does not know better");
    run(&mut cluster, &new[0], Some(true), agent);
    assert_eq!(cluster.take_kills().len(), 1);
    assert_eq!(cluster.view().deployments.len(), 1);
    // The agent has given up.
    run(&mut cluster, &new[1], None, agent);
    assert_eq!(cluster.take_kills().len(), 1);
    assert!(cluster.view().deployments.is_empty());
}

/// The check of the old version may be what is wrong, so what fails it is not all killed at once.
#[test]
fn instances_that_fail_make_room_one_by_one() {
    let mut cluster = Cluster::new();
    let mut web = checked("/web", 3);
    web.health_checks[0]["maxConsecutiveFailures"] = json!(0);
    web.upgrade_strategy.maximum_over_capacity = 0.0;
    cluster.put(web.clone()).expect("accepted");
    let old = cluster.live("/web");
    old.iter().for_each(|task| report(&mut cluster, task, 1));
    web.health_checks[0]["path"] = json!("/right");
    cluster.put_all(vec![web], true).expect("accepted");
    let left = |cluster: &Cluster| cluster.live("/web").iter().filter(|task| old.contains(task)).count();
    for expected in [2, 1, 0] {
        assert_eq!((left(&cluster), cluster.live("/web").len()), (expected, 3));
        all_but(&mut cluster, &old);
    }
    assert!(cluster.view().deployments.is_empty());
}

fn all_but(cluster: &mut Cluster, old: &[TaskId]) {
    let new = cluster.live("/web").into_iter().filter(|task| !old.contains(task));
    let new: Vec<TaskId> = new.filter(|task| cluster.tasks[task].results.is_empty()).collect();
    new.iter().for_each(|task| report(cluster, task, 0));
}

#[test]
fn agents_check_what_the_app_says() {
    let seconds = Duration::from_secs;
    let defaults = HealthCheck {
        probe: HealthProbe::Http { port: 0, path: "/".into(), tls: false, ignore_informational: false },
        delay: Duration::ZERO,
        grace: seconds(300),
        interval: seconds(60),
        timeout: seconds(20),
        failures_max: 3,
        ip_protocol: None,
    };
    let http = |port, path: &str, tls, ignore_informational| HealthProbe::Http {
        port,
        path: path.into(),
        tls,
        ignore_informational,
    };
    let on_host = |check: Value| {
        let mut definition = app("/web", 1);
        definition.health_checks = vec![check];
        let mut cluster = Cluster::new();
        cluster.put(definition).expect("accepted");
        let spec = cluster.launches.remove(0).1;
        assert!(spec.health_checked);
        let port = spec.resources.ports.iter().next().expect("a port");
        (spec.health_checks[0].clone(), port)
    };
    let (check, port) = on_host(json!({}));
    assert_eq!(check, HealthCheck { probe: http(port, "/", false, false), ..defaults.clone() });
    let (check, port) = on_host(json!({
        "protocol": "MESOS_HTTPS", "path": "/up", "portIndex": 0, "ignoreHttp1xx": true, "gracePeriodSeconds": 5,
        "intervalSeconds": 0, "timeoutSeconds": 0, "maxConsecutiveFailures": 0, "delaySeconds": 7,
    }));
    let expected = HealthCheck {
        probe: http(port, "/up", true, true),
        delay: seconds(7),
        grace: seconds(5),
        interval: seconds(1),
        timeout: seconds(1),
        failures_max: 0,
        ip_protocol: None,
    };
    assert_eq!(check, expected);
    let (check, _) = on_host(json!({"protocol": "TCP", "port": 8080, "delaySeconds": 7}));
    assert_eq!(check, HealthCheck { probe: HealthProbe::Tcp { port: 8080 }, ..defaults.clone() });
    let (check, _) = on_host(json!({"protocol": "COMMAND", "command": {"value": "true"}}));
    let probe = HealthProbe::Command { shell: "true".into() };
    assert_eq!(check, HealthCheck { probe, delay: seconds(15), ..defaults });
}

#[test]
fn the_port_of_a_task_with_an_address_is_its_own() {
    let mut definition = app("/web", 1);
    definition.networks = vec![Network { mode: NetworkMode::Bridge, name: None, labels: BTreeMap::new() }];
    definition.port_definitions.clear();
    let mapping = |container_port, host_port| PortMapping {
        container_port,
        host_port,
        service_port: 0,
        protocols: vec![Protocol::Tcp],
        name: None,
        labels: BTreeMap::new(),
        network_names: Vec::new(),
    };
    definition.container = Some(Container {
        kind: ContainerKind::Mesos,
        docker: None,
        volumes: Vec::new(),
        port_mappings: vec![mapping(80, Some(0)), mapping(81, None), mapping(0, Some(0))],
    });
    definition.health_checks =
        [0, 1, 2].map(|index| json!({"protocol": "TCP", "portIndex": index})).into_iter().collect();
    let mut cluster = Cluster::new();
    cluster.put(definition).expect("accepted");
    let spec = cluster.launches.remove(0).1;
    let like_the_host = spec.networking.as_ref().expect("a network").mappings[1].host_port;
    let ports: Vec<HealthProbe> = spec.health_checks.into_iter().map(|check| check.probe).collect();
    assert_eq!(ports, [80, 81, like_the_host].map(|port| HealthProbe::Tcp { port }));
}

proptest! {
    /// Whatever instances do, a rolling restart leaves enough healthy ones, and ends once the new ones are healthy.
    #[test]
    fn restarts_keep_enough_healthy_instances(
        instances in 1_u32..6,
        minimum in 0_u8..=4,
        over in 0_u8..=4,
        choices in prop::collection::vec((0_usize..100, 0_u8..6), 0..80),
    ) {
        let mut cluster = Cluster::new();
        let mut web = checked("/web", instances);
        web.upgrade_strategy.minimum_health_capacity = f64::from(minimum) / 4.0;
        web.upgrade_strategy.maximum_over_capacity = f64::from(over) / 4.0;
        cluster.put(web.clone()).expect("accepted");
        all_succeed(&mut cluster, "/web");
        let old = cluster.live("/web");
        cluster.is_killing_at_once = false;
        cluster.is_running_at_once = false;
        web.cmd = Some("sleep 2".into());
        cluster.put(web).expect("accepted");
        let least = (instances as f64 * f64::from(minimum) / 4.0).ceil() as usize;
        for (choice, what) in choices {
            let Some(task) = cluster.live("/web").get(choice % cluster.live("/web").len().max(1)).cloned() else {
                break;
            };
            let healthy = healthy(&cluster);
            let running = &cluster.tasks[&task];
            match (running.state, running.is_kill_asked, what) {
                (_, true, _) => cluster.report(&task, TaskState::Killed),
                (TaskState::Staging, false, _) => cluster.report(&task, TaskState::Running),
                (_, false, 0) => report(&mut cluster, &task, 1),
                (_, false, 1) => report(&mut cluster, &task, 3),
                (_, false, _) => report(&mut cluster, &task, 0),
            }
            // Only what fails may cost more than the strategy allows.
            prop_assert!(what <= 1 || self::healthy(&cluster) >= healthy.min(least));
        }
        for _ in 0..200 {
            let live = cluster.live("/web");
            for task in live {
                match cluster.tasks.get(&task).map(|running| (running.state, running.is_kill_asked)) {
                    None => {}
                    Some((_, true)) => cluster.report(&task, TaskState::Killed),
                    Some((TaskState::Staging, false)) => cluster.report(&task, TaskState::Running),
                    Some((_, false)) => report(&mut cluster, &task, 0),
                }
            }
        }
        prop_assert!(cluster.view().deployments.is_empty());
        prop_assert!(cluster.live("/web").iter().all(|task| !old.contains(task)));
        prop_assert_eq!(cluster.live("/web").len(), instances as usize);
    }
}

/// Healthy instances that are not to end.
fn healthy(cluster: &Cluster) -> usize {
    let tasks = cluster.tasks.values().filter(|running| !running.is_kill_asked);
    tasks.filter(|running| HealthResult::of_all(&running.results) == Some(true)).count()
}

#[test]
fn a_restart_of_what_was_never_healthy_goes_on() {
    let mut cluster = Cluster::new();
    let mut web = checked("/web", 2);
    web.upgrade_strategy.maximum_over_capacity = 0.0;
    cluster.put(web).expect("accepted");
    let old = cluster.live("/web");
    cluster.command(Command::Restart { app: id("/web"), force: true }).expect("accepted");
    for _ in 0..2 {
        all_but(&mut cluster, &old);
    }
    assert!(cluster.view().deployments.is_empty());
    assert!(cluster.live("/web").iter().all(|task| !old.contains(task)));
}
