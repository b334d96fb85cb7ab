//! Where a network daemon gets its view from if not from masters of mesonet: a Mesos cluster, or a file.
//!
//! What is found is turned into a view by `mesonet-mesos`, which is pure; here are the conversations, the clock and the
//! names of hosts. Each source runs for as long as the daemon, tries again by itself, and puts what it finds into a
//! [`Sink`]. While a source cannot be reached, what it said last stays.

mod backoff;
mod host_names;
mod http_client;
mod operator;
mod polling;
mod record_io;
mod saved;
mod sink;

use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::task::JoinSet;

use crate::config::{Endpoint, Source};
use crate::net_plan::{CredentialsError, NetPlan};

pub use http_client::{InvalidCredentials, basic_authorization, token_authorization};
pub use sink::{Sink, SourceMetrics, SourceState};

/// The largest state or event that is read: that of the largest clusters has some 200 MiB.
const SIZE_MAX: usize = 1 << 30;

/// How Mesos masters are asked.
#[derive(Debug, Clone)]
pub struct MesosSettings {
    /// The masters, in the order in which they are asked.
    pub masters: Vec<Endpoint>,
    /// How often they are polled.
    pub refresh: Duration,
    /// How long one may take to answer, and to send its whole state.
    pub timeout: Duration,
    /// The `Authorization` header.
    pub authorization: Option<HeaderValue>,
}

/// Lets a source run that is not the bus.
///
/// # Errors
/// When the credentials cannot be used.
pub fn start(
    source: &Source,
    plan: &NetPlan,
    sink: Sink,
    tasks: &mut JoinSet<()>,
) -> Result<(), CredentialsError> {
    match source {
        Source::Mesonet(_) => unreachable!("BUG: the bus has its own client"),
        Source::Mesos(_) => tasks.spawn(operator::follow(plan.mesos()?, sink)),
        Source::MesosState(_) => tasks.spawn(polling::poll(plan.mesos()?, sink)),
        Source::File(path) => tasks.spawn(saved::follow(path.clone(), sink)),
    };
    Ok(())
}
