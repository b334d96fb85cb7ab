//! What checks find, as statuses of tasks.

use std::time::Instant;

use mesonet_model::{
    AgentReport, HealthResult, ReadinessResult, StatusReason, StatusSource, TaskKey, TaskState, TaskStatus,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::check::Outcome;
use super::readiness::Readiness;
use super::watch::{News, Start, Watch, place_of};
use crate::agent::Agent;
use crate::clock;
use crate::link::Speaker;
use crate::protocol::Request;

impl Agent {
    /// The checks of a task that runs begin, unless they have.
    pub(crate) fn begin_checks(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let latest = task.statuses.latest();
        let Some(run) = task.run.as_mut() else { return };
        let checks = &task.spec.health_checks;
        let place = place_of(run.launch.container, 0);
        let readiness = task.spec.readiness_check.clone().zip(latest.readiness.clone());
        let readiness = readiness.filter(|(_, result)| !result.ready);
        let readiness = readiness.map(|(check, result)| Readiness::new(check, result, place, Instant::now()));
        let has_checks = !checks.is_empty() || readiness.is_some();
        if latest.state != TaskState::Running || run.watch.is_some() || !has_checks {
            return;
        }
        let mut results = latest.health_results.clone();
        results.resize(checks.len(), HealthResult::default());
        let mut addresses = run.addresses();
        if addresses.is_empty() {
            addresses.push(self.config.address);
        }
        let start = Start {
            checks,
            results,
            readiness,
            addresses,
            // That of a task whose other check has told something since is too little, which lengthens the grace.
            age: clock::now().since(latest.timestamp),
            metrics: &self.config.metrics,
        };
        let speaker =
            Speaker { task: key.clone(), container: run.launch.container, notices: self.notices.clone() };
        run.watch = Some(Watch::begin(start, &self.probes, &speaker));
    }

    /// A check of a task has something to say.
    pub(crate) fn health_news(&mut self, key: &TaskKey, news: News) {
        match news {
            News::Told { check, result } => self.told(key, check, result),
            News::Readiness(result) => self.told_readiness(key, result),
            News::Run { check, answer } => self.run_command(key, check, answer),
        }
    }

    /// A command that checks a task has ended.
    pub(crate) fn command_ended(&mut self, key: &TaskKey, id: Uuid, failure: Option<String>) {
        let run = self.tasks.get_mut(key).and_then(|task| task.run.as_mut());
        if let Some(answer) = run.and_then(|run| run.watch.as_mut()?.commands.remove(&id)) {
            // The check may have lost patience.
            let _ = answer.send(failure.map_or(Outcome::Success, Outcome::Failure));
        }
    }

    /// Nobody waits any more until a task is ready. The next agent does not check it either.
    pub(crate) fn end_readiness(&mut self, key: &TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.spec.readiness_check = None;
        task.statuses.end_readiness();
        if let Some(watch) = task.run.as_mut().and_then(|run| run.watch.as_mut()) {
            watch.end_readiness();
        }
        self.keep_statuses(key);
    }

    fn told_readiness(&mut self, key: &TaskKey, result: ReadinessResult) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(watch) = task.run.as_mut().and_then(|run| run.watch.as_mut()) else { return };
        if !watch.is_waiting_for_readiness() {
            return;
        }
        if result.ready {
            watch.end_readiness();
        }
        let message = if result.ready { "The task is ready" } else { "The task is not ready" };
        let status = TaskStatus {
            reason: Some(StatusReason::ReasonTaskCheckStatusUpdated),
            message: message.to_owned(),
            readiness: Some(result),
            ..task.statuses.latest().clone()
        };
        self.checked(key, status);
    }

    fn run_command(&mut self, key: &TaskKey, check: usize, answer: oneshot::Sender<Outcome>) {
        let id = self.uuids.next_uuid();
        let Some(run) = self.tasks.get_mut(key).and_then(|task| task.run.as_mut()) else { return };
        if let (Some(watch), Some(link)) = (&mut run.watch, &run.link) {
            watch.commands.retain(|_, waiting| !waiting.is_closed());
            watch.commands.insert(id, answer);
            link.send(Request::Check { id, check });
        }
    }

    fn told(&mut self, key: &TaskKey, check: usize, result: HealthResult) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(watch) = task.run.as_mut().and_then(|run| run.watch.as_mut()) else { return };
        let Some(of_check) = watch.results.get_mut(check) else { return };
        let message = message(&result);
        *of_check = result;
        let status = TaskStatus {
            reason: Some(StatusReason::ReasonTaskHealthCheckStatusUpdated),
            message,
            healthy: HealthResult::of_all(&watch.results),
            health_results: watch.results.clone(),
            ..task.statuses.latest().clone()
        };
        self.checked(key, status);
    }

    /// Checks have found something else of a task than before.
    fn checked(&mut self, key: &TaskKey, status: TaskStatus) {
        let uuid = self.uuids.next_uuid();
        let Some(task) = self.tasks.get_mut(key) else { return };
        let status = TaskStatus {
            source: StatusSource::SourceExecutor,
            // The master takes what seems older for old, and the clock of this machine may be set back.
            timestamp: clock::now().max(status.timestamp),
            uuid: Some(uuid),
            ..status
        };
        tracing::debug!(task = %key, healthy = ?status.healthy, message = status.message, "A task was checked");
        let replaced = task.statuses.push_checked(status.clone(), Instant::now());
        self.keep_statuses(key);
        self.send_instead(replaced, status);
    }

    /// Sends a status; in the place of another one, if that has not been sent.
    fn send_instead(&mut self, replaced: Option<Uuid>, status: TaskStatus) {
        let queued = self.outbox.iter_mut().filter_map(|report| match report {
            AgentReport::Status(queued) => Some(queued),
            AgentReport::Register { .. }
            | AgentReport::Containers { .. }
            | AgentReport::Disconnected { .. } => None,
        });
        match queued.into_iter().find(|queued| replaced.is_some() && queued.uuid == replaced) {
            Some(queued) => **queued = status,
            None => self.outbox.push_back(AgentReport::Status(Box::new(status))),
        }
    }
}

fn message(result: &HealthResult) -> String {
    match (&result.last_failure_cause, result.consecutive_failures) {
        (_, 0) => "A health check succeeds".to_owned(),
        (None, _) => "A health check fails".to_owned(),
        (Some(cause), _) => format!("A health check fails: {cause}"),
    }
}
