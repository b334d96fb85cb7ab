//! Whether a task may be launched on an offer.

use mesonet_model::{
    AttachmentRefusal, PORT_LABELS_MAX, Resources, Scalar, TASK_ID_LENGTH_MAX, TASK_PORTS_MAX, TaskSpec,
};
use thiserror::Error;

use crate::offers::HeldOffer;

/// Why a task is not launched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum LaunchError {
    #[error("task id is empty or longer than {TASK_ID_LENGTH_MAX} bytes")]
    Id,
    #[error("task is of framework {0}, which is not the one that accepts the offer")]
    Framework(String),
    #[error("task is for agent {0}, but the offer is of another one")]
    Agent(String),
    #[error("task id is in use")]
    Duplicate,
    #[error("{0} is negative")]
    Negative(&'static str),
    #[error("task needs more {0} than the offer has left")]
    Overcommitted(&'static str),
    #[error("task publishes {0} ports, more than {TASK_PORTS_MAX}")]
    Ports(usize),
    #[error(transparent)]
    Network(#[from] AttachmentRefusal),
    #[error("port {number} has {count} labels, more than {PORT_LABELS_MAX}")]
    Labels { number: u16, count: usize },
}

/// Checks a task against the offer and what earlier tasks have left of it.
pub(crate) fn check_launch(
    spec: &TaskSpec,
    offer: &HeldOffer,
    left: &Resources,
    is_in_use: bool,
) -> Result<(), LaunchError> {
    let id = spec.key.task.as_str();
    if id.is_empty() || id.len() > TASK_ID_LENGTH_MAX {
        return Err(LaunchError::Id);
    }
    if spec.key.framework != offer.framework {
        return Err(LaunchError::Framework(spec.key.framework.to_string()));
    }
    if spec.agent != offer.agent {
        return Err(LaunchError::Agent(spec.agent.to_string()));
    }
    if is_in_use {
        return Err(LaunchError::Duplicate);
    }
    check_ports(spec)?;
    check_resources(&spec.resources, left)
}

fn check_ports(spec: &TaskSpec) -> Result<(), LaunchError> {
    let ports = spec.discovery.as_ref().map_or(&[][..], |discovery| &discovery.ports);
    if ports.len() > TASK_PORTS_MAX {
        return Err(LaunchError::Ports(ports.len()));
    }
    match ports.iter().find(|port| port.labels.len() > PORT_LABELS_MAX) {
        Some(port) => Err(LaunchError::Labels { number: port.number, count: port.labels.len() }),
        None => Ok(()),
    }
}

fn check_resources(needed: &Resources, left: &Resources) -> Result<(), LaunchError> {
    let amounts = [
        ("cpus", needed.cpus, left.cpus),
        ("mem", needed.mem, left.mem),
        ("disk", needed.disk, left.disk),
        ("gpus", needed.gpus, left.gpus),
    ];
    for (name, needed, left) in amounts {
        if needed < Scalar::ZERO {
            return Err(LaunchError::Negative(name));
        }
        if needed > left {
            return Err(LaunchError::Overcommitted(name));
        }
    }
    if left.ports.contains_all(&needed.ports) { Ok(()) } else { Err(LaunchError::Overcommitted("ports")) }
}
