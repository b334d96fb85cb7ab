//! Deployments on their way: step after step.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesonet_model::{AppId, DeploymentId, Table};

use crate::machine::{Marathon, Turn};
use crate::rolling::Goal;
use crate::{ActionKind, Deployment, DeploymentStep, EventKind};

/// A running deployment.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it is.
    pub(crate) deployment: Arc<Deployment>,
    /// Apps whose action of the current step is not done.
    pub(crate) pending: BTreeSet<AppId>,
}

impl Plan {
    /// A deployment at its current step, of which nothing is known to be done.
    pub(crate) fn new(deployment: Arc<Deployment>) -> Self {
        let step = deployment.steps.get(deployment.current);
        let pending = step.iter().flat_map(|step| &step.actions).map(|action| action.app.clone()).collect();
        Self { deployment, pending }
    }
}

impl Marathon {
    /// Begins a deployment; it must have at least one step.
    pub(crate) fn begin(&mut self, deployment: Arc<Deployment>, turn: &mut Turn) {
        let id = deployment.id.clone();
        for app in &deployment.affected_apps {
            if let Some(app) = self.apps.get_mut(app) {
                app.deployments.push(id.clone());
            }
        }
        self.plans.insert(id.clone(), Plan::new(deployment));
        self.begin_step(&id, turn);
    }

    /// An app has reached its goal: if the deployment's current step waits for that, the deployment may go on.
    pub(crate) fn action_done(&mut self, app: &AppId, id: &DeploymentId, turn: &mut Turn) {
        let Some(plan) = self.plans.get_mut(id) else { return };
        if plan.pending.remove(app) && plan.pending.is_empty() {
            self.end_step(id, turn);
        }
    }

    /// Cancels a deployment: what it has done stays, what it has not done is made up for by the apps' goals.
    pub(crate) fn cancel(&mut self, id: &DeploymentId, turn: &mut Turn) {
        let Some(plan) = self.plans.get(id) else { return };
        let deployment = Arc::clone(&plan.deployment);
        for app in &deployment.affected_apps {
            if let Some(app) = self.apps.get_mut(app).filter(|app| !app.is_stopping()) {
                app.goal = Goal::Scale { instances: app.definition().instances };
            }
        }
        self.drop_plan(id, turn);
        let reason = "The upgrade has been cancelled".to_owned();
        turn.publish(EventKind::DeploymentFailed { plan: deployment, reason });
    }

    /// The step that a deployment is at begins: its apps get their goals.
    fn begin_step(&mut self, id: &DeploymentId, turn: &mut Turn) {
        let Some(plan) = self.plans.get(id) else { return };
        let deployment = Arc::clone(&plan.deployment);
        let Some(step) = deployment.steps.get(deployment.current).cloned() else { return };
        turn.store(Table::Deployments, id, &*deployment);
        self.view.deployments.insert(id.clone(), Arc::clone(&deployment));
        for action in &step.actions {
            if let Some(app) = self.apps.get_mut(&action.app) {
                let instances = app.definition().instances;
                app.goal = match action.kind {
                    ActionKind::StartApplication => Goal::Scale { instances: 0 },
                    ActionKind::ScaleApplication => Goal::Scale { instances },
                    ActionKind::RestartApplication => Goal::Replace { instances },
                    ActionKind::StopApplication => Goal::Stop,
                };
            }
            self.touch(&action.app);
        }
        turn.publish(EventKind::DeploymentInfo { plan: deployment, step });
    }

    /// Every action of a step is done: the next one begins, or the deployment is done.
    fn end_step(&mut self, id: &DeploymentId, turn: &mut Turn) {
        let Some(plan) = self.plans.get_mut(id) else { return };
        let done = Arc::clone(&plan.deployment);
        let mut next = Deployment::clone(&done);
        next.current += 1;
        *plan = Plan::new(Arc::new(next));
        let is_last = plan.pending.is_empty();
        let step = done.steps.get(done.current).cloned().unwrap_or(DeploymentStep { actions: Vec::new() });
        turn.publish(EventKind::DeploymentStepSuccess { plan: Arc::clone(&done), step });
        if is_last {
            self.drop_plan(id, turn);
            turn.publish(EventKind::DeploymentSuccess { plan: done });
        } else {
            self.begin_step(id, turn);
        }
    }

    fn drop_plan(&mut self, id: &DeploymentId, turn: &mut Turn) {
        let Some(plan) = self.plans.remove(id) else { return };
        for app in &plan.deployment.affected_apps {
            if let Some(app) = self.apps.get_mut(app) {
                app.deployments.retain(|other| other != id);
            }
            self.end_readiness(app, turn);
            self.touch(app);
        }
        self.view.deployments.remove(id);
        turn.erase(Table::Deployments, id);
    }
}
