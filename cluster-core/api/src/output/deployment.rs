//! Deployments in Marathon's form.

use mesonet_marathon::{Deployment, DeploymentAction, DeploymentStep};
use serde_json::{Value, json};

use crate::output::{app, group};

/// An element of `/v2/deployments`.
pub(crate) fn info(deployment: &Deployment) -> Value {
    let last = deployment.steps.len().saturating_sub(1);
    let current = deployment.steps.get(deployment.current.min(last));
    let current_actions: Vec<Value> = current
        .iter()
        .flat_map(|step| &step.actions)
        .map(|each| json!({"action": each.kind.as_str(), "app": each.app, "readinessCheckResults": []}))
        .collect();
    json!({
        "id": deployment.id,
        "version": deployment.version,
        "affectedApps": deployment.affected_apps,
        "affectedPods": [],
        "steps": steps(deployment),
        "currentActions": current_actions,
        "currentStep": (deployment.current + 1).min(deployment.steps.len()),
        "totalSteps": deployment.steps.len(),
    })
}

/// A deployment as events carry it; `light` leaves out the apps before and after.
pub(crate) fn plan(deployment: &Deployment, light: bool) -> Value {
    let mut plan = json!({
        "id": deployment.id,
        "version": deployment.version,
        "steps": steps(deployment),
    });
    if !light {
        let apps = |apps: &[std::sync::Arc<mesonet_model::AppDefinition>]| {
            group::flat(apps.iter().map(|each| Value::Object(app::definition(each))), deployment.version)
        };
        plan["original"] = apps(&deployment.original);
        plan["target"] = apps(&deployment.target);
    }
    plan
}

/// One step.
pub(crate) fn step(step: &DeploymentStep) -> Value {
    json!({"actions": step.actions.iter().map(action).collect::<Vec<_>>()})
}

fn steps(deployment: &Deployment) -> Vec<Value> {
    deployment.steps.iter().map(step).collect()
}

fn action(action: &DeploymentAction) -> Value {
    json!({"action": action.kind.as_str(), "app": action.app})
}
