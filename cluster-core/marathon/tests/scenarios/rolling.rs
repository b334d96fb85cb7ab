//! Rolling restarts and upgrades within the bounds of the upgrade strategy.

use mesonet_marathon::Command;
use mesonet_model::TaskState;

use crate::cluster::{Cluster, app, id};

/// Instances, minimum health capacity, maximum over capacity; least healthy and most live instances at any time.
const BOUNDS: [(u32, f64, f64, usize, usize); 12] = [
    (1, 1.0, 1.0, 1, 2),
    (4, 1.0, 1.0, 4, 8),
    (4, 0.5, 0.0, 2, 4),
    (4, 0.5, 0.5, 2, 6),
    (5, 0.5, 0.25, 3, 6),
    (3, 0.4, 0.4, 2, 4),
    (4, 0.0, 0.0, 0, 4),
    // Both bounds are the same and all are healthy: one more is allowed, else nothing could ever be done.
    (4, 1.0, 0.0, 4, 5),
    (1, 1.0, 0.0, 1, 2),
    (10, 0.99, 0.05, 10, 11),
    (0, 1.0, 1.0, 0, 0),
    (3, f64::NAN, f64::NAN, 3, 6),
];

#[test]
fn restarts_keep_within_the_bounds() {
    for (instances, minimum, over, least, most) in BOUNDS {
        let mut cluster = Cluster::new();
        let mut web = app("/web", instances);
        web.upgrade_strategy.minimum_health_capacity = minimum;
        web.upgrade_strategy.maximum_over_capacity = over;
        cluster.put(web.clone()).expect("accepted");
        let old = cluster.live("/web");
        cluster.bounds = Some((id("/web"), least, most));
        cluster.is_running_at_once = false;
        cluster.is_killing_at_once = false;
        web.cmd = Some("sleep 2".into());
        cluster.put(web).expect("accepted");
        // One thing at a time happens: an instance begins to run, or a killed one ends.
        for _ in 0..1000 {
            let next = cluster.tasks.iter().find_map(|(task, running)| match running.state {
                TaskState::Staging if !running.is_kill_asked => Some((task.clone(), TaskState::Running)),
                _ if running.is_kill_asked => Some((task.clone(), TaskState::Killed)),
                _ => None,
            });
            match next {
                Some((task, state)) => cluster.report(&task, state),
                None => break,
            }
        }
        assert!(cluster.view().deployments.is_empty(), "{instances} {minimum} {over} got stuck");
        assert_eq!(cluster.app("/web").counts().running, instances as usize);
        assert!(old.iter().all(|task| !cluster.tasks.contains_key(task)));
    }
}

#[test]
fn what_may_be_killed_at_once_is() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 4);
    web.upgrade_strategy.minimum_health_capacity = 0.25;
    web.upgrade_strategy.maximum_over_capacity = 0.0;
    cluster.put(web).expect("accepted");
    cluster.is_running_at_once = false;
    cluster.command(Command::Restart { app: id("/web"), force: false }).expect("accepted");
    assert_eq!(cluster.take_kills().len(), 3);
    assert_eq!(cluster.app("/web").counts().staged, 3, "their places are taken at once");
}

#[test]
fn a_new_instance_that_fails_costs_no_old_one() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    let old = cluster.live("/web");
    cluster.is_running_at_once = false;
    cluster.command(Command::Restart { app: id("/web"), force: false }).expect("accepted");
    for _ in 0..5 {
        for task in cluster.live("/web").into_iter().filter(|task| !old.contains(task)) {
            cluster.report(&task, TaskState::Failed);
        }
        cluster.pass(std::time::Duration::from_secs(10));
    }
    assert!(old.iter().all(|task| cluster.tasks.contains_key(task)));
    assert_eq!(cluster.view().deployments.len(), 1);
}

#[test]
fn a_restart_to_fewer_instances_ends_with_fewer() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 6);
    cluster.put(web.clone()).expect("accepted");
    web.instances = 2;
    web.cmd = Some("sleep 2".into());
    cluster.put(web).expect("accepted");
    assert_eq!(cluster.app("/web").counts().running, 2);
    assert!(cluster.view().deployments.is_empty());
}
