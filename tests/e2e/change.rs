//! Apps that are changed, restarted, suspended and removed while clients use them.

use std::collections::BTreeSet;

use serde_json::json;
use ureq::http::Method;

use crate::harness::load::Load;
use crate::harness::{Cluster, app, dns, equal, eventually, http, process};

/// Enough that every one of three instances has some.
const SLOW_REQUESTS: usize = 12;

#[test]
fn a_restart_replaces_every_instance_and_lets_requests_end() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 3));
    let vip = cluster.vip("web");
    let before = app::who_all(vip, 3);

    // Slow answers are under way from the old instances when these are told to end.
    let known = connections(&cluster);
    let slow: Vec<_> = (0..SLOW_REQUESTS).map(|_| std::thread::spawn(move || app::who_slowly(vip))).collect();
    eventually("the slow requests have begun", || {
        equal(&connections(&cluster), &(known + SLOW_REQUESTS as f64))
    });
    cluster.send(Method::POST, "/v2/apps/web/restart", None).expect(200);
    for request in slow {
        let served_by = request.join().expect("no panic").expect("the whole answer");
        assert!(before.contains(&served_by), "an old instance ends what it has begun");
    }

    cluster.wait_until_deployed();
    let after = app::who_all(vip, 3);
    assert!(after.is_disjoint(&before));
    let pids: BTreeSet<u32> = before.iter().map(|who| who.pid).collect();
    for pid in pids {
        eventually("the old process is gone", || equal(&process::is_alive(pid), &false));
    }
}

#[test]
fn changes_of_one_app_cost_another_no_request() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/steady", 2));
    cluster.deploy(&app::web("/other", 2));
    app::wait_until_serving(&cluster, "/steady", 2);
    let load = Load::start(cluster.vip("steady"));
    cluster.change("/other", &json!({ "env": { "GREETING": "hello" } }));
    cluster.send(Method::POST, "/v2/apps/other/restart", None).expect(200);
    cluster.wait_until_deployed();
    cluster.scale("/other", 0);
    cluster.scale("/other", 3);
    cluster.send(Method::DELETE, "/v2/apps/other", None).expect(200);
    cluster.wait_until_deployed();
    cluster.deploy(&app::web("/third", 1));
    load.finish_without_failure();
}

#[test]
fn rolling_restarts_under_load_lose_no_request() {
    const RESTARTS: usize = 2;
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 3));
    app::wait_until_serving(&cluster, "/web", 3);
    let vip = cluster.vip("web");
    let before = app::who_all(vip, 3);
    let load = Load::start(vip);
    for _ in 0..RESTARTS {
        cluster.send(Method::POST, "/v2/apps/web/restart", None).expect(200);
        cluster.wait_until_deployed();
    }
    assert!(app::who_all(vip, 3).is_disjoint(&before));
    load.finish_without_failure();
}

#[test]
fn an_upgrade_brings_the_new_version_everywhere_and_keeps_the_old_one_to_roll_back() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    let vip = cluster.vip("web");
    app::who_all(vip, 2);
    let version = cluster.get("/v2/apps/web").expect(200)["app"]["version"].clone();

    cluster.change("/web", &json!({ "env": { "GREETING": "hello" } }));
    let upgraded = app::who_all(vip, 2);
    assert!(upgraded.iter().all(|who| who.greeting == "hello"), "{upgraded:?}");
    assert_eq!(cluster.vip("web"), vip, "the address is stable");

    cluster.change("/web", &json!({ "version": version }));
    let restored = app::who_all(vip, 2);
    assert!(restored.iter().all(|who| who.greeting.is_empty()), "{restored:?}");
}

#[test]
fn a_suspended_app_keeps_its_address_and_comes_back() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    let vip = cluster.vip("web");
    let before = app::who_all(vip, 2);

    cluster.scale("/web", 0);
    for who in &before {
        eventually("the process is gone", || equal(&process::is_alive(who.pid), &false));
    }
    let answer = dns::dig(cluster.dns(), &["web.marathon.mesos"]);
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    assert!(http::get(vip, "/").is_err(), "nobody answers");
    assert_eq!(cluster.vip("web"), vip, "the address stays with the service for a while");

    cluster.scale("/web", 1);
    let back = app::who_all(vip, 1);
    assert!(back.is_disjoint(&before));
}

#[test]
fn a_removed_app_leaves_no_process_name_or_listener() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 2));
    let vip = cluster.vip("web");
    app::who_all(vip, 2);
    let ports: Vec<u16> = dns::srv_ports(cluster.dns(), "_http._web._tcp.marathon.mesos");
    assert_eq!(ports.len(), 2);

    cluster.send(Method::DELETE, "/v2/apps/web", None).expect(200);
    cluster.wait_until_deployed();
    assert_eq!(cluster.get("/v2/apps/web").status, 404);
    eventually("no process is left", || {
        let pids = process::working_in(&cluster.dir().join("agent"));
        if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?}")) }
    });
    let answer = dns::dig(cluster.dns(), &["web.marathon.mesos"]);
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    for port in ports {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        assert!(std::net::TcpStream::connect(address).is_err(), "{address} is still served");
    }
    assert!(http::get(vip, "/").is_err(), "nobody answers at the VIP");
}

/// Connections that were made through VIPs, by the metrics.
fn connections(cluster: &Cluster) -> f64 {
    let metrics = cluster.get("/metrics").text;
    let all = metrics.lines().filter(|line| line.starts_with("mesonet_lb_connections_total{"));
    all.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
