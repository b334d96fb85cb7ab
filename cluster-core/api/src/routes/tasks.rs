//! `/v2/tasks` and the tasks of an app: listing and killing.

use std::sync::Arc;

use axum::http::Method;
use axum::response::Response;
use mesonet_marathon::{AppView, Command, InstanceView, Rejection, Reply};
use mesonet_model::{AppId, TaskId, TaskState};
use serde_json::{Value, json};

use crate::api::{Api, allow, allow_get};
use crate::call::Call;
use crate::failure::Failure;
use crate::json_reader::{Findings, Object};
use crate::output::task;
use crate::respond;
use crate::routes::{apps, deployments};

/// How many tasks are named in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// `{"tasks": […]}`
    Many,
    /// `{"task": {…}}`
    One,
}

/// How a kill is meant.
#[derive(Debug, Clone, Copy)]
struct Manner {
    scale: bool,
    force: bool,
}

/// Answers what is below `/v2/tasks`.
pub(crate) async fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        [] => {
            allow_get(call)?;
            list(api, call)
        }
        ["delete"] => {
            allow(call, &[Method::POST], "POST")?;
            kill_given(api, call).await
        }
        _ => Err(Failure::UnknownUri),
    }
}

/// Lists or kills an app's tasks.
pub(crate) async fn of_app(api: &Api, call: &Call, id: &AppId) -> Result<Response, Failure> {
    let state = api.state()?;
    let app = apps::find(&state.marathon, id);
    match call.method {
        Method::GET => {
            let app = app?;
            if wants_text(call) {
                return Ok(text_answer(std::iter::once(&**app)));
            }
            Ok(respond::ok(&json!({"tasks": printed(app.instances.values())})))
        }
        Method::DELETE => {
            let manner = manner(call)?;
            let host = call.parameter("host").filter(|host| *host != "*");
            let chosen = app?.instances.values().filter(|each| host.is_none_or(|host| each.host == host));
            let tasks: Vec<TaskId> = chosen.map(|each| each.task.clone()).collect();
            kill(api, tasks, manner, Naming::Many).await
        }
        _ => Err(Failure::MethodNotAllowed("GET, HEAD, DELETE")),
    }
}

/// Kills one task of an app.
pub(crate) async fn kill_one(api: &Api, call: &Call, id: &AppId, task: &str) -> Result<Response, Failure> {
    let manner = manner(call)?;
    let state = api.state()?;
    let task = TaskId::new(task);
    if !apps::find(&state.marathon, id)?.instances.contains_key(&task) {
        return Err(Rejection::UnknownTask(task).into());
    }
    kill(api, vec![task], manner, Naming::One).await
}

fn list(api: &Api, call: &Call) -> Result<Response, Failure> {
    let state = api.state()?;
    let all = state.marathon.apps.values();
    if wants_text(call) {
        return Ok(text_answer(all.map(|app| &**app)));
    }
    let wanted: Vec<&str> = call.parameters("status").collect();
    let is_wanted = |instance: &&Arc<InstanceView>| {
        wanted.is_empty()
            || match instance.state {
                TaskState::Running => wanted.contains(&"running"),
                TaskState::Staging | TaskState::Starting => wanted.contains(&"staging"),
                TaskState::Killing
                | TaskState::Finished
                | TaskState::Failed
                | TaskState::Killed
                | TaskState::Error
                | TaskState::Lost
                | TaskState::Dropped
                | TaskState::Unreachable
                | TaskState::Gone
                | TaskState::GoneByOperator
                | TaskState::Unknown => false,
            }
    };
    let instances = all.flat_map(|app| app.instances.values()).filter(is_wanted);
    Ok(respond::ok(&json!({"tasks": printed(instances)})))
}

/// Kills the tasks that the body names; those that have ended meanwhile are passed over, as in Marathon.
async fn kill_given(api: &Api, call: &Call) -> Result<Response, Failure> {
    let manner = manner(call)?;
    let body = call.json()?;
    let findings = Findings::default();
    let ids = Object::open(&body, "", &["ids"], &findings).and_then(|object| {
        object.require("ids");
        object.texts("ids")
    });
    if let Some(failure) = Failure::of(findings) {
        return Err(failure);
    }
    let ids = ids.unwrap_or_default();
    if let Some(id) = ids.iter().find(|id| !is_task_id(id)) {
        return Err(Failure::BadRequest(format!(
            "Invalid task id '{id}'. [expected APP.instance-UUID._app.ATTEMPT]"
        )));
    }
    kill(api, ids.iter().map(TaskId::new).collect(), manner, Naming::Many).await
}

async fn kill(api: &Api, tasks: Vec<TaskId>, manner: Manner, naming: Naming) -> Result<Response, Failure> {
    if tasks.is_empty() {
        return Ok(respond::ok(&json!({"tasks": []})));
    }
    let Manner { scale, force } = manner;
    let answer = match api.send(Command::KillTasks { tasks, scale, force }).await {
        // All of them have ended meanwhile.
        Err(Failure::Rejected(Rejection::UnknownTask(_))) if naming == Naming::Many => {
            return Ok(respond::ok(&json!({"tasks": []})));
        }
        other => other?,
    };
    let mut response = match (answer.reply, naming) {
        (Reply::Deployment { id, version, .. }, _) => {
            deployments::begun(axum::http::StatusCode::OK, &id, version, answer.revision)
        }
        (Reply::Killed(killed), Naming::One) => {
            respond::ok(&json!({"task": killed.first().map(|each| task::info(each))}))
        }
        (Reply::Killed(killed), Naming::Many) => respond::ok(&json!({"tasks": printed(killed.iter())})),
        (Reply::Done, _) => respond::ok(&json!({"tasks": []})),
    };
    respond::set_revision(&mut response, answer.revision);
    Ok(response)
}

fn manner(call: &Call) -> Result<Manner, Failure> {
    let scale = call.flag("scale", false)?;
    if scale && call.flag("wipe", false)? {
        return Err(Failure::BadRequest("You cannot use scale and wipe at the same time.".to_owned()));
    }
    Ok(Manner { scale, force: call.flag("force", false)? })
}

fn printed<'view>(instances: impl Iterator<Item = &'view Arc<InstanceView>>) -> Vec<Value> {
    instances.map(|each| task::info(each)).collect()
}

fn wants_text(call: &Call) -> bool {
    call.accepts("text/plain") && !call.accepts("application/json")
}

fn text_answer<'view>(apps: impl Iterator<Item = &'view AppView>) -> Response {
    respond::text("text/plain; charset=utf-8", task::endpoints_text(apps))
}

/// Whether the text begins with an app's name, as task ids do.
fn is_task_id(text: &str) -> bool {
    let name = text.rsplit_once(".instance-").or_else(|| text.rsplit_once('.')).map(|(name, _)| name);
    name.is_some_and(|name| AppId::parse(&name.replace('_', "/")).is_ok())
}
