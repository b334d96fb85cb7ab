//! `/v2/apps`: reading, and the paths below an app.

use std::sync::Arc;

use axum::http::Method;
use axum::response::Response;
use mesonet_marathon::{AppView, Command, MarathonView};
use mesonet_model::{AppDefinition, AppId, Timestamp, TimestampError};
use serde_json::{Value, json};

use crate::api::{Api, allow, allow_get};
use crate::call::Call;
use crate::embed::AppEmbed;
use crate::failure::Failure;
use crate::label_selector::LabelSelector;
use crate::output::app;
use crate::respond;
use crate::routes::{app_writes, deployments, tasks};

/// Answers what is below `/v2/apps`. App ids contain slashes, so what they mean is told by their end.
pub(crate) async fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        [] => collection(api, call).await,
        ["*"] => below(api, call, ""),
        [group @ .., "*"] => below(api, call, &group.join("/")),
        [id @ .., "restart"] if !id.is_empty() => {
            allow(call, &[Method::POST], "POST")?;
            restart(api, call, &parse_id(id)?).await
        }
        [id @ .., "tasks"] if !id.is_empty() => tasks::of_app(api, call, &parse_id(id)?).await,
        [id @ .., "tasks", task] if !id.is_empty() => {
            allow(call, &[Method::DELETE], "DELETE")?;
            tasks::kill_one(api, call, &parse_id(id)?, task).await
        }
        [id @ .., "versions"] if !id.is_empty() => versions(api, call, &parse_id(id)?),
        [id @ .., "versions", version] if !id.is_empty() => one_version(api, call, &parse_id(id)?, version),
        id => single(api, call, &parse_id(id)?).await,
    }
}

/// The app, or Marathon's 404.
pub(crate) fn find<'view>(marathon: &'view MarathonView, id: &AppId) -> Result<&'view Arc<AppView>, Failure> {
    marathon.apps.get(id).ok_or_else(|| Failure::no_app(id.as_str()))
}

fn parse_id(path: &[&str]) -> Result<AppId, Failure> {
    let text = format!("/{}", path.join("/"));
    AppId::parse(&text).map_err(|_| Failure::no_app(&text))
}

async fn collection(api: &Api, call: &Call) -> Result<Response, Failure> {
    match call.method {
        Method::GET => list(api, call),
        Method::POST => app_writes::create(api, call).await,
        Method::PUT | Method::PATCH => app_writes::put_list(api, call).await,
        _ => Err(Failure::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH")),
    }
}

async fn single(api: &Api, call: &Call, id: &AppId) -> Result<Response, Failure> {
    match call.method {
        Method::GET => {
            let state = api.state()?;
            let found = find(&state.marathon, id)?;
            Ok(respond::ok(&json!({"app": app::info(found, AppEmbed::for_one(call))})))
        }
        Method::PUT | Method::PATCH => app_writes::put_one(api, call, id).await,
        Method::DELETE => {
            let force = call.flag("force", true)?;
            deployments::begin(api, Command::Delete { app: id.clone(), force }).await
        }
        _ => Err(Failure::MethodNotAllowed("GET, HEAD, PUT, PATCH, DELETE")),
    }
}

fn list(api: &Api, call: &Call) -> Result<Response, Failure> {
    let state = api.state()?;
    let embed = AppEmbed::for_list(call);
    let selector = LabelSelector::parse(call.parameter("label").unwrap_or_default())
        .map_err(|error| Failure::BadRequest(error.to_string()))?;
    let wanted = |name: &str| call.parameter(name).filter(|text| !text.is_empty()).map(str::to_lowercase);
    let (id, cmd) = (wanted("id"), wanted("cmd"));
    let matches = |each: &AppView| {
        let definition = &each.definition;
        let text = definition.cmd.as_deref().unwrap_or_default().to_lowercase();
        id.as_ref().is_none_or(|part| definition.id.as_str().contains(part))
            && cmd.as_ref().is_none_or(|part| text.contains(part))
            && selector.matches(&definition.labels)
    };
    let apps: Vec<Value> = state
        .marathon
        .apps
        .values()
        .filter(|each| matches(each))
        .map(|each| app::info(each, embed))
        .collect();
    Ok(respond::ok(&json!({"apps": apps})))
}

/// All apps of a group, at any depth.
fn below(api: &Api, call: &Call, group: &str) -> Result<Response, Failure> {
    allow_get(call)?;
    let state = api.state()?;
    let prefix = if group.is_empty() { "/".to_owned() } else { format!("/{group}/") };
    let embed = AppEmbed::for_list(call);
    let apps = state.marathon.apps.iter().filter(|(id, _)| id.as_str().starts_with(&prefix));
    let apps: Vec<Value> = apps.map(|(_, each)| app::info(each, embed)).collect();
    Ok(respond::ok(&json!({"*": apps})))
}

async fn restart(api: &Api, call: &Call, id: &AppId) -> Result<Response, Failure> {
    let force = call.flag("force", false)?;
    deployments::begin(api, Command::Restart { app: id.clone(), force }).await
}

fn versions(api: &Api, call: &Call, id: &AppId) -> Result<Response, Failure> {
    allow_get(call)?;
    let state = api.state()?;
    let versions: Vec<Timestamp> =
        find(&state.marathon, id)?.versions.iter().map(|version| version.version).collect();
    Ok(respond::ok(&json!({"versions": versions})))
}

fn one_version(api: &Api, call: &Call, id: &AppId, version: &str) -> Result<Response, Failure> {
    allow_get(call)?;
    let state = api.state()?;
    let found = find(&state.marathon, id)?;
    let definition = at_version(found, version)?;
    Ok(respond::ok(&app::definition(&definition)))
}

/// A version of an app that is kept.
pub(crate) fn at_version(found: &AppView, version: &str) -> Result<Arc<AppDefinition>, Failure> {
    let time: Timestamp =
        version.parse().map_err(|error: TimestampError| Failure::BadRequest(error.to_string()))?;
    let definition = found.versions.iter().find(|definition| definition.version == time);
    definition.cloned().ok_or_else(|| {
        Failure::NotFound(format!("App '{}' does not exist in version {time}", found.definition.id))
    })
}
