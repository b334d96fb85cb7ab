//! Who has an address.

use std::net::IpAddr;

use mesonet_model::{AddressHolder, ClusterView};
use serde_json::{Value, json};

/// Holders that are listed, at most: on nodes' own bridges, each node has the same addresses.
const HOLDERS_MAX: usize = 100;

/// The answer to the question who has an address, by a view of the cluster.
pub fn holders_answer(view: &ClusterView, address: IpAddr) -> Value {
    let holders = view.holders_of(address);
    let printed: Vec<Value> = holders.iter().take(HOLDERS_MAX).map(|holder| printed(view, holder)).collect();
    json!({ "address": address, "revision": view.revision, "holders": printed, "count": holders.len() })
}

fn printed(view: &ClusterView, holder: &AddressHolder) -> Value {
    let mut value = json!(holder);
    if let Some(agent) = holder.agent() {
        value["node"] = json!(view.agents.get(agent).map(|agent| agent.node_name()));
    }
    value
}
