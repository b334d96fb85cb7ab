//! Virtual networks: where tasks have addresses of their own.

use clap::{ArgGroup, Subcommand};
use mesonet_model::NetworkName;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::Session;
use super::client::path_segment;
use super::error::CommandError;
use super::table::{Column, Table};

/// Beyond these, as in IPv6, the exact number of free addresses says nothing.
const FREE_SHOWN_MAX: u64 = 1_000_000_000;

/// `mesonet network …`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List the networks and their addresses
    List,
    /// Show a network and how much of each node's part of it is in use
    Show {
        /// Its name
        name: NetworkName,
    },
    /// Make a network; every node gets a part of its addresses
    #[command(group(ArgGroup::new("addresses").args(["subnet", "subnet6"]).required(true).multiple(true)))]
    Create {
        /// Its name, at most 13 characters
        name: String,
        /// Its IPv4 addresses, such as 10.128.0.0/16
        #[arg(long, value_name = "RANGE")]
        subnet: Option<String>,
        /// The prefix of each node's part [default: 24]
        #[arg(long, value_name = "BITS", requires = "subnet")]
        prefix: Option<u8>,
        /// Its IPv6 addresses, such as fd00:1::/64
        #[arg(long, value_name = "RANGE")]
        subnet6: Option<String>,
        /// The prefix of each node's part [default: 80]
        #[arg(long, value_name = "BITS", requires = "subnet6")]
        prefix6: Option<u8>,
    },
    /// Remove a network that neither tasks nor containers are in
    Remove {
        /// Its name
        name: NetworkName,
    },
}

/// `GET /v1/networks`.
#[derive(Debug, Deserialize)]
struct Networks {
    networks: Vec<Network>,
}

#[derive(Debug, Deserialize)]
struct Network {
    name: String,
    subnet: Option<String>,
    prefix: Option<u8>,
    subnet6: Option<String>,
    prefix6: Option<u8>,
    #[serde(flatten)]
    used: Used,
    nodes: Vec<Part>,
}

/// How much is in use.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Used {
    tasks: u64,
    containers: u64,
    free: u64,
}

/// A node's part of a network.
#[derive(Debug, Deserialize)]
struct Part {
    agent: String,
    node: Option<String>,
    subnets: Vec<String>,
    #[serde(flatten)]
    used: Used,
}

impl Used {
    fn cells(self) -> [String; 3] {
        let Self { tasks, containers, free } = self;
        let free = if free > FREE_SHOWN_MAX { format!("over {FREE_SHOWN_MAX}") } else { free.to_string() };
        [tasks.to_string(), containers.to_string(), free]
    }
}

/// Carries out a command.
pub fn run(command: &NetworkCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        NetworkCommand::List => list(session),
        NetworkCommand::Show { name } => show(name, session),
        NetworkCommand::Create { name, subnet, prefix, subnet6, prefix6 } => {
            let mut body = json!({ "name": name });
            for (key, value) in [
                ("subnet", subnet.as_ref().map(|text| json!(text))),
                ("prefix", prefix.map(|bits| json!(bits))),
                ("subnet6", subnet6.as_ref().map(|text| json!(text))),
                ("prefix6", prefix6.map(|bits| json!(bits))),
            ] {
                if let Some(value) = value {
                    body[key] = value;
                }
            }
            let made = session.send(Method::POST, "/v1/networks", Some(&body))?;
            session.output.value_or_line(&made, &format!("network {name} is there"))
        }
        NetworkCommand::Remove { name } => {
            let path = format!("/v1/networks/{}", path_segment(name.as_str()));
            let removed = session.send(Method::DELETE, &path, None)?;
            session.output.value_or_line(&removed, &format!("network {name} is removed"))
        }
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v1/networks")?["networks"]);
    }
    let Networks { networks } = session.client.get("/v1/networks")?;
    let mut table = Table::new([
        Column::text("NETWORK", 13),
        Column::text("IPV4", 24),
        Column::text("PER NODE", 10),
        Column::text("IPV6", 44),
        Column::text("PER NODE", 10),
        Column::number("NODES"),
        Column::number("TASKS"),
        Column::number("OTHERS"),
        Column::number("FREE"),
    ]);
    let part = |prefix: Option<u8>| prefix.map_or_else(String::new, |bits| format!("/{bits}"));
    for network in networks {
        let [tasks, containers, free] = network.used.cells();
        table.row([
            network.name,
            network.subnet.unwrap_or_default(),
            part(network.prefix),
            network.subnet6.unwrap_or_default(),
            part(network.prefix6),
            network.nodes.len().to_string(),
            tasks,
            containers,
            free,
        ]);
    }
    session.output.table(&table)
}

fn show(name: &NetworkName, session: &Session) -> Result<(), CommandError> {
    let path = format!("/v1/networks/{}", path_segment(name.as_str()));
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(&path)?);
    }
    let network: Network = session.client.get(&path)?;
    let mut table = Table::new([
        Column::text("NODE", 40),
        Column::text("ADDRESSES", 80),
        Column::number("TASKS"),
        Column::number("OTHERS"),
        Column::number("FREE"),
    ]);
    for part in network.nodes {
        let [tasks, containers, free] = part.used.cells();
        table.row([part.node.unwrap_or(part.agent), part.subnets.join(" "), tasks, containers, free]);
    }
    session.output.table(&table)
}
