//! Which tasks were ready at some time, and which ones deployments waited for.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_marathon::{InstanceView, MarathonView};
use mesonet_model::{AppId, DeploymentId, TaskId, TaskState};

/// What was seen before and binds what is seen later.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// Tasks whose readiness check would have succeeded, whether or not anybody has asked.
    pub(crate) ready: BTreeSet<TaskId>,
    /// Instances that run and that each deployment waits for, as last committed.
    waited: BTreeMap<DeploymentId, BTreeSet<(AppId, TaskId)>>,
}

impl Readiness {
    /// A task has done what it does first.
    pub(crate) fn becomes_ready(&mut self, task: TaskId) {
        self.ready.insert(task);
    }

    /// A view is committed: a deployment that is over without having been cancelled has not passed an instance that was
    /// never ready off as one that takes the place of another. Returns how many instances had to be ready.
    pub(crate) fn check(&mut self, view: &MarathonView, cancelled: &BTreeSet<DeploymentId>) -> u64 {
        let mut held = 0;
        let over = |id: &DeploymentId| !view.deployments.contains_key(id) && !cancelled.contains(id);
        for (id, waited) in self.waited.iter().filter(|(id, _)| over(id)) {
            for (app, task) in waited {
                let instance = view.apps.get(app).and_then(|app| app.instances.get(task));
                if instance.is_some_and(|instance| instance.state == TaskState::Running) {
                    assert!(self.ready.contains(task), "deployment {id} is over, {task} was never ready");
                    held += 1;
                }
            }
        }
        let is_waited_for =
            |instance: &InstanceView| instance.state == TaskState::Running && instance.readiness.is_some();
        let instances_of = |app: &AppId| {
            let instances = view.apps.get(app).into_iter().flat_map(|app| app.instances.values());
            let waited = instances.filter(|instance| is_waited_for(instance));
            waited.map(|instance| (instance.app.clone(), instance.task.clone())).collect::<Vec<_>>()
        };
        let of_each = view.deployments.iter();
        self.waited = of_each
            .map(|(id, each)| (id.clone(), each.affected_apps.iter().flat_map(instances_of).collect()))
            .collect();
        held
    }
}
