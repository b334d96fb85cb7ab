//! Agents that are to be empty.

use std::time::Duration;

use mesonet_model::{Constraint, ConstraintOperator, TaskState};

use crate::cluster::{Cluster, agent, app, id};

fn two_agents() -> Cluster {
    Cluster::with_agents([agent("a0", 8, &[]), agent("a1", 8, &[])])
}

#[test]
fn instances_are_replaced_elsewhere_before_they_are_killed() {
    let mut cluster = two_agents();
    cluster.put(app("/web", 4)).expect("accepted");
    let before = cluster.tasks_on(0);
    assert!(before > 0);
    cluster.is_running_at_once = false;
    cluster.drain([0]);
    assert_eq!(cluster.take_kills(), [], "the replacements do not run yet");
    assert_eq!(cluster.app("/web").counts().staged, before);
    let staged: Vec<_> = cluster.live("/web").split_off(4);
    for (index, task) in staged.iter().enumerate() {
        cluster.report(task, TaskState::Running);
        assert_eq!(cluster.tasks_on(0), before - index - 1, "one goes for each that has come");
    }
    assert_eq!(cluster.app("/web").counts().running, 4);
    assert!(cluster.is_suppressed, "nothing more is wanted");
}

#[test]
fn without_room_elsewhere_nothing_is_killed_and_no_deployment_waits() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    cluster.drain([0]);
    cluster.pass(Duration::from_secs(600));
    assert_eq!(cluster.take_kills(), []);
    assert_eq!(cluster.app("/web").queue.map(|queue| queue.count), Some(2), "it shows what waits");
    assert!(cluster.view().deployments.is_empty());
    cluster.drain([]);
    assert!(cluster.app("/web").queue.is_none());
    assert_eq!(cluster.take_kills(), []);
}

#[test]
fn undraining_halfway_keeps_the_old_instances_and_takes_back_the_new_ones() {
    let mut cluster = two_agents();
    cluster.put(app("/web", 2)).expect("accepted");
    let old = cluster.live("/web");
    cluster.is_running_at_once = false;
    cluster.drain([0]);
    assert!(cluster.live("/web").len() > 2);
    cluster.drain([]);
    assert_eq!(cluster.live("/web"), old);
}

#[test]
fn an_app_that_must_be_single_goes_before_it_comes() {
    let mut cluster = two_agents();
    let mut single = app("/db", 1);
    single.labels.insert("MARATHON_SINGLE_INSTANCE_APP".into(), "true".into());
    single.constraints.clear();
    cluster.put(single).expect("accepted");
    let index = if cluster.tasks_on(0) == 1 { 0 } else { 1 };
    cluster.bounds = Some((id("/db"), 0, 1));
    cluster.is_killing_at_once = false;
    cluster.drain([index]);
    assert_eq!(cluster.take_kills().len(), 1);
    assert_eq!(cluster.live("/db").len(), 1, "the old one has not ended");
    cluster.end_killed();
    assert_eq!((cluster.tasks_on(index), cluster.tasks_on(1 - index)), (0, 1));
}

#[test]
fn instances_that_leave_do_not_stand_in_the_way_of_their_replacements() {
    let mut cluster =
        Cluster::with_agents([agent("a0", 8, &[("rack", "r1")]), agent("a1", 8, &[("rack", "r1")])]);
    let mut web = app("/web", 1);
    let (field, operator, value) = ("rack".to_owned(), ConstraintOperator::MaxPer, Some("1".to_owned()));
    web.constraints = vec![Constraint { field, operator, value }];
    cluster.put(web).expect("accepted");
    let index = if cluster.tasks_on(0) == 1 { 0 } else { 1 };
    cluster.drain([index]);
    assert_eq!((cluster.tasks_on(index), cluster.tasks_on(1 - index)), (0, 1));
}

#[test]
fn scaling_down_while_draining_kills_those_that_leave_first() {
    let mut cluster = Cluster::with_agents([agent("a0", 8, &[])]);
    cluster.put(app("/web", 2)).expect("accepted");
    cluster.agents.insert(mesonet_model::AgentId::new("c-S1"), agent("a1", 8, &[]));
    cluster.scale("/web", 4).expect("accepted");
    let moved = cluster.tasks_on(1);
    cluster.is_running_at_once = false;
    cluster.drain([0]);
    cluster.scale("/web", u32::try_from(moved).expect("few")).expect("accepted");
    assert_eq!(cluster.tasks_on(0), 0);
    assert_eq!(cluster.tasks_on(1), moved, "those that stay are not touched");
}
