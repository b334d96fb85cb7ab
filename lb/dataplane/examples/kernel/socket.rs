//! Balancing of sockets beside direct connections: clients and servers in a cgroup with hooks, and others in one without.
//! They take turns, so that whatever else the machine does meets both alike.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout};

use crate::cluster::Cluster;
use crate::site::Site;
use crate::worker::monotonic_nanos;
use crate::{Measured, bar, median};

/// Each has two short turns of either side, and neither side has the same neighbour twice. What others do on the machine,
/// and how fast it happens to be, meets both sides of a round alike, so that the ratios of rounds differ less than what
/// they are ratios of. One round's ratio differs from the next by nearly a tenth even so; the median of this many is
/// uncertain by a third of a percent.
const ROUNDS: usize = 700;
const ROUND: [usize; 4] = [DIRECT, BALANCED, BALANCED, DIRECT];
const TURN_MILLIS: u32 = 10;

const DIRECT: usize = 0;
const BALANCED: usize = 1;

/// Of processor time, which others only add to, the mean of the least is told: of one in so many.
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
        "{ROUNDS} rounds of two turns of {TURN_MILLIS} ms for each side; the median of the rounds' ratios counts"
    );
    let short = compare(&site, "connect", [&mut direct, &mut balanced], [addresses[0], vips[0]])?;
    for (side, each) in ["direct", "balanced"].into_iter().zip(&short.sides) {
        println!(
            "new connections, {side}: median {:.0}/s, {:.2} us of processor time for each: client {:.2}, server {:.2}",
            each.rate,
            each.client + each.server,
            each.client,
            each.server
        );
    }
    println!("new connections, balanced to direct: {}", short.spread);
    let bulk = compare(&site, "bulk", [&mut direct, &mut balanced], [addresses[1], vips[1]])?;
    for (side, each) in ["direct", "balanced"].into_iter().zip(&bulk.sides) {
        println!("bulk, {side}: median {:.2} GB/s", each.rate / 1e9);
    }
    println!("bulk, balanced to direct: {}", bulk.spread);

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
    client: f64,
    server: f64,
}

struct Comparison {
    sides: [Side; 2],
    /// Of what is done per second, by the median of the rounds.
    ratio: f64,
    /// How much the rounds differ.
    spread: String,
}

/// What happened in a turn, or in several.
#[derive(Clone, Copy, Default)]
struct Turn {
    count: f64,
    nanos: f64,
    client: f64,
    server: f64,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.count / self.nanos * 1e9
    }
}

fn compare(
    site: &Site,
    what: &str,
    servers: [&mut Worker; 2],
    targets: [SocketAddr; 2],
) -> Measured<Comparison> {
    let mut clients = [
        Worker::new(site, false, &["connect", &targets[DIRECT].to_string()])?,
        Worker::new(site, true, &["connect", &targets[BALANCED].to_string()])?,
    ];
    let mut rounds = Vec::new();
    // The first round is for warming up.
    for round in 0..=ROUNDS {
        let mut sums = [Turn::default(); 2];
        for side in ROUND {
            let before = servers[side].processor()?;
            let (count, nanos, client) = clients[side].turn(what)?;
            let server = servers[side].processor()? - before;
            let sum = &mut sums[side];
            *sum = Turn {
                count: sum.count + count,
                nanos: sum.nanos + nanos,
                client: sum.client + client,
                server: sum.server + server,
            };
        }
        if round > 0 {
            rounds.push(sums);
        }
    }
    let sides = [DIRECT, BALANCED].map(|side| {
        let column = |of: fn(&Turn) -> f64| rounds.iter().map(|round| of(&round[side])).collect::<Vec<f64>>();
        Side {
            rate: median(&mut column(Turn::rate)),
            client: least(column(|turn| turn.client / turn.count / 1e3)),
            server: least(column(|turn| turn.server / turn.count / 1e3)),
        }
    });
    let mut ratios: Vec<f64> =
        rounds.iter().map(|round| round[BALANCED].rate() / round[DIRECT].rate()).collect();
    let ratio = median(&mut ratios);
    let quarter = |at: usize| ratios.get(ratios.len() * at / 4).copied().unwrap_or(f64::NAN);
    let spread = format!("{ratio:.3}; half of the rounds from {:.3} to {:.3}", quarter(1), quarter(3));
    Ok(Comparison { sides, ratio, spread })
}

/// The mean of the least of many.
fn least(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
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
