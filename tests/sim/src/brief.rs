//! What a journal says, in a few words.

use std::fmt;

use mesonet::control_plane::Input;
use mesonet_model::AgentReport;

/// Inputs.
pub(crate) struct Brief<'a>(pub(crate) &'a [Input]);

impl fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for input in self.0 {
            match input {
                Input::Agent(AgentReport::Register { agent, tasks, .. }) => {
                    write!(f, "[register {agent:?} with {} tasks]", tasks.len())?;
                }
                Input::Agent(AgentReport::Status(status)) => {
                    write!(f, "[{} is {}]", status.task.task, status.state)?;
                }
                Input::Agent(AgentReport::Containers { agent, containers }) => {
                    write!(f, "[{agent} has {} containers]", containers.len())?;
                }
                Input::Agent(AgentReport::Disconnected { agent }) => write!(f, "[{agent} is disconnected]")?,
                Input::Plane(report) => {
                    let busy: Vec<_> = report.busy.iter().map(|task| task.task.as_str()).collect();
                    write!(f, "[{} {} at {}, busy {busy:?}]", report.node, report.plane, report.applied)?;
                }
                Input::PlaneGone { node, plane } => write!(f, "[{node} {plane} is gone]")?,
                Input::NodeRevoked { node } => write!(f, "[{node} is revoked]")?,
                Input::Ahead { revision } => write!(f, "[a node is at {revision}]")?,
                Input::Node { order, .. } => write!(f, "[{order:?}]")?,
                Input::Command { number, .. } => write!(f, "[command {number}]")?,
            }
        }
        Ok(())
    }
}

/// An answer.
pub(crate) fn brief_answer<T, E: fmt::Display>(answer: &Result<T, E>) -> String {
    answer.as_ref().map_or_else(ToString::to_string, |_| "yes".to_owned())
}
