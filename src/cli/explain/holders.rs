//! Who has an address.

use std::net::IpAddr;

use mesonet_model::AddressHolder;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::Session;
use crate::cli::client::path_segment;
use crate::cli::error::CommandError;

/// `GET /v1/addresses/ADDRESS`.
#[derive(Debug, Deserialize)]
struct Holders {
    address: IpAddr,
    holders: Vec<Holder>,
    count: usize,
}

#[derive(Debug, Deserialize)]
struct Holder {
    node: Option<String>,
    #[serde(flatten)]
    who: AddressHolder,
}

/// Asks who has an address, and prints it.
pub(super) fn run(address: &str, session: &Session) -> Result<(), CommandError> {
    let path = format!("/v1/addresses/{}", path_segment(address.trim_matches(['[', ']'])));
    if session.output.is_json() {
        return session.output.value(&session.client.get::<Value>(&path)?);
    }
    let holders: Holders = session.client.get(&path)?;
    session.output.bytes(holders.text().as_bytes())
}

impl Holders {
    fn text(&self) -> String {
        let Self { address, holders, count } = self;
        if holders.is_empty() {
            return format!("{address} is nobody's that the cluster knows of\n");
        }
        let mut lines: Vec<String> =
            holders.iter().map(|holder| format!("{address} is {}", holder.text())).collect();
        if holders.len() < *count {
            lines.push(format!("and {} more", count - holders.len()));
        }
        format!("{}\n", lines.join("\n"))
    }
}

impl Holder {
    fn text(&self) -> String {
        let node = match (&self.node, self.who.agent()) {
            (Some(node), _) => format!("node {node}"),
            (None, Some(agent)) => format!("agent {agent}"),
            (None, None) => String::new(),
        };
        match &self.who {
            AddressHolder::Node { .. } => format!("the address of {node} itself"),
            AddressHolder::Gateway { network, .. } => {
                format!("the address of {node} on its bridge of network {network}")
            }
            AddressHolder::Task { task, network: Some(network), .. } => {
                format!("task {}, in network {network} on {node}", task.task)
            }
            AddressHolder::Task { task, network: None, .. } => {
                format!("task {}, on the own bridge of {node}", task.task)
            }
            AddressHolder::Container { container, interface, network, .. } => format!(
                "a container that has joined by CNI: id {container}, interface {interface}, in network {network} \
                 on {node}"
            ),
            AddressHolder::Service { service } => format!("a virtual address of service {service}"),
            AddressHolder::Free { network, .. } => {
                format!("free, of the part of network {network} that {node} gives addresses from")
            }
            AddressHolder::Unassigned { network } => {
                format!("of network {network}, in no node's part")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_holder_is_said_in_one_line() {
        let holders: Holders = serde_json::from_value(json!({
            "address": "9.0.1.2", "revision": 7, "count": 4, "holders": [
                { "kind": "container", "agent": "c-S0", "node": "n1", "container": "f00", "interface": "eth0",
                  "network": "dcos" },
                { "kind": "task", "agent": "c-S0", "node": null, "task": "fw/web.1", "network": null },
                { "kind": "service", "service": "tcp/web@marathon:80" },
            ],
        }))
        .expect("an answer");
        assert_eq!(
            holders.text(),
            "9.0.1.2 is a container that has joined by CNI: id f00, interface eth0, in network dcos on node n1\n\
             9.0.1.2 is task web.1, on the own bridge of agent c-S0\n\
             9.0.1.2 is a virtual address of service tcp/web@marathon:80\n\
             and 1 more\n"
        );
    }

    #[test]
    fn an_address_of_nobody_is_said_to_be_so() {
        let holders: Holders =
            serde_json::from_value(json!({ "address": "192.0.2.1", "holders": [], "count": 0 }))
                .expect("an answer");
        assert_eq!(holders.text(), "192.0.2.1 is nobody's that the cluster knows of\n");
    }
}
