//! Tasks: listed and killed.

use clap::{Subcommand, builder::NonEmptyStringValueParser};
use mesonet_model::{AppId, Timestamp};
use serde_json::{Value, json};
use ureq::http::Method;

use super::answers::{Task, Tasks};
use super::error::CommandError;
use super::table::{Column, Table};
use super::task_log::{self, LogArguments};
use super::{Session, age};

/// `mesonet task …`
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks
    List {
        /// Only those of this app
        app: Option<AppId>,
    },
    /// Show what a task writes
    Log(LogArguments),
    /// Kill tasks; others are started in their place
    Kill {
        /// The tasks
        #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
        tasks: Vec<String>,
        /// Start none in their place: run as many instances less
        #[arg(long)]
        scale: bool,
    },
}

/// Carries out a command.
pub fn run(command: TaskCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        TaskCommand::List { app } => list(session, app.as_ref()),
        TaskCommand::Log(arguments) => task_log::run(session, &arguments),
        TaskCommand::Kill { tasks, scale } => kill(session, &tasks, scale),
    }
}

fn list(session: &Session, app: Option<&AppId>) -> Result<(), CommandError> {
    let path = app.map_or_else(|| "/v2/tasks".to_owned(), |app| format!("/v2/apps{app}/tasks"));
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(&path)?["tasks"]);
    }
    let Tasks { tasks } = session.client.get(&path)?;
    session.output.table(&table(&tasks, session.now))
}

fn kill(session: &Session, tasks: &[String], scale: bool) -> Result<(), CommandError> {
    let path = format!("/v2/tasks/delete?scale={scale}");
    let answer = session.send(Method::POST, &path, Some(&json!({ "ids": tasks })))?;
    let line = match tasks {
        [task] => format!("{task} is being killed"),
        tasks => format!("{} tasks are being killed", tasks.len()),
    };
    session.output.value_or_line(&answer, &line)
}

/// One row per task.
pub fn table(tasks: &[Task], now: Timestamp) -> Table<7> {
    let mut table = Table::new([
        Column::text("TASK", 80),
        Column::text("APP", 60),
        Column::text("STATE", 24),
        Column::text("HEALTH", 12),
        Column::text("HOST", 40),
        Column::text("PORTS", 36),
        Column::number("AGE"),
    ]);
    for task in tasks {
        table.row([
            task.id.clone(),
            task.app_id.to_string(),
            task.state.trim_start_matches("TASK_").to_ascii_lowercase(),
            task.health().to_owned(),
            task.host.clone(),
            task.ports(),
            task.started_at.map(|started| age(now, started)).unwrap_or_default(),
        ]);
    }
    table
}
