//! Virtual networks below `/v1/networks`.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use mesonet_model::{AgentId, NetworkName, NetworkRange, PartUse, Subnet, VirtualNetwork};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::native::ordered;
use crate::api::{Api, allow};
use crate::call::Call;
use crate::context::{NodeOrder, State};
use crate::failure::Failure;
use crate::respond;

/// A node's part of an IPv4 range unless it is said, as in DC/OS (spec/dcos-networking.md §0.2).
const NODE_PREFIX_V4: u8 = 24;

/// A node's part of an IPv6 range unless it is said.
const NODE_PREFIX_V6: u8 = 80;

/// Beyond these it does not matter how many addresses are free, and JSON of browsers has no greater numbers.
const FREE_MAX: u64 = (1 << 53) - 1;

/// What there may be in the description of a network, for people.
const FIELDS: &str = "name, subnet, prefix, subnet6 and prefix6";
const RANGE: &str = "a text such as \"10.128.0.0/16\"";
const BITS: &str = "a number of bits";

/// How much of nodes' parts is in use.
type PartUses = BTreeMap<(NetworkName, AgentId), PartUse>;

/// A network as users make it, in the words of DC/OS.
#[derive(Debug)]
struct NetworkInput {
    name: String,
    subnet: Option<String>,
    prefix: Option<u8>,
    subnet6: Option<String>,
    prefix6: Option<u8>,
}

/// `GET` lists the networks, `POST` makes one.
pub(super) async fn all(api: &Api, call: &Call) -> Result<Response, Failure> {
    allow(call, &[Method::GET, Method::POST], "GET, HEAD, POST")?;
    if call.method == Method::POST {
        return create(api, call).await;
    }
    let state = api.state()?;
    let uses = state.cluster.part_uses();
    let networks: Vec<Value> =
        state.cluster.networks.values().map(|network| printed(&state, network, &uses)).collect();
    Ok(respond::ok(&json!({"revision": state.cluster.revision, "networks": networks})))
}

/// `GET` shows a network, `DELETE` removes it.
pub(super) async fn one(api: &Api, call: &Call, name: &str) -> Result<Response, Failure> {
    allow(call, &[Method::GET, Method::DELETE], "GET, HEAD, DELETE")?;
    let unknown = || Failure::NotFound(format!("network '{name}' does not exist"));
    let name: NetworkName = name.parse().map_err(|_| unknown())?;
    if call.method == Method::DELETE {
        let revision = api.order(NodeOrder::RemoveNetwork(name.clone())).await?;
        return Ok(ordered(&json!({"name": name, "revision": revision}), revision));
    }
    let state = api.state()?;
    let network = state.cluster.networks.get(&name).ok_or_else(unknown)?;
    Ok(respond::ok(&printed(&state, network, &state.cluster.part_uses())))
}

async fn create(api: &Api, call: &Call) -> Result<Response, Failure> {
    let network = read(&NetworkInput::of(call.json()?)?)?;
    let name = network.name.clone();
    let revision = api.order(NodeOrder::CreateNetwork(network)).await?;
    let state = api.state()?;
    let made = state.cluster.networks.get(&name);
    let made = made.map_or(Value::Null, |network| printed(&state, network, &state.cluster.part_uses()));
    let mut response = ordered(&made, revision);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/networks/{name}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

impl NetworkInput {
    fn of(body: Value) -> Result<Self, Failure> {
        let Value::Object(mut fields) = body else {
            return Err(Failure::BadRequest(format!("a network is an object with {FIELDS}")));
        };
        let name = field(&mut fields, "name", "a name")?;
        let input = Self {
            name: name.ok_or_else(|| Failure::BadRequest("'name' is missing".to_owned()))?,
            subnet: field(&mut fields, "subnet", RANGE)?,
            prefix: field(&mut fields, "prefix", BITS)?,
            subnet6: field(&mut fields, "subnet6", RANGE)?,
            prefix6: field(&mut fields, "prefix6", BITS)?,
        };
        match fields.keys().next() {
            Some(unknown) => {
                Err(Failure::BadRequest(format!("'{unknown}' is unknown: expected one of {FIELDS}")))
            }
            None => Ok(input),
        }
    }
}

/// Takes a field out of an object, if it is there.
fn field<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    key: &str,
    expected: &str,
) -> Result<Option<T>, Failure> {
    let value = fields.remove(key).unwrap_or_default();
    let wrong = |_| Failure::BadRequest(format!("'{key}' is {value}: expected {expected}"));
    Option::deserialize(&value).map_err(wrong)
}

fn read(input: &NetworkInput) -> Result<VirtualNetwork, Failure> {
    let name = input.name.parse().map_err(|error: mesonet_model::NetworkNameError| bad(&error))?;
    for (subnet, prefix, name) in
        [(&input.subnet, input.prefix, "subnet"), (&input.subnet6, input.prefix6, "subnet6")]
    {
        if subnet.is_none() && prefix.is_some() {
            return Err(Failure::BadRequest(format!("a prefix of parts is given without '{name}'")));
        }
    }
    let range = |subnet: &Option<String>, prefix: Option<u8>, default: u8| {
        let subnet = subnet.as_ref().map(|text| text.parse::<Subnet>().map_err(|error| bad(&error)));
        let range = |subnet: Subnet| NetworkRange { subnet, node_prefix: prefix.unwrap_or(default) };
        subnet.transpose().map(|subnet| subnet.map(range))
    };
    let network = VirtualNetwork {
        name,
        ipv4: range(&input.subnet, input.prefix, NODE_PREFIX_V4)?,
        ipv6: range(&input.subnet6, input.prefix6, NODE_PREFIX_V6)?,
    };
    network.check()?;
    Ok(network)
}

fn bad(error: &dyn std::error::Error) -> Failure {
    Failure::BadRequest(error.to_string())
}

fn printed(state: &State, network: &VirtualNetwork, uses: &PartUses) -> Value {
    let mut all = PartUse::default();
    let mut parts = Vec::new();
    for (agent, subnets) in &state.cluster.subnets {
        let subnets = subnets.of(&network.name);
        let Some(part) = uses.get(&(network.name.clone(), agent.clone())) else { continue };
        all.tasks += part.tasks;
        all.containers += part.containers;
        all.free = all.free.saturating_add(part.free);
        let node = state.cluster.agents.get(agent).map(|agent| agent.node_name());
        parts.push(json!({
            "agent": agent, "node": node, "subnets": subnets,
            "tasks": part.tasks, "containers": part.containers, "free": part.free.min(FREE_MAX),
        }));
    }
    json!({
        "name": network.name,
        "subnet": network.ipv4.map(|range| range.subnet),
        "prefix": network.ipv4.map(|range| range.node_prefix),
        "subnet6": network.ipv6.map(|range| range.subnet),
        "prefix6": network.ipv6.map(|range| range.node_prefix),
        "tasks": all.tasks,
        "containers": all.containers,
        "free": all.free.min(FREE_MAX),
        "nodes": parts,
    })
}
