//! `./x bench NAME`: measures mesonet, beside the peers that are installed where there are peers.
//!
//! Each benchmark prints a table and, for every bar that the project sets itself, one line
//! `BAR <name> <value> <op> <limit> ok|MISS`. The exit code says only whether it could be measured.

#![forbid(unsafe_code)]

mod applied;
mod bus;
mod dns;
mod fake_mesos;
mod filled_cluster;
mod master;
mod process;
mod report;
mod zone;

use std::process::ExitCode;

use clap::Parser;

/// Measures one thing; `list` names what there is.
#[derive(Debug, Parser)]
#[command(name = "./x bench")]
struct Arguments {
    /// Which benchmark.
    name: String,
    /// How long to measure (applied; dns: each time, at most 4).
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Agents of the simulated cluster (master).
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Tasks of the simulated cluster (master: 100,000, applied: 1,000).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tasks: Option<u32>,
    /// What a process that a benchmark starts is told.
    #[arg(long, hide = true)]
    order: Option<String>,
}

const BENCHMARKS: [(&str, &str); 5] = [
    ("master", "the pure master: placements per second, snapshot, reload"),
    ("applied", "time from commit to applied for names and VIPs, 1,000 tasks on agents without processes"),
    ("dns", "CPU time per DNS query, beside Knot and NSD, 10,000 and 100,000 apps"),
    ("zone", "time from a delta of one task among 100,000 to the DNS table that has it"),
    ("bus", "time from commit to the last of 100 and 1,000 subscribers, beside etcd watchers"),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = match (arguments.name.as_str(), &arguments.order) {
        (part, Some(order)) => bus::run_part(part, order),
        ("list", None) => {
            for (name, what) in BENCHMARKS {
                println!("{name:10} {what}");
            }
            Ok(())
        }
        ("master", None) => master::run(arguments.agents, arguments.tasks.unwrap_or(100_000)),
        ("applied", None) => applied::run(arguments.tasks.unwrap_or(1_000), arguments.seconds),
        ("bus", None) => bus::run(),
        ("dns", None) => dns::run(arguments.seconds.min(dns::SECONDS_MAX)),
        ("zone", None) => zone::run(arguments.tasks.unwrap_or(100_000)),
        (other, None) => {
            eprintln!("there is no benchmark '{other}'; `./x bench list` names what there is");
            return ExitCode::from(2);
        }
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("could not measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}
