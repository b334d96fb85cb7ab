//! Apps with readiness checks: servers that are there at once, and ready later.

use std::net::SocketAddr;

use serde_json::{Value, json};
use ureq::http::Method;

use crate::harness::app::{self, Identity};
use crate::harness::{Cluster, equal, eventually};

/// A server that is ready once there is a file `ready` in its sandbox. Requests that come too late are made again.
fn ready_later(greeting: &str) -> Value {
    json!({
        "env": { "ILL_WITHOUT": "ready", "GREETING": greeting },
        "readinessChecks": [{
            "name": "warm", "path": "/health", "portName": "http", "intervalSeconds": 3, "timeoutSeconds": 2,
            "preserveLastResponse": true,
        }],
    })
}

/// `/web` at once ready.
fn web() -> Value {
    let mut web = app::web("/web", 1);
    let check = json!({ "portName": "http", "intervalSeconds": 3, "timeoutSeconds": 2 });
    web["readinessChecks"] = json!([check]);
    web
}

fn put(cluster: &Cluster, change: &Value) {
    cluster.send(Method::PUT, "/v2/apps/web", Some(&change.to_string())).expect(200);
}

/// What the deployment has found, once it is that the new instance is not ready; and that instance.
fn wait_until_not_ready(cluster: &Cluster, greeting: &str) -> Identity {
    let results = eventually("the new instance has said that it is not ready", || {
        let deployments = cluster.get("/v2/deployments").expect(200);
        let results = deployments[0]["currentActions"][0]["readinessCheckResults"].clone();
        equal(&results[0]["lastResponse"]["status"], &json!(503)).map(|()| results)
    });
    let new = eventually("the new instance answers", || {
        let task = cluster.tasks("/web").into_iter().find(|task| task["id"] == results[0]["taskId"]);
        let port = task.ok_or("it has gone")?["ports"][0].as_u64().and_then(|port| u16::try_from(port).ok());
        app::who(SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))))
    });
    assert_eq!(new.greeting, greeting);
    let body = format!("{} {} {greeting}\n", new.task, new.pid);
    let response = json!({ "status": 503, "contentType": "", "body": body });
    let expected = json!([{ "name": "warm", "taskId": new.task, "ready": false, "lastResponse": response }]);
    assert_eq!(results, expected);
    new
}

fn shown_by_app(cluster: &Cluster) -> Value {
    let app = cluster.get("/v2/apps/web?embed=app.readiness").expect(200);
    app["app"]["readinessCheckResults"].clone()
}

#[test]
fn a_deployment_waits_until_the_new_instance_is_ready() {
    let cluster = Cluster::start();
    cluster.deploy(&web());
    let vip = cluster.vip("web");
    let old = app::who(vip).expect("deployed");
    assert_eq!(shown_by_app(&cluster), json!([]), "no deployment waits");

    put(&cluster, &ready_later("second"));
    let new = wait_until_not_ready(&cluster, "second");
    assert_eq!(cluster.tasks("/web").len(), 2, "the old one stays");
    let both = app::who_all(vip, 2);
    assert!(
        both.contains(&old) && both.contains(&new),
        "readiness is a matter of deployments only: {both:?}"
    );
    std::fs::write(format!("/proc/{}/cwd/ready", new.pid), "").expect("writes");
    cluster.wait_until_deployed();
    eventually("only the new one is left", || {
        let tasks: Vec<Value> = cluster.tasks("/web").into_iter().map(|task| task["id"].clone()).collect();
        equal(&tasks, &vec![json!(new.task)])
    });
    assert_eq!(shown_by_app(&cluster), json!([]));

    // A deployment that is cancelled leaves it open which one stays, and waits for nobody.
    put(&cluster, &ready_later("third"));
    wait_until_not_ready(&cluster, "third");
    let deployment = cluster.get("/v2/deployments").expect(200)[0]["id"].clone();
    let path = format!("/v2/deployments/{}?force=true", deployment.as_str().expect("an id"));
    let cancelled = cluster.send(Method::DELETE, &path, None);
    assert_eq!(cancelled.status, 202, "{cancelled:?}");
    assert_eq!(cluster.get("/v2/deployments").expect(200), json!([]));
    assert_eq!(shown_by_app(&cluster), json!([]));
    eventually("one is left", || equal(&cluster.tasks("/web").len(), &1));
}
