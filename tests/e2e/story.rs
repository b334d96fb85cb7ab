//! The story of an app: posted, named, balanced, repaired, scaled.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::events::Events;
use crate::harness::load::Load;
use crate::harness::{Cluster, app, cluster, dns, equal, eventually, process};

const SRV_NAME: &str = "_http._web._tcp.marathon.mesos";

#[test]
fn an_app_is_named_and_balanced_as_soon_as_it_runs() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 3));

    let vip = cluster.vip("web");
    let identities = app::who_all(vip, 3);
    let tasks = cluster.tasks("/web");
    let ids: BTreeSet<&str> = tasks.iter().map(|task| task["id"].as_str().expect("id")).collect();
    assert_eq!(identities.iter().map(|who| who.task.as_str()).collect::<BTreeSet<_>>(), ids);

    assert_eq!(dns::short(cluster.dns(), "web.marathon.mesos", "A"), ["127.0.0.1"]);
    let srv = dns::short(cluster.dns(), SRV_NAME, "SRV");
    let ports: BTreeSet<u16> = srv.iter().map(|line| srv_port(line)).collect();
    assert_eq!(ports, tasks.iter().map(port).collect(), "{srv:?}");
    for line in &srv {
        let target = line.split(' ').nth(3).expect("target");
        assert_eq!(dns::short(cluster.dns(), target, "A"), ["127.0.0.1"], "the target of {line}");
    }
    let named = dns::short(cluster.dns(), "web.marathon.l4lb.thisdcos.directory", "A");
    assert_eq!(named, [vip.ip().to_string()]);
}

#[test]
fn a_killed_task_is_replaced_and_its_port_leaves_every_name() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 3));
    app::wait_until_serving(&cluster, "/web", 3);
    let vip = cluster.vip("web");
    let victim = app::who(vip).expect("an instance answers");
    let tasks = cluster.tasks("/web");
    let dead_port = port(tasks.iter().find(|task| task["id"] == *victim.task).expect("the victim's task"));
    assert!(dns::srv_ports(cluster.dns(), SRV_NAME).contains(&dead_port));

    let events = Events::subscribe(cluster.api(), "");
    process::signal(victim.pid, Signal::KILL);
    let (_, event) = events.wait_for("of the death", |event| event["taskId"] == *victim.task);
    assert_eq!(event["taskStatus"], "TASK_FAILED");
    // A name that has lost the dead port does not get it back, and until it is replaced nobody's request fails.
    let mut is_gone = [false; 2];
    eventually("the instance is replaced", || {
        let ports = [dns::srv_ports(cluster.dns(), SRV_NAME), endpoint_ports(&cluster)];
        for (is_gone, ports) in is_gone.iter_mut().zip(&ports) {
            let is_named = ports.contains(&dead_port);
            assert!(!(*is_gone && is_named), "{dead_port} is named again: {ports:?}");
            *is_gone = !is_named;
        }
        let answer = app::who(vip).expect("the VIP answers");
        assert_ne!(answer.pid, victim.pid);
        let is_replaced = is_gone == [true; 2] && ports.iter().all(|ports| ports.len() == 3);
        if is_replaced { Ok(()) } else { Err(format!("{ports:?} without {dead_port}")) }
    });
    let identities = app::who_all(vip, 3);
    assert!(identities.iter().all(|who| who.task != victim.task));
}

#[test]
fn scaling_up_and_down_under_load_loses_no_request() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 1));
    app::wait_until_serving(&cluster, "/web", 1);
    let vip = cluster.vip("web");
    let oldest = app::who(vip).expect("the only instance answers");

    let load = Load::start(vip);
    cluster.scale("/web", 10);
    let identities = app::who_all(vip, 10);
    cluster.scale("/web", 1);
    eventually("one instance is left", || equal(&cluster.tasks("/web").len(), &1));
    app::who(vip).expect("the last instance answers under load");
    load.finish_without_failure();

    assert_eq!(app::who(vip).expect("the last instance answers"), oldest, "the youngest are killed first");
    for gone in identities.iter().filter(|who| **who != oldest) {
        eventually("the process is gone", || equal(&process::is_alive(gone.pid), &false));
    }
    assert_eq!(dns::srv_ports(cluster.dns(), SRV_NAME).len(), 1);
}

/// The port in a line such as `0 1 31005 web-x.marathon.mesos.`.
fn srv_port(line: &str) -> u16 {
    line.split(' ').nth(2).and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no SRV data: {line}"))
}

fn port(task: &Value) -> u16 {
    task["ports"][0].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port")
}

/// The ports of the endpoints behind the web service that clients may be sent to.
fn endpoint_ports(cluster: &Cluster) -> Vec<u16> {
    let services = cluster.get("/v1/services").expect(200);
    let service = cluster::find_service(&services, "web").expect("the service");
    let endpoints = service["endpoints"].as_array().expect("endpoints").iter();
    endpoints
        .filter(|endpoint| endpoint["state"] == "ready")
        .map(|endpoint| {
            let address = endpoint["address"].as_str().expect("address");
            address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("port")
        })
        .collect()
}
