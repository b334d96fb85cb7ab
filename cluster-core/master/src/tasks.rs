//! The life of a task: launched, reported on, killed, ended.

use std::sync::Arc;

use mesonet_model::{
    AgentCommand, AgentId, PortPolicy, StatusReason, Task, TaskKey, TaskSpec, TaskState, TaskStatus,
    Timestamp,
};
use uuid::Uuid;

use crate::drain_label::drain_grace;
use crate::endpoints::out_of_reach;
use crate::frameworks::current_status;
use crate::machine::Master;

/// What the master keeps of a task beside the view.
#[derive(Debug)]
pub(crate) struct TaskEntry {
    pub(crate) spec: TaskSpec,
    /// When the latest report was made.
    pub(crate) reported_at: Timestamp,
    /// The latest report that its agent repeats until it is acknowledged.
    pub(crate) last_uuid: Option<Uuid>,
    /// Whether the framework has acknowledged that report.
    pub(crate) is_acknowledged: bool,
}

/// What a report on a known task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    /// It has been dealt with, or something newer has: the agent need not repeat it.
    Stale,
    /// The framework has been told, but has not acknowledged it.
    Repeated,
    /// It says something that was not known.
    New,
}

impl Master {
    /// Starts a task whose offer has been checked.
    pub(crate) fn launch(&mut self, spec: TaskSpec, now: Timestamp) {
        let task = Task {
            key: spec.key.clone(),
            name: spec.name.clone(),
            agent: spec.agent.clone(),
            state: TaskState::Staging,
            resources: spec.resources.clone(),
            discovery: spec.discovery.clone(),
            labels: spec.labels.clone(),
            addresses: Vec::new(),
            healthy: spec.health_checked.then_some(false),
            ready: true,
            draining: false,
            suspect: false,
            ready_since: None,
            network: None,
            staged_at: now,
            started_at: None,
            updated_at: now,
        };
        for error in task.service_ports().into_iter().flat_map(|port| port.vips).filter_map(Result::err) {
            self.out.warn(&task.key, error.to_string());
        }
        for port in task.discovery.iter().flat_map(|discovery| &discovery.ports) {
            for error in PortPolicy::parse(&port.labels).1 {
                self.out.warn(&task.key, error.to_string());
            }
        }
        self.allocator.use_resources(&spec.agent, &spec.key.framework, &spec.resources);
        self.agent_tasks.entry(spec.agent.clone()).or_default().insert(spec.key.clone());
        self.networks.enter(&spec.agent, &spec);
        self.out.command(&spec.agent, AgentCommand::Launch(Box::new(spec.clone())));
        let entry = TaskEntry { spec, reported_at: now, last_uuid: None, is_acknowledged: false };
        self.tasks.insert(task.key.clone(), entry);
        self.put_task(task, now);
    }

    /// A report of an agent on a task.
    pub(crate) fn status(&mut self, status: TaskStatus, now: Timestamp) {
        if status.state.is_terminal()
            && let Some(agent) = &status.agent
        {
            self.allocator.stranger_ended(agent, &status.task);
        }
        let Some(task) = self.view.tasks.get(&status.task).cloned() else {
            self.status_of_unknown(status);
            return;
        };
        if status.agent.as_ref().is_some_and(|agent| *agent != task.agent) {
            self.status_of_unknown(status);
            return;
        }
        match self.classify(&status, &task) {
            Report::Stale => self.acknowledge_to_agent(&task.agent, &status),
            Report::Repeated => self.forward(status),
            Report::New => self.take_report(status, task, now),
        }
    }

    /// Removes a task that has ended: its endpoints go, its resources are free.
    pub(crate) fn remove_task(&mut self, key: &TaskKey, now: Timestamp) {
        let Some(task) = self.view.tasks.remove(key) else { return };
        self.out.view_changed = true;
        self.out.dirty.tasks.insert(key.clone());
        if let Some(entry) = self.tasks.remove(key) {
            self.networks.leave(&task.agent, &entry.spec);
        }
        if let Some(tasks) = self.agent_tasks.get_mut(&task.agent) {
            tasks.remove(key);
        }
        self.drains.forget(key);
        self.services.remove(&mut self.view, &mut self.out, key, now);
        self.allocator.release(&task.agent, &key.framework, &task.resources);
    }

    /// Ends a task: withdraws its endpoints and lets the drain decide when it is killed.
    pub(crate) fn kill(&mut self, key: TaskKey, now: Timestamp) {
        let Some(task) = self.view.tasks.get(&key).cloned() else {
            self.tell_unknown(key, now);
            return;
        };
        if self.drains.is_killed(&key) {
            self.send_kill(&key);
            return;
        }
        if self.drains.contains(&key) {
            return;
        }
        let serves = may_serve(&task);
        let grace = drain_grace(&task, self.config.drain_grace);
        self.put_task(Task { draining: true, ..task.as_ref().clone() }, now);
        if serves {
            let revision = self.view.revision.next();
            self.drains.begin(key, revision, now, grace);
        } else {
            self.send_kill(&key);
            self.drains.kill_at_once(key);
        }
    }

    /// Whether a task's agent answers has changed.
    pub(crate) fn set_suspect(&mut self, key: &TaskKey, suspect: bool, now: Timestamp) {
        let Some(task) = self.view.tasks.get(key).cloned() else { return };
        self.put_task(Task { suspect, ..task.as_ref().clone() }, now);
    }

    /// A task's agent has not come back in time: its framework decides what follows.
    pub(crate) fn lose_task(&mut self, key: &TaskKey, message: &str, now: Timestamp) {
        let Some(task) = self.view.tasks.get(key).cloned() else { return };
        let lost = Task {
            state: TaskState::Unreachable,
            // One that was about to end is not one to send clients to.
            draining: task.draining || task.state == TaskState::Killing,
            updated_at: now,
            ..task.as_ref().clone()
        };
        let reason = Some(StatusReason::ReasonAgentRemoved);
        let status = TaskStatus { reason, message: message.to_owned(), ..current_status(&lost, now) };
        self.put_task(lost, now);
        self.forward(status);
    }

    /// Tells a task's agent to end it.
    pub(crate) fn send_kill(&mut self, key: &TaskKey) {
        if let Some(task) = self.view.tasks.get(key) {
            self.out.command(&task.agent, AgentCommand::Kill { task: key.clone(), grace: None });
        }
    }

    /// The framework's own checks of a task.
    pub(crate) fn set_serving(
        &mut self,
        key: &TaskKey,
        healthy: Option<bool>,
        ready: Option<bool>,
        now: Timestamp,
    ) {
        let Some(task) = self.view.tasks.get(key).cloned() else { return };
        let ready = ready.unwrap_or(task.ready);
        self.put_task(Task { healthy: healthy.or(task.healthy), ready, ..task.as_ref().clone() }, now);
    }

    /// The framework does not wait any more until a task is ready.
    pub(crate) fn end_readiness(&mut self, key: &TaskKey) {
        let (Some(task), Some(entry)) = (self.view.tasks.get(key), self.tasks.get_mut(key)) else { return };
        if entry.spec.readiness_check.take().is_some() {
            self.out.dirty.tasks.insert(key.clone());
        }
        self.out.command(&task.agent, AgentCommand::EndReadiness { task: key.clone() });
    }

    /// Whether a task's agent checks a readiness that nobody waits for.
    pub(crate) fn is_checked_in_vain(&self, status: &TaskStatus) -> bool {
        let is_checked = status.readiness.as_ref().is_some_and(|result| !result.ready);
        let entry = self.tasks.get(&status.task);
        is_checked && entry.is_some_and(|entry| entry.spec.readiness_check.is_none())
    }

    /// Makes a task in the view what is given, and its endpoints what follows from it.
    pub(crate) fn put_task(&mut self, task: Task, now: Timestamp) {
        let before = self.view.tasks.get(&task.key).map(Arc::as_ref);
        let task = task.with_readiness(before, now);
        if before == Some(&task) {
            return;
        }
        self.out.view_changed = true;
        self.out.dirty.tasks.insert(task.key.clone());
        self.services.update(&mut self.view, &mut self.out, &task, now);
        self.view.tasks.insert(task.key.clone(), Arc::new(task));
    }

    /// A task that the master does not have may not run. That it has ended is passed on, in case the framework has
    /// not heard it; one that is not there yet hears it when the agent repeats it.
    fn status_of_unknown(&mut self, status: TaskStatus) {
        let Some(agent) = status.agent.clone() else { return };
        if !status.state.is_terminal() {
            self.acknowledge_to_agent(&agent, &status);
            self.out.command(&agent, AgentCommand::Kill { task: status.task, grace: None });
            return;
        }
        let is_known = self.view.frameworks.contains_key(&status.task.framework);
        if is_known && !self.allocator.is_subscribed(&status.task.framework) {
            return;
        }
        self.acknowledge_to_agent(&agent, &status);
        let runs_elsewhere = self.view.tasks.contains_key(&status.task);
        if is_known && !runs_elsewhere {
            self.forward(status);
        }
    }

    fn classify(&self, status: &TaskStatus, task: &Task) -> Report {
        let Some(entry) = self.tasks.get(&task.key) else { return Report::New };
        // What was known before the agent was lost is news again.
        if task.state == TaskState::Unreachable && progress(status.state) > 0 {
            return Report::New;
        }
        if status.uuid.is_some() && status.uuid == entry.last_uuid {
            return if entry.is_acknowledged { Report::Stale } else { Report::Repeated };
        }
        let is_older = status.state == task.state && status.timestamp < entry.reported_at;
        if is_older || progress(status.state) < progress(task.state) { Report::Stale } else { Report::New }
    }

    fn take_report(&mut self, status: TaskStatus, task: Arc<Task>, now: Timestamp) {
        if let Some(entry) = self.tasks.get_mut(&task.key) {
            entry.reported_at = status.timestamp;
            entry.last_uuid = status.uuid;
            entry.is_acknowledged = false;
        }
        if status.state.is_terminal() {
            self.remove_task(&task.key, now);
        } else {
            let reported = with_report(&task, &status);
            if task.started_at.is_none() && reported.started_at.is_some() {
                self.warn_of_vips(&reported);
            }
            self.put_task(reported, now);
        }
        self.forward(status);
    }

    /// Says which of a task's VIPs cannot lead to it, once its addresses are known.
    fn warn_of_vips(&mut self, task: &Task) {
        let Some(agent) = self.view.agents.get(&task.agent) else { return };
        for reason in out_of_reach(task, agent.info.address) {
            self.out.warn(&task.key, reason);
        }
    }

    fn forward(&mut self, status: TaskStatus) {
        if self.allocator.is_subscribed(&status.task.framework) {
            self.out.update(status);
        }
    }

    fn acknowledge_to_agent(&mut self, agent: &AgentId, status: &TaskStatus) {
        if let Some(uuid) = status.uuid {
            self.out.command(agent, AgentCommand::Acknowledge { task: status.task.clone(), uuid });
        }
    }
}

/// Whether clients may be connected to a task, so that its end has to wait for the planes.
pub(crate) fn may_serve(task: &Task) -> bool {
    match task.state {
        TaskState::Running => true,
        // Its agent does not answer the master; others may reach it.
        TaskState::Unreachable => task.started_at.is_some(),
        TaskState::Staging
        | TaskState::Starting
        | TaskState::Killing
        | TaskState::Finished
        | TaskState::Failed
        | TaskState::Killed
        | TaskState::Error
        | TaskState::Lost
        | TaskState::Dropped
        | TaskState::Gone
        | TaskState::GoneByOperator
        | TaskState::Unknown => false,
    }
}

/// A task after a report that it has not ended.
fn with_report(task: &Task, status: &TaskStatus) -> Task {
    let runs = status.state == TaskState::Running;
    let has_changed = status.state != task.state;
    Task {
        state: status.state,
        healthy: status.healthy.or(task.healthy),
        addresses: if status.addresses.is_empty() { &task.addresses } else { &status.addresses }.clone(),
        started_at: task.started_at.or(runs.then_some(status.timestamp)),
        updated_at: if has_changed { status.timestamp } else { task.updated_at },
        ..task.clone()
    }
}

/// How far a task is: reports that lead back are not believed. What an agent never says comes before all.
fn progress(state: TaskState) -> u8 {
    match state {
        TaskState::Unreachable | TaskState::Unknown => 0,
        TaskState::Staging => 1,
        TaskState::Starting => 2,
        TaskState::Running => 3,
        TaskState::Killing => 4,
        TaskState::Finished
        | TaskState::Failed
        | TaskState::Killed
        | TaskState::Error
        | TaskState::Lost
        | TaskState::Dropped
        | TaskState::Gone
        | TaskState::GoneByOperator => 5,
    }
}
