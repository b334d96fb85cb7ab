//! Frameworks: subscription, and what they call.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AgentCommand, Framework, FrameworkId, OfferId, SchedulerCall, StatusReason, StatusSource, Task, TaskId,
    TaskKey, TaskSpec, TaskState, TaskStatus, Timestamp,
};

use crate::launch_check::check_launch;
use crate::machine::Master;
use crate::offers::REFUSE_MIN;

impl Master {
    /// A framework is known by its name: it gets the id that it had, or a new one.
    pub(crate) fn subscribe(&mut self, wanted: Framework, now: Timestamp) {
        let id = match self.framework_names.get(&wanted.name) {
            Some(id) => id.clone(),
            None => self.next_framework_id(),
        };
        let old = self.view.frameworks.get(&id);
        let registered_at = old.map_or(now, |old| old.registered_at);
        let framework = Framework { id: id.clone(), active: true, registered_at, ..wanted };
        if old.map(Arc::as_ref) != Some(&framework) {
            self.framework_names.insert(framework.name.clone(), id.clone());
            self.view.frameworks.insert(id.clone(), Arc::new(framework));
            self.out.view_changed = true;
            self.out.dirty.frameworks.insert(id.clone());
        }
        self.allocator.subscribe(&id);
        self.out.subscribed(&id);
        self.tell_draining_to(&id);
    }

    /// A framework's call; one that has not subscribed is not heard.
    pub(crate) fn call(&mut self, framework: FrameworkId, call: SchedulerCall, now: Timestamp) {
        if !self.allocator.is_subscribed(&framework) {
            return;
        }
        match call {
            SchedulerCall::Accept { offer, tasks, refuse } => {
                self.accept(&framework, &offer, tasks, refuse, now);
            }
            SchedulerCall::Decline { offer, refuse } => {
                if let Some(held) = self.allocator.take_offer(&offer, &framework) {
                    let until = now.plus(refuse.max(REFUSE_MIN));
                    self.allocator.refuse(&framework, &held.agent, held.resources, until);
                }
            }
            SchedulerCall::Kill { task } => self.kill(TaskKey::new(framework, task), now),
            SchedulerCall::SetServing { task, healthy, ready } => {
                self.set_serving(&TaskKey::new(framework, task), healthy, ready, now);
            }
            SchedulerCall::EndReadiness { task } => self.end_readiness(&TaskKey::new(framework, task)),
            SchedulerCall::Acknowledge { status } => self.acknowledge(&framework, &status),
            SchedulerCall::Reconcile { tasks } => self.reconcile(&framework, tasks, now),
            SchedulerCall::Revive => self.allocator.revive(&framework),
            SchedulerCall::Suppress => self.allocator.suppress(&framework),
        }
    }

    fn next_framework_id(&mut self) -> FrameworkId {
        let id = FrameworkId::new(format!("{}-{:04}", self.view.cluster, self.counters.frameworks));
        self.counters.frameworks += 1;
        self.out.dirty.counters = true;
        id
    }

    fn accept(
        &mut self,
        framework: &FrameworkId,
        offer: &OfferId,
        tasks: Vec<TaskSpec>,
        refuse: Duration,
        now: Timestamp,
    ) {
        let Some(held) = self.allocator.take_offer(offer, framework) else {
            for spec in tasks {
                self.drop_task(framework, spec, now);
            }
            return;
        };
        let mut left = held.resources.clone();
        let mut launched = false;
        for mut spec in tasks {
            let is_in_use = self.view.tasks.contains_key(&spec.key);
            let checked = check_launch(&spec, &held, &left, is_in_use);
            match checked.and_then(|()| Ok(self.attach(&mut spec)?)) {
                Ok(()) => {
                    left.subtract(&spec.resources);
                    launched = true;
                    self.launch(spec, now);
                }
                Err(error) => {
                    let key = TaskKey::new(framework.clone(), spec.key.task);
                    let reason = StatusReason::ReasonTaskInvalid;
                    self.tell(key, TaskState::Error, reason, error.to_string(), now);
                }
            }
        }
        // An accepted offer without a launch is as good as declined.
        let refuse = if launched { refuse } else { refuse.max(REFUSE_MIN) };
        if !refuse.is_zero() {
            self.allocator.refuse(framework, &held.agent, left, now.plus(refuse));
        }
    }

    /// A task for an offer that is gone. One that runs already was accepted before, and the call came twice.
    fn drop_task(&mut self, framework: &FrameworkId, spec: TaskSpec, now: Timestamp) {
        let key = TaskKey::new(framework.clone(), spec.key.task);
        if let Some(task) = self.view.tasks.get(&key) {
            let status = current_status(task, now);
            self.out.update(status);
            return;
        }
        let message = "the offer is no longer valid".to_owned();
        self.tell(key, TaskState::Dropped, StatusReason::ReasonInvalidOffers, message, now);
    }

    /// The framework has dealt with a status: its agent need not repeat it.
    fn acknowledge(&mut self, framework: &FrameworkId, status: &TaskStatus) {
        let (Some(agent), Some(uuid)) = (&status.agent, status.uuid) else { return };
        if status.task.framework != *framework || !self.view.agents.contains_key(agent) {
            return;
        }
        if let Some(entry) = self.tasks.get_mut(&status.task)
            && entry.last_uuid == Some(uuid)
        {
            entry.is_acknowledged = true;
        }
        self.out.command(agent, AgentCommand::Acknowledge { task: status.task.clone(), uuid });
    }

    /// Costs as much as the answer is long.
    fn reconcile(&mut self, framework: &FrameworkId, tasks: Vec<TaskId>, now: Timestamp) {
        if tasks.is_empty() {
            let first = TaskKey::new(framework.clone(), TaskId::new(""));
            let of_framework = self
                .view
                .tasks
                .range((Bound::Included(first), Bound::Unbounded))
                .take_while(|(key, _)| key.framework == *framework);
            for (_, task) in of_framework {
                self.out.update(current_status(task, now));
            }
        }
        for task in tasks {
            let key = TaskKey::new(framework.clone(), task);
            match self.view.tasks.get(&key) {
                Some(task) => {
                    let status = current_status(task, now);
                    self.out.update(status);
                }
                None => self.tell_unknown(key, now),
            }
        }
    }

    /// Answers that a task is not known.
    pub(crate) fn tell_unknown(&mut self, key: TaskKey, now: Timestamp) {
        let message = "the task is not known".to_owned();
        self.tell(key, TaskState::Unknown, StatusReason::ReasonReconciliation, message, now);
    }

    /// Sends a framework the master's own word on a task that is not, or no longer, in the view.
    pub(crate) fn tell(
        &mut self,
        task: TaskKey,
        state: TaskState,
        reason: StatusReason,
        message: String,
        now: Timestamp,
    ) {
        if !self.allocator.is_subscribed(&task.framework) {
            return;
        }
        self.out.update(TaskStatus {
            task,
            agent: None,
            state,
            source: StatusSource::SourceMaster,
            reason: Some(reason),
            message,
            timestamp: now,
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: None,
            addresses: Vec::new(),
            uuid: None,
        });
    }
}

/// The answer to a framework that asks about a task.
pub(crate) fn current_status(task: &Task, now: Timestamp) -> TaskStatus {
    TaskStatus {
        task: task.key.clone(),
        agent: Some(task.agent.clone()),
        state: task.state,
        source: StatusSource::SourceMaster,
        reason: Some(StatusReason::ReasonReconciliation),
        message: String::new(),
        timestamp: now,
        healthy: task.healthy,
        health_results: Vec::new(),
        readiness: None,
        listening: None,
        addresses: task.addresses.clone(),
        uuid: None,
    }
}
