//! The tunnel between two network namespaces, beside other implementations of WireGuard.
//!
//! Both ends share this machine's cores, and how fast it is changes within a minute. So all tunnels are open at once, and
//! each round measures one after the other, in turns forward and backward: what is compared is a ratio of one round, and
//! what counts is the median of the rounds. A bar is a line `BAR <name> <value> <limit> ok|MISS (<least> to <most>)`.
//!
//! Every step has a limit of time. A tunnel with which one fails is left out from there on, which is said.

use std::path::Path;

use anyhow::Context as _;

use super::tunnels::{Contender, Running};
use super::two_ends::{self, TwoEnds, processor_time};

/// How often one TCP stream and pings are measured.
const ROUNDS: usize = 7;

/// How much times of a ping differ between runs of the same program.
const PING_TOLERANCE: f64 = 1.05;

/// What is measured in a round.
#[derive(Debug, Clone, Copy)]
struct Round {
    stream: f64,
    cpu_per_gigabyte: f64,
    ping_ms: f64,
}

/// A tunnel that is open, and what was measured of it. It is closed before its ends are gone.
struct Open {
    contender: Contender,
    tunnel: Running,
    ends: TwoEnds,
    rounds: Vec<Round>,
}

/// Measures mesonet's tunnel and those of the named ones that are installed, or all of these.
pub fn measure(names: &[String], bars: bool) -> anyhow::Result<()> {
    let ends = TwoEnds::new().context("namespaces need root, and the programs ip and iperf3")?;
    match ends.gigabits_outside() {
        Ok(gigabits) => println!("{:14} {gigabits:>9.2} Gb/s, one TCP stream without a tunnel", "veth"),
        Err(error) => println!("{:14} could not be measured: {error:#}", "veth"),
    }
    drop(ends);
    let mut open = Vec::new();
    for contender in Contender::ALL {
        if !names.is_empty() && !names.iter().any(|name| name == contender.name()) {
            continue;
        }
        let Some(program) = contender.program() else {
            println!("{:14} is not installed and left out", contender.name());
            continue;
        };
        match Open::new(contender, &program).context("opening it") {
            Ok(tunnel) => open.push(tunnel),
            Err(error) => leave_out(contender, &error),
        }
    }
    for _ in 0..ROUNDS {
        open.retain_mut(|tunnel| tunnel.measure_round());
        open.reverse();
    }
    open.sort_by_key(|tunnel| Contender::ALL.iter().position(|contender| *contender == tunnel.contender));
    println!("{:14} {:>9} {:>14} {:>12} {:>10} {:>9}", "", "1 TCP", "CPU both ends", "8 TCP", "UDP", "ping");
    open.retain(|tunnel| match tunnel.print() {
        Ok(()) => true,
        Err(error) => {
            leave_out(tunnel.contender, &error);
            false
        }
    });
    if bars {
        judge(&open);
    }
    Ok(())
}

fn leave_out(contender: Contender, error: &anyhow::Error) {
    println!("{:14} is left out from here on: {error:#}", contender.name());
}

impl Open {
    fn new(contender: Contender, program: &Path) -> anyhow::Result<Self> {
        let ends = TwoEnds::new()?;
        let tunnel = contender.start(&ends, program)?;
        ends.wait_for_peer()?;
        Ok(Self { contender, tunnel, ends, rounds: Vec::new() })
    }

    /// Measures it once more. Whether that worked.
    fn measure_round(&mut self) -> bool {
        match self.round() {
            Ok(round) => {
                self.rounds.push(round);
                true
            }
            Err(error) => {
                leave_out(self.contender, &error);
                false
            }
        }
    }

    fn round(&self) -> anyhow::Result<Round> {
        let before = processor_time(&self.tunnel.processes())?;
        let octets = self.ends.stream_octets(1).context("measuring one TCP stream")?;
        let used = processor_time(&self.tunnel.processes())? - before;
        Ok(Round {
            stream: two_ends::gigabits(octets),
            cpu_per_gigabyte: used / (octets / 1e9),
            ping_ms: self.ends.ping_ms().context("measuring pings")?,
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        let streams = self.ends.stream_octets(8).context("measuring eight TCP streams")?;
        let datagrams = self.ends.datagram_gigabits().context("measuring datagrams")?;
        println!(
            "{:14} {:>4.2} Gb/s {:>9.2} s/GB {:>7.2} Gb/s {:>5.2} Gb/s {:>6.3} ms",
            self.contender.name(),
            self.median(|round| round.stream),
            self.median(|round| round.cpu_per_gigabyte),
            two_ends::gigabits(streams),
            datagrams,
            self.median(|round| round.ping_ms),
        );
        Ok(())
    }

    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        Spread::of(self.rounds.iter().map(of)).median
    }
}

/// Values of all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }

    /// Of the ratios of two tunnels in the same rounds.
    fn of_ratios(own: &Open, other: &Open, of: impl Fn(&Round) -> f64) -> Self {
        Self::of(own.rounds.iter().zip(&other.rounds).map(|(own, other)| of(own) / of(other)))
    }

    fn judge(self, name: &str, limit: &str, is_reached: bool) {
        let Self { least, median, most } = self;
        let verdict = if is_reached { "ok" } else { "MISS" };
        println!("BAR {name} {median:.3} {limit} {verdict} ({least:.3} to {most:.3})");
    }
}

fn judge(open: &[Open]) {
    let of = |wanted: Contender| open.iter().find(|tunnel| tunnel.contender == wanted);
    let Some(own) = of(Contender::Mesonet) else {
        return;
    };
    let cpu = Spread::of(own.rounds.iter().map(|round| round.cpu_per_gigabyte));
    cpu.judge("overlay_cpu_seconds_per_gb", "<= 2.3", cpu.median <= 2.3);
    if let Some(gotatun) = of(Contender::Gotatun) {
        let ratio = Spread::of_ratios(own, gotatun, |round| round.stream);
        ratio.judge("overlay_stream_over_gotatun", ">= 5", ratio.median >= 5.0);
    }
    let others = open.iter().filter(|tunnel| tunnel.contender != Contender::Mesonet);
    let ping = |tunnel: &&Open| tunnel.median(|round| round.ping_ms);
    if let Some(best) = others.min_by(|one, other| ping(one).total_cmp(&ping(other))) {
        let ratio = Spread::of_ratios(own, best, |round| round.ping_ms);
        let limit = format!("<= {PING_TOLERANCE} of {}", best.contender.name());
        ratio.judge("overlay_ping_over_best", &limit, ratio.median <= PING_TOLERANCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_all_rounds_counts() {
        let spread = Spread::of([5.0, 1.0, 9.0, 4.0, 6.0].into_iter());
        assert_eq!(spread, Spread { least: 1.0, median: 5.0, most: 9.0 });
        assert!(Spread::of([].into_iter()).median.is_nan());
    }
}
