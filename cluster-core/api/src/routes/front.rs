//! What the dcos command line asks of a cluster's front before it talks to Marathon.

use std::collections::BTreeMap;

use axum::response::Response;
use mesonet_model::{Agent, AgentId, AgentState, FrameworkId, TaskState};
use serde_json::{Map, Value, json};

use crate::api::{Api, allow_get};
use crate::call::Call;
use crate::context::State;
use crate::failure::Failure;
use crate::respond;

/// How many tasks are in each state.
type Counts = BTreeMap<TaskState, usize>;

/// Answers the front's paths.
pub(crate) fn route(api: &Api, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match path {
        ["pkgpanda", "active.buildinfo.full.json"] => {
            allow_get(call)?;
            Ok(respond::ok(&json!({})))
        }
        ["metadata"] => {
            allow_get(call)?;
            let state = api.state()?;
            Ok(respond::ok(&json!({"CLUSTER_ID": state.cluster.cluster})))
        }
        ["dcos-metadata", "dcos-version.json"] => {
            allow_get(call)?;
            Ok(respond::ok(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "dcos-image-commit": "",
                "bootstrap-id": "",
            })))
        }
        ["mesos", "state-summary"] | ["mesos", "master", "state-summary"] => {
            allow_get(call)?;
            Ok(respond::ok(&summary(api, &*api.state()?)))
        }
        ["mesos_dns", "v1", "hosts", name] => {
            allow_get(call)?;
            Ok(respond::ok(&hosts(api, name)))
        }
        _ => Err(Failure::UnknownUri),
    }
}

/// Where master and Marathon are, as mesos-dns says it; the command line asks for these names only.
fn hosts(api: &Api, name: &str) -> Value {
    let name = name.trim_end_matches('.');
    match name {
        "leader.mesos" | "master.mesos" | "marathon.mesos" => {
            json!([{"host": format!("{name}."), "ip": api.context.address.ip()}])
        }
        _ => json!([{"host": "", "ip": ""}]),
    }
}

fn summary(api: &Api, state: &State) -> Value {
    let cluster = &state.cluster;
    let mut of_agents: BTreeMap<&AgentId, Counts> = BTreeMap::new();
    let mut of_frameworks: BTreeMap<&FrameworkId, Counts> = BTreeMap::new();
    for task in cluster.tasks.values() {
        *of_agents.entry(&task.agent).or_default().entry(task.state).or_default() += 1;
        *of_frameworks.entry(&task.key.framework).or_default().entry(task.state).or_default() += 1;
    }
    let slaves: Vec<Value> =
        cluster.agents.values().map(|agent| slave(agent, of_agents.get(&agent.id))).collect();
    let frameworks: Vec<Value> = cluster
        .frameworks
        .values()
        .map(|framework| {
            let mut printed = json!({
                "id": framework.id,
                "name": framework.name,
                "hostname": framework.hostname,
                "webui_url": framework.webui_url,
                "active": framework.active,
                "connected": framework.active,
                "recovered": false,
                "capabilities": [],
            });
            extend(&mut printed, counters(of_frameworks.get(&framework.id)));
            printed
        })
        .collect();
    json!({
        "hostname": api.context.address.ip(),
        "cluster": "mesonet",
        "slaves": slaves,
        "frameworks": frameworks,
    })
}

fn slave(agent: &Agent, tasks: Option<&Counts>) -> Value {
    let resources = &agent.info.resources;
    let mut printed = json!({
        "id": agent.id,
        "hostname": agent.info.hostname,
        "port": agent.info.port,
        "pid": format!("slave(1)@{}:{}", agent.info.address, agent.info.port),
        "attributes": agent
            .info
            .attributes
            .iter()
            .map(|attribute| (attribute.name.clone(), json!(attribute.value)))
            .collect::<Map<_, _>>(),
        "resources": {
            "cpus": resources.cpus,
            "mem": resources.mem,
            "disk": resources.disk,
            "gpus": resources.gpus,
            "ports": resources.ports.to_string(),
        },
        "registered_time": agent.registered_at.as_seconds(),
        "active": agent.state == AgentState::Active,
        "deactivated": agent.draining,
    });
    extend(&mut printed, counters(tasks));
    printed
}

/// Mesos' task counters.
fn counters(counts: Option<&Counts>) -> Map<String, Value> {
    let counted = [
        TaskState::Staging,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Killing,
        TaskState::Finished,
        TaskState::Killed,
        TaskState::Failed,
        TaskState::Lost,
        TaskState::Error,
        TaskState::Unreachable,
    ];
    let count = |state: TaskState| counts.and_then(|counts| counts.get(&state)).copied().unwrap_or(0);
    counted.into_iter().map(|state| (state.as_str().to_owned(), json!(count(state)))).collect()
}

fn extend(object: &mut Value, fields: Map<String, Value>) {
    if let Value::Object(object) = object {
        object.extend(fields);
    }
}
