//! One task of the agent.

use std::net::IpAddr;
use std::process::Child;

use mesonet_model::{StatusReason, StatusSource, TaskSpec, TaskState, TaskStatus, Timestamp};
use uuid::Uuid;

use crate::container_network::ContainerNetwork;
use crate::health::Watch;
use crate::link::Link;
use crate::listening::Lookout;
use crate::protocol::{Exit, ExitCause, Launch};
use crate::status_queue::StatusQueue;

/// A task that has not ended, or whose end the master does not know yet.
#[derive(Debug)]
pub(crate) struct AgentTask {
    pub(crate) spec: TaskSpec,
    pub(crate) statuses: StatusQueue,
    /// Absent for a task that could not be written down, hence was never started.
    pub(crate) run: Option<Run>,
}

/// A run of a task that is written down.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) launch: Launch,
    /// The way to its supervisor, while there is one.
    pub(crate) link: Option<Link>,
    /// The supervisor, if it is a child of this process, to be reaped.
    pub(crate) supervisor: Option<Child>,
    /// Its health checks, while they run.
    pub(crate) watch: Option<Watch>,
    /// Whoever waits until it listens.
    pub(crate) lookout: Option<Lookout>,
}

impl Run {
    /// Its own addresses; none on the host's network.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.launch.network.as_ref().map_or_else(Vec::new, ContainerNetwork::addresses)
    }
}

/// What a status says, but for whose it is and when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) state: TaskState,
    pub(crate) source: StatusSource,
    pub(crate) reason: Option<StatusReason>,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
    pub(crate) listening: Option<bool>,
}

impl Finding {
    /// A step of a task's life that needs no reason.
    pub(crate) fn step(state: TaskState, at: Timestamp) -> Self {
        let source = StatusSource::SourceExecutor;
        Self { state, source, reason: None, message: String::new(), at, listening: None }
    }

    /// Something that the agent did not do.
    pub(crate) fn refusal(state: TaskState, reason: StatusReason, message: String, at: Timestamp) -> Self {
        let source = StatusSource::SourceAgent;
        Self { state, source, reason: Some(reason), message, at, listening: None }
    }

    /// What the end of a task means.
    pub(crate) fn end(exit: &Exit) -> Self {
        let (state, reason) = match &exit.cause {
            ExitCause::NotStarted(_) => (TaskState::Failed, Some(StatusReason::ReasonContainerLaunchFailed)),
            ExitCause::Exited(_) | ExitCause::Signalled(_) if exit.killed => (TaskState::Killed, None),
            ExitCause::Exited(0) => (TaskState::Finished, None),
            ExitCause::Exited(_) | ExitCause::Signalled(_) if exit.out_of_memory => {
                (TaskState::Failed, Some(StatusReason::ReasonContainerLimitationMemory))
            }
            ExitCause::Exited(_) | ExitCause::Signalled(_) => {
                (TaskState::Failed, Some(StatusReason::ReasonCommandExecutorFailed))
            }
        };
        let message = match reason {
            Some(StatusReason::ReasonContainerLimitationMemory) => {
                format!("Memory limit exceeded: {}", exit.cause)
            }
            _ => exit.cause.to_string(),
        };
        let source = StatusSource::SourceExecutor;
        Self { state, source, reason, message, at: exit.at, listening: None }
    }

    /// The status that tells it, to be repeated until it is acknowledged if it has an id.
    pub(crate) fn status(self, spec: &TaskSpec, uuid: Option<Uuid>) -> TaskStatus {
        TaskStatus {
            task: spec.key.clone(),
            agent: Some(spec.agent.clone()),
            state: self.state,
            source: self.source,
            reason: self.reason,
            message: self.message,
            timestamp: self.at,
            healthy: None,
            health_results: Vec::new(),
            readiness: None,
            listening: self.listening,
            addresses: Vec::new(),
            uuid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_the_words_of_mesos() {
        use StatusReason::{
            ReasonCommandExecutorFailed, ReasonContainerLaunchFailed, ReasonContainerLimitationMemory,
        };
        let exited = ExitCause::Exited;
        let signalled = ExitCause::Signalled;
        for (cause, killed, out_of_memory, state, reason, message) in [
            (exited(0), false, false, TaskState::Finished, None, "Command exited with status 0"),
            (
                exited(3),
                false,
                false,
                TaskState::Failed,
                Some(ReasonCommandExecutorFailed),
                "Command exited with status 3",
            ),
            (
                signalled(9),
                false,
                false,
                TaskState::Failed,
                Some(ReasonCommandExecutorFailed),
                "Command terminated with signal Killed",
            ),
            (
                signalled(9),
                false,
                true,
                TaskState::Failed,
                Some(ReasonContainerLimitationMemory),
                "Memory limit exceeded: Command terminated with signal Killed",
            ),
            (
                signalled(15),
                true,
                false,
                TaskState::Killed,
                None,
                "Command terminated with signal Terminated",
            ),
            (exited(0), true, false, TaskState::Killed, None, "Command exited with status 0"),
            (
                ExitCause::NotStarted("no".into()),
                true,
                false,
                TaskState::Failed,
                Some(ReasonContainerLaunchFailed),
                "no",
            ),
        ] {
            let exit = Exit { cause, killed, out_of_memory, at: Timestamp::default() };
            let finding = Finding::end(&exit);
            assert_eq!((finding.state, finding.reason, finding.message.as_str()), (state, reason, message));
        }
    }
}
