//! CPU time of DNS servers per query: mesonet beside Knot and NSD.
//!
//! Each server has one core, dnsperf has another one, all on loopback. What a server uses is its CPU time divided by
//! the queries that were answered: that depends little on what else the machine does, unlike queries per second. All
//! servers are asked in turns, several times, and the median counts. mesonet serves what a static state of a Mesos
//! master says; the zone files of the others have the same names.

mod inputs;
mod servers;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::report::{Bar, bar};
use inputs::QUERY_FILES;
use servers::{Running, SERVER_CPU};

/// Apps of the zone that all servers have.
const APPS: usize = 10_000;

/// Apps of the zone that shows whether the size matters.
const APPS_MANY: usize = 100_000;

/// The project's bar: of the CPU time of the better peer.
const PEER_SHARE_BAR: f64 = 0.9;

/// The project's bar: what a query may cost in the large zone, of what it costs in the other one.
const SIZE_FACTOR_BAR: f64 = 1.2;

/// How often each server is asked; the median counts.
const ROUNDS: usize = 5;

/// Longer rounds take time and tell no more.
pub const SECONDS_MAX: u64 = 4;

/// The CPU of dnsperf.
const CLIENT_CPU: &str = "1";

/// What one run of dnsperf has shown.
#[derive(Debug, Clone, Copy)]
struct Measured {
    cpu_micros: f64,
    per_second: f64,
    lost: f64,
}

/// A server under test.
struct Candidate {
    name: &'static str,
    server: Running,
    /// Directory of its query files.
    queries: std::path::PathBuf,
}

/// Measures and prints.
pub fn run(seconds: u64) -> anyhow::Result<()> {
    ensure!(std::thread::available_parallelism()?.get() > 1, "needs two cores, one for dnsperf");
    let dir = tempfile::tempdir()?;
    let (usual, large) = (dir.path().join("10k"), dir.path().join("100k"));
    inputs::write(&usual, APPS)?;
    inputs::write(&large, APPS_MANY)?;
    let mut candidates = Vec::new();
    for (name, server, queries) in [
        ("knot", Running::knot(&usual)?, &usual),
        ("nsd", Running::nsd(&usual)?, &usual),
        ("mesonet", Running::mesonet(&usual, APPS)?, &usual),
        ("mesonet, 100,000 apps", Running::mesonet(&large, APPS_MANY)?, &large),
    ] {
        server.wait_until_it_answers()?;
        candidates.push(Candidate { name, server, queries: queries.clone() });
    }
    println!(
        "servers on CPU {SERVER_CPU}, dnsperf on CPU {CLIENT_CPU}; median of {ROUNDS} rounds of {seconds} s"
    );
    let mut lost = 0.0;
    for (file, what) in QUERY_FILES {
        println!("\n{what}");
        let medians = measure_in_turns(&candidates, file, Duration::from_secs(seconds))?;
        for (candidate, measured) in candidates.iter().zip(&medians) {
            let Measured { cpu_micros, per_second, lost } = measured;
            let name = candidate.name;
            println!(
                "{name:22} {cpu_micros:6.2} us CPU per query {per_second:9.0} queries/s   lost {lost:.0}"
            );
        }
        let [knot, nsd, mesonet, many] = medians[..] else {
            anyhow::bail!("not all servers were measured");
        };
        let share = mesonet.cpu_micros / knot.cpu_micros.min(nsd.cpu_micros);
        bar(&format!("dns_{file}_cpu_to_better_peer"), share, Bar::AtMost, PEER_SHARE_BAR);
        let factor = many.cpu_micros / mesonet.cpu_micros;
        bar(&format!("dns_{file}_cpu_100k_to_10k_apps"), factor, Bar::AtMost, SIZE_FACTOR_BAR);
        lost += mesonet.lost + many.lost;
    }
    bar("dns_queries_lost", lost, Bar::AtMost, 0.0);
    Ok(())
}

/// The median of each candidate, by CPU time, with the queries that it lost in all rounds.
fn measure_in_turns(candidates: &[Candidate], file: &str, time: Duration) -> anyhow::Result<Vec<Measured>> {
    let mut rounds: Vec<Vec<Measured>> = vec![Vec::new(); candidates.len()];
    for _ in 0..ROUNDS {
        for (candidate, measured) in candidates.iter().zip(&mut rounds) {
            measured.push(measure(&candidate.server, &candidate.queries.join(file), time)?);
        }
    }
    let median = |mut measured: Vec<Measured>| {
        let lost = measured.iter().map(|each| each.lost).sum();
        measured.sort_by(|a, b| a.cpu_micros.total_cmp(&b.cpu_micros));
        Measured { lost, ..measured[measured.len() / 2] }
    };
    Ok(rounds.into_iter().map(median).collect())
}

/// Has dnsperf ask for a while.
fn measure(server: &Running, queries: &Path, time: Duration) -> anyhow::Result<Measured> {
    let before = server.cpu_seconds()?;
    let output = Command::new("taskset")
        .args(["-c", CLIENT_CPU, "dnsperf", "-s", "127.0.0.1", "-c", "8", "-T", "1", "-q", "400", "-p"])
        .arg(server.port().to_string())
        .arg("-l")
        .arg(time.as_secs().to_string())
        .arg("-d")
        .arg(queries)
        .output()
        .context("cannot run dnsperf")?;
    let used = server.cpu_seconds()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let completed = number_after(&text, "Queries completed:")?;
    ensure!(completed > 0.0, "{server} answers nothing: {text}");
    // A refusal costs little.
    ensure!(
        !text.contains("SERVFAIL") && !text.contains("REFUSED"),
        "{server} does not know the zone: {text}"
    );
    Ok(Measured {
        cpu_micros: used / completed * 1e6,
        per_second: number_after(&text, "Queries per second:")?,
        lost: number_after(&text, "Queries lost:")?,
    })
}

fn number_after(text: &str, label: &str) -> anyhow::Result<f64> {
    let rest = text.split_once(label).map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("dnsperf does not say '{label}': {text}"))
}
