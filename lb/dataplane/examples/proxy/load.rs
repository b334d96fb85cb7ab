//! What clients do, and what it costs a balancer.

use std::process::Command;
use std::time::Duration;

use crate::Measured;
use crate::balancers::Balancer;

/// The CPU of client and servers.
pub const LOAD_CPU: &str = "1";

/// How often iperf3 is started before that counts as a failure: its server takes one client at a time, and may not have
/// noticed yet that the last one has gone.
const IPERF_ATTEMPTS: usize = 10;

/// Between them.
const PAUSE: Duration = Duration::from_millis(200);

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Requests on 64 connections that stay.
    KeepAlive,
    /// Requests of 64 clients, each on a connection of its own.
    Connections,
    /// One connection with as much as it takes.
    Bulk,
}

/// What one measurement has shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// CPU time for each unit: microseconds for a request or connection, seconds for a gigabyte.
    pub cpu_each: f64,
    /// Units per second.
    pub rate: f64,
    /// Requests that failed.
    pub errors: u64,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::KeepAlive, Self::Connections, Self::Bulk];

    /// For the heading.
    pub fn describe(self) -> &'static str {
        match self {
            Self::KeepAlive => "requests on 64 keep-alive connections",
            Self::Connections => "a new connection for each request, 64 clients",
            Self::Bulk => "one connection with bulk data",
        }
    }

    /// The name of its bar.
    pub fn bar_name(self) -> &'static str {
        match self {
            Self::KeepAlive => "proxy_cpu_per_request_to_better_peer",
            Self::Connections => "proxy_cpu_per_connection_to_better_peer",
            Self::Bulk => "proxy_cpu_per_gigabyte_to_better_peer",
        }
    }

    /// The project's bar: of the CPU time of the better peer.
    pub fn bar(self) -> f64 {
        match self {
            Self::KeepAlive | Self::Connections => 0.9,
            Self::Bulk => 0.6,
        }
    }

    /// A row of the table.
    pub fn show(self, cpu: f64, rate: f64) -> String {
        match self {
            Self::KeepAlive => format!("{cpu:6.2} us CPU per request {rate:9.0} requests/s"),
            Self::Connections => format!("{cpu:6.2} us CPU per connection {rate:9.0} connections/s"),
            Self::Bulk => format!("{cpu:6.3} s CPU per GB {:9.1} Gb/s", rate * 8.0),
        }
    }
}

/// Has clients use a balancer for a while.
pub fn measure(balancer: &Balancer, load: Load, time: Duration) -> Measured<Cost> {
    let http = balancer.http().to_string();
    match load {
        Load::KeepAlive => wrk(balancer, &[], &http, time),
        Load::Connections => wrk(balancer, &["-H", "Connection: close"], &http, time),
        Load::Bulk => {
            let bulk = balancer.bulk().ok_or("carries no bulk data")?;
            let (address, port) = (bulk.ip().to_string(), bulk.port().to_string());
            for _ in 0..IPERF_ATTEMPTS {
                if let Some(measured) = iperf(balancer, &["-c", &address, "-p", &port], time)? {
                    return Ok(measured);
                }
                std::thread::sleep(PAUSE);
            }
            Err(format!("iperf3 does not get through {}", balancer.name()).into())
        }
    }
}

fn wrk(balancer: &Balancer, extra: &[&str], address: &str, time: Duration) -> Measured<Cost> {
    let before = balancer.cpu_seconds()?;
    let output = Command::new("taskset")
        .args(["-c", LOAD_CPU, "wrk", "-t1", "-c64"])
        .arg(format!("-d{}s", time.as_secs()))
        .args(extra)
        .arg(format!("http://{address}/"))
        .output()
        .map_err(|error| format!("cannot run wrk: {error}"))?;
    let used = balancer.cpu_seconds()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok());
    let requests: f64 = requests.unwrap_or(0.0);
    if requests == 0.0 {
        return Err(format!("{} carries nothing: {text}", balancer.name()).into());
    }
    Ok(Cost {
        cpu_each: used / requests * 1e6,
        rate: requests / time.as_secs_f64(),
        errors: wrk_errors(&text),
    })
}

/// What wrk says of errors: "Socket errors: connect 0, read 1, write 0, timeout 0", "Non-2xx or 3xx responses: 2".
fn wrk_errors(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.contains("errors:") || line.contains("Non-2xx"));
    let words = lines.flat_map(|line| line.split(|character: char| !character.is_ascii_alphanumeric()));
    words.filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// `None` if iperf3 did not get to its server.
fn iperf(balancer: &Balancer, target: &[&str], time: Duration) -> Measured<Option<Cost>> {
    let before = balancer.cpu_seconds()?;
    let output = Command::new("taskset")
        .args(["-c", LOAD_CPU, "iperf3", "-J", "-t"])
        .arg(time.as_secs().to_string())
        .args(target)
        .output()
        .map_err(|error| format!("cannot run iperf3: {error}"))?;
    let used = balancer.cpu_seconds()? - before;
    let Some(bytes) = received(&String::from_utf8_lossy(&output.stdout)) else { return Ok(None) };
    let gigabytes = bytes / 1e9;
    Ok(Some(Cost { cpu_each: used / gigabytes, rate: gigabytes / time.as_secs_f64(), errors: 0 }))
}

/// The bytes of `"sum_received": { …, "bytes": 4711, … }` in iperf3's report, if any were received.
fn received(report: &str) -> Option<f64> {
    let (_, sum) = report.split_once("\"sum_received\"")?;
    let (_, bytes) = sum.split_once("\"bytes\"")?;
    let digits = bytes.trim_start_matches([':', ' ', '\t']);
    let end = digits.find(|character: char| !character.is_ascii_digit())?;
    digits[..end].parse().ok().filter(|bytes| *bytes > 0.0)
}
