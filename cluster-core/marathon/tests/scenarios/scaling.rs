//! How many instances run, and which ones go.

use std::time::Duration;

use mesonet_marathon::{Command, Rejection, Reply};
use mesonet_model::{KillSelection, TaskId, TaskState};

use crate::cluster::{Cluster, app, id};

fn grown(selection: KillSelection) -> (Cluster, Vec<TaskId>) {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 1);
    web.kill_selection = selection;
    cluster.put(web).expect("accepted");
    for instances in 2..=4 {
        cluster.pass(Duration::from_secs(1));
        cluster.scale("/web", instances).expect("accepted");
    }
    let tasks = cluster.live("/web");
    (cluster, tasks)
}

#[test]
fn the_kill_selection_decides_who_goes() {
    let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
    cluster.scale("/web", 2).expect("accepted");
    assert_eq!(cluster.live("/web"), tasks[..2]);
    let (mut cluster, tasks) = grown(KillSelection::OldestFirst);
    cluster.scale("/web", 2).expect("accepted");
    assert_eq!(cluster.live("/web"), tasks[2..]);
}

#[test]
fn instances_that_do_not_run_go_first() {
    let (mut cluster, tasks) = grown(KillSelection::OldestFirst);
    cluster.is_running_at_once = false;
    cluster.scale("/web", 5).expect("accepted");
    let deployment = cluster.app("/web").deployments.remove(0);
    cluster.command(Command::CancelDeployment { deployment, force: true }).expect("accepted");
    cluster.scale("/web", 4).expect("accepted");
    assert_eq!(cluster.live("/web"), tasks);
}

#[test]
fn nothing_is_killed_or_launched_twice() {
    let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
    cluster.is_killing_at_once = false;
    cluster.scale("/web", 2).expect("accepted");
    assert_eq!(cluster.take_kills().len(), 2);
    cluster.report(&tasks[3], TaskState::Killing);
    cluster.pass(Duration::from_secs(5));
    assert!(cluster.take_kills().is_empty());
    assert_eq!(cluster.view().deployments.len(), 1, "it lasts until the killed ones have ended");
    cluster.end_killed();
    assert!(cluster.view().deployments.is_empty());
    assert_eq!((cluster.live("/web").len(), cluster.launches.len()), (2, 4));
}

#[test]
fn a_suspended_app_keeps_its_place() {
    let (mut cluster, _) = grown(KillSelection::YoungestFirst);
    cluster.scale("/web", 0).expect("accepted");
    assert!(cluster.tasks.is_empty() && cluster.has_app("/web") && cluster.is_suppressed);
    cluster.scale("/web", 1).expect("accepted");
    assert_eq!(cluster.app("/web").counts().running, 1);
}

#[test]
fn killed_tasks_are_replaced_at_once() {
    let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
    cluster.is_killing_at_once = false;
    let kill = Command::KillTasks { tasks: vec![tasks[0].clone()], scale: false, force: false };
    let Ok(Reply::Killed(killed)) = cluster.command(kill) else { panic!("not killed") };
    assert_eq!(killed[0].task, tasks[0]);
    assert_eq!(cluster.live("/web").len(), 5, "the new one does not wait for the old one's end");
    cluster.end_killed();
    assert_eq!(cluster.live("/web").len(), 4);
    assert!(!cluster.tasks.contains_key(&tasks[0]));
}

#[test]
fn killing_with_scale_removes_just_these() {
    let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
    let kill =
        |force| Command::KillTasks { tasks: vec![tasks[0].clone(), tasks[2].clone()], scale: true, force };
    assert!(matches!(cluster.command(kill(false)), Ok(Reply::Deployment { .. })));
    assert_eq!(cluster.live("/web"), [tasks[1].clone(), tasks[3].clone()]);
    assert_eq!(cluster.app("/web").definition.instances, 2);
    assert!(matches!(cluster.command(kill(false)), Err(Rejection::UnknownTask(_))));
}

#[test]
fn tasks_that_have_ended_do_not_save_the_others() {
    for (scale, instances) in [(false, 4), (true, 3)] {
        let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
        cluster.report(&tasks[0], TaskState::Finished);
        cluster.take_kills();
        let tasks = vec![tasks[0].clone(), tasks[1].clone()];
        let kill = Command::KillTasks { tasks: tasks.clone(), scale, force: true };
        let reply = cluster.command(kill.clone()).expect("accepted");
        if let Reply::Killed(killed) = reply {
            assert_eq!(killed.iter().map(|each| &each.task).collect::<Vec<_>>(), [&tasks[1]]);
        }
        assert_eq!(cluster.take_kills(), [tasks[1].clone()]);
        assert_eq!(cluster.app("/web").definition.instances, instances, "one was there to be killed");
        assert_eq!(cluster.command(kill), Err(Rejection::UnknownTask(tasks.into_iter().min().expect("two"))));
    }
}

#[test]
fn killing_a_task_twice_with_scale_counts_once() {
    let (mut cluster, tasks) = grown(KillSelection::YoungestFirst);
    cluster.is_killing_at_once = false;
    for _ in 0..2 {
        let kill = Command::KillTasks { tasks: vec![tasks[0].clone()], scale: true, force: true };
        cluster.command(kill).expect("accepted");
    }
    assert_eq!(cluster.app("/web").definition.instances, 3);
}

#[test]
fn a_single_instance_app_never_has_two() {
    let mut cluster = Cluster::new();
    let mut lone = app("/lone", 1);
    lone.labels.insert("MARATHON_SINGLE_INSTANCE_APP".into(), "true".into());
    lone.upgrade_strategy.minimum_health_capacity = 0.0;
    lone.upgrade_strategy.maximum_over_capacity = 0.0;
    cluster.put(lone.clone()).expect("accepted");
    cluster.bounds = Some((id("/lone"), 0, 1));
    cluster.is_killing_at_once = false;
    let kill = Command::KillTasks { tasks: cluster.live("/lone"), scale: false, force: false };
    cluster.command(kill).expect("accepted");
    assert_eq!(cluster.live("/lone").len(), 1);
    cluster.end_killed();
    assert_eq!(cluster.app("/lone").counts().running, 1);
    lone.cmd = Some("sleep 2".into());
    cluster.put(lone).expect("accepted");
    cluster.end_killed();
    assert_eq!(cluster.app("/lone").counts().running, 1);
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn any_number_of_instances_is_survived() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", u32::MAX)).expect("accepted");
    assert!(cluster.app("/web").queue.is_some_and(|queue| queue.count > 4_000_000_000));
    let fitting = cluster.app("/web").counts().running;
    assert_eq!(fitting, 640, "64 cpus for 0.1 each");
    cluster.put_all(vec![app("/web", 1)], true).expect("forced");
    assert_eq!(cluster.app("/web").counts().running, 1);
}
