//! How long a task may drain: what its ports' labels say.

use std::time::Duration;

use mesonet_model::Task;

/// How long a task's connections may go on: the most that a service of its may, and the default for services that do
/// not say.
pub(crate) fn drain_grace(task: &Task, default: Duration) -> Duration {
    let graces = task.service_ports().into_iter().filter_map(|port| match port.policy.drain {
        Some(grace) => Some(grace),
        None => port.vips.iter().any(Result::is_ok).then_some(default),
    });
    graces.max().unwrap_or(default)
}
