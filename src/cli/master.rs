//! Masters: who leads and who stands by.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::duration;
use super::error::CommandError;
use super::table::{Column, Table};

/// Where it is said.
const PATH: &str = "/v1/masters";

/// `GET /v1/masters`.
#[derive(Debug, Deserialize)]
struct Masters {
    term: Option<u64>,
    masters: Vec<Master>,
}

/// One master.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Master {
    name: String,
    role: String,
    since_seconds: u64,
    revision: u64,
    lag: u64,
}

/// `mesonet master list`
pub fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(PATH)?);
    }
    let Masters { term, masters } = session.client.get(PATH)?;
    let mut table = Table::new([
        Column::text("MASTER", 40),
        Column::text("ROLE", 20),
        Column::number("TERM"),
        Column::number("SINCE"),
        Column::number("REVISION"),
        Column::number("BEHIND"),
    ]);
    for master in masters {
        table.row([
            master.name,
            master.role,
            term.map(|term| term.to_string()).unwrap_or_default(),
            duration::short(Duration::from_secs(master.since_seconds)),
            master.revision.to_string(),
            master.lag.to_string(),
        ]);
    }
    session.output.table(&table)
}
