//! The overlay: tunnels between nodes.

use std::collections::BTreeMap;

use clap::Subcommand;
use mesonet_model::{Agent, AgentId, ClusterView, Plane, Subnet};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use super::error::CommandError;
use super::table::{Column, Table};

/// `mesonet overlay …`
#[derive(Debug, Subcommand)]
pub enum OverlayCommand {
    /// List the nodes with tunnels: their keys, where they are, and the addresses behind them
    List,
}

/// `GET /v1/planes`.
#[derive(Debug, Deserialize)]
struct Planes {
    planes: Vec<PlaneState>,
}

#[derive(Debug, Deserialize)]
struct PlaneState {
    node: String,
    plane: Plane,
    applied: u64,
    /// Of the overlay, what the node does without.
    #[serde(default)]
    omissions: Option<Vec<String>>,
}

/// Carries out a command.
pub fn run(command: &OverlayCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        OverlayCommand::List => list(session),
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    let view: ClusterView = session.client.get("/v1/view")?;
    let Planes { planes } = session.client.get("/v1/planes")?;
    let agents: BTreeMap<AgentId, &Agent> =
        view.agents.values().map(|agent| (AgentId::new(agent.node_name()), agent.as_ref())).collect();
    let parts = |agent: Option<&&Agent>| -> Vec<Subnet> {
        let subnets = agent.and_then(|agent| view.subnets.get(&agent.id));
        subnets.map(|subnets| subnets.all().copied().collect()).unwrap_or_default()
    };
    let state = |node: &AgentId| {
        let of_node = |state: &&PlaneState| state.node == node.as_str() && state.plane == Plane::Overlay;
        planes.iter().find(of_node)
    };
    let applied = |node: &AgentId| state(node).map(|state| state.applied);
    let omissions =
        |node: &AgentId| state(node).and_then(|state| state.omissions.as_deref()).unwrap_or_default();
    if session.output.is_json() {
        let nodes = view.tunnels.iter().map(|(node, end)| {
            let agent = agents.get(node);
            json!({
                "node": node, "address": agent.map(|agent| agent.info.address), "port": end.port,
                "key": end.key, "made": end.made, "subnets": parts(agent), "applied": applied(node),
                "omissions": omissions(node),
            })
        });
        return session.output.value(&nodes.collect::<Vec<Value>>());
    }
    let mut table = Table::new([
        Column::text("NODE", 40),
        Column::text("ENDPOINT", 50),
        Column::text("KEY", 44),
        Column::text("MADE", 24),
        Column::text("ADDRESSES", 80),
        Column::text("APPLIED", 20),
        // What a node does without.
        Column::text("PROBLEM", 500),
    ]);
    for (node, end) in &view.tunnels {
        let agent = agents.get(node);
        let address = agent.map(|agent| std::net::SocketAddr::new(agent.info.address, end.port).to_string());
        let parts: Vec<String> = parts(agent).iter().map(Subnet::to_string).collect();
        table.row([
            node.to_string(),
            address.unwrap_or_else(|| "no agent".to_owned()),
            end.key.clone(),
            end.made.to_string(),
            parts.join(" "),
            applied(node).map_or_else(|| "not connected".to_owned(), |revision| revision.to_string()),
            problem(omissions(node)),
        ]);
    }
    session.output.table(&table)
}

fn problem(omissions: &[String]) -> String {
    if omissions.is_empty() { String::new() } else { format!("does without {}", omissions.join("; ")) }
}
