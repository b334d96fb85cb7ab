//! What every test stands on: a cluster, its clients, and waiting for conditions.

pub mod app;
pub mod cluster;
pub mod dns;
pub mod events;
pub mod fake_mesos;
pub mod http;
pub mod kernel_place;
mod lane;
pub mod load;
pub mod masters;
pub mod net_daemon;
pub mod network;
pub mod nodes;
pub mod process;
pub mod program;
pub mod tmpfs;
pub mod writer;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use fake_mesos::FakeMesos;
pub use net_daemon::NetDaemon;
pub use nodes::Nodes;
pub use program::Outcome;

/// How long a condition may take to come true: far longer than it should on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often conditions are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks at a condition until it is `Ok`; fails with the last `Err` when that takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(state) if Instant::now() >= deadline => panic!("not in time: {what}; at last: {state}"),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// `Ok` if two values are alike, else how they differ.
pub fn equal<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?} is not {expected:?}")) }
}
