//! Load on a service by wrk.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::{process, program};

/// A running wrk.
pub struct Load {
    wrk: Child,
}

impl Load {
    /// Starts to send requests, on eight connections at a time.
    #[track_caller]
    pub fn start(address: SocketAddr) -> Self {
        let mut command = Command::new("wrk");
        // It is stopped before its time is up; a request may take long on a busy machine without having failed.
        command.args(["-t1", "-c8", "-d300s", "--timeout", "20s", &format!("http://{address}/")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self { wrk: child.unwrap_or_else(|error| program::missing("wrk", &error)) }
    }

    /// Stops it; fails if there was no request or one failed.
    #[track_caller]
    pub fn finish_without_failure(self) {
        process::signal(self.wrk.id(), Signal::INT);
        let report = program::outcome("wrk", self.wrk.wait_with_output()).success();
        let requests = report.lines().find_map(|line| line.split_once(" requests in "));
        let requests: u64 = requests.and_then(|(count, _)| count.trim().parse().ok()).unwrap_or(0);
        assert!(requests > 0, "no requests: {report}");
        for failure in ["Socket errors", "Non-2xx"] {
            assert!(!report.contains(failure), "failed requests among {requests}: {report}");
        }
    }
}
