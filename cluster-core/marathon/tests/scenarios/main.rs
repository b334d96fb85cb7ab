//! Marathon on virtual time beside a small master that offers agents and runs tasks.

mod cluster;
mod deployments;
mod failures;
mod health;
mod node_drain;
mod placement;
mod properties;
mod readiness;
mod recovery;
mod rolling;
mod scaling;
mod tasks;
