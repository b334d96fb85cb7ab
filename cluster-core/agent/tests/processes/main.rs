//! The agent with real processes.
//!
//! This program is the test runner and, called with `supervise DIR` or `agent DIR SPEC`, the processes under test:
//! a supervisor must have a single thread, which the standard harness does not give.

mod cases;
mod health;
mod listening;
mod networks;
mod node;
mod privileged;
mod readiness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

/// One test: its name, why it is left out unless asked for, and what it does.
pub type Case = (&'static str, Option<&'static str>, fn());

/// Tests that run at once; they mostly wait for processes.
const WORKERS: usize = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["supervise", directory] => mesonet_agent::supervise(Path::new(directory)),
        ["agent", directory, spec] => node::run_agent(Path::new(directory), spec),
        ["greet", port] => networks::greet(port.parse().expect("a port")),
        ["ask", address, port] => networks::ask(address, port.parse().expect("a port")),
        _ => run(&arguments),
    }
}

/// Understands what `cargo test -- [FILTER] [--exact] [--ignored] [--include-ignored] [--list]` passes.
fn run(arguments: &[String]) -> ExitCode {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |(name, ignored, _): &&Case| {
        let matches =
            |filter: &&String| if has("--exact") { *filter == name } else { name.contains(filter.as_str()) };
        (filters.is_empty() || filters.iter().any(matches)) && (!has("--ignored") || ignored.is_some())
    };
    let cases: Vec<&Case> = cases::ALL
        .iter()
        .chain(health::ALL)
        .chain(readiness::ALL)
        .chain(listening::ALL)
        .chain(privileged::ALL)
        .chain(networks::ALL)
        .filter(wanted)
        .collect();
    if has("--list") {
        cases.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let queue = Mutex::new(cases.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((name, ignored, case)) = next(&queue) {
                    if let Some(reason) = ignored.filter(|_| !has("--ignored") && !has("--include-ignored")) {
                        println!("test {name} ... ignored, {reason}");
                        continue;
                    }
                    let passed = catch_unwind(AssertUnwindSafe(case)).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.lock().expect("no panic holds it").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic holds it");
    println!("\ntest result: {}. failed: {failed:?}\n", if failed.is_empty() { "ok" } else { "FAILED" });
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn next<'cases>(queue: &Mutex<std::slice::Iter<'cases, &'cases Case>>) -> Option<&'cases Case> {
    queue.lock().expect("no panic holds it").next().copied()
}
