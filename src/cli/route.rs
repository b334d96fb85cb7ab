//! Routes: what the balancer of a node does with the connections to each service.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::error::CommandError;
use super::table::{Column, Table};

/// How often the balancer is asked by `watch`.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What lists them.
const PATH: &str = "/v1/routes";

/// `mesonet route …`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// List services, their endpoints with effective weights, open connections and what carries them
    List,
    /// List them whenever they change
    Watch,
}

/// `GET /v1/routes`.
#[derive(Debug, Deserialize)]
struct Routes {
    datapath: Datapath,
    services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Datapath {
    name: String,
    why: String,
    packets: Vec<String>,
    beside: Option<String>,
    trouble: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Service {
    service: String,
    port: u16,
    addresses: Vec<IpAddr>,
    endpoints: Vec<Endpoint>,
    failure: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: SocketAddr,
    node: Option<String>,
    state: String,
    weight: u32,
    active: u64,
    reason: String,
}

/// Carries out a command.
pub fn run(command: &RouteCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        RouteCommand::List => session.output.bytes(shown(session)?.as_bytes()),
        RouteCommand::Watch => watch(session),
    }
}

/// Until the reader goes away.
fn watch(session: &Session) -> Result<(), CommandError> {
    let mut before = String::new();
    loop {
        let text = shown(session)?;
        if text != before {
            session.output.bytes(text.as_bytes())?;
            before = text;
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn shown(session: &Session) -> Result<String, CommandError> {
    if session.output.is_json() {
        return Ok(format!("{:#}\n", session.client.get::<Value>(PATH)?));
    }
    let routes: Routes = session.client.get(PATH)?;
    Ok(format!("{}\n{}", routes.headline(), routes.table().render()))
}

impl Routes {
    fn headline(&self) -> String {
        let Datapath { name, why, packets, beside, trouble } = &self.datapath;
        let packets = packets.iter().map(|each| format!("\npackets:  {each}"));
        let beside = beside.iter().map(|each| format!("\nbeside:   {each}"));
        let trouble = trouble.iter().map(|each| format!("\ntrouble:  {each}"));
        format!("datapath: {name} ({why}){}\n", packets.chain(beside).chain(trouble).collect::<String>())
    }

    /// One row per endpoint; a service without endpoints has one, too.
    fn table(&self) -> Table<8> {
        let mut table = Table::new([
            Column::text("SERVICE", 60),
            Column::text("ADDRESS", 60),
            Column::text("ENDPOINT", 50),
            Column::text("NODE", 40),
            Column::text("STATE", 10),
            Column::number("WEIGHT"),
            Column::number("ACTIVE"),
            // The last column: what is to be done stands at its end.
            Column::text("REASON", 500),
        ]);
        for service in &self.services {
            let place = (service.service.clone(), service.addresses());
            if service.endpoints.is_empty() {
                let reason = service.failure.clone().unwrap_or_else(|| "no endpoint".to_owned());
                table.row([place.0, place.1, "".into(), "".into(), "".into(), "".into(), "".into(), reason]);
                continue;
            }
            for each in &service.endpoints {
                table.row([
                    place.0.clone(),
                    place.1.clone(),
                    each.address.to_string(),
                    each.node.clone().unwrap_or_default(),
                    each.state.clone(),
                    each.weight.to_string(),
                    each.active.to_string(),
                    service.failure.clone().unwrap_or_else(|| each.reason.clone()),
                ]);
            }
        }
        table
    }
}

impl Service {
    fn addresses(&self) -> String {
        let addresses = self.addresses.iter().map(|&address| SocketAddr::new(address, self.port).to_string());
        addresses.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_says_what_an_endpoint_gets_and_why() {
        let routes: Routes = serde_json::from_value(json!({
            "node": "n1", "revision": 7, "datapath": {
                "name": "ebpf", "why": "as asked", "packets": ["tc at eth0: it is virtual"], "beside": "the proxy",
                "trouble": "9 hooks",
            },
            "services": [
                { "service": "tcp/web@marathon:80", "port": 80, "addresses": ["127.11.0.9"], "failure": null,
                  "endpoints": [{ "address": "127.0.0.1:31000", "node": "n1", "state": "ready", "weight": 5,
                                  "active": 2, "reason": "serving" }] },
                { "service": "tcp/db@marathon:80", "port": 80, "addresses": ["127.11.0.8"], "failure": null,
                  "endpoints": [] },
            ],
        }))
        .expect("routes");
        assert_eq!(
            routes.headline(),
            "datapath: ebpf (as asked)\npackets:  tc at eth0: it is virtual\nbeside:   the proxy\ntrouble:  9 hooks\n"
        );
        assert_eq!(
            routes.table().render().split_whitespace().collect::<Vec<_>>().join(" "),
            "SERVICE ADDRESS ENDPOINT NODE STATE WEIGHT ACTIVE REASON \
             tcp/web@marathon:80 127.11.0.9:80 127.0.0.1:31000 n1 ready 5 2 serving \
             tcp/db@marathon:80 127.11.0.8:80 - - - - - no endpoint"
        );
    }
}
