//! Load on a service by wrk.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::network::Network;
use super::{process, program};

/// A running wrk.
pub struct Load {
    wrk: Child,
}

/// Whether a client opens a connection for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// It keeps them for all of its requests.
    Kept,
    /// It does.
    New,
}

/// What became of the requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requests {
    /// Those that were answered.
    pub answered: u64,
    /// Those that were refused, cut off or answered with an error.
    pub failed: u64,
    /// Those of them whose connection was not made.
    pub unconnected: u64,
    /// How long the slowest answer took.
    pub slowest: Duration,
}

impl Load {
    /// Starts to send requests, on eight connections at a time.
    #[track_caller]
    pub fn start(address: SocketAddr) -> Self {
        Self::spawn(Command::new("wrk").args(["-c8", &format!("http://{address}/")]))
    }

    /// Starts to send some hundred requests a second from a host, so that the rest of the machine can work.
    #[track_caller]
    pub fn start_steady(network: &Network, host: &str, address: &str, connections: Connections) -> Self {
        Self::start_steady_with(network.command(host, "wrk"), address, connections)
    }

    /// The same, with wrk as it is given.
    #[track_caller]
    pub fn start_steady_with(mut command: Command, address: &str, connections: Connections) -> Self {
        command.args(["-s", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/apps/pace.lua")]);
        Self::start_with(command, address, connections)
    }

    /// Starts to send requests, on four connections at a time, with wrk as it is given.
    #[track_caller]
    pub fn start_with(mut command: Command, address: &str, connections: Connections) -> Self {
        command.arg("-c4");
        if connections == Connections::New {
            command.args(["-H", "Connection: close"]);
        }
        Self::spawn(command.arg(format!("http://{address}/")))
    }

    #[track_caller]
    fn spawn(command: &mut Command) -> Self {
        // It is stopped before its time is up; a request may take long on a busy machine without having failed.
        command.args(["-t1", "-d600s", "--timeout", "20s"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self { wrk: child.unwrap_or_else(|error| program::missing("wrk", &error)) }
    }

    /// Stops it.
    #[track_caller]
    pub fn finish(self) -> Requests {
        process::signal(self.wrk.id(), Signal::INT);
        let report = program::outcome("wrk", self.wrk.wait_with_output()).success();
        Requests::read(&report).unwrap_or_else(|| panic!("wrk says {report}"))
    }

    /// Stops it; fails if there was no request or one failed.
    #[track_caller]
    pub fn finish_without_failure(self) {
        let requests = self.finish();
        assert!(requests.answered > 0 && requests.failed == 0, "{requests:?}");
    }
}

impl Requests {
    /// Reads wrk's report.
    fn read(report: &str) -> Option<Self> {
        let answered = report.lines().find_map(|line| line.split_once(" requests in "))?;
        let (mut failed, mut unconnected) = (0, 0);
        for line in report.lines().map(str::trim) {
            if let Some(errors) = line.strip_prefix("Socket errors: ") {
                // "connect 0, read 3, write 0, timeout 0"
                for (kind, count) in errors.split(", ").filter_map(|each| each.split_once(' ')) {
                    let count: u64 = count.parse().ok()?;
                    failed += count;
                    unconnected += if kind == "connect" { count } else { 0 };
                }
            } else if let Some(answers) = line.strip_prefix("Non-2xx or 3xx responses: ") {
                failed += answers.parse::<u64>().ok()?;
            }
        }
        // "Latency     2.16ms    2.10ms  13.01ms   80.37%": mean, deviation, greatest.
        let latency = report.lines().find_map(|line| line.trim().strip_prefix("Latency"))?;
        let slowest = read_time(latency.split_whitespace().nth(2)?)?;
        Some(Self { answered: answered.0.trim().parse().ok()?, failed, unconnected, slowest })
    }
}

/// Reads a time as wrk writes it.
fn read_time(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..unit].parse().ok()?;
    let seconds = match &text[unit..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number * seconds))
}

impl std::ops::Add for Requests {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            failed: self.failed + other.failed,
            unconnected: self.unconnected + other.unconnected,
            slowest: self.slowest.max(other.slowest),
        }
    }
}
