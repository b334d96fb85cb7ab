//! Apps: added, shown, changed and removed.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mesonet_model::{AppId, Timestamp};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::Session;
use super::answers::{App, Apps, OneApp};
use super::app_table;
use super::app_update::Change;
use super::deployment::{self, Goal, WaitArguments};
use super::error::CommandError;

/// `mesonet app …`
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Start an app, or several
    Add {
        /// JSON file with an app or a list of apps; - for standard input
        file: PathBuf,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// List apps
    List,
    /// Show an app and its tasks
    Show {
        /// The app, such as /web
        id: AppId,
    },
    /// Change an app
    Update {
        /// The app, such as /web
        id: AppId,
        /// FIELD=VALUE or FIELD.ENTRY=VALUE in the API's names, or a JSON file with a partial app (- for standard input)
        #[arg(required = true, value_name = "KEY=VALUE|FILE")]
        changes: Vec<Change>,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Set the number of instances
    Scale {
        /// The app, such as /web
        id: AppId,
        /// How many instances to run; 0 suspends the app
        instances: u32,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Replace every instance, following the app's upgrade strategy
    Restart {
        /// The app, such as /web
        id: AppId,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Stop an app and forget it
    Remove {
        /// The app, such as /web
        id: AppId,
        #[command(flatten)]
        write: WriteArguments,
    },
}

/// How a change is made.
#[derive(Debug, Clone, Args)]
pub struct WriteArguments {
    /// Cancel deployments of the app that are under way
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArguments,
}

/// Carries out a command.
pub fn run(command: AppCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        AppCommand::Add { file, wait } => add(session, &file, &wait),
        AppCommand::List => list(session),
        AppCommand::Show { id } => show(session, &id),
        AppCommand::Update { id, changes, write } => update(session, &id, &changes, &write),
        AppCommand::Scale { id, instances, write } => {
            let body = json!({ "instances": instances });
            change(session, Method::PUT, &format!("/v2/apps{id}"), Some(&body), &id, &write)
        }
        AppCommand::Restart { id, write } => {
            change(session, Method::POST, &format!("/v2/apps{id}/restart"), None, &id, &write)
        }
        AppCommand::Remove { id, write } => remove(session, &id, &write),
    }
}

fn add(session: &Session, file: &Path, wait: &WaitArguments) -> Result<(), CommandError> {
    let answer = match read_json(file)? {
        Value::Array(apps) => {
            let answers: Result<Vec<Value>, _> = apps.iter().map(|app| add_one(session, app, wait)).collect();
            Value::Array(answers?)
        }
        app => add_one(session, &app, wait)?,
    };
    if session.output.is_json() { session.output.value(&answer) } else { Ok(()) }
}

/// Adds an app, says so to people, and returns the API's answer.
fn add_one(session: &Session, app: &Value, wait: &WaitArguments) -> Result<Value, CommandError> {
    let answer = session.send(Method::POST, "/v2/apps", Some(app))?;
    let Added { id, version, deployments } = Added::read(&answer)?;
    let mut running = None;
    for deployment in deployments {
        running = deployment::wait(session, wait, &deployment, &id, Goal::Runs(version))?;
    }
    if !session.output.is_json() {
        let state = running.map_or_else(|| "is accepted".to_owned(), |app| running_text(&app));
        session.output.line(&format!("{id} {state}"))?;
    }
    Ok(answer)
}

/// What the command needs of the answer to a new app.
struct Added {
    id: AppId,
    version: Timestamp,
    deployments: Vec<String>,
}

impl Added {
    fn read(answer: &Value) -> Result<Self, CommandError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let deployments = answer["deployments"].as_array().into_iter().flatten();
        let read = || {
            Some(Self {
                id: answer["id"].as_str()?.parse().ok()?,
                version: answer["version"].as_str()?.parse().ok()?,
                deployments: deployments.filter_map(|deployment| text(&deployment["id"])).collect(),
            })
        };
        read().ok_or_else(|| not_understood(answer))
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v2/apps")?["apps"]);
    }
    let Apps { apps } = session.client.get("/v2/apps")?;
    session.output.table(&app_table::list(&apps))
}

fn show(session: &Session, id: &AppId) -> Result<(), CommandError> {
    let path = format!("/v2/apps{id}");
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(&path)?["app"]);
    }
    let OneApp { app } = session.client.get(&path)?;
    let obstacles = deployment::waits_for(session, id)?;
    session.output.bytes(app_table::details(&app, &obstacles, session.now).as_bytes())
}

fn update(
    session: &Session,
    id: &AppId,
    changes: &[Change],
    write: &WriteArguments,
) -> Result<(), CommandError> {
    let path = format!("/v2/apps{id}");
    // PATCH semantics even on PUT would create an unknown app; asking first says that it is unknown.
    let current = session.client.get::<Value>(&path)?;
    let mut partial = Map::new();
    for change in changes {
        match change {
            Change::Set(assignment) => assignment.apply(&current["app"], &mut partial),
            Change::File(file) => partial.extend(read_object(file)?),
        }
    }
    change(session, Method::PATCH, &path, Some(&Value::Object(partial)), id, write)
}

fn remove(session: &Session, id: &AppId, write: &WriteArguments) -> Result<(), CommandError> {
    let path = format!("/v2/apps{id}?force={}", write.force);
    let answer = session.send(Method::DELETE, &path, None)?;
    let (deployment, _) = deployment_of(&answer)?;
    deployment::wait(session, &write.wait, &deployment, id, Goal::IsGone)?;
    let state = if write.wait.is_on() { "is removed" } else { "is being removed" };
    session.output.value_or_line(&answer, &format!("{id} {state}"))
}

/// Sends a change of an existing app and waits for its deployment.
fn change(
    session: &Session,
    method: Method,
    path: &str,
    body: Option<&Value>,
    id: &AppId,
    write: &WriteArguments,
) -> Result<(), CommandError> {
    let answer = session.send(method, &format!("{path}?force={}", write.force), body)?;
    let (deployment, version) = deployment_of(&answer)?;
    let app = deployment::wait(session, &write.wait, &deployment, id, Goal::Runs(version))?;
    let state = app.map_or_else(|| "is being changed".to_owned(), |app| running_text(&app));
    session.output.value_or_line(&answer, &format!("{id} {state}"))
}

fn running_text(app: &App) -> String {
    match app.instances {
        0 => "is suspended".to_owned(),
        1 => "runs 1 instance".to_owned(),
        instances => format!("runs {instances} instances"),
    }
}

fn deployment_of(answer: &Value) -> Result<(String, Timestamp), CommandError> {
    let id = answer["deploymentId"].as_str().map(str::to_owned);
    let version = answer["version"].as_str().and_then(|version| version.parse().ok());
    id.zip(version).ok_or_else(|| not_understood(answer))
}

fn not_understood(answer: &Value) -> CommandError {
    CommandError::Failed(format!("the API accepted the change, but its answer is not understood: {answer}"))
}

fn read_object(path: &Path) -> Result<Map<String, Value>, CommandError> {
    match read_json(path)? {
        Value::Object(object) => Ok(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(
            CommandError::Usage(format!("{} has no JSON object with the fields to change", path.display())),
        ),
    }
}

fn read_json(path: &Path) -> Result<Value, CommandError> {
    let read = match path.to_str() {
        Some("-") => {
            let mut text = Vec::new();
            std::io::stdin().lock().read_to_end(&mut text).map(|_| text)
        }
        _ => std::fs::read(path),
    };
    let text = read.map_err(|source| CommandError::ReadFile { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| CommandError::ParseFile { path: path.to_owned(), source })
}
