//! Nodes: what runs tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clap::Subcommand;
use mesonet::NodeName;
use mesonet_model::{Agent, AgentId, AgentState, ClusterView, Outage, Plane, Scalar, Task, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::Session;
use super::duration;
use super::error::CommandError;
use super::operate;
use super::output::{Progress, warn};
use super::table::{Column, Table};

/// `mesonet node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes, and which revision each of their planes serves
    List,
    /// Move everything off a node, and wait until it is empty
    Drain {
        /// Its name, its host's, or its agent's id
        node: String,
        /// Do not wait until the node is empty
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5m")]
        timeout: Duration,
    },
    /// Use a node again that was drained
    Undrain {
        /// Its name, its host's, or its agent's id
        node: String,
    },
    /// Declare a node that does not answer gone for good, with all that ran on it
    Remove {
        /// Its name, its host's, or its agent's id
        node: String,
    },
    /// Declare a node's certificates void, which cuts it off; on the master's host
    Revoke {
        /// Its name
        node: NodeName,
        #[command(flatten)]
        place: operate::PlaceArguments,
    },
    /// Give up the nodes that do not answer although so many are lost at once that they are held
    ConfirmRemoval,
}

/// How often it is looked whether a node is empty.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Carries out a command.
pub fn run(command: &NodeCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        NodeCommand::List => list(session),
        NodeCommand::Drain { node, no_wait, timeout } => {
            let Ordered { agent } = order(session, node, "drain")?;
            if !no_wait {
                wait_until_empty(session, node, &agent, *timeout)?;
            }
            let line = if *no_wait { format!("{node} is draining") } else { format!("{node} is empty") };
            session.output.value_or_line(&json!({ "agent": agent, "draining": true }), &line)
        }
        NodeCommand::Undrain { node } => {
            let Ordered { agent } = order(session, node, "undrain")?;
            let line = format!("{node} is used again");
            session.output.value_or_line(&json!({ "agent": agent, "draining": false }), &line)
        }
        NodeCommand::Remove { node } => {
            let Ordered { agent } = order(session, node, "remove")?;
            session.output.value_or_line(&json!({ "agent": agent }), &format!("{node} is removed"))
        }
        NodeCommand::Revoke { node, place } => operate::revoke_node(place, node, &session.output),
        NodeCommand::ConfirmRemoval => {
            let answer = session.send(Method::POST, "/v1/nodes/confirm-removal", None)?;
            session.output.value_or_line(&answer, "nodes that do not answer are given up")
        }
    }
}

/// `POST /v1/nodes/{node}/drain`.
#[derive(Debug, Deserialize)]
struct Ordered {
    agent: AgentId,
}

fn order(session: &Session, node: &str, order: &str) -> Result<Ordered, CommandError> {
    let answer = session.send(Method::POST, &format!("/v1/nodes/{node}/{order}"), None)?;
    serde_json::from_value(answer).map_err(|error| CommandError::Failed(format!("unknown answer: {error}")))
}

fn wait_until_empty(
    session: &Session,
    node: &str,
    agent: &AgentId,
    timeout: Duration,
) -> Result<(), CommandError> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::new();
    loop {
        let view: ClusterView = session.client.get("/v1/view")?;
        let left = view.tasks.values().filter(|task| task.agent == *agent).count();
        if left == 0 {
            return Ok(());
        }
        progress.show(&format!("{node}: {left} tasks are left"));
        if Instant::now() >= deadline {
            drop(progress);
            let waited = duration::short(timeout);
            let why = format!("{node} still has {left} tasks after {waited}; it goes on draining");
            return Err(CommandError::Failed(why));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// `GET /v1/planes`.
#[derive(Debug, Deserialize)]
struct Planes {
    planes: Vec<PlaneState>,
    disconnected: Vec<AwayPlane>,
}

/// How far one plane of one node is.
#[derive(Debug, Deserialize)]
struct PlaneState {
    node: String,
    plane: Plane,
    applied: u64,
    lag: u64,
    #[serde(rename = "behindSince")]
    behind_since: Option<Timestamp>,
    #[serde(default)]
    outage: Option<Outage>,
}

/// A plane of a node that is not connected any more.
#[derive(Debug, Deserialize)]
struct AwayPlane {
    node: String,
    plane: Plane,
    applied: u64,
    since: Timestamp,
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        let agents = session.client.get::<Value>("/v1/view")?["agents"].take();
        let mut planes = session.client.get::<Value>("/v1/planes")?;
        let (connected, disconnected) = (planes["planes"].take(), planes["disconnected"].take());
        let all = json!({ "agents": agents, "planes": connected, "disconnected": disconnected });
        return session.output.value(&all);
    }
    let view: ClusterView = session.client.get("/v1/view")?;
    let planes: Planes = session.client.get("/v1/planes")?;
    if view.masters.values().any(|master| master.removal_held) {
        warn("too many nodes are lost at once: none is given up until they return or `node confirm-removal`");
    }
    session.output.table(&table(&view, &planes, session))
}

fn table(view: &ClusterView, planes: &Planes, session: &Session) -> Table<12> {
    let mut tasks: BTreeMap<&AgentId, Vec<&Task>> = BTreeMap::new();
    for task in view.tasks.values() {
        tasks.entry(&task.agent).or_default().push(task);
    }
    let mut table = Table::new([
        Column::text("NODE", 40),
        Column::text("AGENT", 60),
        Column::text("HOST", 40),
        Column::text("ADDRESS", 40),
        Column::text("STATE", 24),
        Column::number("CPUS"),
        Column::number("MEM"),
        Column::number("TASKS"),
        Column::number("AGE"),
        Column::text("DNS", 40),
        Column::text("LB", 40),
        Column::text("WITHOUT MASTER", 40),
    ]);
    let connected = planes.planes.iter().map(|plane| plane.node.as_str());
    let mut without_agent: BTreeSet<&str> =
        connected.chain(planes.disconnected.iter().map(|plane| plane.node.as_str())).collect();
    for agent in view.agents.values() {
        let tasks = tasks.remove(&agent.id).unwrap_or_default();
        let all = &agent.info.resources;
        let node = agent.node_name();
        without_agent.remove(node);
        table.row([
            node.to_owned(),
            agent.id.to_string(),
            agent.info.hostname.clone(),
            agent.info.address.to_string(),
            state(agent),
            share(tasks.iter().map(|task| task.resources.cpus).sum(), all.cpus),
            share(tasks.iter().map(|task| task.resources.mem).sum(), all.mem),
            tasks.len().to_string(),
            session.age(Some(agent.registered_at)),
            planes.freshness(node, Plane::Dns, session),
            planes.freshness(node, Plane::Lb, session),
            planes.outage(node, session),
        ]);
    }
    for node in without_agent {
        let nothing = String::new;
        table.row([
            node.to_owned(),
            nothing(),
            nothing(),
            nothing(),
            "no agent".to_owned(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
            planes.freshness(node, Plane::Dns, session),
            planes.freshness(node, Plane::Lb, session),
            planes.outage(node, session),
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

impl Planes {
    /// For how long the node served a view that no master confirmed, and when that was over.
    fn outage(&self, node: &str, session: &Session) -> String {
        let of_node = self.planes.iter().filter(|state| state.node == node);
        of_node.filter_map(|state| state.outage).max_by_key(|outage| outage.until).map_or_else(
            String::new,
            |Outage { since, until }| {
                let (lasted, ago) = (duration::short(until.since(since)), session.age(Some(until)));
                format!("{lasted}, until {ago} ago")
            },
        )
    }

    /// The revision that a plane serves, and for how long it lacks something.
    fn freshness(&self, node: &str, plane: Plane, session: &Session) -> String {
        let connected = self.planes.iter().find(|state| state.node == node && state.plane == plane);
        if let Some(state) = connected {
            return match (state.lag, state.behind_since) {
                (0, _) => state.applied.to_string(),
                (lag, None) => format!("{}, {lag} behind", state.applied),
                (lag, since) => format!("{}, {lag} behind for {}", state.applied, session.age(since)),
            };
        }
        let away = self.disconnected.iter().find(|away| away.node == node && away.plane == plane);
        away.map_or_else(
            || "not connected".to_owned(),
            |away| format!("{}, not connected for {}", away.applied, session.age(Some(away.since))),
        )
    }
}

/// What is in use of what there is.
fn share(used: Scalar, all: Scalar) -> String {
    format!("{}/{}", used.as_f64(), all.as_f64())
}
