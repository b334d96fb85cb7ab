//! Events in Marathon's form.

use mesonet_marathon::{Deployment, DeploymentStep, Event, EventKind};
use mesonet_model::{TaskState, Timestamp};
use serde_json::{Map, Value, json};

use crate::output::{address_json, deployment, instance_id};

/// The event's type as clients filter by it.
pub(crate) fn type_of(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::StatusUpdate { .. } => "status_update_event",
        EventKind::InstanceChanged { .. } => "instance_changed_event",
        EventKind::HealthStatusChanged { .. } => "health_status_changed_event",
        EventKind::InstanceHealthChanged { .. } => "instance_health_changed_event",
        EventKind::FailedHealthCheck { .. } => "failed_health_check_event",
        EventKind::UnhealthyInstanceKill { .. } => "unhealthy_instance_kill_event",
        EventKind::UnknownInstanceTerminated { .. } => "unknown_instance_terminated_event",
        EventKind::GroupChanged { .. } => "group_change_success",
        EventKind::DeploymentInfo { .. } => "deployment_info",
        EventKind::DeploymentStepSuccess { .. } => "deployment_step_success",
        EventKind::DeploymentSuccess { .. } => "deployment_success",
        EventKind::DeploymentFailed { .. } => "deployment_failed",
        EventKind::AppTerminated { .. } => "app_terminated_event",
    }
}

/// The event's data; `light` leaves out the apps before and after a deployment.
pub(crate) fn data(event: &Event, light: bool) -> Value {
    with_type(type_of(&event.kind), event.timestamp, fields(&event.kind, light))
}

/// Event data with what all events have.
pub(crate) fn with_type(event_type: &str, timestamp: Timestamp, fields: Value) -> Value {
    let mut object = match fields {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    };
    object.insert("eventType".to_owned(), json!(event_type));
    object.insert("timestamp".to_owned(), json!(timestamp));
    Value::Object(object)
}

fn fields(kind: &EventKind, light: bool) -> Value {
    match kind {
        EventKind::StatusUpdate { task, app, agent, host, state, message, addresses, ports, version } => {
            json!({
                "slaveId": agent,
                "taskId": task,
                "taskStatus": state.as_str(),
                "message": message,
                "appId": app,
                "host": host,
                "ipAddresses": addresses.iter().map(address_json).collect::<Vec<_>>(),
                "ports": ports,
                "version": version,
            })
        }
        EventKind::InstanceChanged { task, app, agent, host, state, version } => json!({
            "instanceId": instance_id(task.as_str()),
            "condition": condition(*state),
            "runSpecId": app,
            "agentId": agent,
            "host": host,
            "runSpecVersion": version,
        }),
        EventKind::HealthStatusChanged { task, app, version, alive } => json!({
            "appId": app,
            "instanceId": instance_id(task.as_str()),
            "version": version,
            "alive": alive,
        }),
        EventKind::InstanceHealthChanged { task, app, version, healthy } => json!({
            "instanceId": instance_id(task.as_str()),
            "runSpecId": app,
            "runSpecVersion": version,
            "healthy": healthy,
        }),
        EventKind::FailedHealthCheck { task, app, check } => json!({
            "appId": app,
            "taskId": task,
            "instanceId": instance_id(task.as_str()),
            "healthCheck": check,
        }),
        EventKind::UnhealthyInstanceKill { task, app, agent, host, version, reason } => json!({
            "appId": app,
            "taskId": task,
            "instanceId": instance_id(task.as_str()),
            "version": version,
            "reason": reason,
            "host": host,
            "slaveId": agent,
        }),
        EventKind::UnknownInstanceTerminated { task, state } => json!({
            "instanceId": instance_id(task.as_str()),
            "runSpecId": app_path(task.as_str()),
            "condition": condition(*state),
        }),
        EventKind::GroupChanged { version } => json!({"groupId": "/", "version": version}),
        EventKind::DeploymentInfo { plan, step } | EventKind::DeploymentStepSuccess { plan, step } => {
            step_of(plan, step, light)
        }
        EventKind::DeploymentSuccess { plan } => {
            json!({"id": plan.id, "plan": deployment::plan(plan, light)})
        }
        EventKind::DeploymentFailed { plan, reason } => {
            json!({"id": plan.id, "plan": deployment::plan(plan, light), "reason": reason})
        }
        EventKind::AppTerminated { app } => json!({"appId": app}),
    }
}

fn step_of(plan: &Deployment, step: &DeploymentStep, light: bool) -> Value {
    json!({"plan": deployment::plan(plan, light), "currentStep": deployment::step(step)})
}

/// The app's path as a task id of Marathon names it: `web_nginx.instance-…` → `/web/nginx`.
fn app_path(task: &str) -> String {
    let name = task.split_once(".instance-").map_or(task, |(name, _)| name);
    format!("/{}", name.replace('_', "/"))
}

/// Marathon's word for a task's state.
fn condition(state: TaskState) -> &'static str {
    match state {
        TaskState::Staging => "Staging",
        TaskState::Starting => "Starting",
        TaskState::Running => "Running",
        TaskState::Killing => "Killing",
        TaskState::Finished => "Finished",
        TaskState::Failed => "Failed",
        TaskState::Killed => "Killed",
        TaskState::Error => "Error",
        TaskState::Lost | TaskState::Unknown => "Unknown",
        TaskState::Dropped => "Dropped",
        TaskState::Unreachable => "Unreachable",
        TaskState::Gone | TaskState::GoneByOperator => "Gone",
    }
}
