//! `cargo run -p mesonet-sim -- --seeds N`: plays seeds until one fails.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Plays a cluster on virtual time, one run per seed.
#[derive(Debug, Parser)]
#[command(name = "mesonet-sim")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// One seed only, of which everything is told.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { seeds, first, seed } = Arguments::parse();
    if let Some(seed) = seed {
        return tell(seed);
    }
    match mesonet_sim::run_all(first..first.saturating_add(seeds)) {
        Ok(counts) => {
            println!("{counts:?}");
            println!("{seeds} seeds from {first} on: everything held");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn tell(seed: u64) -> ExitCode {
    let (events, result) = mesonet_sim::run_and_tell(seed);
    for event in events {
        println!("{event}");
    }
    match result {
        Ok(counts) => {
            println!("seed {seed}: {counts:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("seed {seed} fails: {}", failure.what);
            ExitCode::FAILURE
        }
    }
}
