//! The answer to "where would this connection go?" as JSON.

use std::net::{IpAddr, SocketAddr};

use mesonet_lb_dataplane::{Carrier, Connection, Explained, PacketAnswer};
use mesonet_lb_plan::EndpointId;
use mesonet_model::{AgentId, ClusterView};
use serde_json::{Value, json};

use super::listing;
use crate::overlay::TunnelWay;

/// What a client's connection meets on its way, in order.
pub(super) fn answer(
    node: &AgentId,
    view: &ClusterView,
    connection: Connection,
    dns: Option<&(String, Vec<IpAddr>)>,
    explained: &Explained,
) -> Value {
    let Explained { service, routes, excluded, choice, carrier, carrier_why, datapath, confirmed } =
        explained;
    let mut listed = listing::service(view, service, routes);
    let mut candidates = listed["endpoints"].take();
    for candidate in candidates.as_array_mut().into_iter().flatten() {
        let is_it = |id: &EndpointId| {
            candidate["address"] == json!(id.address) && candidate["task"] == json!(id.task.task)
        };
        let chance = choice.chances.iter().find(|(id, _)| is_it(id));
        let chance = chance.map_or(0.0, |(_, percent)| *percent);
        // Whatever else there is to say of an endpoint that gets nothing anyway stands there already.
        let reason = excluded.iter().find(|(id, _)| is_it(id) && candidate["weight"] != 0);
        let reason = reason.map(|(_, reason)| *reason);
        candidate["chancePercent"] = json!(chance);
        if let Some(reason) = reason {
            candidate["reason"] = json!(reason);
        }
    }
    let chosen = choice.endpoint.as_ref();
    let agent = chosen.and_then(|id| routes.weighed.endpoints.get(id)).map(|each| &each.agent);
    let to_node = agent.and_then(|agent| view.agents.get(agent)).map(|agent| agent.node_name().to_owned());
    json!({
        "client": client(connection),
        "to": connection.to,
        "protocol": connection.protocol,
        "node": node,
        "revision": view.revision,
        "dns": dns.map(|(name, addresses)| json!({ "name": name, "addresses": addresses })),
        "service": service,
        "policy": listed["policy"],
        "failure": routes.failure,
        "candidates": candidates,
        "choice": {
            "task": chosen.map(|id| &id.task.task),
            "address": chosen.map(|id| id.address),
            "node": to_node,
            "why": choice.why,
        },
        "packet": confirmed.map(packet),
        "datapath": listing::datapath(datapath),
        "carrier": { "name": carrier.as_str(), "why": carrier_why },
        "path": path(connection, explained, to_node.as_deref()),
    })
}

/// Adds the tunnels that lead to candidates on other nodes.
pub(super) fn add_tunnels(answer: &mut Value, way: impl Fn(IpAddr) -> Option<TunnelWay>) {
    let find = |address: &Value| way(address.as_str()?.parse::<SocketAddr>().ok()?.ip());
    for candidate in answer["candidates"].as_array_mut().into_iter().flatten() {
        let found = find(&candidate["address"]);
        candidate["tunnel"] = json!(found);
    }
    let Some(TunnelWay { node, endpoint, mtu }) = find(&answer["choice"]["address"]) else { return };
    let step = format!(
        "packets to there go through the tunnel to node {node}, {endpoint}, and are of at most {mtu} octets"
    );
    if let Some(path) = answer["path"].as_array_mut() {
        path.push(json!(step));
    }
}

/// What the program for packets from outside does with the first packet.
fn packet(answer: PacketAnswer) -> Value {
    match answer {
        PacketAnswer::Goes { from, to } => json!({ "verdict": "goes", "from": from, "to": to }),
        PacketAnswer::Dropped => json!({ "verdict": "dropped" }),
        PacketAnswer::Passes => json!({ "verdict": "passes" }),
    }
}

fn client(connection: Connection) -> String {
    match connection.client.port() {
        0 => connection.client_ip().to_string(),
        _ => connection.client.to_string(),
    }
}

/// The way to the endpoint, step by step.
fn path(connection: Connection, explained: &Explained, to_node: Option<&str>) -> Vec<String> {
    let Connection { to, .. } = connection;
    let who = client(connection);
    let where_to = match &explained.choice.endpoint {
        Some(id) => format!("{} on node {}", id.address, to_node.unwrap_or("unknown")),
        None if explained.choice.chances.is_empty() => "nobody".to_owned(),
        None => "one of the endpoints that have a chance".to_owned(),
    };
    match explained.carrier {
        Carrier::Hooks => vec![
            format!("{who} connects to {to}; a hook of its cgroup replaces that address"),
            format!(
                "the client's own connection leads to {where_to}, and the server sees the client's address"
            ),
        ],
        Carrier::Packets => vec![
            format!("{who} sends packets for {to} through this node, where a program replaces that address"),
            if explained.routes.policy.direct_return {
                format!(
                    "they go on to {where_to}, in a tunnel if that is another node; the server sees the client's \
                     address and answers it directly"
                )
            } else {
                format!(
                    "they go on to {where_to}; the server sees the client's address, or this node's if it is \
                     elsewhere and packets are masqueraded"
                )
            },
        ],
        Carrier::Proxy => vec![
            format!("{who} connects to {to}, where the proxy of this node accepts"),
            format!(
                "the proxy connects to {where_to} and copies both ways; the server sees this node's address"
            ),
        ],
        Carrier::Nothing => vec![format!("{who} connects to {to}; nothing carries it on this node")],
    }
}
