//! Deployments in Marathon's form.

use std::sync::Arc;

use imbl::OrdMap;
use mesonet_marathon::{AppView, Deployment, DeploymentAction, DeploymentStep};
use mesonet_model::AppId;
use serde_json::{Value, json};

use crate::output::{app, group, task};

/// An element of `/v2/deployments`; `apps` are those that are known.
pub(crate) fn info(deployment: &Deployment, apps: &OrdMap<AppId, Arc<AppView>>) -> Value {
    let last = deployment.steps.len().saturating_sub(1);
    let current = deployment.steps.get(deployment.current.min(last));
    let current_actions: Vec<Value> = current
        .iter()
        .flat_map(|step| &step.actions)
        .map(|each| {
            let readiness = apps.get(&each.app).map_or_else(Vec::new, |app| task::readiness_results(app));
            json!({"action": each.kind.as_str(), "app": each.app, "readinessCheckResults": readiness})
        })
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
        let apps = |apps: &[Arc<mesonet_model::AppDefinition>]| {
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
