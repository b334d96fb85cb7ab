//! A thousand seeds.

/// Enough to find what happens once in a few hundred runs, and a minute at most on a small machine.
const SEEDS: u64 = 1000;

#[test]
fn everything_holds_whatever_fails() {
    let seen = mesonet_sim::run_all(0..SEEDS).unwrap_or_else(|failure| panic!("{failure}"));
    // What never happened was not tested.
    assert!(seen.terms > 5 * SEEDS, "{seen:?}");
    assert!(seen.depositions > 2 * SEEDS, "{seen:?}");
    assert!(seen.master_crashes > 2 * SEEDS, "{seen:?}");
    assert!(seen.outdated > SEEDS / 10, "{seen:?}");
    assert!(seen.relayed > 20 * SEEDS, "{seen:?}");
    assert!(seen.partitions > 5 * SEEDS, "{seen:?}");
    assert!(seen.stalls > SEEDS / 2, "{seen:?}");
    assert!(seen.clocks_set > SEEDS / 2, "{seen:?}");
    assert!(seen.agent_crashes > SEEDS, "{seen:?}");
    assert!(seen.launches > 5 * SEEDS, "{seen:?}");
    assert!(seen.drained > SEEDS, "{seen:?}");
    assert!(seen.answers > 5 * SEEDS, "{seen:?}");
    assert!(seen.readied > SEEDS / 2, "{seen:?}");
    assert!(seen.spared > SEEDS / 2, "{seen:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    assert_eq!(mesonet_sim::run(7), mesonet_sim::run(7));
}
