//! The end of a cluster that nobody will come back to.

use std::collections::BTreeSet;
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentReport};
use mesonet_store::Store;
use tokio::time::Instant;

use super::{Driver, send_one};

/// From SIGTERM to SIGKILL when the whole cluster ends: somebody waits for it at a terminal.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long agents have to report that tasks are gone.
const END_MAX: Duration = Duration::from_secs(5);

impl<S: Store + 'static> Driver<S> {
    /// Has every task killed, past the control plane, which would start others in their place.
    pub(super) async fn end_tasks(&mut self) {
        let state = self.control_plane.state();
        let mut left = BTreeSet::new();
        self.outbox.clear();
        for (key, task) in &state.cluster.tasks {
            let command = AgentCommand::Kill { task: key.clone(), grace: Some(KILL_GRACE) };
            self.outbox.push_back((task.agent.clone(), command));
            left.insert(key.clone());
        }
        let until = Instant::now() + END_MAX;
        while !left.is_empty() {
            let has_mail = !self.outbox.is_empty();
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    tracing::warn!(tasks = left.len(), "Some tasks have not ended in time");
                    return;
                }
                () = send_one(&mut self.outbox, &self.outlets.agents), if has_mail => {}
                report = self.inlets.agents.recv() => match report {
                    Some(AgentReport::Status(status)) if status.state.is_terminal() => {
                        left.remove(&status.task);
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }
}
