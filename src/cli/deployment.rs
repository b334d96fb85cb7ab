//! Deployments: listed, and waited for.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use mesonet_model::{AppId, Timestamp};
use serde_json::Value;

use super::Session;
use super::answers::{App, Deployment, KnownNetworks, OneApp, Queue};
use super::duration;
use super::error::CommandError;
use super::output::Progress;
use super::table::{Column, Table};

/// How often the API is asked how far a deployment is: often enough that nobody notices the wait.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// `mesonet deployment …`
#[derive(Debug, Subcommand)]
pub enum DeploymentCommand {
    /// List the changes under way
    List,
}

/// Whether and how long to wait for a change.
#[derive(Debug, Clone, Args)]
pub struct WaitArguments {
    /// Wait until the change is carried out (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as the change is accepted
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5m")]
    timeout: Duration,
}

impl WaitArguments {
    /// Whether to wait.
    pub fn is_on(&self) -> bool {
        self.wait || !self.no_wait
    }
}

/// What is to be true of an app once its deployment is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// All instances of this version run.
    Runs(Timestamp),
    /// It is gone.
    IsGone,
}

/// Lists deployments.
pub fn run(command: &DeploymentCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        DeploymentCommand::List => list(session),
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v2/deployments")?);
    }
    let mut table = Table::new([
        Column::text("ID", 40),
        Column::text("APPS", 60),
        Column::text("STEP", 12),
        Column::text("ACTION", 40),
        Column::number("AGE"),
    ]);
    for deployment in session.client.get::<Vec<Deployment>>("/v2/deployments")? {
        table.row([
            deployment.id.clone(),
            deployment.affected_apps.iter().map(AppId::as_str).collect::<Vec<_>>().join(","),
            format!("{} of {}", deployment.current_step, deployment.total_steps),
            deployment.actions(),
            session.age(Some(deployment.version)),
        ]);
    }
    session.output.table(&table)
}

/// Waits until a deployment has led to its goal, unless that is not wanted. Returns the app as it is then, if it is
/// there and was waited for.
pub fn wait(
    session: &Session,
    arguments: &WaitArguments,
    deployment: &str,
    app: &AppId,
    goal: Goal,
) -> Result<Option<App>, CommandError> {
    if !arguments.is_on() {
        return Ok(None);
    }
    let deadline = Instant::now() + arguments.timeout;
    let mut progress = Progress::new();
    loop {
        let deployments: Vec<Deployment> = session.client.get("/v2/deployments")?;
        // Asked for after the deployment, so that the app is not older than the deployment's end.
        let state = current(session, app)?;
        let Some(running) = deployments.iter().find(|candidate| candidate.id == deployment) else {
            return outcome(app, goal, state).map_err(CommandError::Failed);
        };
        progress.show(&running.progress(app, state.as_ref()));
        if Instant::now() >= deadline {
            drop(progress);
            let waited = duration::short(arguments.timeout);
            let why = obstacles(session, app, state.as_ref())?;
            return Err(CommandError::Failed(format!(
                "the deployment of {app} is not done after {waited}; it goes on{why}"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn current(session: &Session, app: &AppId) -> Result<Option<App>, CommandError> {
    match session.client.get::<OneApp>(&format!("/v2/apps{app}")) {
        Ok(OneApp { app }) => Ok(Some(app)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the goal is reached now that the deployment is gone: it may also have been cancelled or overtaken.
fn outcome(id: &AppId, goal: Goal, state: Option<App>) -> Result<Option<App>, String> {
    match (goal, state) {
        (Goal::IsGone, None) => Ok(None),
        (Goal::IsGone, Some(_)) => Err(format!("{id} was not removed: its deployment was cancelled")),
        (Goal::Runs(_), None) => Err(format!("{id} was removed before its deployment was done")),
        (Goal::Runs(version), Some(app)) if app.version != version => Err(format!(
            "the deployment of {id} was cancelled or overtaken by another change (version {})",
            app.version
        )),
        (Goal::Runs(_), Some(app)) if app.tasks_running < app.instances => {
            let why = app.last_task_failure.as_ref().map(|failure| format!("; {}", failure.text()));
            let (running, instances, why) = (app.tasks_running, app.instances, why.unwrap_or_default());
            Err(format!("the deployment of {id} ended with {running} of {instances} instances running{why}"))
        }
        (Goal::Runs(_), Some(app)) => Ok(Some(app)),
    }
}

/// What keeps an app from being deployed, as far as the API knows, as the end of a sentence.
fn obstacles(session: &Session, id: &AppId, app: Option<&App>) -> Result<String, CommandError> {
    let mut lines = Vec::new();
    if let Some(app) = app {
        lines.push(format!("{} of {} instances run", app.tasks_running, app.instances));
        if let Some(failure) = &app.last_task_failure {
            lines.push(format!("the last failure was {}", failure.text()));
        }
    }
    lines.extend(waits_for(session, id)?);
    Ok(lines.iter().map(|line| format!("\n  {line}")).collect())
}

/// What an app waits for, a line each.
pub fn waits_for(session: &Session, id: &AppId) -> Result<Vec<String>, CommandError> {
    let Queue { queue } = session.client.get("/v2/queue")?;
    let mut lines = Vec::new();
    for item in queue.iter().filter(|item| item.app.id == *id) {
        lines.extend(item.obstacles());
        if item.networks().next().is_some()
            // The rest is worth something without it.
            && let Ok(known) = session.client.get::<KnownNetworks>("/v1/networks")
        {
            lines.extend(item.unknown_networks(&known));
        }
    }
    Ok(lines)
}

impl Deployment {
    fn actions(&self) -> String {
        let actions = self.current_actions.iter().map(|action| action.action.as_str());
        actions.collect::<Vec<_>>().join(",")
    }

    fn progress(&self, id: &AppId, app: Option<&App>) -> String {
        let instances = app.map_or_else(String::new, |app| {
            format!(", {} of {} instances run", app.tasks_running, app.instances)
        });
        let (step, steps) = (self.current_step, self.total_steps);
        format!("{id}: {}, step {step} of {steps}{instances}", self.actions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const VERSION: &str = "2026-01-31T12:00:00.000Z";

    fn app(running: u32) -> App {
        serde_json::from_value(json!({
            "id": "/web", "version": VERSION, "instances": 2, "cpus": 1, "mem": 128, "disk": 0,
            "tasksRunning": running
        }))
        .expect("app")
    }

    fn judge(goal: Goal, state: Option<App>) -> Result<bool, String> {
        outcome(&AppId::parse("/web").expect("id"), goal, state).map(|app| app.is_some())
    }

    #[test]
    fn a_deployment_that_ended_is_judged_by_the_app() {
        let version = VERSION.parse().expect("version");
        assert_eq!(judge(Goal::Runs(version), Some(app(2))), Ok(true));
        assert_eq!(judge(Goal::IsGone, None), Ok(false));
        for (goal, state, expected) in [
            (Goal::Runs(version), Some(app(1)), "1 of 2 instances"),
            (Goal::Runs(Timestamp::from_millis(0)), Some(app(2)), "overtaken"),
            (Goal::Runs(version), None, "removed before"),
            (Goal::IsGone, Some(app(2)), "not removed"),
        ] {
            let message = judge(goal, state).expect_err(expected);
            assert!(message.contains(expected), "{message}");
        }
    }
}
