//! What a crash of `mesonet dev` leaves, and what the next start makes of it.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Cluster, app, cluster, dns, equal, eventually, process, program};

#[test]
fn apps_outlive_a_crash_with_the_same_tasks_processes_and_addresses() {
    let mut cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    cluster.deploy(&app::idle("/quiet", 1));
    let vip = cluster.vip("web");
    let before = app::who_all(vip, 2);
    let apps = cluster.get("/v2/apps/web").expect(200)["app"]["version"].clone();

    cluster.crash();
    for who in &before {
        assert!(process::is_alive(who.pid), "tasks run without the cluster");
    }
    cluster.start_again();

    eventually("the same instances run", || equal(&cluster.tasks("/web").len(), &2));
    assert_eq!(cluster.vip("web"), vip);
    assert_eq!(app::who_all(vip, 2), before, "the same tasks and processes");
    assert_eq!(cluster.get("/v2/apps/web").expect(200)["app"]["version"], apps);
    assert_eq!(cluster.get("/v2/apps").expect(200)["apps"].as_array().map(Vec::len), Some(2));
    assert_eq!(dns::srv_ports(cluster.dns(), "_http._web._tcp.marathon.mesos").len(), 2);

    // It goes on as if nothing had happened.
    cluster.scale("/web", 3);
    let after = app::who_all(vip, 3);
    assert!(before.is_subset(&after));
    for who in before {
        assert!(process::is_alive(who.pid));
    }
}

#[test]
fn a_task_that_died_during_an_outage_is_replaced() {
    let mut cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    let vip = cluster.vip("web");
    let before = app::who_all(vip, 2);
    let victim = before.first().expect("two instances").clone();

    cluster.crash();
    process::signal(victim.pid, Signal::KILL);
    eventually("the process is gone", || equal(&process::is_alive(victim.pid), &false));
    cluster.start_again();

    let after = eventually("two instances run", || {
        let tasks = cluster.tasks("/web");
        let ids: BTreeSet<String> =
            tasks.iter().map(|task| task["id"].as_str().expect("id").to_owned()).collect();
        if ids.len() == 2 && !ids.contains(&victim.task) { Ok(ids) } else { Err(format!("{ids:?}")) }
    });
    let survivor = before.last().expect("two instances");
    assert!(after.contains(&survivor.task), "the survivor is kept");
    let failure = cluster.get("/v2/apps/web").expect(200)["app"]["lastTaskFailure"].clone();
    assert_eq!(failure["taskId"], *victim.task, "{failure}");
    let now = app::who_all(vip, 2);
    assert!(now.contains(survivor));
}

#[test]
fn a_change_under_way_is_finished_after_a_crash() {
    let mut cluster = Cluster::start();
    cluster.deploy(&app::idle("/job", 1));
    let request = cluster.command(&["app", "scale", "job", "8", "--no-wait"]).output().expect("mesonet runs");
    assert!(request.status.success(), "{request:?}");
    cluster.crash();
    cluster.start_again();
    cluster.wait_until_deployed();
    eventually("all instances run", || equal(&cluster.tasks("/job").len(), &8));
    cluster.send(ureq::http::Method::DELETE, "/v2/apps/job", None).expect(200);
    cluster.wait_until_deployed();
    eventually("no process is left", || {
        let pids = process::working_in(&cluster.dir().join("agent"));
        if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?}")) }
    });
}

#[test]
fn a_directory_of_a_newer_version_is_refused_and_left_as_it_is() {
    let mut cluster = Cluster::start();
    cluster.deploy(&app::idle("/job", 1));
    let before: Vec<String> = task_ids(&cluster);
    cluster.crash();
    let file = cluster.dir().join("state.redb");
    let format = set_format(&file, u64::MAX);

    let dir = cluster.dir().display().to_string();
    let start = ["dev", "--dir", &dir, "--http", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--datapath", "none"];
    let error = program::outcome("mesonet", cluster::mesonet().args(start).output()).failure(1);
    assert!(error.contains("newer version") && error.contains(&dir), "{error}");

    // Had the version that wrote it been started, all would be there.
    set_format(&file, format);
    cluster.start_again();
    eventually("the same task runs", || equal(&task_ids(&cluster), &before));
}

/// Replaces the format that the state says it is written in; returns the one before.
fn set_format(file: &Path, format: u64) -> u64 {
    const META: redb::TableDefinition<'static, &str, u64> = redb::TableDefinition::new("meta");
    let database = redb::Database::open(file).expect("the state file");
    let write = database.begin_write().expect("transaction");
    let before = {
        let mut meta = write.open_table(META).expect("table");
        let before = meta.insert("format", format).expect("insert").expect("a format");
        before.value()
    };
    write.commit().expect("commit");
    before
}

fn task_ids(cluster: &Cluster) -> Vec<String> {
    let tasks = cluster.tasks("/job");
    tasks.iter().map(|task| task["id"].as_str().expect("id").to_owned()).collect()
}
