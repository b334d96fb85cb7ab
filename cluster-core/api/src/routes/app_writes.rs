//! Creating and changing apps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use mesonet_marathon::{AppBase, AppPut, AppView, Command, MarathonView, Rejection, Reply};
use mesonet_model::{AppDefinition, AppId};
use serde_json::{Map, Value};

use crate::api::{Api, Post};
use crate::app_input::{INPUT_KEYS, read_app, read_id, unacted_fields};
use crate::call::Call;
use crate::context::{Answer, State};
use crate::failure::Failure;
use crate::json_reader::{Findings, Object};
use crate::output::app;
use crate::respond;
use crate::routes::{apps, deployments};

/// How often a change is made again because another one came between. Beyond that the client is told to try again.
const STALE_TRIES_MAX: usize = 5;

/// How long to wait for the state in which the other change is visible.
const NEWER_STATE_WAIT: Duration = Duration::from_secs(1);

/// How an update is meant.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Whether what is not given stays as it is.
    is_partial: bool,
    /// Whether an app that does not exist is created.
    may_create: bool,
}

/// A change, ready to be sent, and what to warn of.
#[derive(Debug, Default)]
struct Draft {
    apps: Vec<AppPut>,
    /// Where each app stands in the body.
    paths: BTreeMap<AppId, String>,
    unacted: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

/// A change that was made.
#[derive(Debug)]
struct Done {
    draft: Draft,
    answer: Answer,
}

/// `POST /v2/apps`
pub(crate) async fn create(api: &Api, call: &Call) -> Result<Response, Failure> {
    let body = call.json()?;
    let force = call.flag("force", false)?;
    let done = change(api, call, force, |_| draft_new(&body)).await?;
    let revision = done.answer.revision;
    let Reply::Deployment { id, apps, .. } = &done.answer.reply else { return answered(done, false) };
    let Some(stored) = apps.first() else { return answered(done, true) };
    let mut response = respond::json(StatusCode::CREATED, &app::created(stored, id.as_str()));
    respond::set(&mut response, header::LOCATION, stored.id.as_str());
    respond::set(&mut response, respond::DEPLOYMENT_ID, id.as_str());
    respond::set_revision(&mut response, revision);
    respond::set_warning(&mut response, &done.draft.unacted, &done.draft.unknown);
    Ok(response)
}

/// `PUT` and `PATCH /v2/apps/{id}`
pub(crate) async fn put_one(api: &Api, call: &Call, id: &AppId) -> Result<Response, Failure> {
    let body = call.json()?;
    let force = call.flag("force", false)?;
    let manner = manner(call)?;
    let done = change(api, call, force, |state| {
        let findings = Findings::default();
        let mut draft = Draft::default();
        draft.add(&state.marathon, &body, "", Some(id), manner, &findings)?;
        draft.checked(findings)
    })
    .await?;
    let is_new = done.draft.apps.iter().any(|put| put.base == AppBase::Absent);
    let mut response = answered(done, is_new)?;
    if is_new {
        respond::set(&mut response, header::LOCATION, id.as_str());
    }
    Ok(response)
}

/// `PUT` and `PATCH /v2/apps`
pub(crate) async fn put_list(api: &Api, call: &Call) -> Result<Response, Failure> {
    let body = call.json()?;
    let force = call.flag("force", false)?;
    let manner = manner(call)?;
    let Value::Array(elements) = &body else {
        let findings = Findings::default();
        findings.malformed("", "error.expected.jsarray");
        return Err(Failure::of(findings).unwrap_or(Failure::UnknownUri));
    };
    let done = change(api, call, force, |state| {
        let findings = Findings::default();
        let mut draft = Draft::default();
        for (index, element) in elements.iter().enumerate() {
            draft.add(&state.marathon, element, &format!("({index})"), None, manner, &findings)?;
        }
        draft.checked(findings)
    })
    .await?;
    answered(done, false)
}

/// Sends a change; makes it again from the newest state when another one came between.
async fn change(
    api: &Api,
    call: &Call,
    force: bool,
    make: impl Fn(&State) -> Result<Draft, Failure>,
) -> Result<Done, Failure> {
    for _ in 1..STALE_TRIES_MAX {
        let state = api.state()?;
        match send(api, call, make(&state)?, force).await {
            Err(Failure::Rejected(Rejection::Stale(_))) => wait_for_newer(api, &state).await,
            other => return other,
        }
    }
    send(api, call, make(&*api.state()?)?, force).await
}

async fn send(api: &Api, call: &Call, draft: Draft, force: bool) -> Result<Done, Failure> {
    let command = Command::Put { apps: draft.apps.clone(), force };
    let answer = api.send(command).await.map_err(|failure| draft.located(failure))?;
    if let Reply::Deployment { apps, .. } = &answer.reply {
        let (client, uri, apps) = (call.client_name(), call.path(), apps.clone());
        // Nobody may be listening.
        let _ = api.posts.send(Arc::new(Post { timestamp: api.now(), client, uri, apps }));
    }
    Ok(Done { draft, answer })
}

async fn wait_for_newer(api: &Api, seen: &State) {
    let mut states = api.context.state.clone();
    let seen = seen.marathon.revision;
    let newer = states.wait_for(|state| state.as_ref().is_some_and(|state| state.marathon.revision > seen));
    // When none comes the command is tried with what there is, a bounded number of times.
    let _ = tokio::time::timeout(NEWER_STATE_WAIT, newer).await;
}

fn answered(done: Done, is_new: bool) -> Result<Response, Failure> {
    let Done { draft, answer } = done;
    let Reply::Deployment { id, version, .. } = answer.reply else {
        return Err(Failure::Internal("Marathon names no deployment".to_owned()));
    };
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = deployments::begun(status, &id, version, answer.revision);
    respond::set_warning(&mut response, &draft.unacted, &draft.unknown);
    Ok(response)
}

fn manner(call: &Call) -> Result<Manner, Failure> {
    Ok(Manner { is_partial: call.flag("partialUpdate", true)?, may_create: call.method == Method::PUT })
}

fn draft_new(body: &Value) -> Result<Draft, Failure> {
    let findings = Findings::default();
    let mut draft = Draft::default();
    if let Some(definition) = read_app(body, "", None, &findings) {
        draft.push(definition, AppBase::Absent, body, "");
    }
    draft.checked(findings)
}

impl Draft {
    /// Adds an app as the body changes it. Faults go to `findings`.
    fn add(
        &mut self,
        marathon: &MarathonView,
        body: &Value,
        path: &str,
        id: Option<&AppId>,
        manner: Manner,
        findings: &Findings,
    ) -> Result<(), Failure> {
        let Value::Object(update) = body else {
            findings.malformed(path, "error.expected.jsobject");
            return Ok(());
        };
        let id = match id {
            Some(id) => Some(id.clone()),
            None => {
                let keys: Vec<&str> = update.keys().map(String::as_str).collect();
                Object::open(body, path, &keys, findings).and_then(|object| read_id(&object))
            }
        };
        let Some(id) = id else { return Ok(()) };
        if self.paths.contains_key(&id) {
            findings.invalid(format!("{path}/id"), format!("app {id} is given more than once"));
            return Ok(());
        }
        let current = marathon.apps.get(&id);
        if current.is_none() && !manner.may_create {
            return Err(Failure::no_app(id.as_str()));
        }
        if manner.is_partial && update.get("version").is_some_and(|version| !version.is_null()) {
            return self.add_rollback(current, update, path, &id, findings);
        }
        let merged = match current {
            Some(current) if manner.is_partial => Value::Object(merged(&current.definition, update)),
            _ => body.clone(),
        };
        let base = current.map_or(AppBase::Absent, |app| AppBase::Version(app.definition.version));
        // Each app is read with findings of its own, so that one app's faults do not hide another one.
        let own = Findings::default();
        if let Some(definition) = read_app(&merged, path, Some(&id), &own) {
            self.push(definition, base, body, path);
        }
        findings.absorb(own);
        Ok(())
    }

    /// Adds an old version of an app.
    fn add_rollback(
        &mut self,
        current: Option<&Arc<AppView>>,
        update: &Map<String, Value>,
        path: &str,
        id: &AppId,
        findings: &Findings,
    ) -> Result<(), Failure> {
        let is_other =
            |(key, value): (&String, &Value)| !matches!(key.as_str(), "id" | "version") && !value.is_null();
        if update.iter().any(is_other) {
            let text = "The 'version' field may only be combined with the 'id' field.";
            findings.invalid(format!("{path}/version"), text);
            return Ok(());
        }
        let Some(version) = update.get("version").and_then(Value::as_str) else {
            findings.malformed(format!("{path}/version"), "error.expected.jsstring");
            return Ok(());
        };
        let current = current.ok_or_else(|| Failure::no_app(id.as_str()))?;
        let definition = AppDefinition::clone(&*apps::at_version(current, version)?);
        self.put(definition, AppBase::Version(current.definition.version), path);
        Ok(())
    }

    fn push(&mut self, definition: AppDefinition, base: AppBase, body: &Value, path: &str) {
        if let Value::Object(body) = body {
            self.unacted.extend(unacted_fields(&definition, body));
        }
        self.put(definition, base, path);
    }

    fn put(&mut self, definition: AppDefinition, base: AppBase, path: &str) {
        self.paths.insert(definition.id.clone(), path.to_owned());
        self.apps.push(AppPut { definition, base });
    }

    /// Says of a refusal that is about one app's id where that stands.
    fn located(&self, failure: Failure) -> Failure {
        let Failure::Rejected(Rejection::PlaceTaken(id)) = &failure else { return failure };
        let path = self.paths.get(id).map_or("", String::as_str);
        Failure::Invalid(BTreeMap::from([(format!("{path}/id"), vec![failure.to_string()])]))
    }

    /// The draft, unless there are faults.
    fn checked(mut self, findings: Findings) -> Result<Self, Failure> {
        self.unknown = findings.unknown_keys();
        match Failure::of(findings) {
            Some(failure) => Err(failure),
            None => Ok(self),
        }
    }
}

/// The current definition with what the update gives in its place. What says the same in another form goes.
fn merged(current: &AppDefinition, update: &Map<String, Value>) -> Map<String, Value> {
    let mut merged = app::definition(current);
    merged.retain(|key, _| INPUT_KEYS.contains(&key.as_str()));
    let given = |key: &str| update.get(key).filter(|value| !value.is_null());
    for (new, superseded) in [
        ("cmd", &["args"][..]),
        ("args", &["cmd"]),
        ("ports", &["portDefinitions"]),
        ("uris", &["fetch"]),
        ("ipAddress", &["networks", "portDefinitions"]),
    ] {
        if given(new).is_some() {
            for key in superseded {
                merged.remove(*key);
            }
        }
    }
    let old_network = given("container").and_then(|container| container.pointer("/docker/network"));
    if old_network.is_some_and(|network| !network.is_null()) {
        merged.remove("networks");
        merged.remove("portDefinitions");
    }
    let mode = given("networks").and_then(|networks| networks.pointer("/0/mode")).and_then(Value::as_str);
    match (given("networks"), mode) {
        (Some(_), Some("host")) => {
            if let Some(Value::Object(container)) = merged.get_mut("container") {
                container.remove("portMappings");
            }
        }
        (Some(_), _) => {
            merged.remove("portDefinitions");
        }
        (None, _) => {}
    }
    for (key, value) in update.iter().filter(|(_, value)| !value.is_null()) {
        merged.insert(key.clone(), value.clone());
    }
    merged
}
