//! Labels that do not do what they seem to.

use axum::http::StatusCode;
use serde_json::json;

use super::fixture::Fixture;

#[tokio::test]
async fn labels_that_do_not_say_what_they_seem_to_are_named_in_a_warning() {
    let fixture = Fixture::new();
    let long = "a".repeat(70);
    let body = json!({
        "id": "/web", "cmd": "a",
        "labels": {"VIP_0": "/web:80", "MESONET_LB_WEIGHT": "5", "team": "shop"},
        "portDefinitions": [
            {"port": 0, "labels": {"VIP_0": "/my/Web_1:80", "VIP_1": format!("/{long}:80")}},
            {"port": 0, "labels": {"VIP_0": "caf\u{e9}:80", "VIP_1": "10.0.0.1:80"}},
        ],
    });
    let answer = fixture.send("POST", "/v2/apps", &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let cut = "a".repeat(63);
    assert_eq!(
        answer.header("warning"),
        format!(
            "299 mesonet \"stored but not acted upon: labels/MESONET_LB_WEIGHT (it belongs to a port), \
             labels/VIP_0 (it belongs to a port), \
             portDefinitions(0)/labels/VIP_1 as it is written (its name is {cut}), \
             portDefinitions(1)/labels/VIP_0 as it is written (its name is caf)\""
        )
    );
}
