//! Services: virtual addresses and what is behind them.

use std::net::{IpAddr, SocketAddr};

use clap::Subcommand;
use mesonet_model::EndpointState;
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::error::CommandError;
use super::table::{Column, Table};

/// `mesonet service …`
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services, their addresses and how many endpoints are behind them
    List,
}

/// `GET /v1/services`.
#[derive(Debug, Deserialize)]
struct Services {
    /// The node, where its network daemon answers; a master answers for all nodes.
    node: Option<String>,
    services: Vec<Service>,
}

/// A service, its endpoints, and on which nodes it could not be put into effect.
#[derive(Debug, Deserialize)]
struct Service {
    service: String,
    name: Option<String>,
    port: u16,
    addresses: Vec<IpAddr>,
    endpoints: Vec<Endpoint>,
    /// As a master knows them of all nodes.
    #[serde(default)]
    failures: Vec<Failure>,
    /// As a network daemon knows it of its own.
    failure: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    state: EndpointState,
}

#[derive(Debug, Deserialize)]
struct Failure {
    node: String,
    reason: String,
}

/// Carries out a command.
pub fn run(command: &ServiceCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        ServiceCommand::List => list(session),
    }
}

fn list(session: &Session) -> Result<(), CommandError> {
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>("/v1/services")?["services"]);
    }
    session.output.table(&table(&session.client.get("/v1/services")?))
}

fn table(Services { node, services }: &Services) -> Table<5> {
    let mut table = Table::new([
        Column::text("SERVICE", 60),
        Column::text("ADDRESS", 50),
        Column::text("NAME", 80),
        Column::text("ENDPOINTS", 40),
        // The last column: what is to be done stands at its end.
        Column::text("PROBLEM", 500),
    ]);
    for service in services {
        table.row([
            service.service.clone(),
            service.addresses(),
            service.name.clone().unwrap_or_default(),
            service.endpoints(),
            service.problem(node.as_deref()),
        ]);
    }
    table
}

impl Service {
    fn addresses(&self) -> String {
        let addresses = self.addresses.iter().map(|&address| SocketAddr::new(address, self.port).to_string());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// How many are in which state, such as `2 ready, 1 draining`.
    fn endpoints(&self) -> String {
        let states = [EndpointState::Ready, EndpointState::Draining, EndpointState::Down];
        let counts =
            states.map(|state| (state, self.endpoints.iter().filter(|each| each.state == state).count()));
        let parts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(state, count)| format!("{count} {}", state.as_str()))
            .collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    }

    fn problem(&self, node: Option<&str>) -> String {
        let of_nodes = self.failures.iter().map(|Failure { node, reason }| format!("{reason} ({node})"));
        let of_node = node.zip(self.failure.as_ref()).map(|(node, reason)| format!("{reason} ({node})"));
        let problems: Vec<String> = of_nodes.chain(of_node).collect();
        // A node that balances has said more.
        if self.addresses.is_empty() && problems.is_empty() {
            let lacks = "it has no address";
            return if node.is_some() {
                lacks.to_owned()
            } else {
                format!("{lacks}; the master's log says why")
            };
        }
        problems.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_says_where_what_and_what_is_wrong() {
        let services: Services = serde_json::from_value(json!({ "revision": 7, "services": [
            {
                "service": "tcp/web@marathon:80", "name": "web.marathon.l4lb.thisdcos.directory",
                "protocol": "tcp", "port": 80, "addresses": ["127.11.0.9", "fd01:c::9"],
                "endpoints": [{ "state": "ready" }, { "state": "draining" }, { "state": "ready" }],
                "failures": [],
            },
            {
                "service": "udp/127.11.9.9:53", "name": null, "protocol": "udp", "port": 53,
                "addresses": ["127.11.9.9"], "endpoints": [],
                "failures": [{ "node": "S0", "plane": "lb", "reason": "address in use" }],
            },
            {
                "service": "tcp/127.11.0.9:80", "name": null, "protocol": "tcp", "port": 80,
                "addresses": [], "endpoints": [{ "state": "ready" }], "failures": [],
            },
            {
                "service": "tcp/127.11.0.8:80", "name": null, "protocol": "tcp", "port": 80, "addresses": [],
                "endpoints": [], "failures": [{ "node": "S0", "plane": "lb", "reason": "it is another one's" }],
            },
        ] }))
        .expect("services");
        assert_eq!(
            table(&services).render().split_whitespace().collect::<Vec<_>>().join(" "),
            "SERVICE ADDRESS NAME ENDPOINTS PROBLEM \
             tcp/web@marathon:80 127.11.0.9:80,[fd01:c::9]:80 web.marathon.l4lb.thisdcos.directory \
             2 ready, 1 draining - \
             udp/127.11.9.9:53 127.11.9.9:53 - none address in use (S0) \
             tcp/127.11.0.9:80 - - 1 ready it has no address; the master's log says why \
             tcp/127.11.0.8:80 - - none it is another one's (S0)"
        );
    }

    #[test]
    fn a_network_daemon_says_what_is_wrong_on_its_node() {
        let services: Services = serde_json::from_value(json!({ "node": "n1", "revision": 7, "services": [
            {
                "service": "tcp/127.11.9.9:80", "name": null, "protocol": "tcp", "port": 80,
                "addresses": ["127.11.9.9"], "endpoints": [], "failure": "address in use",
            },
            {
                "service": "tcp/127.11.9.9:81", "name": null, "protocol": "tcp", "port": 81, "addresses": [],
                "endpoints": [], "failure": null,
            },
        ] }))
        .expect("services");
        assert_eq!(
            table(&services).render().split_whitespace().collect::<Vec<_>>().join(" "),
            "SERVICE ADDRESS NAME ENDPOINTS PROBLEM \
             tcp/127.11.9.9:80 127.11.9.9:80 - none address in use (n1) \
             tcp/127.11.9.9:81 - - none it has no address"
        );
    }
}
