//! A cluster of several masters, agents and planes on virtual time, under seeded faults.
//!
//! Real are master and Marathon in their coupling (`mesonet::control_plane`), the clock that they are given, what a
//! leader makes of reports that come by several ways, and what planes decide (names, routes). Made up are time, network,
//! store, elections, processes, clients and users, and what fails when. [`run`] plays one seed: the same seed gives the
//! same run.
//!
//! One master leads by a lease in a store that is linearizable and refuses the commits of earlier terms; the others pass
//! its views on to planes and the planes' reports back. What is checked after each step is what a user could rely on:
//!
//! | what | where |
//! |---|---|
//! | no task runs twice, and no agent runs more than it has | `watch::check_processes` |
//! | nothing is given twice: resources, ports, addresses | `watch::Watch::view` |
//! | a name keeps its address, on all nodes | `watch::Watch::view` |
//! | revisions only grow, in the store and on every node | `store`, `planes` |
//! | one term commits at a time | `store` |
//! | what was answered is committed and stays | `ledger` |
//! | the next leader begins where the last commit was | `watch::check_recovery` |
//! | a task is told to end when no plane sends clients to it, and none does later | `masters::check_kill`, `views` |
//! | who is killed leaves as many instances that serve as the app's upgrade strategy says | `kills` |
//! | a deployment that comes to its end has waited until new instances were ready | `readiness` |
//! | an agent obeys no term before the newest that it has seen | `views::commanded` |
//!
//! When the faults have ended, everything has to become as users want it (`simulation::unsettled`).

#![forbid(unsafe_code)]

mod agent;
mod apps;
mod brief;
mod clocks;
mod elections;
mod faults;
mod journal;
mod kills;
mod leader;
mod ledger;
mod links;
mod masters;
mod network;
mod nodes;
mod planes;
mod readiness;
mod simulation;
mod store;
mod user;
mod views;
mod watch;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    play(seed, Journal::latest()).1
}

/// Plays one seed and gives everything that happened, the oldest first.
pub fn run_and_tell(seed: u64) -> (Vec<String>, Result<Counts, Failure>) {
    play(seed, Journal::everything())
}

/// Plays many seeds on all cores, and gives what all have seen together.
///
/// # Errors
/// When a seed fails; others that are under way are not waited for longer than they take.
pub fn run_all(seeds: Range<u64>) -> Result<Counts, Failure> {
    let next = AtomicU64::new(seeds.start);
    let failure = Mutex::new(None);
    let work = || {
        let mut total = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return total;
            }
            match run(seed) {
                Ok(counts) => total.add(&counts),
                Err(failed) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failed);
                }
            }
        }
    };
    let mut total = Counts::default();
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            total.add(&worker.join().expect("BUG: a worker catches what fails"));
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failed) => Err(failed),
        None => Ok(total),
    }
}

fn play(seed: u64, journal: Journal) -> (Vec<String>, Result<Counts, Failure>) {
    let simulation = Simulation::new(seed, journal.clone());
    let result = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    let events = journal.lines();
    let failure =
        |panic: Box<dyn Any + Send>| Failure { seed, what: message(&*panic), events: events.clone() };
    let result = result.map_err(failure);
    (events, result)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "seed {} fails: {}", self.seed, self.what)?;
        write!(f, "again, with everything that happened: cargo run -p mesonet-sim -- --seed {}", self.seed)
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}
