//! A thousand seeds.

use std::sync::atomic::{AtomicU64, Ordering};

/// Enough to find what happens once in a few hundred runs, and a minute at most on a small machine.
const SEEDS: u64 = 1000;

#[test]
fn everything_holds_whatever_fails() {
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let play = || {
        let mut seen = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return seen;
            }
            seen.push(mesonet_sim::run(seed).unwrap_or_else(|failure| panic!("{failure}")));
        }
    };
    let seen: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(play)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("the failure above")).collect()
    });
    let total = |what: fn(&mesonet_sim::Counts) -> u64| seen.iter().map(what).sum::<u64>();
    // What never happened was not tested.
    assert!(total(|run| run.master_crashes) > SEEDS);
    assert!(total(|run| run.agent_crashes) > SEEDS / 2);
    assert!(total(|run| run.launches) > SEEDS);
    assert!(total(|run| run.drained) > SEEDS / 2);
    assert!(total(|run| run.answers) > SEEDS);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    assert_eq!(mesonet_sim::run(7), mesonet_sim::run(7));
}
