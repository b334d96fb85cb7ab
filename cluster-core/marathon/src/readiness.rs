//! Instances that a deployment waits for until they are ready.
//!
//! Only instances that are launched while their app's part of a deployment is under way are checked, by their agents. An
//! instance keeps what was found until the deployment is over. If it is over before the instance is ready, the agent is
//! told to check no more.

use std::sync::Arc;

use mesonet_model::{AppId, ReadinessResult, SchedulerCall, StatusSource, TaskSpec, TaskState, TaskStatus};

use crate::InstanceView;
use crate::app::App;
use crate::instance::Instance;
use crate::machine::{Marathon, Turn};

impl Marathon {
    /// Whether a deployment is doing something to an app.
    pub(crate) fn is_deploying(&self, id: &AppId, app: &App) -> bool {
        let mut plans = app.deployments.iter().filter_map(|deployment| self.plans.get(deployment));
        plans.any(|plan| plan.pending.contains(id))
    }

    /// No deployment waits any more until instances of an app are ready.
    pub(crate) fn end_readiness(&mut self, id: &AppId, turn: &mut Turn) {
        let Some(app) = self.apps.get(id) else { return };
        let waited_for = app.instances().values().filter(|instance| instance.view.readiness.is_some());
        for mut instance in waited_for.cloned().collect::<Vec<_>>() {
            if instance.is_unready() {
                turn.call(SchedulerCall::EndReadiness { task: instance.view.task.clone() });
            }
            Arc::make_mut(&mut instance.view).readiness = None;
            self.put_instance(instance, turn);
        }
    }

    /// What is known of an instance's readiness after a status. One that was ready once stays so.
    pub(crate) fn readiness_after(
        before: &InstanceView,
        status: &TaskStatus,
        turn: &mut Turn,
    ) -> Option<ReadinessResult> {
        let is_from_agent = match status.source {
            // The master does not look.
            StatusSource::SourceMaster => false,
            StatusSource::SourceAgent | StatusSource::SourceExecutor => status.state == TaskState::Running,
        };
        match &before.readiness {
            // An agent that knows nothing of readiness does not say that it checks it: it is not waited for.
            Some(known) if is_from_agent && !known.ready => status.readiness.clone(),
            None if is_from_agent && status.readiness.as_ref().is_some_and(|result| !result.ready) => {
                // The agent has not heard that it may end.
                turn.call(SchedulerCall::EndReadiness { task: before.task.clone() });
                None
            }
            known => known.clone(),
        }
    }
}

impl Instance {
    /// It has just been launched, and its agent is to check it.
    pub(crate) fn wait_for_readiness(&mut self, spec: &TaskSpec) {
        if spec.readiness_check.is_some() {
            Arc::make_mut(&mut self.view).readiness = Some(ReadinessResult::default());
        }
    }
}
