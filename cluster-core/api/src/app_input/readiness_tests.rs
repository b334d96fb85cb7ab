//! Readiness checks as users write them.

use serde_json::{Value, json};

use super::tests::{assert_breaks, assert_prints, read, with};
use super::unacted_fields;

/// An app with a port `web` and this check.
fn app_with(check: Value) -> Value {
    json!({"readinessChecks": [check], "portDefinitions": [{"port": 0, "name": "web"}]})
}

#[test]
fn they_are_completed_with_marathons_defaults_and_printed_as_they_are() {
    let ready = json!({
        "name": "readinessCheck", "protocol": "HTTP", "path": "/", "portName": "web", "intervalSeconds": 30,
        "timeoutSeconds": 10, "httpStatusCodesForReady": [200], "preserveLastResponse": false,
    });
    let rare = json!({
        "name": "warm", "protocol": "HTTPS", "path": "/warm?a=b", "portName": "web", "intervalSeconds": 2,
        "timeoutSeconds": 1, "httpStatusCodesForReady": [100, 599], "preserveLastResponse": true,
    });
    let codes = json!({"portName": "web", "httpStatusCodesForReady": [204, 200.0, 204]});
    assert_prints([
        (app_with(json!({"portName": "web"})), "/readinessChecks/0", ready),
        (app_with(rare.clone()), "/readinessChecks", json!([rare])),
        (app_with(codes), "/readinessChecks/0/httpStatusCodesForReady", json!([204, 200])),
        (json!({"readinessChecks": []}), "/readinessChecks", json!([])),
    ]);
}

#[test]
fn malformed_values_are_named_by_path_and_code() {
    let check = |fields| json!({"readinessChecks": [fields]});
    let ready_at = |codes| check(json!({"httpStatusCodesForReady": codes}));
    for (fields, path, code) in [
        (json!({"readinessChecks": {}}), "/readinessChecks", "error.expected.jsarray"),
        (check(json!({"protocol": "TCP"})), "/readinessChecks(0)/protocol", "error.unknown.enum.literal"),
        (check(json!({"name": ""})), "/readinessChecks(0)/name", "error.minLength"),
        (check(json!({"intervalSeconds": -1})), "/readinessChecks(0)/intervalSeconds", "error.min"),
        (ready_at(json!([200, 99])), "/readinessChecks(0)/httpStatusCodesForReady(1)", "error.min"),
        (ready_at(json!([600])), "/readinessChecks(0)/httpStatusCodesForReady(0)", "error.max"),
        (
            ready_at(json!(["200"])),
            "/readinessChecks(0)/httpStatusCodesForReady(0)",
            "error.expected.jsnumber",
        ),
    ] {
        let (malformed, _) = read(&with(fields.clone())).expect_err(&fields.to_string());
        assert_eq!(malformed.get(path), Some(&vec![code.to_owned()]), "{fields} {malformed:?}");
    }
}

#[test]
fn broken_rules_are_named_by_path() {
    let codes = json!({"portName": "web", "httpStatusCodesForReady": []});
    assert_breaks([
        (
            json!({"readinessChecks": [{}]}),
            "/readinessChecks(0)/portName",
            "'http-api' is not the name of one of the app's ports",
        ),
        (json!({"readinessChecks": [{}, {}]}), "/readinessChecks", "more than one readiness check"),
        (app_with(json!({"intervalSeconds": 0})), "/readinessChecks(0)/intervalSeconds", "at least 1"),
        (
            app_with(json!({"timeoutSeconds": 30})),
            "/readinessChecks(0)/timeoutSeconds",
            "got 30, expected less than intervalSeconds (30)",
        ),
        (app_with(json!({"path": "/a b"})), "/readinessChecks(0)/path", "'/a b' is no path"),
        (app_with(codes), "/readinessChecks(0)/httpStatusCodesForReady", "must not be empty"),
    ]);
}

#[test]
fn they_are_acted_upon() {
    let value = with(app_with(json!({"portName": "web"})));
    let app = read(&value).expect("valid");
    assert!(unacted_fields(&app, value.as_object().expect("object")).is_empty());
}
