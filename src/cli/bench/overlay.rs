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

/// In how many of these rounds a stream with [`CUBIC`] is measured, too.
const CUBIC_ROUNDS: usize = 5;

/// How often it is each tunnel's turn to be pinged in a round. Many short turns see the same machine.
const PING_TURNS: usize = 4;

/// The congestion control that most systems use. It sends when acknowledgements come, while BBR, which others use, sends
/// by a timer, and pays for that on some machines.
const CUBIC: &str = "cubic";

/// How much times of a ping differ between runs of the same program.
const PING_TOLERANCE: f64 = 1.05;

/// One measurement of a TCP stream.
#[derive(Debug, Clone, Copy)]
struct Stream {
    gigabits: f64,
    cpu_per_gigabyte: f64,
}

/// A tunnel that is open, and what was measured of it. It is closed before its ends are gone.
struct Open {
    contender: Contender,
    tunnel: Running,
    ends: TwoEnds,
    /// With the system's congestion control, one a round.
    streams: Vec<Stream>,
    /// With [`CUBIC`].
    cubic_streams: Vec<Stream>,
    /// Times of pings of this round.
    pings: Vec<f64>,
    /// The median of each round.
    ping_ms: Vec<f64>,
}

/// Measures mesonet's tunnel and those of the named ones that are installed, or all of these.
pub fn measure(names: &[String], bars: bool) -> anyhow::Result<()> {
    let ends = TwoEnds::new().context("namespaces need root, and the programs ip and iperf3")?;
    let control = ends.congestion_control()?;
    let has_cubic = ends.has_congestion_control(CUBIC)?;
    match ends.gigabits_outside() {
        Ok(gigabits) => {
            println!("{:14} {gigabits:>9.2} Gb/s, one TCP stream ({control}) without a tunnel", "veth")
        }
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
    for round in 0..ROUNDS {
        in_turns(&mut open, Open::measure_stream);
        if has_cubic && round < CUBIC_ROUNDS {
            in_turns(&mut open, |tunnel| tunnel.measure_cubic_stream(&control));
        }
        for _ in 0..PING_TURNS {
            in_turns(&mut open, Open::measure_pings);
        }
        open.iter_mut().for_each(Open::end_round);
    }
    open.sort_by_key(|tunnel| Contender::ALL.iter().position(|contender| *contender == tunnel.contender));
    let [stream, cubic_stream] = [&control, CUBIC].map(|control| format!("TCP {control}"));
    println!(
        "{:14} {stream:>9} {:>14} {cubic_stream:>11} {:>12} {:>10} {:>9}",
        "", "CPU both ends", "8 TCP", "UDP", "ping"
    );
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

/// Measures each once, and leaves out those with which that fails. The next time it begins at the other end.
fn in_turns(open: &mut Vec<Open>, measure: impl Fn(&mut Open) -> anyhow::Result<()>) {
    open.retain_mut(|tunnel| match measure(tunnel) {
        Ok(()) => true,
        Err(error) => {
            leave_out(tunnel.contender, &error);
            false
        }
    });
    open.reverse();
}

fn leave_out(contender: Contender, error: &anyhow::Error) {
    println!("{:14} is left out from here on: {error:#}", contender.name());
}

impl Open {
    fn new(contender: Contender, program: &Path) -> anyhow::Result<Self> {
        let ends = TwoEnds::new()?;
        let tunnel = contender.start(&ends, program)?;
        ends.wait_for_peer()?;
        Ok(Self {
            contender,
            tunnel,
            ends,
            streams: Vec::new(),
            cubic_streams: Vec::new(),
            pings: Vec::new(),
            ping_ms: Vec::new(),
        })
    }

    fn measure_stream(&mut self) -> anyhow::Result<()> {
        let stream = self.stream()?;
        self.streams.push(stream);
        Ok(())
    }

    /// With [`CUBIC`], and then the usual one again.
    fn measure_cubic_stream(&mut self, usual: &str) -> anyhow::Result<()> {
        self.ends.set_congestion_control(CUBIC)?;
        let stream = self.stream()?;
        self.cubic_streams.push(stream);
        self.ends.set_congestion_control(usual)
    }

    fn stream(&self) -> anyhow::Result<Stream> {
        let before = processor_time(&self.tunnel.processes())?;
        let octets = self.ends.stream_octets(1).context("measuring one TCP stream")?;
        let used = processor_time(&self.tunnel.processes())? - before;
        Ok(Stream { gigabits: two_ends::gigabits(octets), cpu_per_gigabyte: used / (octets / 1e9) })
    }

    fn measure_pings(&mut self) -> anyhow::Result<()> {
        self.pings.extend(self.ends.ping_times().context("measuring pings")?);
        Ok(())
    }

    /// Of pings the median counts, because a few wait for whatever else the machine does.
    fn end_round(&mut self) {
        self.ping_ms.push(Spread::of(self.pings.drain(..)).median);
    }

    fn print(&self) -> anyhow::Result<()> {
        let streams = self.ends.stream_octets(8).context("measuring eight TCP streams")?;
        let datagrams = self.ends.datagram_gigabits().context("measuring datagrams")?;
        let median = |streams: &[Stream], of: fn(&Stream) -> f64| Spread::of(streams.iter().map(of)).median;
        println!(
            "{:14} {:>4.2} Gb/s {:>9.2} s/GB {:>6.2} Gb/s {:>7.2} Gb/s {:>5.2} Gb/s {:>6.3} ms",
            self.contender.name(),
            median(&self.streams, |stream| stream.gigabits),
            median(&self.streams, |stream| stream.cpu_per_gigabyte),
            median(&self.cubic_streams, |stream| stream.gigabits),
            two_ends::gigabits(streams),
            datagrams,
            self.median_ping(),
        );
        Ok(())
    }

    fn median_ping(&self) -> f64 {
        Spread::of(self.ping_ms.iter().copied()).median
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

    /// Of the ratios of what was measured of two tunnels in the same rounds.
    fn of_ratios<T>(own: &[T], other: &[T], of: impl Fn(&T) -> f64) -> Self {
        Self::of(own.iter().zip(other).map(|(own, other)| of(own) / of(other)))
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
    let judge_cpu = |name: &str, streams: &[Stream]| {
        let cpu = Spread::of(streams.iter().map(|stream| stream.cpu_per_gigabyte));
        cpu.judge(name, "<= 2.3", cpu.median <= 2.3);
    };
    judge_cpu("overlay_cpu_seconds_per_gb", &own.streams);
    if !own.cubic_streams.is_empty() {
        judge_cpu("overlay_cpu_seconds_per_gb_cubic", &own.cubic_streams);
    }
    if let Some(gotatun) = of(Contender::Gotatun) {
        let judge = |name: &str, own: &[Stream], gotatun: &[Stream]| {
            let ratio = Spread::of_ratios(own, gotatun, |stream| stream.gigabits);
            ratio.judge(name, ">= 5", ratio.median >= 5.0);
        };
        judge("overlay_stream_over_gotatun", &own.streams, &gotatun.streams);
        if !own.cubic_streams.is_empty() {
            judge("overlay_stream_over_gotatun_cubic", &own.cubic_streams, &gotatun.cubic_streams);
        }
    }
    let others = open.iter().filter(|tunnel| tunnel.contender != Contender::Mesonet);
    if let Some(best) = others.min_by(|one, other| one.median_ping().total_cmp(&other.median_ping())) {
        let ratio = Spread::of_ratios(&own.ping_ms, &best.ping_ms, |ping| *ping);
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
