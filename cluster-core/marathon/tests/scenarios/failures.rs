//! Instances that end, and what takes their place.

use std::time::Duration;

use mesonet_marathon::{Command, EventKind};
use mesonet_model::{Backoff, TaskState, Timestamp, UnreachableStrategy};

use crate::cluster::{Cluster, app, at, id};

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn launches_wait_longer_after_each_failure() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let task = cluster.live("/web").remove(0);
        let failed = cluster.now;
        cluster.report(&task, TaskState::Failed);
        assert!(cluster.live("/web").is_empty() && cluster.is_suppressed);
        let until = failed.plus(Duration::from_secs_f64(1.15_f64.powi(gaps.len().try_into().expect("few"))));
        assert_eq!(cluster.marathon.deadline().map(|(at, _)| at), Some(until));
        let queue = cluster.app("/web").queue.expect("it waits");
        assert_eq!((queue.count, queue.backoff_until), (1, Some(until)));
        cluster.pass(until.since(cluster.now));
        assert_eq!(cluster.live("/web").len(), 1);
        gaps.push(cluster.now.since(failed).as_millis());
    }
    assert_eq!(gaps, [1000, 1150, 1322, 1520, 1749, 2011]);
    let failure = cluster.app("/web").last_failure.expect("it failed");
    assert_eq!((failure.state, failure.message.as_str()), (TaskState::Failed, "it is TASK_FAILED"));
}

#[test]
fn the_delay_has_a_bound_and_long_runs_end_it() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 1);
    web.backoff.max = Duration::from_secs(2);
    web.backoff.factor = 10.0;
    cluster.put(web).expect("accepted");
    let mut fail = |run: u64| {
        cluster.pass(Duration::from_secs(run));
        let task = cluster.live("/web").remove(0);
        let failed = cluster.now;
        cluster.report(&task, TaskState::Finished);
        let (until, _) = cluster.marathon.deadline().expect("it waits");
        cluster.pass(until.since(failed));
        until.since(failed).as_secs()
    };
    assert_eq!([fail(0), fail(0), fail(59), fail(60), fail(0)], [1, 2, 2, 1, 2]);
    assert!(cluster.app("/web").last_failure.is_none(), "an end with success is no failure");
}

#[test]
fn a_kill_delays_nothing_and_other_ends_do() {
    for (state, is_delayed) in [
        (TaskState::Killed, false),
        (TaskState::GoneByOperator, false),
        (TaskState::Failed, true),
        (TaskState::Error, true),
        (TaskState::Finished, true),
        (TaskState::Lost, true),
        (TaskState::Gone, true),
        (TaskState::Dropped, true),
    ] {
        let mut cluster = Cluster::new();
        cluster.put(app("/web", 1)).expect("accepted");
        let task = cluster.live("/web").remove(0);
        cluster.report(&task, state);
        assert_eq!(cluster.live("/web").is_empty(), is_delayed, "{state}");
        cluster.pass(Duration::from_secs(1));
        assert_eq!(cluster.live("/web").len(), 1, "{state}");
    }
}

#[test]
fn a_change_or_a_reset_ends_the_delay() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 1);
    web.backoff = Backoff { initial: LONG, factor: 1.0, max: LONG };
    cluster.put(web.clone()).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.report(&task, TaskState::Failed);
    cluster.command(Command::ResetDelay { app: id("/web") }).expect("it waits");
    assert_eq!(cluster.live("/web").len(), 1, "launched at once");

    let task = cluster.live("/web").remove(0);
    cluster.report(&task, TaskState::Failed);
    assert!(cluster.live("/web").is_empty());
    web.cmd = Some("sleep 2".into());
    web.port_definitions[0].port = 10_000;
    cluster.put(web).expect("accepted");
    assert_eq!(cluster.live("/web").len(), 1, "another configuration has not failed yet");
}

#[test]
fn odd_delays_are_survived() {
    for (initial, factor, max) in [
        (Duration::ZERO, 1.0, Duration::ZERO),
        (Duration::MAX, 1.0, Duration::MAX),
        (Duration::from_secs(1), f64::NAN, LONG),
        (Duration::from_secs(1), f64::INFINITY, LONG),
    ] {
        let mut cluster = Cluster::new();
        let mut web = app("/web", 1);
        web.backoff = Backoff { initial, factor, max };
        cluster.put(web).expect("accepted");
        for _ in 0..3 {
            for task in cluster.live("/web") {
                cluster.report(&task, TaskState::Failed);
            }
        }
        assert!(cluster.has_app("/web"));
    }
}

#[test]
fn unreachable_instances_are_replaced_by_the_apps_policy() {
    let enabled = |inactive: u64, expunge: u64| UnreachableStrategy::Enabled {
        inactive_after: Duration::from_secs(inactive),
        expunge_after: Duration::from_secs(expunge),
    };
    // After 0 s, 60 s and 120 s: how many instances are known, and how many were launched in all.
    for (strategy, expected) in [
        (enabled(0, 0), [(1, 2), (1, 2), (1, 2)]),
        (enabled(60, 120), [(1, 1), (2, 2), (1, 2)]),
        (UnreachableStrategy::Disabled, [(1, 1), (1, 1), (1, 1)]),
    ] {
        let mut cluster = Cluster::new();
        let mut web = app("/web", 1);
        web.unreachable_strategy = strategy;
        cluster.put(web).expect("accepted");
        let task = cluster.live("/web").remove(0);
        cluster.report(&task, TaskState::Unreachable);
        for expected in expected {
            assert_eq!(
                (cluster.app("/web").instances.len(), cluster.launches.len()),
                expected,
                "{strategy:?}"
            );
            cluster.pass(Duration::from_secs(60));
        }
        cluster.report(&task, TaskState::Running);
        let is_kept = strategy == UnreachableStrategy::Disabled;
        assert_eq!(
            cluster.tasks.contains_key(&task),
            is_kept,
            "a forgotten one is killed when it comes back"
        );
        assert_eq!(cluster.app("/web").counts().running, 1);
    }
}

#[test]
fn an_instance_that_comes_back_in_time_is_kept_and_the_surplus_killed() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 1);
    web.unreachable_strategy =
        UnreachableStrategy::Enabled { inactive_after: Duration::from_secs(1), expunge_after: LONG };
    cluster.put(web).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.report(&task, TaskState::Unreachable);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.live("/web").len(), 2);
    cluster.report(&task, TaskState::Running);
    assert_eq!(cluster.live("/web"), [task], "the youngest goes");
}

#[test]
fn a_removed_app_does_not_wait_for_what_was_given_up() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 2);
    web.unreachable_strategy =
        UnreachableStrategy::Enabled { inactive_after: Duration::ZERO, expunge_after: LONG };
    cluster.put(web).expect("accepted");
    let lost = cluster.live("/web").remove(0);
    cluster.report(&lost, TaskState::Unreachable);
    assert_eq!(cluster.app("/web").instances.len(), 3, "it is given up and replaced");
    cluster.delete("/web", false).expect("accepted");
    assert!(cluster.view().deployments.is_empty());
    assert!(cluster.records.is_empty());
    cluster.put(app("/web", 1)).expect("the name is free");
    cluster.take_kills();
    cluster.report(&lost, TaskState::Running);
    assert_eq!(cluster.take_kills(), [lost], "it is of the app that was removed");
}

#[test]
fn unknown_tasks_are_killed_and_their_end_is_told() {
    let mut cluster = Cluster::new();
    let stranger = mesonet_model::TaskId::new("web.instance-of-another-life");
    let acknowledged = cluster.acknowledged;
    cluster.report(&stranger, TaskState::Running);
    assert_eq!(cluster.take_kills(), std::slice::from_ref(&stranger));
    cluster.report(&stranger, TaskState::Killed);
    let told = EventKind::UnknownInstanceTerminated { task: stranger, state: TaskState::Killed };
    assert_eq!(cluster.events, [told]);
    assert_eq!(cluster.acknowledged, acknowledged + 3, "both, and the answer to the kill");
}

#[test]
fn kills_and_launches_without_an_answer_are_repeated() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    cluster.is_killing_at_once = false;
    cluster.scale("/web", 0).expect("accepted");
    cluster.pass(Duration::from_secs(25));
    let times: Vec<Timestamp> = cluster.kills.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [at(0), at(10_000), at(20_000)]);

    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    cluster.put(app("/slow", 1)).expect("accepted");
    let slow = cluster.live("/slow").remove(0);
    cluster.pass(Duration::from_secs(300));
    assert_eq!(cluster.take_kills(), [slow]);
    assert_eq!(cluster.live("/slow").len(), 1);
}
