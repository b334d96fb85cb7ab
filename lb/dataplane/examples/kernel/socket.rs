//! Balancing of sockets beside direct connections: clients and servers in a cgroup with hooks, and others in one without.
//! They take turns, so that whatever else the machine does meets both alike.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout};

use crate::cluster::Cluster;
use crate::site::Site;
use crate::worker::monotonic_nanos;
use crate::{Measured, bar, median};

const TURNS: usize = 400;
const TURN_MILLIS: u32 = 15;

/// What others do on the machine makes a turn slower and never faster, so that the best of many turns are compared:
/// one of so many.
const BEST: usize = 4;

/// Connections to an endpoint that dies.
const HELD: usize = 10_000;

pub fn run() -> Measured<()> {
    let site = Site::new()?;
    let mut cluster = Cluster::new(&site.settings())?;
    let (mut direct, mut balanced) =
        (Worker::new(&site, false, &["serve"])?, Worker::new(&site, true, &["serve"])?);
    let addresses = read_addresses(&direct.line()?)?;
    let endpoints = read_addresses(&balanced.line()?)?;
    let vips = [1, 2, 3].map(|number| SocketAddr::from(([11, 0, 0, number], 80)));
    let mut keys = Vec::new();
    for (number, (vip, endpoint)) in vips.iter().zip(&endpoints).enumerate() {
        let key = cluster.put_service(&format!("s{number}"), *vip)?;
        cluster.put_endpoint(&key, *endpoint);
        keys.push(key);
    }
    cluster.apply()?;
    println!(
        "{TURNS} turns of {TURN_MILLIS} ms for each side in alternation; the mean of the best of {BEST} is compared"
    );
    let short = compare(&site, "connect", [&mut direct, &mut balanced], [addresses[0], vips[0]])?;
    for (side, each) in [("direct", &short.direct), ("balanced", &short.balanced)] {
        println!(
            "new connections, {side}: {:.0}/s (median {:.0}/s), {:.2} us of processor time for each: client {:.2}, server {:.2}",
            each.rate,
            each.median,
            each.client + each.server,
            each.client,
            each.server
        );
    }
    let bulk = compare(&site, "bulk", [&mut direct, &mut balanced], [addresses[1], vips[1]])?;
    for (side, each) in [("direct", &bulk.direct), ("balanced", &bulk.balanced)] {
        println!("bulk, {side}: {:.2} GB/s (median {:.2} GB/s)", each.rate / 1e9, each.median / 1e9);
    }

    let mut clients = Worker::new(&site, true, &["hold", &vips[2].to_string(), &HELD.to_string()])?;
    clients.line()?;
    cluster.remove_endpoint(&keys[2], endpoints[2]);
    let begun = monotonic_nanos();
    let applied = cluster.apply()?;
    let ended: u64 = clients.line()?.parse()?;
    let millis = ended.saturating_sub(begun) as f64 / 1e6;
    println!("{HELD} connections to a dead endpoint ended after {millis:.1} ms (apply: {applied:.1?})");
    bar("socket_connections_ratio", short.ratio, true, 0.97);
    bar("socket_bulk_ratio", bulk.ratio, true, 0.99);
    bar("socket_death_ms", millis, false, 100.0);
    Ok(())
}

/// What one side does per second, and microseconds of processor time that one thing costs.
struct Side {
    rate: f64,
    median: f64,
    client: f64,
    server: f64,
}

struct Comparison {
    direct: Side,
    balanced: Side,
    /// Of what is done per second.
    ratio: f64,
}

fn compare(
    site: &Site,
    what: &str,
    servers: [&mut Worker; 2],
    targets: [SocketAddr; 2],
) -> Measured<Comparison> {
    let mut clients = [
        Worker::new(site, false, &["connect", &targets[0].to_string()])?,
        Worker::new(site, true, &["connect", &targets[1].to_string()])?,
    ];
    let mut turns = [Vec::new(), Vec::new()];
    // The first turn is for warming up.
    for turn in 0..=TURNS {
        // Whoever comes second has no advantage of it.
        for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            let before = servers[side].processor()?;
            let (count, nanos, client) = clients[side].turn(what)?;
            let server = servers[side].processor()? - before;
            if turn > 0 {
                turns[side].push([count / nanos * 1e9, client / count / 1e3, server / count / 1e3]);
            }
        }
    }
    let [direct, balanced] = turns.map(|turns| {
        let column = |at: usize| turns.iter().map(|turn| turn[at]).collect::<Vec<f64>>();
        Side {
            rate: best(column(0), true),
            median: median(&mut column(0)),
            client: best(column(1), false),
            server: best(column(2), false),
        }
    });
    let ratio = balanced.rate / direct.rate;
    Ok(Comparison { direct, balanced, ratio })
}

/// The mean of the best ones.
fn best(mut values: Vec<f64>, is_greatest: bool) -> f64 {
    values.sort_by(f64::total_cmp);
    if is_greatest {
        values.reverse();
    }
    values.truncate(values.len().div_ceil(BEST));
    values.iter().sum::<f64>() / values.len() as f64
}

/// A process that takes part.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn new(site: &Site, is_hooked: bool, words: &[&str]) -> Measured<Self> {
        let mut child = site.worker(is_hooked, words)?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Measured<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a part of the measurement has ended".into());
        }
        Ok(line.trim().to_owned())
    }

    /// How much was done, in what time, and with what processor time, both in nanoseconds.
    fn turn(&mut self, what: &str) -> Measured<(f64, f64, f64)> {
        writeln!(self.input, "{what} {TURN_MILLIS}")?;
        let line = self.line()?;
        let numbers = line.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let [count, nanos, processor] = numbers[..] else { return Err("not three numbers".into()) };
        Ok((count, nanos, processor))
    }

    /// The processor time of a server so far, in nanoseconds.
    fn processor(&mut self) -> Measured<f64> {
        writeln!(self.input)?;
        Ok(self.line()?.parse()?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_addresses(line: &str) -> Measured<Vec<SocketAddr>> {
    Ok(line.split(' ').map(str::parse).collect::<Result<_, _>>()?)
}
