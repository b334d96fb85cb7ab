//! What the master says of tasks.

use std::sync::Arc;

use mesonet_model::{HealthResult, SchedulerCall, StatusSource, TaskId, TaskState, TaskStatus, Timestamp};

use crate::app::App;
use crate::instance::Instance;
use crate::machine::{Marathon, Turn};
use crate::{EventKind, InstanceView, TaskFailure};

impl Marathon {
    /// A task has a status; it is acknowledged in any case.
    pub(crate) fn status_update(&mut self, status: TaskStatus, turn: &mut Turn) {
        turn.call(SchedulerCall::Acknowledge { status: Box::new(status.clone()) });
        let Some(mut instance) = self.instance(&status.task.task).cloned() else {
            return unknown_task(&status, turn);
        };
        let mut updated = updated_view(&instance.view, &status, turn.now);
        updated.readiness = Self::readiness_after(&instance.view, &status, turn);
        // The master does not look, so it has nothing to say about that.
        let is_opening = match status.source {
            StatusSource::SourceMaster => instance.is_opening,
            StatusSource::SourceAgent | StatusSource::SourceExecutor => status.listening == Some(false),
        };
        if updated == *instance.view && is_opening == instance.is_opening {
            return;
        }
        instance.is_opening = is_opening;
        if updated.state != instance.view.state || updated.addresses != instance.view.addresses {
            publish(&updated, &status, turn);
        }
        if is_over(status.state) {
            self.instance_over(instance, updated, &status, turn);
        } else {
            self.publish_health(&instance.view, &updated, turn);
            self.instance_changed(instance, updated, turn);
            self.kill_hopeless(&status.task.task, turn);
        }
    }

    /// Tells what has become of an instance's health.
    fn publish_health(&self, before: &InstanceView, after: &InstanceView, turn: &mut Turn) {
        let InstanceView { task, app, version, .. } = after;
        let versions = self.apps.get(app).map_or(&[][..], App::versions);
        let definition = versions.iter().find(|definition| definition.version == *version);
        let unknown = HealthResult::default();
        for (index, result) in after.health_results.iter().enumerate() {
            let before = before.health_results.get(index).unwrap_or(&unknown);
            let (task, app, version) = (task.clone(), app.clone(), *version);
            if result.consecutive_failures > 0
                && result.last_failure != before.last_failure
                && let Some(check) = definition.and_then(|definition| definition.health_checks.get(index))
            {
                let (task, app, check) = (task.clone(), app.clone(), check.clone());
                turn.publish(EventKind::FailedHealthCheck { task, app, check });
            }
            let is_alive = |result: &HealthResult| result.is_alive() == Some(true);
            let alive = is_alive(result);
            if alive != is_alive(before) {
                turn.publish(EventKind::HealthStatusChanged { task, app, version, alive });
            }
        }
        if before.healthy != after.healthy {
            turn.publish(EventKind::InstanceHealthChanged {
                task: task.clone(),
                app: app.clone(),
                version: *version,
                healthy: after.healthy,
            });
        }
    }

    /// Kills an instance with a check that has failed too often; another one takes its place. It did not end by itself,
    /// so that does not delay launches.
    fn kill_hopeless(&mut self, task: &TaskId, turn: &mut Turn) {
        let Some(instance) = self.instance(task) else { return };
        if !instance.is_wanted() || instance.view.state != TaskState::Running {
            return;
        }
        let Some(check) = instance.hopeless_check() else { return };
        let view = &instance.view;
        turn.publish(EventKind::UnhealthyInstanceKill {
            task: task.clone(),
            app: view.app.clone(),
            agent: view.agent.clone(),
            host: view.host.clone(),
            version: view.version,
            reason: view.health_results[check].last_failure_cause.clone().unwrap_or_default(),
        });
        self.kill(task, turn);
    }

    fn instance_changed(&mut self, mut instance: Instance, view: InstanceView, turn: &mut Turn) {
        instance.unreachable_since = match view.state {
            TaskState::Unreachable => instance.unreachable_since.or(Some(turn.now)),
            TaskState::Staging
            | TaskState::Starting
            | TaskState::Running
            | TaskState::Killing
            | TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown => None,
        };
        instance.is_given_up &= instance.unreachable_since.is_some();
        instance.view = Arc::new(view);
        let is_lost_anyway = instance.kill_asked_at.is_some() && instance.unreachable_since.is_some();
        let task = instance.view.task.clone();
        self.put_instance(instance, turn);
        if is_lost_anyway {
            self.remove_instance(&task, turn);
        }
        // A strategy without patience acts at once.
        self.fire_timers(turn);
    }

    fn instance_over(
        &mut self,
        instance: Instance,
        view: InstanceView,
        status: &TaskStatus,
        turn: &mut Turn,
    ) {
        let id = view.app.clone();
        self.remove_instance(&view.task, turn);
        let Some(app) = self.apps.get_mut(&id) else { return };
        if !instance.is_wanted() {
            return;
        }
        if is_failure(status.state) {
            app.last_failure = Some(Arc::new(TaskFailure {
                app: id.clone(),
                task: view.task,
                agent: view.agent,
                host: view.host,
                state: status.state,
                message: status.message.clone(),
                version: view.version,
                timestamp: turn.now,
            }));
        }
        if is_delaying(status.state) {
            app.count_failure(&instance, turn.now);
        }
    }
}

/// A task that is no instance of ours: one that was forgotten, or one of another life.
fn unknown_task(status: &TaskStatus, turn: &mut Turn) {
    let task = status.task.task.clone();
    if status.state.is_terminal() {
        turn.publish(EventKind::UnknownInstanceTerminated { task, state: status.state });
    } else if status.state != TaskState::Unknown && status.state != TaskState::Unreachable {
        turn.call(SchedulerCall::Kill { task });
    }
}

fn updated_view(before: &InstanceView, status: &TaskStatus, now: Timestamp) -> InstanceView {
    let mut view = before.clone();
    view.state = status.state;
    // The master has no results to tell, and says no where there are none yet.
    if !status.health_results.is_empty() {
        view.healthy = status.healthy;
        view.health_results.clone_from(&status.health_results);
    }
    if !status.addresses.is_empty() {
        view.addresses.clone_from(&status.addresses);
    }
    if status.state == TaskState::Running {
        view.started_at = view.started_at.or(Some(now));
    }
    view
}

fn publish(view: &InstanceView, status: &TaskStatus, turn: &mut Turn) {
    turn.publish(EventKind::StatusUpdate {
        task: view.task.clone(),
        app: view.app.clone(),
        agent: view.agent.clone(),
        host: view.host.clone(),
        state: status.state,
        message: status.message.clone(),
        addresses: view.addresses.clone(),
        ports: view.ports.clone(),
        version: view.version,
    });
    turn.publish(EventKind::InstanceChanged {
        task: view.task.clone(),
        app: view.app.clone(),
        agent: view.agent.clone(),
        host: view.host.clone(),
        state: status.state,
        version: view.version,
    });
}

/// Whether the task has ended, or is as good as ended because nobody knows it.
fn is_over(state: TaskState) -> bool {
    state.is_terminal() || state == TaskState::Unknown
}

/// Whether the end is what an app's last failure tells of.
fn is_failure(state: TaskState) -> bool {
    is_delaying(state) && state != TaskState::Finished
}

/// Whether the end of a wanted instance delays the next launch. A kill from elsewhere does not.
fn is_delaying(state: TaskState) -> bool {
    match state {
        TaskState::Finished
        | TaskState::Failed
        | TaskState::Error
        | TaskState::Lost
        | TaskState::Dropped
        | TaskState::Gone
        | TaskState::Unknown => true,
        TaskState::Staging
        | TaskState::Starting
        | TaskState::Running
        | TaskState::Killing
        | TaskState::Killed
        | TaskState::Unreachable
        | TaskState::GoneByOperator => false,
    }
}
