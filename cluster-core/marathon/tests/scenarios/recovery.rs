//! Another Marathon takes over.

use std::time::Duration;

use mesonet_marathon::{Command, Marathon, RecoverError};
use mesonet_model::{Table, TaskState};

use crate::cluster::{Cluster, app, config, id};

#[test]
fn running_instances_are_adopted() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 3)).expect("accepted");
    let before = cluster.view();
    let tasks = cluster.live("/web");
    cluster.restart();
    assert_eq!(cluster.view(), before);
    assert_eq!(cluster.live("/web"), tasks);
    assert_eq!((cluster.launches.len(), cluster.kills.len()), (3, 0));
    assert_eq!(
        cluster.reconciled.last_chunk(),
        Some(&[before.apps[&id("/web")].instances.keys().cloned().collect(), vec![]])
    );
    let version = cluster.app("/web").definition.version;
    cluster.scale("/web", 4).expect("accepted");
    assert!(cluster.app("/web").definition.version > version);
    assert_eq!(cluster.live("/web").len(), 4);
}

#[test]
fn what_ended_meanwhile_is_replaced() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.tasks.remove(&task);
    cluster.restart();
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.app("/web").counts().running, 2);
}

#[test]
fn deployments_go_on_from_any_point() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 3);
    web.upgrade_strategy.minimum_health_capacity = 0.5;
    let mut api = app("/api", 2);
    api.dependencies.insert(id("/web"));
    cluster.put_all(vec![web.clone(), api], false).expect("accepted");
    let gone = cluster.put(app("/gone", 1)).expect("accepted");
    assert!(!cluster.view().deployments.contains_key(&gone));
    cluster.is_running_at_once = false;
    cluster.is_killing_at_once = false;
    web.cmd = Some("sleep 2".into());
    web.instances = 4;
    let mut api = mesonet_model::AppDefinition::clone(&cluster.app("/api").definition);
    api.instances = 3;
    cluster.put_all(vec![web, api], false).expect("accepted");
    cluster.delete("/gone", false).expect("accepted");
    for _ in 0..100 {
        let before = cluster.view();
        cluster.restart();
        let mut after = cluster.view();
        // What an app waits for is measured anew.
        let stored = |view: &mut mesonet_marathon::MarathonView| {
            let ids: Vec<_> = view.apps.keys().cloned().collect();
            for id in ids {
                let mut app = mesonet_marathon::AppView::clone(&view.apps[&id]);
                app.queue = None;
                view.apps.insert(id, app.into());
            }
        };
        let mut before = before;
        stored(&mut before);
        stored(&mut after);
        assert_eq!(after, before);
        let next = cluster.tasks.iter().find_map(|(task, running)| match running.state {
            _ if running.is_kill_asked => Some((task.clone(), TaskState::Killed)),
            TaskState::Staging => Some((task.clone(), TaskState::Running)),
            _ => None,
        });
        match next {
            Some((task, state)) => cluster.report(&task, state),
            None => break,
        }
    }
    assert!(cluster.view().deployments.is_empty());
    assert_eq!((cluster.app("/web").counts().running, cluster.app("/api").counts().running), (4, 3));
    assert!(!cluster.has_app("/gone"));
}

#[test]
fn delays_and_failures_are_remembered() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    let task = cluster.live("/web").remove(0);
    cluster.report(&task, TaskState::Failed);
    let failure = cluster.app("/web").last_failure;
    cluster.restart();
    assert!(cluster.live("/web").is_empty(), "the delay is not over");
    assert_eq!(cluster.app("/web").last_failure, failure);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.live("/web").len(), 1);
}

#[test]
fn a_removal_with_one_app_gone_goes_on() {
    let mut cluster = Cluster::new();
    let start = cluster.put_all(vec![app("/a", 0), app("/b", 1)], false).expect("accepted");
    assert!(!cluster.view().deployments.contains_key(&start));
    cluster.is_running_at_once = false;
    let start = cluster.put_all(vec![app("/c", 0), app("/d", 1)], false).expect("accepted");
    cluster.is_killing_at_once = false;
    cluster.command(Command::CancelDeployment { deployment: start, force: false }).expect("accepted");
    assert!(!cluster.has_app("/c") && !cluster.has_app("/d"));
    cluster.restart();
    cluster.end_killed();
    assert!(cluster.view().deployments.is_empty());
    assert_eq!(cluster.view().apps.len(), 2);
}

#[test]
fn bad_records_are_named() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    let good = cluster.stored();
    let recover = |table: Table, value: Option<&[u8]>| {
        let mut records = good.clone();
        match value {
            Some(value) => {
                let record = records.iter_mut().find(|(of, ..)| *of == table).expect("present");
                record.2 = value.to_vec();
            }
            None => records.retain(|(of, ..)| *of != table),
        }
        Marathon::recover(config(1), &records).map(drop).expect_err("damaged")
    };
    for table in [Table::Apps, Table::AppVersions, Table::Instances] {
        let error = recover(table, Some(b"{}"));
        assert!(matches!(&error, RecoverError::Record { table: named, .. } if *named == table), "{error}");
    }
    assert!(matches!(recover(Table::AppVersions, None), RecoverError::Dangling { table: Table::Apps, .. }));
    let error = recover(Table::Apps, None);
    assert!(error.to_string().starts_with("record 'web.instance-"), "{error}");
    assert!(
        error.to_string().ends_with("of table 'instances' refers to '/web', which is missing"),
        "{error}"
    );
}
