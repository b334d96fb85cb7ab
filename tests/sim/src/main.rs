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
}

fn main() -> ExitCode {
    let Arguments { seeds, first } = Arguments::parse();
    for seed in first..first.saturating_add(seeds) {
        match mesonet_sim::run(seed) {
            Ok(counts) if seeds == 1 => println!("seed {seed}: {counts:?}"),
            Ok(_) => {}
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{seeds} seeds from {first} on: everything held");
    ExitCode::SUCCESS
}
