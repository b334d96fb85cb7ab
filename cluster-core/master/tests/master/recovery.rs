//! A master that comes back from its store.

use std::error::Error;
use std::time::Duration;

use mesonet_master::{Input, Master};
use mesonet_model::{AgentState, ClusterId, Plane, Revision, RunningTask, Table, TaskState};

use crate::cluster::{Cluster, agent_info, config, host_port};

#[test]
fn names_tasks_and_addresses_are_there_before_any_agent_is() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    let before = cluster.view().clone();
    cluster.restart();
    let after = cluster.view();
    assert!(after.revision > before.revision);
    assert_eq!(after.tasks, before.tasks);
    assert_eq!(after.services, before.services);
    assert_eq!(after.endpoints, before.endpoints);
    assert_eq!(after.frameworks, before.frameworks);
    assert_eq!(after.masters, before.masters);
    assert_eq!(after.agents[&agent].state, AgentState::Recovered);

    cluster.subscribe("marathon");
    let framework = cluster.framework.clone();
    assert_eq!(cluster.take_offers(&framework), [], "nothing is placed on an agent that is not there");
    let spec = cluster.spec(&agent, "a", vec![host_port(31000, "/web:80")]);
    let status = cluster.status(&agent, "a", TaskState::Running);
    cluster.register(Some(&agent), agent_info(1, 8), vec![RunningTask { spec, status }]);
    assert_eq!(cluster.view().tasks, before.tasks, "the task is adopted");
    let offers = cluster.take_offers(&framework);
    assert_eq!(offers.len(), 1);
    assert!(!offers[0].resources.ports.contains(31000), "its resources stay set aside");
    assert_eq!(cluster.register(None, agent_info(2, 8), Vec::new()).as_str(), "c-S1");
    assert_eq!(cluster.subscribe("other").as_str(), "c-0001");
}

#[test]
fn a_master_with_older_records_goes_on_above_what_nodes_have_seen() {
    let mut cluster = Cluster::new();
    let seen = Revision(cluster.view().revision.0 + 100);
    cluster.handle(Input::Ahead { revision: seen });
    let above = cluster.view().revision;
    assert!(above > Revision(seen.0 + 1000), "others may have seen a little more");
    cluster.handle(Input::Ahead { revision: Revision(seen.0 + 1) });
    assert_eq!(cluster.view().revision, above, "it is above already");
}

#[test]
fn an_offer_from_before_is_not_one_of_now() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    let framework = cluster.framework.clone();
    let old = cluster.take_offers(&framework).remove(0);
    cluster.restart();
    cluster.subscribe("marathon");
    cluster.register(Some(&agent), agent_info(1, 8), Vec::new());
    let new = cluster.take_offers(&framework).remove(0);
    assert_ne!(old.id, new.id);
}

#[test]
fn a_kill_right_after_a_restart_waits_for_planes_that_have_not_reported_yet() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.plane(&agent, Plane::Lb, cluster.view().revision, &[]);
    cluster.restart();
    cluster.subscribe("marathon");
    cluster.kill("a");
    assert_eq!(cluster.kills(), Vec::<String>::new());
    let withdrawn = cluster.view().revision;
    cluster.plane(&agent, Plane::Lb, withdrawn, &["a"]);
    cluster.pass(Duration::from_secs(6));
    assert_eq!(cluster.kills(), Vec::<String>::new(), "the plane that came back has connections");
    cluster.plane(&agent, Plane::Lb, withdrawn, &[]);
    assert_eq!(cluster.kills(), ["a"]);
}

#[test]
fn lingering_and_reserved_names_keep_their_time() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.report("a", TaskState::Finished);
    cluster.pass(Duration::from_secs(300));
    cluster.restart();
    cluster.pass(Duration::from_secs(299));
    assert_eq!(cluster.view().services.len(), 1);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.view().services.len(), 0);
    cluster.restart();
    let vip = (Table::Vips, "web.marathon".to_owned());
    cluster.pass(Duration::from_secs(24 * 60 * 60 - 1));
    assert!(cluster.records.contains_key(&vip));
    cluster.pass(Duration::from_secs(1));
    assert!(!cluster.records.contains_key(&vip));
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let recover = |table, key: &str, value: &[u8]| {
        let records = vec![(table, key.to_owned(), value.to_vec())];
        Master::recover(config(), ClusterId::new("c"), Revision(3), &records)
            .map(|master| master.view().revision)
    };
    for table in [Table::Agents, Table::Frameworks, Table::Tasks, Table::Vips, Table::Services] {
        let error = recover(table, "k", b"{").expect_err("no JSON");
        assert_eq!(error.to_string(), format!("cannot read record 'k' of table {table}"));
        assert!(error.source().is_some());
    }
    assert!(recover(Table::Cluster, "master_counters", b"[]{").is_err());
    assert_eq!(recover(Table::Cluster, "of somebody else", b"{").expect("not looked at"), Revision(4));
    assert_eq!(recover(Table::Apps, "/web", b"{").expect("not looked at"), Revision(4));
}

#[test]
fn a_task_whose_agent_is_not_there_is_named() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 8), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    let records = cluster.records.iter().filter(|((table, _), _)| *table != Table::Agents);
    let records = records.map(|((table, key), value)| (*table, key.clone(), value.clone())).collect();
    let error = Master::recover(config(), ClusterId::new("c"), Revision(3), &records).expect_err("an orphan");
    assert_eq!(error.to_string(), "record 'c-0000/a' of table tasks is of c-S0, which is not in the store");
}
