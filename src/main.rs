//! The `mesonet` program.

#![forbid(unsafe_code)]

mod cli;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match supervised_dir() {
        Some(dir) => mesonet_agent::supervise(&dir),
        None if is_cni_plugin() => mesonet::run_cni(),
        None => cli::run(),
    }
}

/// Whether the program has the name of the CNI plugin: runtimes start one without arguments.
fn is_cni_plugin() -> bool {
    let program = std::env::args_os().next().map(PathBuf::from);
    program.is_some_and(|program| program.file_name() == Some(OsStr::new("mesonet-cni")))
}

/// The directory in `mesonet supervise DIR`, which the agent starts for every task. It is looked for before anything
/// else is set up, because a supervisor lives as long as its task and must stay small.
fn supervised_dir() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let dir = arguments.next()?;
    (command == OsStr::new("supervise") && arguments.next().is_none()).then(|| PathBuf::from(dir))
}
