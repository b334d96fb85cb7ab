//! mesonet's own resources below `/v1`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{Method, StatusCode};
use axum::response::Response;
use mesonet_lb_plan::{EndpointId, Observed, Vantage, WeighedEndpoint, weigh};
use mesonet_model::{Agent, AgentId, AgentState, Revision, Service, ServiceKey, TaskId, TaskKey, Timestamp};
use serde_json::{Value, json};

use crate::api::{Api, allow, allow_get};
use crate::call::Call;
use crate::context::{NodeOrder, SandboxError, State};
use crate::failure::Failure;
use crate::respond;
use crate::routes::{holders_answer, networks};

/// The domain of named VIPs (spec/dcos-networking.md §2.3).
const VIP_DOMAIN: &str = "l4lb.thisdcos.directory";

/// What a read without length returns at most, as in Mesos (16 pages).
const FILE_CHUNK_DEFAULT: u64 = 16 * 4096;

/// What one read returns at most, whatever is asked for: the answer is held in memory.
const FILE_CHUNK_MAX: u64 = 1 << 20;

/// Answers what is below `/v1`.
pub(crate) async fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        ["health", "live"] => {
            allow_get(call)?;
            Ok(respond::ok(&json!({"live": true})))
        }
        ["health", "ready"] => {
            allow_get(call)?;
            ready(api)
        }
        ["view"] => {
            allow_get(call)?;
            Ok(respond::ok(&api.state()?.cluster))
        }
        ["services"] => {
            allow_get(call)?;
            let state = api.state()?;
            let (failures, time) = (failures(&state), api.now());
            let failures_of = |each: &Service| failures.get(&each.key).map_or(&[][..], Vec::as_slice);
            let services = state.cluster.services.values();
            let services: Vec<Value> =
                services.map(|each| service(&state, each, failures_of(each), time)).collect();
            Ok(respond::ok(&json!({"revision": state.cluster.revision, "services": services})))
        }
        ["planes"] => {
            allow_get(call)?;
            planes(api)
        }
        ["addresses", address] => {
            allow_get(call)?;
            let wrong = || Failure::BadRequest(format!("'{address}' is no IP address"));
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            Ok(respond::ok(&holders_answer(&api.state()?.cluster, address)))
        }
        ["networks"] => networks::all(api, call).await,
        ["networks", name] => networks::one(api, call, name).await,
        ["masters"] => {
            allow_get(call)?;
            let revision = api.state()?.cluster.revision;
            Ok(respond::ok(&api.context.masters.list().to_json(revision)))
        }
        ["nodes", node, "drain"] => order(api, call, node, NodeOrder::Drain).await,
        ["nodes", node, "undrain"] => order(api, call, node, NodeOrder::Undrain).await,
        ["nodes", node, "remove"] => remove(api, call, node).await,
        ["nodes", "confirm-removal"] => {
            allow(call, &[Method::POST], "POST")?;
            let revision = api.order(NodeOrder::ConfirmRemoval).await?;
            Ok(ordered(&json!({"revision": revision}), revision))
        }
        ["tasks", task, "files", file @ ..] if !file.is_empty() => {
            allow_get(call)?;
            read_file(api, call, task, file).await
        }
        _ => Err(Failure::UnknownUri),
    }
}

fn ready(api: &Api) -> Result<Response, Failure> {
    let state = api.state()?;
    if api.context.requests.is_closed() {
        return Err(Failure::Unavailable("The control plane is stopping"));
    }
    let is_registered = state.marathon.framework.is_some();
    let status = if is_registered { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let message = if is_registered { "Ready" } else { "Marathon is not registered with the master yet" };
    Ok(respond::json(
        status,
        &json!({"ready": is_registered, "message": message, "revision": state.cluster.revision}),
    ))
}

/// What planes could not put into effect, by service.
fn failures(state: &State) -> BTreeMap<&ServiceKey, Vec<Value>> {
    let mut failures: BTreeMap<&ServiceKey, Vec<Value>> = BTreeMap::new();
    for report in state.planes.values() {
        for (key, reason) in &report.failed {
            let printed = json!({"node": report.node, "plane": report.plane, "reason": reason});
            failures.entry(key).or_default().push(printed);
        }
    }
    failures
}

fn service(state: &State, service: &Service, failures: &[Value], time: Timestamp) -> Value {
    let key = &service.key;
    let name = key.vip.allocation_name().map(|name| format!("{name}.{VIP_DOMAIN}"));
    let addresses = service.ipv4.map(IpAddr::V4).into_iter().chain(service.ipv6.map(IpAddr::V6));
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    // As the view of the whole cluster has it: what nodes see of connections and places is theirs.
    let nowhere = Vantage::default();
    let weighed = weigh(&state.cluster, service, &nowhere, &Observed::default(), time);
    let endpoints: Vec<Value> = state
        .cluster
        .endpoints_of(key)
        .filter_map(|(endpoint, each)| {
            let id = EndpointId { task: endpoint.task.clone(), address: endpoint.address };
            let WeighedEndpoint { weight, standing, .. } = weighed.endpoints.get(&id)?;
            Some(json!({
                "task": endpoint.task.task,
                "framework": endpoint.task.framework,
                "agent": each.agent,
                "address": endpoint.address,
                "state": each.state,
                "weight": weight,
                "healthy": standing.is_healthy(),
                "reason": standing.to_string(),
            }))
        })
        .collect();
    json!({
        "service": key,
        "name": name,
        "protocol": key.protocol,
        "port": key.port,
        "addresses": addresses,
        "endpoints": endpoints,
        "failures": failures,
    })
}

/// How far each plane of each node is behind what is committed, and those that are not connected any more.
fn planes(api: &Api) -> Result<Response, Failure> {
    let state = api.state()?;
    let revision = state.cluster.revision;
    let planes: Vec<Value> = state
        .planes
        .values()
        .map(|report| {
            json!({
                "node": report.node,
                "plane": report.plane,
                "applied": report.applied,
                "lag": revision.0.saturating_sub(report.applied.0),
                "behindSince": state.plane_history.behind_since(report.applied),
                "outage": report.outage,
                "silent": report.tunnel.as_ref().map(|tunnel| &tunnel.silent),
                "omissions": report.tunnel.as_ref().map(|tunnel| &tunnel.omissions),
            })
        })
        .collect();
    let disconnected: Vec<Value> = state
        .plane_history
        .away()
        .map(|(node, plane, away)| {
            json!({"node": node, "plane": plane, "applied": away.applied, "since": away.since})
        })
        .collect();
    Ok(respond::ok(&json!({"revision": revision, "planes": planes, "disconnected": disconnected})))
}

/// Gives the master an order for a node, which is named by its agent's id, by its name or by its host's.
async fn order(
    api: &Api,
    call: &Call,
    node: &str,
    order: fn(AgentId) -> NodeOrder,
) -> Result<Response, Failure> {
    allow(call, &[Method::POST], "POST")?;
    let agent = agent_of(&*api.state()?, node)?;
    let revision = api.order(order(agent.clone())).await?;
    Ok(ordered(&json!({"agent": agent, "revision": revision}), revision))
}

/// Forgets a node. One that is connected is not gone, and its clients would be cut.
async fn remove(api: &Api, call: &Call, node: &str) -> Result<Response, Failure> {
    allow(call, &[Method::POST], "POST")?;
    let state = api.state()?;
    let agent = agent_of(&state, node)?;
    match state.cluster.agents.get(&agent).map(|agent| agent.state) {
        Some(AgentState::Active) => Err(Failure::BadRequest(format!(
            "Node '{node}' is connected: drain it and stop its agent before it is removed"
        ))),
        _ => order(api, call, agent.as_str(), NodeOrder::Remove).await,
    }
}

pub(super) fn ordered(answer: &Value, revision: Revision) -> Response {
    let mut response = respond::ok(answer);
    respond::set_revision(&mut response, revision);
    response
}

fn agent_of(state: &State, node: &str) -> Result<AgentId, Failure> {
    let agents = &state.cluster.agents;
    if let Some(agent) = agents.get(&AgentId::new(node)) {
        return Ok(agent.id.clone());
    }
    let is_named = |agent: &Agent| agent.node_name() == node || agent.info.hostname == node;
    let named: Vec<&AgentId> =
        agents.values().filter(|&agent| is_named(agent)).map(|agent| &agent.id).collect();
    match named.as_slice() {
        [] => Err(Failure::NotFound(format!("Node '{node}' does not exist"))),
        [agent] => Ok((*agent).clone()),
        more => Err(Failure::BadRequest(format!(
            "'{node}' names {} nodes: name one by its agent's id",
            more.len()
        ))),
    }
}

async fn read_file(api: &Api, call: &Call, task: &str, file: &[&str]) -> Result<Response, Failure> {
    if file.iter().any(|segment| matches!(*segment, "." | "..") || segment.contains('\0')) {
        return Err(Failure::BadRequest("A file's path must lead downwards from the sandbox".to_owned()));
    }
    let offset = number(call, "offset")?;
    let length = number(call, "length")?.unwrap_or(FILE_CHUNK_DEFAULT).min(FILE_CHUNK_MAX);
    let key = task_key(&*api.state()?, call, task)?;
    let file = file.join("/");
    let state = api.state()?;
    let elsewhere = elsewhere(&state, &key, &file);
    let agent = state.cluster.tasks.get(&key).map(|task| task.agent.clone());
    let sandboxes = Arc::clone(&api.context.sandboxes);
    let read = tokio::task::spawn_blocking(move || {
        sandboxes.read(agent.as_ref(), &key, &file, offset, Some(length))
    });
    let chunk = match read.await {
        Ok(Ok(chunk)) => chunk,
        Ok(Err(error @ SandboxError::NotFound { .. })) => {
            return Err(Failure::NotFound(error.to_string()));
        }
        Ok(Err(SandboxError::Elsewhere { reason, .. })) => {
            return Err(Failure::NotFound(format!(
                "The file cannot be read from here: {reason}. {elsewhere}"
            )));
        }
        Ok(Err(SandboxError::Io { task, file, source })) => {
            tracing::warn!(task, file, error = %source, "Cannot read a sandbox file");
            return Err(Failure::Internal(format!("cannot read file '{file}' of task '{task}': {source}")));
        }
        Err(_) => return Err(Failure::Internal("reading the sandbox was interrupted".to_owned())),
    };
    let data =
        if offset.is_none() { String::new() } else { String::from_utf8_lossy(&chunk.data).into_owned() };
    Ok(respond::ok(&json!({"offset": chunk.offset, "data": data})))
}

/// Where a user finds a file that the master cannot read.
fn elsewhere(state: &State, key: &TaskKey, file: &str) -> String {
    let TaskKey { framework, task } = key;
    let agent = state.cluster.tasks.get(key).and_then(|task| state.cluster.agents.get(&task.agent));
    let (node, slave) = agent.map_or_else(
        || ("the node where it ran".to_owned(), "*".to_owned()),
        |agent| (format!("node '{}' ({})", agent.node_name(), agent.info.address), agent.id.to_string()),
    );
    format!(
        "'{file}' of task '{task}' is on {node}, below its directory \
         (/var/lib/mesonet/node unless said otherwise): \
         agent/slaves/{slave}/frameworks/{framework}/executors/{task}/runs/latest/{file}"
    )
}

/// A parameter as a number; absent and -1 mean none.
fn number(call: &Call, name: &str) -> Result<Option<u64>, Failure> {
    match call.parameter(name) {
        None | Some("-1") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Failure::BadRequest(format!("parameter '{name}' must be a number from -1 on, not '{text}'"))
        }),
    }
}

/// The task of this id: that of the framework asked for, else any that runs, else one of Marathon's that has ended.
fn task_key(state: &State, call: &Call, task: &str) -> Result<TaskKey, Failure> {
    let task = TaskId::new(task);
    if let Some(framework) = call.parameter("framework") {
        return Ok(TaskKey::new(mesonet_model::FrameworkId::new(framework), task));
    }
    let of_marathon = state.marathon.framework.clone().map(|framework| TaskKey::new(framework, task.clone()));
    if let Some(key) = of_marathon.as_ref().filter(|key| state.cluster.tasks.contains_key(*key)) {
        return Ok(key.clone());
    }
    let running = state.cluster.tasks.keys().find(|key| key.task == task).cloned();
    running.or(of_marathon).ok_or_else(|| Failure::NotFound(format!("Task '{task}' does not exist")))
}
