//! Nodes: what runs tasks.

use std::collections::BTreeMap;

use clap::Subcommand;
use mesonet_model::{Agent, AgentId, AgentState, ClusterView, Scalar, Task};
use serde_json::Value;

use super::Session;
use super::error::CommandError;
use super::table::{Column, Table};

/// `mesonet node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes that run tasks
    List,
}

/// Carries out a command.
pub fn run(command: &NodeCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        NodeCommand::List => list(session),
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v1/view")?["agents"]);
    }
    let view: ClusterView = session.client.get("/v1/view")?;
    session.output.table(&table(&view, session))
}

fn table(view: &ClusterView, session: &Session) -> Table<8> {
    let mut tasks: BTreeMap<&AgentId, Vec<&Task>> = BTreeMap::new();
    for task in view.tasks.values() {
        tasks.entry(&task.agent).or_default().push(task);
    }
    let mut table = Table::new([
        Column::text("NODE", 60),
        Column::text("HOST", 40),
        Column::text("ADDRESS", 40),
        Column::text("STATE", 24),
        Column::number("CPUS"),
        Column::number("MEM"),
        Column::number("TASKS"),
        Column::number("AGE"),
    ]);
    for agent in view.agents.values() {
        let tasks = tasks.remove(&agent.id).unwrap_or_default();
        let all = &agent.info.resources;
        table.row([
            agent.id.to_string(),
            agent.info.hostname.clone(),
            agent.info.address.to_string(),
            state(agent),
            share(tasks.iter().map(|task| task.resources.cpus).sum(), all.cpus),
            share(tasks.iter().map(|task| task.resources.mem).sum(), all.mem),
            tasks.len().to_string(),
            session.age(Some(agent.registered_at)),
        ]);
    }
    table
}

/// Whether it answers, and whether it is to be empty. What is left on one that drains is in the column of tasks.
fn state(agent: &Agent) -> String {
    match (agent.state, agent.draining) {
        (state, false) => state.as_str().to_owned(),
        (AgentState::Active, true) => "draining".to_owned(),
        (state, true) => format!("{}, draining", state.as_str()),
    }
}

/// What is in use of what there is.
fn share(used: Scalar, all: Scalar) -> String {
    format!("{}/{}", used.as_f64(), all.as_f64())
}
