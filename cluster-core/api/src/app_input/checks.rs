//! Health and readiness checks, checked, completed with their defaults and kept in the API's form.

use axum::http::uri::PathAndQuery;
use serde_json::{Map, Value, json};

use super::INT_MAX;
use crate::json_reader::Object;

const HEALTH_KEYS: &[&str] = &[
    "protocol",
    "path",
    "portIndex",
    "port",
    "command",
    "gracePeriodSeconds",
    "intervalSeconds",
    "timeoutSeconds",
    "maxConsecutiveFailures",
    "delaySeconds",
    "ignoreHttp1xx",
    "ipProtocol",
];
const READINESS_KEYS: &[&str] = &[
    "name",
    "protocol",
    "path",
    "portName",
    "intervalSeconds",
    "timeoutSeconds",
    "httpStatusCodesForReady",
    "preserveLastResponse",
];
const PROTOCOLS: &[(&str, &str)] = &[
    ("HTTP", "HTTP"),
    ("HTTPS", "HTTPS"),
    ("TCP", "TCP"),
    ("COMMAND", "COMMAND"),
    ("MESOS_HTTP", "MESOS_HTTP"),
    ("MESOS_HTTPS", "MESOS_HTTPS"),
    ("MESOS_TCP", "MESOS_TCP"),
];

pub(super) fn read_health_checks(app: &Object<'_>) -> Vec<Value> {
    let checks = app.objects("healthChecks", HEALTH_KEYS).unwrap_or_default();
    checks.iter().map(read_health_check).collect()
}

fn read_health_check(check: &Object<'_>) -> Value {
    let protocol = check.choice("protocol", PROTOCOLS).unwrap_or("HTTP");
    let seconds = |key, default| check.whole(key, INT_MAX).unwrap_or(default);
    let mut kept = Map::new();
    let mut keep = |key: &str, value: Value| {
        kept.insert(key.to_owned(), value);
    };
    keep("protocol", protocol.into());
    keep("gracePeriodSeconds", seconds("gracePeriodSeconds", 300).into());
    keep("intervalSeconds", seconds("intervalSeconds", 60).into());
    keep("timeoutSeconds", seconds("timeoutSeconds", 20).into());
    keep("maxConsecutiveFailures", seconds("maxConsecutiveFailures", 3).into());
    keep("delaySeconds", seconds("delaySeconds", 15).into());
    keep("ignoreHttp1xx", check.flag("ignoreHttp1xx").unwrap_or(false).into());
    if let Some(protocol) = check.choice("ipProtocol", &[("IPv4", "IPv4"), ("IPv6", "IPv6")]) {
        keep("ipProtocol", protocol.into());
    }
    let path = check.text("path");
    if protocol.ends_with("HTTP") || protocol.ends_with("HTTPS") {
        keep("path", path.unwrap_or_else(|| "/".to_owned()).into());
    }
    let (port, index) = (check.whole("port", u32::from(u16::MAX)), check.whole("portIndex", INT_MAX));
    if protocol == "COMMAND" {
        keep("command", read_command(check));
        return Value::Object(kept);
    }
    if check.has("command") {
        check.invalid("command", "must not be given unless the protocol is COMMAND");
    }
    if port.is_some() && index.is_some() {
        check.invalid("portIndex", "must not be given together with port");
    }
    match (port, index) {
        (Some(port), None) => keep("port", port.into()),
        (None, Some(index)) => keep("portIndex", index.into()),
        (None, None) => keep("portIndex", 0.into()),
        (Some(_), Some(_)) => {}
    }
    Value::Object(kept)
}

fn read_command(check: &Object<'_>) -> Value {
    check.require("command");
    let value = check.object("command", &["value"]).and_then(|command| {
        command.require("value");
        command.filled_text("value")
    });
    json!({"value": value})
}

pub(super) fn read_readiness_checks(app: &Object<'_>) -> Vec<Value> {
    let checks = app.objects("readinessChecks", READINESS_KEYS).unwrap_or_default();
    if checks.len() > 1 {
        app.invalid("readinessChecks", "may not have more than one readiness check");
    }
    checks.iter().map(read_readiness_check).collect()
}

fn read_readiness_check(check: &Object<'_>) -> Value {
    let text = |key, default: &str| check.filled_text(key).unwrap_or_else(|| default.to_owned());
    let interval = check.whole("intervalSeconds", INT_MAX).unwrap_or(30);
    let timeout = check.whole("timeoutSeconds", INT_MAX).unwrap_or(10);
    let path = text("path", "/");
    if PathAndQuery::try_from(path.as_str()).is_err() {
        check.invalid("path", format!("'{path}' is no path of a URL"));
    }
    if interval == 0 {
        check.invalid("intervalSeconds", "must be at least 1");
    } else if timeout >= interval {
        check.invalid(
            "timeoutSeconds",
            format!("got {timeout}, expected less than intervalSeconds ({interval})"),
        );
    }
    let codes = read_status_codes(check);
    if codes.as_ref().is_some_and(Vec::is_empty) {
        check.invalid("httpStatusCodesForReady", "must not be empty");
    }
    json!({
        "name": text("name", "readinessCheck"),
        "protocol": check.choice("protocol", &[("HTTP", "HTTP"), ("HTTPS", "HTTPS")]).unwrap_or("HTTP"),
        "path": path,
        "portName": text("portName", "http-api"),
        "intervalSeconds": interval,
        "timeoutSeconds": timeout,
        "httpStatusCodesForReady": codes.unwrap_or_else(|| vec![200]),
        "preserveLastResponse": check.flag("preserveLastResponse").unwrap_or(false),
    })
}

/// The least and the greatest status code of HTTP.
const HTTP_STATUSES: (u32, u32) = (100, 599);

/// The status codes that mean ready, each once.
fn read_status_codes(check: &Object<'_>) -> Option<Vec<u32>> {
    let (min, max) = HTTP_STATUSES;
    let mut codes = Vec::new();
    for (value, path) in check.list("httpStatusCodesForReady")? {
        match crate::json_reader::whole_of(value, max, &path, check.findings()) {
            Some(code) if code < min => check.findings().malformed(path, "error.min"),
            Some(code) if !codes.contains(&code) => codes.push(code),
            Some(_) => {}
            // What is wrong with the list is said; that it is empty, too, would not help.
            None => return None,
        }
    }
    Some(codes)
}
