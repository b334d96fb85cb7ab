//! Runs programs that users have.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Debian packages of the programs that tests run, for who lacks them.
const PACKAGES: [(&str, &str); 11] = [
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("faketime", "faketime"),
    ("host", "bind9-host"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("kdig", "knot-dnsutils"),
    ("musl-gcc", "musl-tools"),
    ("python3", "python3"),
    ("wrk", "wrk"),
];

/// Runs a program to its end.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Outcome {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    outcome(program, command.output())
}

/// Runs a command to its end, with text on its standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &str) -> Outcome {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| missing(&program, &error));
    // A program that ends without reading its input says why on its own.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    outcome(&program, child.wait_with_output())
}

/// The outcome of a command, or what to do if it cannot be run.
#[track_caller]
pub fn outcome(program: &str, output: std::io::Result<Output>) -> Outcome {
    let output = output.unwrap_or_else(|error| missing(program, &error));
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Fails the test, saying what to install.
#[track_caller]
pub fn missing(program: &str, error: &std::io::Error) -> ! {
    let package = PACKAGES.iter().find(|(name, _)| *name == program);
    let advice =
        package.map_or_else(String::new, |(_, package)| format!("; install it: apt-get install {package}"));
    panic!("cannot run {program}: {error}{advice}");
}

impl Outcome {
    /// What it printed, if it succeeded.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "failed: {self:?}");
        self.stdout
    }

    /// What it said of its failure, if it failed with this code.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr
    }
}
