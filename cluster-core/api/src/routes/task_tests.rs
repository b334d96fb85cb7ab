//! Listing and killing tasks.

use axum::http::StatusCode;
use mesonet_marathon::Rejection;
use mesonet_model::TaskId;
use serde_json::{Value, json};

use super::fixture::{Fixture, run};
use super::tests::web;

#[tokio::test]
async fn tasks_are_listed_as_json_and_text() {
    let fixture =
        Fixture::with_apps(&[web(), json!({"id": "/a/b", "cmd": "a", "portDefinitions": []})]).await;
    fixture.change(|state| {
        run(state, "/web", 2);
        run(state, "/a/b", 1);
    });
    let count = |answer: &Value| answer["tasks"].as_array().map(Vec::len);
    for (path, expected) in [
        ("/v2/tasks", 3),
        ("/v2/tasks?status=running", 3),
        ("/v2/tasks?status[]=staging", 0),
        ("/v2/tasks?status[]=staging&status[]=running", 3),
        ("/v2/apps/web/tasks", 2),
    ] {
        assert_eq!(count(&fixture.get(path).await.json()), Some(expected), "{path}");
    }
    let text = fixture.send_with("GET", "/v2/tasks", &[("accept", "text/plain")], "").await;
    assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(text.text, "a_b\t \t127.0.0.1\nweb\t10000\t127.0.0.1:31001\t127.0.0.2:31002\t\n");
}

#[tokio::test]
async fn tasks_are_killed_singly_by_host_and_by_list() {
    let fixture = Fixture::with_apps(&[web()]).await;
    fixture.change(|state| run(state, "/web", 2));
    let one =
        fixture.send("DELETE", "/v2/apps/web/tasks/web.instance-1._app.1?scale=False&wipe=False", "").await;
    assert_eq!(one.json()["task"]["id"], "web.instance-1._app.1");
    let all = fixture.send("DELETE", "/v2/apps/web/tasks?host=*", "").await;
    assert_eq!(all.json()["tasks"].as_array().map(Vec::len), Some(2));
    let by_host = fixture.send("DELETE", "/v2/apps/web/tasks?host=127.0.0.2", "").await;
    assert_eq!(by_host.json()["tasks"][0]["id"], "web.instance-2._app.1");
    let given = r#"{"ids":["web.instance-1._app.1","web.instance-9._app.1"]}"#;
    let killed = fixture.send("POST", "/v2/tasks/delete", given).await;
    assert_eq!(killed.json()["tasks"].as_array().map(Vec::len), Some(1));
    let scaled = fixture.send("POST", "/v2/tasks/delete?scale=True", given).await;
    assert!(scaled.json()["deploymentId"].is_string());
    assert_ne!(scaled.header("marathon-deployment-id"), "");
    let ended = Rejection::UnknownTask(TaskId::new("web.instance-1._app.1"));
    fixture.refusals.lock().expect("lock").extend([ended.clone(), ended]);
    let late = fixture.send("POST", "/v2/tasks/delete", given).await;
    assert_eq!((late.status, late.json()), (StatusCode::OK, json!({"tasks": []})), "it ended meanwhile");
    let late = fixture.send("DELETE", "/v2/apps/web/tasks/web.instance-1._app.1", "").await;
    assert_eq!(late.status, StatusCode::NOT_FOUND, "this one was asked for");
    for (method, path, body, status, message) in [
        (
            "DELETE",
            "/v2/apps/web/tasks?scale=true&wipe=true",
            "",
            400,
            "You cannot use scale and wipe at the same time.",
        ),
        ("DELETE", "/v2/apps/web/tasks/none", "", 404, "Task 'none' does not exist"),
        (
            "POST",
            "/v2/tasks/delete",
            r#"{"ids":["x"]}"#,
            400,
            "Invalid task id 'x'. [expected APP.instance-UUID._app.ATTEMPT]",
        ),
        ("POST", "/v2/tasks/delete", "{}", 422, "Invalid JSON"),
        (
            "DELETE",
            "/v2/apps/web/tasks?scale=maybe",
            "",
            400,
            "parameter 'scale' must be true or false, not 'maybe'",
        ),
    ] {
        let answer = fixture.send(method, path, body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["message"]), (status, &json!(message)), "{path}");
    }
}
