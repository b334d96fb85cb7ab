//! Apps with health checks, seen by their clients.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use ureq::http::Method;

use crate::harness::app::{self, Identity};
use crate::harness::events::Events;
use crate::harness::load::Load;
use crate::harness::{Cluster, dns, equal, eventually};

/// Requests that show which instances a service leads to.
const REQUESTS: usize = 20;

const SRV: &str = "_http._web._tcp.marathon.mesos";

/// `/web` with an HTTP check once a second, whose probes have time enough on any machine.
fn checked_web(failures_max: u32) -> Value {
    let mut web = app::web("/web", 2);
    web["healthChecks"] = checks(failures_max);
    web
}

fn checks(failures_max: u32) -> Value {
    json!([{
        "protocol": "MESOS_HTTP", "path": "/health", "delaySeconds": 0, "gracePeriodSeconds": 600,
        "intervalSeconds": 1, "timeoutSeconds": 60, "maxConsecutiveFailures": failures_max,
    }])
}

/// The port of a task, and who answers there.
fn ask(task: &Value) -> Result<(u16, Identity), String> {
    let port = task["ports"][0].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    Ok((port, app::who(SocketAddr::from(([127, 0, 0, 1], port)))?))
}

/// A file that the health of an instance depends on.
fn file(who: &Identity, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/cwd/{name}", who.pid))
}

/// Waits until names and the service lead to exactly these instances.
#[track_caller]
fn wait_until_only(cluster: &Cluster, expected: &[&(u16, Identity)]) {
    let ports: BTreeSet<u16> = expected.iter().map(|(port, _)| *port).collect();
    eventually("the names lead to those", || {
        equal(&dns::srv_ports(cluster.dns(), SRV).into_iter().collect(), &ports)
    });
    let identities: BTreeSet<&Identity> = expected.iter().map(|(_, who)| who).collect();
    let vip = cluster.vip("web");
    eventually("the service leads to those", || {
        let answers: Vec<Identity> = (0..REQUESTS).map(|_| app::who(vip)).collect::<Result<_, _>>()?;
        equal(&answers.iter().collect(), &identities)
    });
}

#[test]
fn clients_get_to_healthy_instances_only() {
    let cluster = Cluster::start();
    cluster.deploy(&checked_web(0));
    let app = cluster.get("/v2/apps/web").expect(200)["app"].clone();
    assert_eq!(
        (&app["tasksHealthy"], &app["tasksUnhealthy"]),
        (&json!(2), &json!(0)),
        "deployed means healthy"
    );
    let both: Vec<_> =
        cluster.tasks("/web").iter().map(|task| ask(task).expect("a healthy one answers")).collect();
    wait_until_only(&cluster, &[&both[0], &both[1]]);

    std::fs::write(file(&both[0].1, "ill"), "").expect("writes");
    wait_until_only(&cluster, &[&both[1]]);
    let tasks = cluster.get("/v2/apps/web/tasks").expect(200);
    let ill =
        tasks["tasks"].as_array().into_iter().flatten().find(|task| task["id"] == both[0].1.task.as_str());
    let result = &ill.expect("it is not killed")["healthCheckResults"][0];
    assert_eq!(result["alive"], json!(false));
    let cause = result["lastFailureCause"].as_str().expect("a cause");
    assert!(cause.ends_with("answers with status 503 Service Unavailable"), "{cause}");
    let listed = cluster.mesonet(&["task", "list"]).success();
    assert_eq!((listed.matches(" healthy").count(), listed.matches("unhealthy").count()), (1, 1), "{listed}");

    std::fs::remove_file(file(&both[0].1, "ill")).expect("removes");
    wait_until_only(&cluster, &[&both[0], &both[1]]);
}

#[test]
fn restarts_wait_for_health_and_bad_instances_are_replaced() {
    let cluster = Cluster::start();
    cluster.deploy(&checked_web(0));
    let old: Vec<_> =
        cluster.tasks("/web").iter().map(|task| ask(task).expect("a healthy one answers")).collect();
    let load = Load::start(cluster.vip("web"));

    // The new instances run and answer, but are not well before they are told to be.
    let change = json!({ "env": { "ILL_WITHOUT": "well" }, "healthChecks": checks(3) });
    cluster.send(Method::PUT, "/v2/apps/web", Some(&change.to_string())).expect(200);
    let is_new = |who: &Identity| old.iter().all(|(_, old)| old.task != who.task);
    let new = eventually("the new instances answer", || {
        let all = cluster.tasks("/web").iter().map(ask).collect::<Result<Vec<_>, _>>()?;
        let new: Vec<_> = all.into_iter().filter(|(_, who)| is_new(who)).collect();
        if new.len() == 2 { Ok(new) } else { Err(format!("{new:?}")) }
    });
    wait_until_only(&cluster, &[&old[0], &old[1]]);
    assert_ne!(cluster.get("/v2/deployments").expect(200), json!([]));
    new.iter().for_each(|(_, who)| std::fs::write(file(who, "well"), "").expect("writes"));
    cluster.wait_until_deployed();
    wait_until_only(&cluster, &[&new[0], &new[1]]);
    load.finish_without_failure();

    let events = Events::subscribe(cluster.api(), "");
    std::fs::remove_file(file(&new[0].1, "well")).expect("removes");
    let (_, event) =
        events.wait_for("of the kill", |event| event["eventType"] == "unhealthy_instance_kill_event");
    assert_eq!((&event["taskId"], &event["appId"]), (&json!(new[0].1.task), &json!("/web")));
    let another = eventually("another one answers", || {
        let all = cluster.tasks("/web").iter().map(ask).collect::<Result<Vec<_>, _>>()?;
        let mut others = all.into_iter().filter(|(_, who)| new.iter().all(|(_, new)| new.task != who.task));
        others.next().ok_or_else(|| "there is none".to_owned())
    });
    std::fs::write(file(&another.1, "well"), "").expect("writes");
    wait_until_only(&cluster, &[&new[1], &another]);
}
