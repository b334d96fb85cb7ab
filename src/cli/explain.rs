//! Where a connection would go, and why; and who has an address.

mod holders;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use super::client::path_segment;
use super::error::CommandError;
use super::table::{Column, Table};

/// `mesonet explain …`
#[derive(Debug, Clone, Args)]
pub struct ExplainArguments {
    /// The client: ADDRESS or ADDRESS:PORT. Alone: an address, of which is said who has it
    #[arg(value_name = "CLIENT[:PORT]")]
    client: String,
    /// Where it connects to, after an arrow if you like: NAME:PORT or VIP:PORT
    #[arg(value_name = "NAME-OR-VIP:PORT", num_args = 0..=2)]
    to: Vec<String>,
    /// tcp or udp [default: tcp if the service has it]
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
}

/// What may stand between client and target.
const ARROWS: [&str; 2] = ["→", "to"];

/// An argument with which an arrow is written so that it does not look like an option.
pub fn arrow(argument: OsString) -> OsString {
    if argument == "->" { "→".into() } else { argument }
}

/// `GET /v1/explain`.
#[derive(Debug, Deserialize)]
struct Explanation {
    client: String,
    to: SocketAddr,
    protocol: String,
    node: String,
    dns: Option<Dns>,
    service: String,
    policy: Policy,
    failure: Option<String>,
    candidates: Vec<Candidate>,
    choice: Choice,
    packet: Option<Packet>,
    datapath: Datapath,
    carrier: Carrier,
    path: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Dns {
    name: String,
    addresses: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    algorithm: String,
    locality: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    task: String,
    address: SocketAddr,
    node: Option<String>,
    weight: u32,
    chance_percent: f64,
    reason: String,
    tunnel: Option<Tunnel>,
}

/// The way to another node's task with an address of its own.
#[derive(Debug, Deserialize)]
struct Tunnel {
    mtu: u16,
}

#[derive(Debug, Deserialize)]
struct Choice {
    task: Option<String>,
    address: Option<SocketAddr>,
    why: String,
}

/// What the program for packets from outside does with the first one.
#[derive(Debug, Deserialize)]
struct Packet {
    verdict: String,
    to: Option<SocketAddr>,
}

#[derive(Debug, Deserialize)]
struct Datapath {
    name: String,
    why: String,
}

/// Which part of the data path it is for this connection.
#[derive(Debug, Deserialize)]
struct Carrier {
    name: String,
    why: String,
}

/// Asks the balancer, and prints what the connection meets on its way.
pub fn run(arguments: &ExplainArguments, session: &Session) -> Result<(), CommandError> {
    let to = match &arguments.to[..] {
        [arrow, to] if ARROWS.contains(&arrow.as_str()) => to,
        [to] => to,
        [] => return holders::run(&arguments.client, session),
        _ => return Err(CommandError::Usage("expected CLIENT[:PORT] -> NAME-OR-VIP:PORT".to_owned())),
    };
    let mut path = format!("/v1/explain?client={}&to={}", path_segment(&arguments.client), path_segment(to));
    if let Some(protocol) = &arguments.protocol {
        path.push_str(&format!("&protocol={}", path_segment(protocol)));
    }
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(&path)?);
    }
    let explanation: Explanation = session.client.get(&path)?;
    session.output.bytes(explanation.text().as_bytes())
}

impl Candidate {
    fn node_and_tunnel(&self) -> String {
        let node = self.node.clone().unwrap_or_default();
        match &self.tunnel {
            Some(tunnel) => format!("{node} (tunnel, MTU {})", tunnel.mtu),
            None => node,
        }
    }
}

impl Explanation {
    fn text(&self) -> String {
        let mut lines =
            vec![format!("{} {} -> {}, seen from node {}", self.protocol, self.client, self.to, self.node)];
        if let Some(Dns { name, addresses }) = &self.dns {
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            lines.push(format!("dns:       {name} is {}", addresses.join(", ")));
        }
        let Policy { algorithm, locality } = &self.policy;
        lines.push(format!("service:   {} ({algorithm}, locality {locality})", self.service));
        if let Some(failure) = &self.failure {
            lines.push(format!("problem:   {failure}"));
        }
        lines.push(format!("choice:    {} {}", self.chosen(), self.choice.why));
        if let Some(Packet { verdict, to }) = &self.packet {
            let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
            lines.push(format!(
                "packet:    from outside, by a trial run of the loaded program, it {verdict}{to}"
            ));
        }
        lines.push(format!("datapath:  {} ({})", self.datapath.name, self.datapath.why));
        lines.push(format!("carrier:   {} ({})", self.carrier.name, self.carrier.why));
        lines.extend(self.path.iter().map(|step| format!("path:      {step}")));
        format!("{}\n\n{}", lines.join("\n"), self.table().render())
    }

    fn chosen(&self) -> String {
        match (&self.choice.address, &self.choice.task) {
            (Some(address), Some(task)) => format!("{address}, task {task}."),
            _ => match self.candidates.iter().filter(|each| each.chance_percent > 0.0).count() {
                0 => "nobody.".to_owned(),
                count => format!("one of {count}."),
            },
        }
    }

    fn table(&self) -> Table<6> {
        let mut table = Table::new([
            Column::text("ENDPOINT", 50),
            Column::text("NODE", 40),
            Column::text("TASK", 80),
            Column::number("WEIGHT"),
            Column::number("CHANCE"),
            Column::text("REASON", 90),
        ]);
        for each in &self.candidates {
            table.row([
                each.address.to_string(),
                each.node_and_tunnel(),
                each.task.clone(),
                each.weight.to_string(),
                format!("{:.1} %", each.chance_percent),
                each.reason.clone(),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_follows_the_connection() {
        let explanation: Explanation = serde_json::from_value(json!({
            "client": "10.1.2.3:4567", "to": "127.11.0.9:80", "protocol": "tcp", "node": "n1", "revision": 7,
            "dns": { "name": "web.marathon.l4lb.thisdcos.directory", "addresses": ["127.11.0.9"] },
            "service": "tcp/web@marathon:80", "failure": null,
            "policy": { "algorithm": "maglev", "locality": "off" },
            "candidates": [
                { "task": "web.1", "address": "127.0.0.1:31000", "node": "n1", "weight": 100,
                  "chancePercent": 100.0, "reason": "serving" },
                { "task": "web.2", "address": "127.0.0.1:31001", "node": "n1", "weight": 0,
                  "chancePercent": 0.0, "reason": "down" },
            ],
            "choice": { "task": "web.1", "address": "127.0.0.1:31000", "node": "n1", "why": "The only one." },
            "packet": { "verdict": "goes", "from": "10.1.2.3:4567", "to": "127.0.0.1:31000" },
            "datapath": { "name": "proxy", "why": "as asked" },
            "carrier": { "name": "proxy", "why": "for all" },
            "path": ["first", "then"],
        }))
        .expect("an explanation");
        let text = explanation.text();
        assert_eq!(
            text.split("\n\n").next().expect("a head"),
            "tcp 10.1.2.3:4567 -> 127.11.0.9:80, seen from node n1\n\
             dns:       web.marathon.l4lb.thisdcos.directory is 127.11.0.9\n\
             service:   tcp/web@marathon:80 (maglev, locality off)\n\
             choice:    127.0.0.1:31000, task web.1. The only one.\n\
             packet:    from outside, by a trial run of the loaded program, it goes to 127.0.0.1:31000\n\
             datapath:  proxy (as asked)\n\
             carrier:   proxy (for all)\n\
             path:      first\n\
             path:      then"
        );
        assert!(text.contains("127.0.0.1:31001"), "{text}");
    }
}
