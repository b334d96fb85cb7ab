//! `/v2/info`, `/v2/leader` and `/v2/plugins`.

use axum::http::Method;
use axum::response::Response;
use serde_json::json;

use crate::api::{Api, allow_get};
use crate::call::Call;
use crate::failure::Failure;
use crate::respond;

/// The Marathon release whose API is spoken; clients choose forms by it.
const MARATHON_VERSION: &str = "1.11.24";

/// Answers the small resources of `/v2`.
pub(crate) fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        ["info"] => {
            allow_get(call)?;
            info(api)
        }
        ["leader"] => leader(api, call),
        ["plugins"] => {
            allow_get(call)?;
            Ok(respond::ok(&json!({"plugins": []})))
        }
        _ => Err(Failure::UnknownUri),
    }
}

/// Only keys that every client accepts; marathon-python fails on others.
fn info(api: &Api) -> Result<Response, Failure> {
    let state = api.state()?;
    let address = api.context.address;
    Ok(respond::ok(&json!({
        "name": "marathon",
        "version": MARATHON_VERSION,
        "buildref": concat!("mesonet-", env!("CARGO_PKG_VERSION")),
        "elected": true,
        "leader": address.to_string(),
        "frameworkId": state.marathon.framework,
        "marathon_config": {
            "checkpoint": true,
            "features": [],
            "framework_name": "marathon",
            "ha": api.context.masters.list().term.is_some(),
            "hostname": address.ip(),
            "master": format!("http://{address}/"),
            "mesos_leader_ui_url": format!("http://{address}/"),
            "webui_url": null,
        },
        "zookeeper_config": {},
        "http_config": {"http_port": address.port(), "https_port": null},
    })))
}

fn leader(api: &Api, call: &Call) -> Result<Response, Failure> {
    match call.method {
        Method::GET => {
            api.state()?;
            Ok(respond::ok(&json!({"leader": api.context.address.to_string()})))
        }
        Method::DELETE => {
            api.state()?;
            api.context.masters.abdicate();
            Ok(respond::ok(&json!({"message": "Leadership abdicated"})))
        }
        _ => Err(Failure::MethodNotAllowed("GET, HEAD, DELETE")),
    }
}
