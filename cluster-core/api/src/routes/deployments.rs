//! `/v2/deployments` and `/v2/queue`, and the answer to writes that begin a deployment.

use axum::http::{Method, StatusCode};
use axum::response::Response;
use mesonet_marathon::{Command, MarathonView, Reply};
use mesonet_model::{AppId, DeploymentId, Revision, Timestamp};
use serde_json::{Value, json};

use crate::api::{Api, allow, allow_get};
use crate::call::Call;
use crate::failure::Failure;
use crate::output::{deployment, queue};
use crate::respond;

/// Answers what is below `/v2/deployments`.
pub(crate) async fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        [] => {
            allow_get(call)?;
            let state = api.state()?;
            let MarathonView { deployments, apps, .. } = &state.marathon;
            let all: Vec<Value> = deployments.values().map(|each| deployment::info(each, apps)).collect();
            Ok(respond::ok(&all))
        }
        [id] => {
            allow(call, &[Method::DELETE], "DELETE")?;
            cancel(api, call, DeploymentId::new(id)).await
        }
        _ => Err(Failure::UnknownUri),
    }
}

/// Answers what is below `/v2/queue`.
pub(crate) async fn route_queue(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        [] => {
            allow_get(call)?;
            let state = api.state()?;
            let offers = call.parameters("embed").any(|part| part.ends_with("lastUnusedOffers"));
            let (apps, time) = (&state.marathon.apps, api.now());
            let entries: Vec<Value> = apps
                .values()
                .filter_map(|each| Some(queue::entry(each, each.queue.as_ref()?, offers, time)))
                .collect();
            Ok(respond::ok(&json!({"queue": entries})))
        }
        [id @ .., "delay"] if !id.is_empty() => {
            allow(call, &[Method::DELETE], "DELETE")?;
            let path = format!("/{}", id.join("/"));
            let missing = || Failure::NotFound(format!("Application {path} not found in tasks queue."));
            let app = AppId::parse(&path).map_err(|_| missing())?;
            if !api.state()?.marathon.apps.contains_key(&app) {
                return Err(missing());
            }
            let answer = api.send(Command::ResetDelay { app }).await?;
            let mut response = respond::empty(StatusCode::NO_CONTENT);
            respond::set_revision(&mut response, answer.revision);
            Ok(response)
        }
        _ => Err(Failure::UnknownUri),
    }
}

/// Sends a command that begins a deployment and answers with it.
pub(crate) async fn begin(api: &Api, command: Command) -> Result<Response, Failure> {
    let answer = api.send(command).await?;
    match answer.reply {
        Reply::Deployment { id, version, .. } => Ok(begun(StatusCode::OK, &id, version, answer.revision)),
        Reply::Killed(_) | Reply::Done => {
            let mut response = respond::ok(&json!({}));
            respond::set_revision(&mut response, answer.revision);
            Ok(response)
        }
    }
}

/// The answer to a write that has begun a deployment.
pub(crate) fn begun(
    status: StatusCode,
    id: &DeploymentId,
    version: Timestamp,
    revision: Revision,
) -> Response {
    let mut response = respond::json(status, &json!({"version": version, "deploymentId": id}));
    respond::set(&mut response, respond::DEPLOYMENT_ID, id.as_str());
    respond::set_revision(&mut response, revision);
    response
}

async fn cancel(api: &Api, call: &Call, deployment: DeploymentId) -> Result<Response, Failure> {
    let force = call.flag("force", false)?;
    let command = Command::CancelDeployment { deployment, force };
    if !force {
        return begin(api, command).await;
    }
    let answer = api.send(command).await?;
    let mut response = respond::empty(StatusCode::ACCEPTED);
    respond::set_revision(&mut response, answer.revision);
    Ok(response)
}
