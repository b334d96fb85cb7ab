//! Whatever is sent, the API answers and finds no fault with itself.

use proptest::prelude::*;
use serde_json::json;

use super::fixture::Fixture;
use crate::app_input::tests::any_json;

/// How much of a request is valid.
#[derive(Debug, Clone)]
enum Body {
    Json(serde_json::Value),
    Text(String),
}

fn any_path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => prop::sample::select(vec![
            "v1", "v2", "apps", "web", "tasks", "restart", "versions", "*", "deployments", "queue", "delay", "groups",
            "delete", "files", "stdout", "service", "marathon", "2026-11-20T21:00:00.002Z", "metrics", "..", ".",
        ]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9%._~!*-]{0,8}",
    ];
    let known =
        prop::sample::select(vec!["/v2/apps", "/v2/apps/web", "/v2/tasks/delete", "/v2/apps/web/tasks"]);
    prop_oneof![
        known.prop_map(str::to_owned),
        prop::collection::vec(segment, 0..6).prop_map(|segments| format!("/{}", segments.join("/"))),
    ]
}

fn any_query() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "force",
        "scale",
        "label",
        "id",
        "embed",
        "offset",
        "partialUpdate",
        "status[]",
    ]);
    (key, "[a-zA-Z0-9%+.=(),-]{0,10}").prop_map(|(key, value)| format!("{key}={value}"))
}

fn any_body() -> impl Strategy<Value = Body> {
    prop_oneof![4 => any_json().prop_map(Body::Json), 1 => ".{0,40}".prop_map(Body::Text)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_request_is_an_internal_error(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
        path in any_path(),
        query in any_query(),
        body in any_body(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let answer = runtime.block_on(async {
            let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
            let body = match &body {
                Body::Json(value) => value.to_string(),
                Body::Text(text) => text.clone(),
            };
            fixture.send(method, &format!("{path}?{query}"), &body).await
        });
        prop_assert_ne!(answer.status.as_u16(), 500, "{}", answer.text);
        let has_reason = || method == "HEAD" || answer.json()["message"].is_string();
        prop_assert!(answer.status.is_success() || has_reason(), "{}", answer.text);
    }
}
