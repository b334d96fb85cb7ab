//! Services: virtual addresses and what is behind them.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::error::CommandError;
use super::table::{Column, Table};

/// `mesonet service …`
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services, their addresses and endpoints
    List,
}

/// `GET /v1/services`.
#[derive(Debug, Deserialize)]
struct Services {
    services: Vec<Service>,
}

/// A service.
#[derive(Debug, Deserialize)]
struct Service {
    key: String,
}

/// Carries out a command.
pub fn run(command: &ServiceCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        ServiceCommand::List => list(session),
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v1/services")?);
    }
    let Services { services } = session.client.get("/v1/services")?;
    let mut table = Table::new([Column::text("SERVICE", 80)]);
    for service in &services {
        table.row([service.key.clone()]);
    }
    session.output.table(&table)
}
