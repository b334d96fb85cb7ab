//! `/v2/groups`: the tree of the apps' paths, to be read.

use axum::http::Method;
use axum::response::Response;
use serde_json::json;

use crate::api::{Api, allow_get};
use crate::call::Call;
use crate::embed::GroupEmbed;
use crate::failure::Failure;
use crate::output::{app, group};
use crate::respond;

/// Answers what is below `/v2/groups`.
pub(crate) fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    if matches!(call.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(Failure::NotImplemented(
            "Groups follow from the ids of apps and cannot be changed: create, change or delete their apps instead",
        ));
    }
    allow_get(call)?;
    let embed = GroupEmbed::of(call);
    let state = api.state()?;
    let find = |path: &[&str]| {
        let path = format!("/{}", path.join("/"));
        let found = group::tree(&state.marathon, &path, embed);
        found.ok_or_else(|| Failure::NotFound(format!("Group '{path}' does not exist")))
    };
    match path {
        [path @ .., "versions"] => {
            let found = find(path)?;
            Ok(respond::ok(&json!([found["version"]])))
        }
        [path @ .., "apps"] => {
            find(path)?;
            let prefix = format!("/{}", path.join("/"));
            let is_inside = |id: &str| {
                id.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
            };
            let apps = state.marathon.apps.iter().filter(|(id, _)| is_inside(id.as_str()));
            let apps: Vec<_> = apps.map(|(_, each)| app::info(each, embed.app)).collect();
            Ok(respond::ok(&json!({"apps": apps})))
        }
        path => Ok(respond::ok(&find(path)?)),
    }
}
