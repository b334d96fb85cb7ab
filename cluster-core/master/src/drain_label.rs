//! How long a task may drain: what its ports' labels say.

use std::time::Duration;

use mesonet_model::{DiscoveryPort, Task};
use thiserror::Error;

/// The label of a port that says for how many seconds connections to it may go on after it is withdrawn.
const DRAIN_LABEL: &str = "MESONET_LB_DRAIN_SECONDS";

/// The most that a label may ask for. A drain holds the task's resources, and a deployment waits for it.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

/// A label's value is not what it should be; the default is used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("label {DRAIN_LABEL}={value} is no number of seconds from 0 to {}", DRAIN_MAX.as_secs())]
pub(crate) struct DrainLabelError {
    value: String,
}

/// How long a task's connections may go on: the most that a service of its may, and the default for services that do
/// not say.
pub(crate) fn drain_grace(task: &Task, default: Duration) -> Duration {
    let ports = task.discovery.iter().flat_map(|discovery| &discovery.ports);
    let graces = ports.filter_map(|port| match of_port(port) {
        Some(grace) => Some(grace.unwrap_or(default)),
        None => has_vip(port).then_some(default),
    });
    graces.max().unwrap_or(default)
}

/// What is wrong with the labels of a task's ports.
pub(crate) fn label_errors(task: &Task) -> impl Iterator<Item = DrainLabelError> {
    let ports = task.discovery.iter().flat_map(|discovery| &discovery.ports);
    ports.filter_map(of_port).filter_map(Result::err)
}

fn of_port(port: &DiscoveryPort) -> Option<Result<Duration, DrainLabelError>> {
    let value = port.labels.get(DRAIN_LABEL)?;
    let grace = value.parse().ok().map(Duration::from_secs).filter(|grace| *grace <= DRAIN_MAX);
    Some(grace.ok_or_else(|| DrainLabelError { value: value.clone() }))
}

fn has_vip(port: &DiscoveryPort) -> bool {
    port.service_port().is_some_and(|port| port.vips.iter().any(Result::is_ok))
}
