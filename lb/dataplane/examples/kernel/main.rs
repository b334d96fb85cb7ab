//! `./x bench socket` and `./x bench services`: what balancing in the kernel costs. Needs root; everything happens in a
//! network namespace, in cgroups and in a BPF file system that are made for it and removed.

#![forbid(unsafe_code)]

mod cluster;
mod services;
mod site;
mod socket;
mod worker;

use std::process::ExitCode;

/// Nothing is expected here that a caller could do something about.
type Measured<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match words[..] {
        ["socket"] => socket::run(),
        ["services"] => services::run(),
        ["worker", namespace, ref what @ ..] => worker::run(namespace, what),
        _ => Err("name one of: socket, services".into()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("could not measure: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one bar and whether it is reached.
fn bar(name: &str, value: f64, is_least: bool, limit: f64) {
    let (sign, is_reached) = if is_least { (">=", value >= limit) } else { ("<", value < limit) };
    println!("BAR {name} {value:.4} {sign} {limit} {}", if is_reached { "ok" } else { "MISS" });
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
