//! Instances with readiness checks.

use std::time::Duration;

use mesonet_marathon::{Command, Input, Reply};
use mesonet_model::{
    AppDefinition, ReadinessCheck, ReadinessResponse, ReadinessResult, SchedulerEvent, StatusReason,
    StatusSource, TaskId, TaskState, TaskStatus,
};
use proptest::prelude::*;
use serde_json::json;

use crate::cluster::{Cluster, app, id, status};
use crate::health;

/// `/path` with a check of its port `http`.
fn checked(path: &str, instances: u32) -> AppDefinition {
    let mut definition = app(path, instances);
    definition.readiness_checks = vec![json!({"portName": "http", "preserveLastResponse": true})];
    definition
}

fn changed(cluster: &Cluster, cmd: &str) -> AppDefinition {
    AppDefinition { cmd: Some(cmd.into()), ..AppDefinition::clone(&cluster.app("/web").definition) }
}

/// The agent tells what the check of a task has found.
fn tell(cluster: &mut Cluster, task: &TaskId, readiness: Option<ReadinessResult>) {
    let now = cluster.now;
    let running = cluster.tasks.get_mut(task).expect("it runs");
    running.readiness.clone_from(&readiness);
    let status = TaskStatus {
        readiness,
        health_results: running.results.clone(),
        reason: Some(StatusReason::ReasonTaskCheckStatusUpdated),
        ..status(task, Some(&running.spec.agent), running.state, now)
    };
    cluster.handle(Input::Event(SchedulerEvent::Update(Box::new(status))));
    cluster.pass(Duration::ZERO);
}

fn ready(cluster: &mut Cluster, task: &TaskId) {
    tell(cluster, task, Some(ReadinessResult { ready: true, last_response: None }));
}

fn all_ready(cluster: &mut Cluster) {
    for task in cluster.live("/web") {
        if cluster.tasks.get(&task).is_some_and(|task| task.readiness.as_ref().is_some_and(|r| !r.ready)) {
            ready(cluster, &task);
        }
    }
}

/// `/web`, deployed and ready.
fn deployed(instances: u32) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", instances)).expect("accepted");
    all_ready(&mut cluster);
    assert!(is_done(&cluster));
    cluster.take_kills();
    cluster
}

fn is_done(cluster: &Cluster) -> bool {
    cluster.view().deployments.is_empty()
}

fn others(cluster: &Cluster, than: &[TaskId]) -> Vec<TaskId> {
    cluster.live("/web").into_iter().filter(|task| !than.contains(task)).collect()
}

/// What readers see of the readiness of the instances that are waited for.
fn shown(cluster: &Cluster) -> Vec<bool> {
    let instances = cluster.app("/web").instances;
    instances.values().filter_map(|instance| Some(instance.readiness.as_ref()?.ready)).collect()
}

fn is_checked(cluster: &Cluster, task: &TaskId) -> bool {
    cluster.tasks[task].spec.readiness_check.is_some()
}

#[test]
fn a_deployment_waits_until_its_instances_are_ready() {
    let mut cluster = Cluster::new();
    cluster.put(checked("/web", 2)).expect("accepted");
    let tasks = cluster.live("/web");
    assert_eq!((cluster.app("/web").counts().running, shown(&cluster)), (2, vec![false, false]));
    ready(&mut cluster, &tasks[0]);
    let mut found = shown(&cluster);
    found.sort_unstable();
    assert_eq!((found, is_done(&cluster)), (vec![false, true], false));
    let response =
        ReadinessResponse { status: 503, content_type: "text/plain".to_owned(), body: "warming".to_owned() };
    let warming = ReadinessResult { ready: false, last_response: Some(response) };
    tell(&mut cluster, &tasks[1], Some(warming.clone()));
    assert_eq!(cluster.app("/web").instances[&tasks[1]].readiness, Some(warming));
    assert!(!is_done(&cluster));
    ready(&mut cluster, &tasks[1]);
    assert!(is_done(&cluster));
    assert_eq!((shown(&cluster), cluster.unchecked.len()), (vec![], 0), "results are those of a deployment");
}

#[test]
fn an_instance_has_to_be_healthy_and_ready() {
    for is_ready_first in [false, true] {
        let mut cluster = Cluster::new();
        let mut web = checked("/web", 1);
        web.health_checks = vec![json!({"protocol": "HTTP", "path": "/"})];
        cluster.put(web).expect("accepted");
        let task = cluster.live("/web").remove(0);
        if is_ready_first {
            ready(&mut cluster, &task);
        } else {
            health::report(&mut cluster, &task, 0);
        }
        assert!(!is_done(&cluster));
        if is_ready_first {
            health::report(&mut cluster, &task, 0);
        } else {
            ready(&mut cluster, &task);
        }
        assert!(is_done(&cluster));
    }
}

#[test]
fn old_instances_stay_until_new_ones_are_ready() {
    let mut cluster = deployed(2);
    let old = cluster.live("/web");
    cluster.put(changed(&cluster, "sleep 2")).expect("accepted");
    let new = others(&cluster, &old);
    assert_eq!((new.len(), cluster.take_kills()), (2, vec![]));
    ready(&mut cluster, &new[0]);
    assert_eq!(cluster.take_kills().len(), 1);
    // A status that is older than what was found, but comes later.
    let stale = TaskStatus {
        readiness: Some(ReadinessResult::default()),
        ..status(&new[0], Some(&cluster.tasks[&new[0]].spec.agent), TaskState::Running, cluster.now)
    };
    cluster.handle(Input::Event(SchedulerEvent::Update(Box::new(stale))));
    ready(&mut cluster, &new[1]);
    assert!(is_done(&cluster));
    assert_eq!(cluster.live("/web"), new);
}

#[test]
fn only_what_a_deployment_launches_is_checked() {
    let mut cluster = deployed(2);
    let tasks = cluster.live("/web");
    assert!(tasks.iter().all(|task| is_checked(&cluster, task)));
    cluster.report(&tasks[0], TaskState::Failed);
    cluster.pass(Duration::from_secs(10));
    let another = others(&cluster, &tasks);
    assert!(!is_checked(&cluster, &another[0]), "nobody waits for it");
    cluster.scale("/web", 3).expect("accepted");
    let third = others(&cluster, &[tasks[1].clone(), another[0].clone()]);
    assert!(is_checked(&cluster, &third[0]));
    // One that takes the place of another during a deployment is waited for, too.
    cluster.report(&third[0], TaskState::Failed);
    cluster.pass(Duration::from_secs(10));
    assert_eq!((shown(&cluster), is_done(&cluster)), (vec![false], false));
    all_ready(&mut cluster);
    assert!(is_done(&cluster));
}

/// The part of an app in a deployment may be over before the deployment is.
#[test]
fn an_app_whose_part_is_over_is_not_checked() {
    let mut cluster = Cluster::new();
    let mut late = checked("/late", 1);
    late.dependencies.insert(id("/web"));
    cluster.put_all(vec![checked("/web", 1), late], false).expect("accepted");
    assert!(cluster.live("/late").is_empty(), "it waits until those that it needs are ready");
    let first = cluster.live("/web");
    all_ready(&mut cluster);
    assert_eq!(cluster.live("/late").len(), 1);
    cluster.report(&first[0], TaskState::Failed);
    cluster.pass(Duration::from_secs(10));
    assert!(!is_checked(&cluster, &cluster.live("/web")[0]));
    let late = cluster.live("/late").remove(0);
    ready(&mut cluster, &late);
    assert!(is_done(&cluster));
}

#[test]
fn checks_end_with_their_deployment() {
    let mut cluster = deployed(1);
    let old = cluster.live("/web");
    let deployment = cluster.put(changed(&cluster, "sleep 2")).expect("accepted");
    let new = others(&cluster, &old);
    assert_eq!(shown(&cluster), [false]);
    cluster.command(Command::CancelDeployment { deployment, force: true }).expect("accepted");
    assert_eq!((cluster.unchecked.clone(), shown(&cluster)), (new.clone(), vec![]));
    // What its agent had to say before it heard that is no reason to wait.
    cluster.unchecked.clear();
    tell(&mut cluster, &new[0], Some(ReadinessResult::default()));
    assert_eq!((cluster.unchecked.clone(), shown(&cluster)), (new.clone(), vec![]));
    cluster.scale("/web", 2).expect("accepted");
    assert_eq!(shown(&cluster).len(), others(&cluster, &[old, new].concat()).len());
    all_ready(&mut cluster);
    assert!(is_done(&cluster));
}

#[test]
fn a_rollback_does_not_wait_for_what_it_replaces() {
    let mut cluster = deployed(2);
    let old = cluster.live("/web");
    let deployment = cluster.put(changed(&cluster, "sleep 2")).expect("accepted");
    let new = others(&cluster, &old);
    let cancel = Command::CancelDeployment { deployment, force: false };
    let Ok(Reply::Deployment { .. }) = cluster.command(cancel) else { panic!("not cancelled") };
    assert!(is_done(&cluster), "the old ones are there");
    assert_eq!(cluster.live("/web"), old);
    cluster.unchecked.sort();
    let mut expected = new;
    expected.sort();
    assert_eq!(cluster.unchecked, expected);
}

#[test]
fn another_marathon_goes_on_waiting() {
    let mut cluster = deployed(2);
    let old = cluster.live("/web");
    cluster.put(changed(&cluster, "sleep 2")).expect("accepted");
    let new = others(&cluster, &old);
    ready(&mut cluster, &new[0]);
    cluster.take_kills();
    let before = shown(&cluster);
    cluster.restart();
    assert_eq!((shown(&cluster), cluster.take_kills(), is_done(&cluster)), (before, vec![], false));
    // The master's word on its state says nothing of that.
    let source = StatusSource::SourceMaster;
    let agent = cluster.tasks[&new[1]].spec.agent.clone();
    let status = TaskStatus { source, ..status(&new[1], Some(&agent), TaskState::Running, cluster.now) };
    cluster.handle(Input::Event(SchedulerEvent::Update(Box::new(status))));
    assert!(!is_done(&cluster));
    ready(&mut cluster, &new[1]);
    assert!(is_done(&cluster));
}

#[test]
fn an_agent_that_does_not_check_readiness_holds_nothing_up() {
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    cluster.put(checked("/web", 1)).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.tasks.get_mut(&task).expect("launched").readiness = None;
    cluster.report(&task, TaskState::Starting);
    assert!(!is_done(&cluster));
    cluster.report(&task, TaskState::Running);
    assert!(is_done(&cluster));
}

#[test]
fn agents_check_what_the_app_says() {
    let check = |check| {
        let mut definition = app("/web", 1);
        definition.readiness_checks = vec![check];
        let mut cluster = Cluster::new();
        cluster.put(definition).expect("accepted");
        let spec = cluster.launches.remove(0).1;
        let port = spec.resources.ports.iter().next().expect("a port");
        (spec.readiness_check.expect("a check"), port)
    };
    let seconds = Duration::from_secs;
    let (found, port) = check(json!({"portName": "http"}));
    let defaults = ReadinessCheck {
        port,
        path: "/".to_owned(),
        tls: false,
        interval: seconds(30),
        timeout: seconds(10),
        ready_statuses: vec![200],
        keeps_response: false,
    };
    assert_eq!(found, defaults);
    let (found, port) = check(json!({
        "name": "warm", "protocol": "HTTPS", "path": "/warm", "portName": "http", "intervalSeconds": 5,
        "timeoutSeconds": 0, "httpStatusCodesForReady": [200, 204], "preserveLastResponse": true,
    }));
    let expected = ReadinessCheck {
        port,
        path: "/warm".to_owned(),
        tls: true,
        interval: seconds(5),
        timeout: seconds(1),
        ready_statuses: vec![200, 204],
        keeps_response: true,
    };
    assert_eq!(found, expected);
    assert_eq!(check(json!({"portName": "unknown"})).0.port, 0, "where nobody answers");
}

proptest! {
    /// Whatever instances do, a rolling restart leaves enough that are ready, and ends once the new ones are.
    #[test]
    fn restarts_keep_enough_ready_instances(
        instances in 1_u32..6,
        minimum in 0_u8..=4,
        over in 0_u8..=4,
        choices in prop::collection::vec((0_usize..100, 0_u8..8), 0..80),
    ) {
        let mut cluster = deployed(instances);
        let old = cluster.live("/web");
        let mut web = changed(&cluster, "sleep 2");
        web.upgrade_strategy.minimum_health_capacity = f64::from(minimum) / 4.0;
        web.upgrade_strategy.maximum_over_capacity = f64::from(over) / 4.0;
        cluster.is_killing_at_once = false;
        cluster.is_running_at_once = false;
        cluster.put(web).expect("accepted");
        let least = (instances as f64 * f64::from(minimum) / 4.0).ceil() as usize;
        for (choice, what) in choices {
            let live = cluster.live("/web");
            let task = &live[choice % live.len()];
            let running = &cluster.tasks[task];
            match (running.state, running.is_kill_asked, what) {
                (_, true, _) => cluster.report(task, TaskState::Killed),
                (TaskState::Staging, false, _) => cluster.report(task, TaskState::Running),
                (_, false, 0) => cluster.restart(),
                (_, false, 1..=3) => {
                    let again = running.readiness.clone();
                    tell(&mut cluster, task, again);
                }
                (_, false, _) if old.contains(task) => {}
                (_, false, _) => ready(&mut cluster, task),
            }
            prop_assert!(serving(&cluster, &old) >= least, "{} of {least}", serving(&cluster, &old));
        }
        for _ in 0..200 {
            for task in cluster.live("/web") {
                match cluster.tasks.get(&task).map(|running| (running.state, running.is_kill_asked)) {
                    None => {}
                    Some((_, true)) => cluster.report(&task, TaskState::Killed),
                    Some((TaskState::Staging, false)) => cluster.report(&task, TaskState::Running),
                    Some((_, false)) if old.contains(&task) => {}
                    Some((_, false)) => ready(&mut cluster, &task),
                }
            }
        }
        prop_assert!(is_done(&cluster));
        prop_assert!(cluster.live("/web").iter().all(|task| !old.contains(task)));
        prop_assert_eq!(cluster.live("/web").len(), instances as usize);
    }
}

/// Instances that are ready, or were there before, and are not to end.
fn serving(cluster: &Cluster, old: &[TaskId]) -> usize {
    let tasks = cluster.tasks.iter().filter(|(_, running)| !running.is_kill_asked);
    let is_ready = |(task, running): &(&TaskId, &crate::cluster::Running)| {
        old.contains(task) || running.readiness.as_ref().is_some_and(|result| result.ready)
    };
    tasks.filter(is_ready).count()
}
