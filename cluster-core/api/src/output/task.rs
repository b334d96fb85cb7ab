//! Tasks in Marathon's form.

use std::sync::Arc;

use mesonet_marathon::{AppView, InstanceView};
use mesonet_model::{HealthResult, TaskState};
use serde_json::{Value, json};

use crate::output::{address_json, instance_id};

/// An instance's task.
pub(crate) fn info(instance: &InstanceView) -> Value {
    let addresses: Vec<Value> = instance.addresses.iter().map(address_json).collect();
    json!({
        "id": instance.task,
        "appId": instance.app,
        "slaveId": instance.agent,
        "host": instance.host,
        "state": instance.state.as_str(),
        "stagedAt": instance.staged_at,
        "startedAt": instance.started_at,
        "version": instance.version,
        "ports": instance.ports,
        "servicePorts": instance.service_ports,
        "ipAddresses": addresses,
        "healthCheckResults": health_results(instance),
        "localVolumes": [],
    })
}

/// The text form of tasks: per service port a line `app<TAB>service port<TAB>host:port<TAB>…`, without ports
/// `app<TAB> <TAB>host …`.
pub(crate) fn endpoints_text<'view>(apps: impl Iterator<Item = &'view AppView>) -> String {
    let mut text = String::new();
    for app in apps {
        let id = app.definition.id.task_id_prefix();
        let running = || app.instances.values().filter(|instance| instance.state == TaskState::Running);
        let ports = app.definition.ports();
        if ports.is_empty() {
            let hosts: Vec<&str> = running().map(|instance| instance.host.as_str()).collect();
            text.push_str(&format!("{id}\t \t{}\n", hosts.join(" ")));
        }
        for (index, port) in ports.iter().enumerate() {
            text.push_str(&format!("{id}\t{}\t", port.service_port));
            for instance in running() {
                let host_port = instance.ports.get(index).copied().unwrap_or(0);
                text.push_str(&format!("{}:{host_port}\t", instance.host));
            }
            text.push('\n');
        }
    }
    text
}

/// One for each instance that runs and that a deployment waits for until it is ready, or has waited for.
pub(crate) fn readiness_results(app: &AppView) -> Vec<Value> {
    let running = app.instances.values().filter(|instance| instance.state == TaskState::Running);
    let result = |instance: &Arc<InstanceView>| {
        let found = instance.readiness.as_ref()?;
        let version = app.versions.iter().find(|version| version.version == instance.version);
        let check = version.unwrap_or(&app.definition).readiness_checks.first();
        let mut result = json!({
            "name": check.map_or(&Value::Null, |check| &check["name"]),
            "taskId": instance.task,
            "ready": found.ready,
        });
        if let Some(response) = &found.last_response {
            result["lastResponse"] = json!({
                "status": response.status,
                "contentType": response.content_type,
                "body": response.body,
            });
        }
        Some(result)
    };
    running.filter_map(result).collect()
}

/// One for each check that has found something.
fn health_results(instance: &InstanceView) -> Value {
    let result = |result: &HealthResult| {
        let alive = result.is_alive()?;
        Some(json!({
            "alive": alive,
            "consecutiveFailures": result.consecutive_failures,
            "firstSuccess": result.first_success,
            "instanceId": instance_id(instance.task.as_str()),
            "lastFailure": result.last_failure,
            "lastFailureCause": result.last_failure_cause,
            "lastSuccess": result.last_success,
            "taskId": instance.task,
        }))
    };
    instance.health_results.iter().filter_map(result).collect()
}
