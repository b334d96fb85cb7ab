//! Balancing of sockets beside direct connections: clients and servers in a cgroup with hooks, and others in one without.
//! They take turns, so that whatever else the machine does meets both alike.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout};

use crate::cluster::Cluster;
use crate::site::Site;
use crate::worker::monotonic_nanos;
use crate::{Measured, bar, median};

const TURNS: usize = 150;
const TURN_MILLIS: u32 = 40;

/// Connections to an endpoint that dies.
const HELD: usize = 10_000;

pub fn run() -> Measured<()> {
    let site = Site::new()?;
    let mut cluster = Cluster::new(&site.settings())?;
    let (mut direct, mut balanced) =
        (Worker::new(&site, false, &["serve"])?, Worker::new(&site, true, &["serve"])?);
    let direct = addresses(&direct.line()?)?;
    let endpoints = addresses(&balanced.line()?)?;
    let vips = [1, 2, 3].map(|number| SocketAddr::from(([11, 0, 0, number], 80)));
    let mut keys = Vec::new();
    for (number, (vip, endpoint)) in vips.iter().zip(&endpoints).enumerate() {
        let key = cluster.put_service(&format!("s{number}"), *vip)?;
        cluster.put_endpoint(&key, *endpoint);
        keys.push(key);
    }
    cluster.apply()?;
    println!("{TURNS} turns each of {TURN_MILLIS} ms, medians");
    let short = compare(&site, "connect", direct[0], vips[0])?;
    println!(
        "new connections:  direct {:.0}/s, {:.1} us of the client's processor; balanced {:.0}/s, {:.1} us",
        short.direct.rate, short.direct.micros, short.balanced.rate, short.balanced.micros
    );
    let bulk = compare(&site, "bulk", direct[1], vips[1])?;
    println!(
        "bulk:  direct {:.2} GB/s, balanced {:.2} GB/s",
        bulk.direct.rate / 1e9,
        bulk.balanced.rate / 1e9
    );

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

/// What one side does per second, and what one thing costs.
struct Side {
    rate: f64,
    micros: f64,
}

struct Comparison {
    direct: Side,
    balanced: Side,
    /// Of what is done per second, turn by turn.
    ratio: f64,
}

fn compare(site: &Site, what: &str, direct: SocketAddr, vip: SocketAddr) -> Measured<Comparison> {
    let mut direct = Worker::new(site, false, &["connect", &direct.to_string()])?;
    let mut balanced = Worker::new(site, true, &["connect", &vip.to_string()])?;
    let mut turns = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    // The first turn is for warming up.
    for turn in 0..=TURNS {
        // Whoever comes second has no advantage of it.
        let (one, other) =
            if turn % 2 == 0 { (&mut direct, &mut balanced) } else { (&mut balanced, &mut direct) };
        let (first, second) = (one.turn(what)?, other.turn(what)?);
        let (plain, hooked) = if turn % 2 == 0 { (first, second) } else { (second, first) };
        if turn > 0 {
            ratios.push(hooked.0 / plain.0);
            turns[0].push(plain);
            turns[1].push(hooked);
        }
    }
    let [direct, balanced] = turns.map(|turns| Side {
        rate: median(&mut turns.iter().map(|turn| turn.0).collect::<Vec<f64>>()),
        micros: median(&mut turns.iter().map(|turn| turn.1).collect::<Vec<f64>>()),
    });
    Ok(Comparison { direct, balanced, ratio: median(&mut ratios) })
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

    /// How much per second, and microseconds of processor time for each.
    fn turn(&mut self, what: &str) -> Measured<(f64, f64)> {
        writeln!(self.input, "{what} {TURN_MILLIS}")?;
        let line = self.line()?;
        let numbers = line.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let [count, nanos, processor] = numbers[..] else { return Err("not three numbers".into()) };
        Ok((count / nanos * 1e9, processor / count / 1e3))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn addresses(line: &str) -> Measured<Vec<SocketAddr>> {
    Ok(line.split(' ').map(str::parse).collect::<Result<_, _>>()?)
}
