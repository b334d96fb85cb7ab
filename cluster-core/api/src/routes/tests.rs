//! Every route, its status codes, headers and bodies.

use axum::http::StatusCode;
use mesonet_marathon::{Command, Rejection};
use mesonet_model::{AppId, DeploymentId};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::fixture::{Fixture, run};

/// An app of two instances.
pub(super) fn web() -> Value {
    json!({"id": "/web", "cmd": "sleep 1000", "instances": 2, "labels": {"env": "test"}})
}

#[tokio::test]
async fn ping_answers_below_every_prefix() {
    let fixture = Fixture::new();
    for path in ["/ping", "/service/marathon/ping", "/marathon/ping", "//ping/"] {
        let answer = fixture.get(path).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "pong"), "{path}");
        assert_eq!(answer.header("x-marathon-leader"), "http://127.0.0.1:8080");
    }
}

#[tokio::test]
async fn nothing_is_answered_before_the_start() {
    let fixture = Fixture::not_started();
    for path in [
        "/v2/apps",
        "/v2/tasks",
        "/v2/info",
        "/v2/queue",
        "/v2/deployments",
        "/metadata",
        "/v1/view",
        "/v1/health/ready",
    ] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.json(), json!({"message": "The control plane has not started yet"}));
    }
    assert_eq!(
        fixture.send("POST", "/v2/apps", &web().to_string()).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(fixture.get("/v1/health/live").await.status, StatusCode::OK);
    assert_eq!(fixture.get("/ping").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_app_is_created_with_its_deployment_named() {
    let fixture = Fixture::new();
    let answer = fixture.send("POST", "/v2/apps/", &web().to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.header("location"), "/web");
    assert_eq!(answer.header("marathon-deployment-id"), "deployment-2");
    assert_eq!(answer.header("mesonet-revision"), "2");
    assert_eq!(answer.header("warning"), "");
    let app = answer.json();
    assert_eq!(app["deployments"], json!([{"id": "deployment-2"}]));
    for count in ["tasksStaged", "tasksRunning", "tasksHealthy", "tasksUnhealthy"] {
        assert_eq!(app[count], json!(0));
    }
    assert_eq!(app["version"], json!("2026-11-20T21:00:00.002Z"));
    let again = fixture.send("POST", "/v2/apps", &web().to_string()).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert_eq!(again.json(), json!({"message": "An app with id [/web] already exists."}));
}

#[tokio::test]
async fn fields_without_effect_are_named_in_a_warning() {
    let fixture = Fixture::new();
    let body = json!({
        "id": "/web", "cmd": "a", "healthChecks": [{"protocol": "TCP"}], "bogus": 1,
        "container": {"type": "MESOS", "docker": {"image": "b", "odd": true}}, "uris": ["http://h/a"],
    });
    let answer = fixture.send("POST", "/v2/apps", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(
        answer.header("warning"),
        "299 mesonet \"stored but not acted upon: container.docker, fetch; \
         unknown and ignored: bogus, container.docker.odd\""
    );
    let update = fixture.send("PUT", "/v2/apps/web", r#"{"instances": 3}"#).await;
    assert_eq!((update.status, update.header("warning")), (StatusCode::OK, ""));
}

#[tokio::test]
async fn bodies_that_are_no_app_are_refused_with_every_fault() {
    let fixture = Fixture::new();
    let unparsable = fixture.send("POST", "/v2/apps", "{").await;
    assert_eq!(unparsable.status, StatusCode::BAD_REQUEST);
    assert_eq!(unparsable.json()["message"], "Invalid JSON");
    assert!(unparsable.json()["details"].is_string());
    for (body, message, details) in [
        (
            json!({"cmd": 1, "instances": -1}),
            "Invalid JSON",
            json!([
                {"path": "/cmd", "errors": ["error.expected.jsstring"]},
                {"path": "/id", "errors": ["error.path.missing"]},
                {"path": "/instances", "errors": ["error.min"]},
            ]),
        ),
        (json!([]), "Invalid JSON", json!([{"path": "/", "errors": ["error.expected.jsobject"]}])),
        (
            json!({"id": "/a", "upgradeStrategy": {"minimumHealthCapacity": 2}}),
            "Object is not valid",
            json!([
                {"path": "/", "errors": ["AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'."]},
                {"path": "/upgradeStrategy/minimumHealthCapacity", "errors": ["got 2.0, expected between 0.0 and 1.0"]},
            ]),
        ),
    ] {
        let answer = fixture.send("POST", "/v2/apps", &body.to_string()).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(answer.json(), json!({"message": message, "details": details}), "{body}");
    }
    assert!(fixture.commands.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_place_that_is_taken_is_named_by_its_path() {
    let fixture = Fixture::new();
    let body = |id: &str| json!({"id": id, "cmd": "a"});
    for (method, path, sent, named) in [
        ("POST", "/v2/apps", body("/a"), "/id"),
        ("PUT", "/v2/apps/a", body("/a"), "/id"),
        ("PUT", "/v2/apps", json!([body("/b"), body("/a")]), "(1)/id"),
    ] {
        let taken = Rejection::PlaceTaken(AppId::parse("/a").expect("id"));
        fixture.refusals.lock().expect("lock").push_back(taken);
        let answer = fixture.send(method, path, &sent.to_string()).await;
        let text = "Groups and Applications may not have the same identifier.";
        let told = json!({"message": "Object is not valid", "details": [{"path": named, "errors": [text]}]});
        assert_eq!((answer.status.as_u16(), answer.json()), (422, told), "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_are_bounded_in_length_and_depth() {
    let fixture = Fixture::new();
    let long = format!(r#"{{"id":"/a","cmd":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(fixture.send("POST", "/v2/apps", &long).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let deep = "[".repeat(100_000);
    assert_eq!(fixture.send("POST", "/v2/apps", &deep).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_list_is_filtered_and_embeds_what_is_asked_for() {
    let fixture =
        Fixture::with_apps(&[web(), json!({"id": "/api/v1", "cmd": "SERVE", "labels": {"env": "prod"}})])
            .await;
    fixture.change(|state| run(state, "/web", 2));
    for (query, expected) in [
        ("", vec!["/api/v1", "/web"]),
        ("?id=API", vec!["/api/v1"]),
        ("?cmd=serve", vec!["/api/v1"]),
        ("?label=env", vec!["/api/v1", "/web"]),
        ("?label=env==test", vec!["/web"]),
        ("?label=env%20in%20(prod,stage)", vec!["/api/v1"]),
        ("?cmd=&id=&label=", vec!["/api/v1", "/web"]),
        ("?id=none", vec![]),
    ] {
        let list = fixture.get(&format!("/v2/apps{query}")).await.json();
        let ids: Vec<&str> =
            list["apps"].as_array().expect("apps").iter().filter_map(|app| app["id"].as_str()).collect();
        assert_eq!(ids, expected, "{query}");
    }
    assert_eq!(fixture.get("/v2/apps?label=a%3D").await.status, StatusCode::BAD_REQUEST);
    let plain = fixture.get("/v2/apps?id=web").await.json();
    assert_eq!(plain["apps"][0]["tasksRunning"], json!(2));
    assert!(plain["apps"][0].get("tasks").is_none());
    for embed in ["apps.tasks", "app.tasks", "group.apps.tasks", "tasks"] {
        let list = fixture.get(&format!("/v2/apps/?embed={embed}&id=web")).await.json();
        assert_eq!(list["apps"][0]["tasks"][0]["host"], "127.0.0.1", "{embed}");
    }
    let below = fixture.get("/v2/apps/api/*").await.json();
    assert_eq!(below["*"][0]["id"], "/api/v1");
}

#[tokio::test]
async fn a_single_app_is_wrapped_and_has_its_tasks() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web/nginx", "cmd": "a"})]).await;
    fixture.change(|state| run(state, "/web/nginx", 1));
    for path in
        ["/v2/apps/web/nginx", "/v2/apps//web/nginx", "/v2/apps/%2Fweb%2Fnginx", "/v2/apps/web/nginx/"]
    {
        let app = fixture.get(path).await.json();
        assert_eq!(app["app"]["id"], "/web/nginx", "{path}");
        assert_eq!(
            app["app"]["tasks"],
            json!([{
                "id": "web_nginx.instance-1._app.1", "appId": "/web/nginx", "slaveId": "c-S0", "host": "127.0.0.1",
                "state": "TASK_RUNNING", "stagedAt": "1970-01-01T00:00:00.001Z",
                "startedAt": "1970-01-01T00:00:00.002Z", "version": app["app"]["version"], "ports": [31001],
                "servicePorts": [10000], "ipAddresses": [{"ipAddress": "127.0.0.1", "protocol": "IPv4"}],
                "healthCheckResults": [], "localVolumes": [],
            }])
        );
    }
    for path in ["/v2/apps/none", "/v2/apps/None", "/v2/apps/web"] {
        let missing = fixture.get(path).await;
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
        let id = path.trim_start_matches("/v2/apps");
        assert_eq!(missing.json(), json!({"message": format!("App '{id}' does not exist")}));
    }
}

#[tokio::test]
async fn updates_merge_unless_told_to_replace() {
    let fixture = Fixture::with_apps(&[web()]).await;
    let put = fixture
        .send("PUT", "/v2/apps//web?force=False", r#"{"id":"/other","instances":5,"ports":null}"#)
        .await;
    assert_eq!(put.status, StatusCode::OK);
    assert_eq!(put.json(), json!({"version": "2026-11-20T21:00:00.003Z", "deploymentId": "deployment-3"}));
    assert_eq!(put.header("marathon-deployment-id"), "deployment-3");
    let app = fixture.get("/v2/apps/web").await.json()["app"].clone();
    assert_eq!(
        (&app["instances"], &app["cmd"], &app["labels"]["env"]),
        (&json!(5), &json!("sleep 1000"), &json!("test"))
    );
    let replaced = fixture.send("PUT", "/v2/apps/web?partialUpdate=False", r#"{"cmd":"b"}"#).await;
    assert_eq!(replaced.status, StatusCode::OK);
    let app = fixture.get("/v2/apps/web").await.json()["app"].clone();
    assert_eq!((&app["instances"], &app["cmd"], &app["labels"]), (&json!(1), &json!("b"), &json!({})));
    let created = fixture.send("PUT", "/v2/apps/new", r#"{"cmd":"b"}"#).await;
    assert_eq!((created.status, created.header("location")), (StatusCode::CREATED, "/new"));
    assert_eq!(
        fixture.send("PATCH", "/v2/apps/absent", r#"{"cmd":"b"}"#).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(fixture.send("PATCH", "/v2/apps/new", r#"{"args":["a","b"]}"#).await.status, StatusCode::OK);
    let app = fixture.get("/v2/apps/new").await.json()["app"].clone();
    assert_eq!((&app["cmd"], &app["args"]), (&Value::Null, &json!(["a", "b"])));
}

#[tokio::test]
async fn old_forms_take_the_place_of_new_ones_in_updates() {
    let fixture = Fixture::with_apps(&[web()]).await;
    for (update, key, expected) in [
        (
            json!({"ports": [9000]}),
            "portDefinitions",
            json!([{"port": 9000, "protocol": "tcp", "labels": {}}]),
        ),
        (
            json!({"uris": ["http://h/a.tgz"]}),
            "fetch",
            json!([{"uri": "http://h/a.tgz", "extract": true, "executable": false, "cache": false}]),
        ),
        (
            json!({"container": {"docker": {"image": "i", "network": "BRIDGE", "portMappings": [{"containerPort": 80}]}}}),
            "networks",
            json!([{"mode": "container/bridge"}]),
        ),
        (json!({"networks": [{"mode": "host"}]}), "networks", json!([{"mode": "host"}])),
    ] {
        let answer = fixture.send("PUT", "/v2/apps/web", &update.to_string()).await;
        assert_eq!(answer.status, StatusCode::OK, "{update} {}", answer.text);
        assert_eq!(fixture.get("/v2/apps/web").await.json()["app"][key], expected, "{update}");
    }
}

#[tokio::test]
async fn an_old_version_can_be_read_and_restored() {
    let fixture = Fixture::with_apps(&[web()]).await;
    fixture.send("PUT", "/v2/apps/web", r#"{"cmd":"b"}"#).await;
    let versions = fixture.get("/v2/apps/web/versions").await.json();
    assert_eq!(versions, json!({"versions": ["2026-11-20T21:00:00.003Z", "2026-11-20T21:00:00.002Z"]}));
    let old = fixture.get("/v2/apps/web/versions/2026-11-20T21:00:00.002Z").await.json();
    assert_eq!((&old["id"], &old["cmd"]), (&json!("/web"), &json!("sleep 1000")));
    let rollback = fixture.send("PUT", "/v2/apps/web", r#"{"version":"2026-11-20T21:00:00.002Z"}"#).await;
    assert_eq!(rollback.status, StatusCode::OK, "{}", rollback.text);
    assert_eq!(fixture.get("/v2/apps/web").await.json()["app"]["cmd"], "sleep 1000");
    for (body, status) in [
        (r#"{"version":"2020-01-01T00:00:00.000Z"}"#, StatusCode::NOT_FOUND),
        (r#"{"version":"yesterday"}"#, StatusCode::BAD_REQUEST),
        (r#"{"version":"2026-11-20T21:00:00.002Z","cmd":"a"}"#, StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(fixture.send("PUT", "/v2/apps/web", body).await.status, status, "{body}");
    }
    assert_eq!(
        fixture.get("/v2/apps/web/versions/2020-01-01T00:00:00.000Z").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn lists_are_put_in_one_command() {
    let fixture = Fixture::with_apps(&[web()]).await;
    let body = json!([{"id": "/web", "instances": 1}, {"id": "/new", "cmd": "a"}]);
    let answer = fixture.send("PUT", "/v2/apps/?force=True", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.json()["deploymentId"], "deployment-3");
    let last = fixture.commands.lock().expect("lock").last().cloned();
    assert!(matches!(last, Some(Command::Put { apps, force: true }) if apps.len() == 2));
    let faulty = json!([{"cmd": "a"}, {"id": "/web", "mem": "much"}, {"id": "/x", "cmd": "a"}, {"id": "x", "cmd": "a"}]);
    let answer = fixture.send("PUT", "/v2/apps", &faulty.to_string()).await;
    assert_eq!(
        answer.json(),
        json!({"message": "Invalid JSON", "details": [
            {"path": "(0)/id", "errors": ["error.path.missing"]},
            {"path": "(1)/mem", "errors": ["error.expected.jsnumber"]},
        ]})
    );
    let twice = json!([{"id": "/x", "cmd": "a"}, {"id": "x", "cmd": "a"}]);
    let answer = fixture.send("PUT", "/v2/apps", &twice.to_string()).await;
    assert_eq!(
        answer.json()["details"],
        json!([{"path": "(1)/id", "errors": ["app /x is given more than once"]}])
    );
    assert_eq!(fixture.send("PUT", "/v2/apps", "{}").await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        fixture.send("PATCH", "/v2/apps", r#"[{"id":"/no","cmd":"a"}]"#).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test(start_paused = true)]
async fn stale_updates_are_made_again() {
    let fixture = Fixture::with_apps(&[web()]).await;
    let stale = || Rejection::Stale(AppId::parse("/web").expect("id"));
    fixture.refusals.lock().expect("lock").extend([stale(), stale()]);
    assert_eq!(fixture.send("PUT", "/v2/apps/web", r#"{"instances":9}"#).await.status, StatusCode::OK);
    fixture.refusals.lock().expect("lock").extend((0..5).map(|_| stale()));
    let answer = fixture.send("PUT", "/v2/apps/web", r#"{"instances":8}"#).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.json(), json!({"message": "App '/web' was changed in the meantime"}));
}

#[tokio::test]
async fn refusals_have_marathons_statuses() {
    let fixture = Fixture::with_apps(&[web()]).await;
    let id = AppId::parse("/web").expect("id");
    let locked = "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.";
    for (refusal, status, body) in [
        (
            Rejection::Locked(vec![DeploymentId::new("d1")]),
            409,
            json!({"message": locked, "deployments": [{"id": "d1"}]}),
        ),
        (
            Rejection::TooManyDeployments(100),
            403,
            json!({"message": "Max number (100) of running deployments reached. Cannot create new deployments until the number decreases."}),
        ),
        (
            Rejection::DependencyCycle(id.clone()),
            422,
            json!({"message": "Object is not valid", "details": [
                {"path": "/dependencies", "errors": ["Dependency graph has at least one cycle: /web"]},
            ]}),
        ),
    ] {
        fixture.refusals.lock().expect("lock").push_back(refusal);
        let answer = fixture.send("PUT", "/v2/apps/web", r#"{"instances":9}"#).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, body));
    }
}

#[tokio::test]
async fn apps_are_restarted_and_deleted() {
    let fixture = Fixture::with_apps(&[web()]).await;
    let restarted = fixture.send("POST", "/v2/apps/web/restart?force=false", "").await;
    assert_eq!(restarted.status, StatusCode::OK);
    assert_eq!(restarted.json()["deploymentId"], "deployment-3");
    assert_eq!(restarted.header("marathon-deployment-id"), "deployment-3");
    let deleted = fixture.send("DELETE", "/v2/apps//web", "").await;
    assert_eq!(deleted.status, StatusCode::OK);
    assert!(matches!(
        fixture.commands.lock().expect("lock").last(),
        Some(Command::Delete { force: true, .. })
    ));
    for (method, path) in [
        ("DELETE", "/v2/apps/web"),
        ("POST", "/v2/apps/web/restart"),
        ("GET", "/v2/apps/web/tasks"),
        ("GET", "/v2/apps/web/versions"),
    ] {
        let answer = fixture.send(method, path, "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
        assert_eq!(answer.json(), json!({"message": "App '/web' does not exist"}));
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_in_json() {
    let fixture = Fixture::with_apps(&[web()]).await;
    for path in [
        "/",
        "/nope",
        "/v2/nope",
        "/v2/pods",
        "/v1/nope",
        "/capabilities",
        "/v2/deployments/a/b",
        "/v2/tasks/none",
    ] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json(), json!({"message": "URI not found"}));
    }
    assert_eq!(fixture.send("HEAD", "/v2/pods", "").await.status, StatusCode::NOT_FOUND);
    for (method, path, allowed) in [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/v2/apps", "GET, HEAD, POST, PUT, PATCH"),
        ("POST", "/v2/apps/web", "GET, HEAD, PUT, PATCH, DELETE"),
        ("GET", "/v2/apps/web/restart", "POST"),
        ("GET", "/v2/tasks/delete", "POST"),
        ("GET", "/v2/deployments/a", "DELETE"),
        ("POST", "/v2/queue", "GET, HEAD"),
        ("GET", "/v2/queue/web/delay", "DELETE"),
    ] {
        let answer = fixture.send(method, path, "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(answer.header("allow"), allowed);
        assert!(answer.json()["message"].is_string());
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_stored_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    let (requests, mut received) = mpsc::channel::<crate::Request>(1);
    tokio::spawn(async move { while received.recv().await.is_some() {} });
    let fixture = fixture.asking(requests, mpsc::channel(1).0);
    let answer = fixture.send("POST", "/v2/apps", &web().to_string()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let message = answer.json()["message"].to_string();
    assert!(message.contains("cannot be stored"), "{message}");
    assert_eq!(fixture.get("/v1/health/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_gone_control_plane_is_unavailable() {
    let fixture = Fixture::new();
    let (requests, received) = mpsc::channel(1);
    drop(received);
    let fixture = fixture.asking(requests, mpsc::channel(1).0);
    let answer = fixture.send("POST", "/v2/apps", &web().to_string()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json(), json!({"message": "The control plane is stopping"}));
    assert_eq!(fixture.get("/v1/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn who_asks_a_control_plane_that_ends_is_told_that_the_outcome_is_unknown() {
    let fixture = Fixture::new();
    let (requests, mut received) = mpsc::channel(1);
    tokio::spawn(async move {
        let taken = received.recv().await;
        drop(received);
        drop(taken);
    });
    let fixture = fixture.asking(requests, mpsc::channel(1).0);
    let answer = fixture.send("POST", "/v2/apps", &web().to_string()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "2"));
    let message = answer.json()["message"].to_string();
    assert!(message.contains("unknown whether the change was made"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_too_many_changes_wait_is_told_so_at_once() {
    let fixture = Fixture::new();
    fixture.change(super::state_tests::add_agent);
    let (requests, _waiting) = mpsc::channel(1);
    let (nodes, _ordered) = mpsc::channel(1);
    let command = Command::ResetDelay { app: AppId::parse("/web").expect("id") };
    requests.try_send(crate::Request { command, answer: oneshot::channel().0 }).expect("room");
    let order = crate::NodeOrder::ConfirmRemoval;
    nodes.try_send(crate::NodeRequest { order, answer: oneshot::channel().0 }).expect("room");
    let fixture = fixture.asking(requests, nodes);
    let began = tokio::time::Instant::now();
    for (path, body) in [("/v2/apps", web().to_string()), ("/v1/nodes/c-S0/drain", String::new())] {
        let answer = fixture.send("POST", path, &body).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let message = json!({"message": "Too many changes wait to be stored; nothing has been changed"});
        assert_eq!(answer.json(), message, "{path}");
    }
    assert!(began.elapsed().is_zero(), "it waits for nothing");
}
