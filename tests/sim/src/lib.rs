//! The whole control plane with agents and planes on virtual time, under seeded faults.
//!
//! Real are master and Marathon in their coupling (`mesonet::control_plane`) and what planes decide (names, routes).
//! Made up are time, network, store, processes, clients, users, and when something dies. [`run`] plays one seed: the
//! same seed gives the same run.
//!
//! After each step invariants are checked that a user could rely on (`watch`, `ledger`, `masters::check_kill`); when
//! the faults have ended, everything has to become as users want it.

#![forbid(unsafe_code)]

mod agent;
mod apps;
mod journal;
mod leader;
mod ledger;
mod masters;
mod network;
mod nodes;
mod planes;
mod simulation;
mod store;
mod user;
mod watch;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::journal::Journal;
use crate::simulation::Simulation;

pub use crate::simulation::Counts;

/// A run in which something did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// What did not hold.
    pub what: String,
    /// What happened last, the oldest first.
    pub events: Vec<String>,
}

/// Plays one seed.
///
/// # Errors
/// When an invariant does not hold, or the code under test panics.
pub fn run(seed: u64) -> Result<Counts, Failure> {
    let journal = Journal::default();
    let simulation = Simulation::new(seed, journal.clone());
    catch_unwind(AssertUnwindSafe(|| simulation.run())).map_err(|panic| Failure {
        seed,
        what: message(&*panic),
        events: journal.lines(),
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "seed {} fails: {}", self.seed, self.what)?;
        write!(f, "again: cargo run -p mesonet-sim -- --first {} --seeds 1", self.seed)
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}
