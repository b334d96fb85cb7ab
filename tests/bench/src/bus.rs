//! How soon all subscribers have what was committed, and what that costs: the bus beside etcd watchers.
//!
//! A view of a thousand tasks; per event the health of one task changes, which is a delta of its task and its
//! endpoint. The master (or etcd) is a process of its own, and so are all subscribers together, each of which has a
//! connection of its own and a view of its own to which it applies each delta. Both do the same: the value that is put into
//! etcd is the same delta, and a watcher decodes and applies it in the same way; both encrypt and ask for certificates.
//! What etcd keeps on disk is in memory here, because the bus is measured behind the commit as well.

mod etcd;
mod etcd_api;
mod master;
mod nodes;
mod tally;
mod wire_bytes;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::report::{Bar, bar, millis, table};

/// An operator who has changed something must not be able to look faster than it is in effect (issue of the cluster).
const P99_MILLIS_BAR: f64 = 50.0;

/// Tasks of the view.
const TASKS: u32 = 1_000;

/// The two sizes: subscribers, events, and the time between events. Twice what a small machine that is both ends needs
/// for an event, so that events are measured one by one.
const SIZES: [(u32, u32, Duration); 2] =
    [(100, 300, Duration::from_millis(50)), (1_000, 150, Duration::from_millis(250))];

/// What a process of this benchmark is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// How many subscribers.
    pub subscribers: u32,
    /// How many events.
    pub events: u32,
    /// Milliseconds from one event to the next.
    pub pace_ms: u64,
    /// Whether subscribers report what they have applied, as planes do.
    pub acknowledge: bool,
    /// Where subscribers connect.
    pub server: String,
    /// With what they join.
    pub token: String,
    /// A directory for all of it.
    pub dir: String,
    /// The revision before the first event.
    pub first: u64,
}

/// What one run has measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// From commit to the last subscriber, of each event, in nanoseconds.
    pub latencies: Vec<u64>,
    /// Bytes of a delta before it is packed.
    pub delta_bytes: usize,
    /// CPU time of the server for all events, in seconds.
    pub server_cpu_s: f64,
    /// CPU time of all subscribers for all events, in seconds.
    pub subscribers_cpu_s: f64,
    /// Memory of the server that the subscribers have added, in KiB.
    pub server_memory_kib: u64,
    /// Memory of all subscribers, in KiB.
    pub subscribers_memory_kib: u64,
    /// Bytes on the wire for all events, both directions, if nobody else is on it.
    pub wire_bytes: Option<u64>,
}

/// Measures and prints.
pub fn run() -> anyhow::Result<()> {
    if wire_bytes::moved_to_own_network()? {
        return Ok(());
    }
    println!("a view of {TASKS} tasks; per event the health of one task changes");
    for (subscribers, events, pace) in SIZES {
        let order = |acknowledge| Order {
            subscribers,
            events,
            pace_ms: u64::try_from(pace.as_millis()).unwrap_or(u64::MAX),
            acknowledge,
            server: String::new(),
            token: String::new(),
            dir: String::new(),
            first: 0,
        };
        let bus = apart("bus-master", &order(false))?;
        show("bus", &order(false), &bus);
        let reporting = apart("bus-master", &order(true))?;
        show("bus, planes report", &order(true), &reporting);
        let watched = etcd::run(&order(false))?;
        show("etcd watchers", &order(false), &watched);
        let events = f64::from(events);
        let p99 = |measured: &Measured| millis(quantile(&measured.latencies, 99));
        if subscribers == 100 {
            bar("bus_100_commit_to_last_p99_ms", p99(&bus), Bar::Below, P99_MILLIS_BAR);
            bar("bus_100_reporting_commit_to_last_p99_ms", p99(&reporting), Bar::Below, P99_MILLIS_BAR);
        }
        let server_cpu = |measured: &Measured| measured.server_cpu_s / events;
        let name = |what: &str| format!("bus_{subscribers}_{what}_of_etcd");
        bar(&name("p99"), p99(&bus) / p99(&watched), Bar::Below, 1.0);
        bar(&name("server_cpu"), server_cpu(&bus) / server_cpu(&watched), Bar::Below, 1.0);
        let memory = |measured: &Measured| measured.server_memory_kib as f64;
        bar(&name("server_memory"), memory(&bus) / memory(&watched), Bar::Below, 1.0);
    }
    Ok(())
}

/// One part of the benchmark, in a process that this program starts.
pub fn run_part(part: &str, order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order).context("the order cannot be read")?;
    match part {
        "bus-master" => master::run(order),
        "bus-nodes" => nodes::run(&order),
        "bus-watchers" => etcd::run_watchers(&order),
        other => anyhow::bail!("there is no part '{other}'"),
    }
}

/// Runs a part in a process of its own, which begins with nothing.
fn apart(part: &str, order: &Order) -> anyhow::Result<Measured> {
    let output = command(part, order)?.stderr(Stdio::inherit()).output().context("cannot start a part")?;
    ensure!(output.status.success(), "{part} has ended with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{part} has said what is no result"))
}

/// This program, for one of its parts.
fn command(part: &str, order: &Order) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
    command.arg(part).arg("--order").arg(serde_json::to_string(order)?);
    Ok(command)
}

fn show(what: &str, order: &Order, measured: &Measured) {
    let Order { subscribers, events, pace_ms, .. } = order;
    let (each, all) = (f64::from(*events), f64::from(*events) * f64::from(*subscribers));
    let wire = measured.wire_bytes.map_or("not measured".to_owned(), |bytes| {
        format!("{:.0} to and from each subscriber", bytes as f64 / all)
    });
    table(&[
        ("", String::new()),
        ("measured", format!("{what}, {subscribers} subscribers, {events} events, one every {pace_ms} ms")),
        ("commit to last subscriber, p50", format!("{:.2} ms", millis(quantile(&measured.latencies, 50)))),
        ("commit to last subscriber, p99", format!("{:.2} ms", millis(quantile(&measured.latencies, 99)))),
        ("bytes of an event", format!("{} as JSON", measured.delta_bytes)),
        ("bytes on the wire per event", wire),
        ("server's CPU per event", format!("{:.2} ms", measured.server_cpu_s / each * 1e3)),
        ("subscriber's CPU per event", format!("{:.0} us each", measured.subscribers_cpu_s / all * 1e6)),
        (
            "server's memory per subscriber",
            format!("{} KiB", measured.server_memory_kib / u64::from(*subscribers)),
        ),
        (
            "memory of a subscriber",
            format!("{} KiB with its view", measured.subscribers_memory_kib / u64::from(*subscribers)),
        ),
    ]);
}

/// The value that so many of a hundred do not exceed.
fn quantile(nanos: &[u64], percent: usize) -> Duration {
    let mut sorted = nanos.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    Duration::from_nanos(sorted.get(index).copied().unwrap_or(0))
}
