//! The tunnel between two network namespaces, beside other implementations of WireGuard.
//!
//! Both ends share this machine's cores. Each tunnel is measured in the same way and in the same run: compare rows of
//! one run only. A bar is a line `BAR <name> <value> <limit> ok|MISS`.

use anyhow::Context as _;

use super::tunnels::Contender;
use super::two_ends::{self, TwoEnds, processor_time};

/// How often one TCP stream is measured; the median counts.
const RUNS: usize = 3;

/// What was measured of one tunnel.
#[derive(Debug, Clone, Copy)]
struct Row {
    stream: f64,
    cpu_per_gigabyte: f64,
    streams: f64,
    datagrams: f64,
    ping_ms: f64,
}

/// Measures mesonet's tunnel and those of the named ones that are installed, or all of these.
pub fn measure(names: &[String], bars: bool) -> anyhow::Result<()> {
    let ends = TwoEnds::new().context("namespaces need root, and the programs ip and iperf3")?;
    println!("{:14} {:>9.2} Gb/s, one TCP stream without a tunnel", "veth", ends.gigabits_outside()?);
    drop(ends);
    println!("{:14} {:>9} {:>14} {:>12} {:>10} {:>9}", "", "1 TCP", "CPU both ends", "8 TCP", "UDP", "ping");
    let mut rows = Vec::new();
    for contender in Contender::ALL {
        if !names.is_empty() && !names.iter().any(|name| name == contender.name()) {
            continue;
        }
        let Some(program) = contender.program() else {
            println!("{:14} is not installed and left out", contender.name());
            continue;
        };
        match measure_one(contender, &program) {
            Ok(row) => {
                print(contender, row);
                rows.push((contender, row));
            }
            Err(error) => println!("{:14} could not be measured: {error:#}", contender.name()),
        }
    }
    if bars {
        judge(&rows);
    }
    Ok(())
}

fn measure_one(contender: Contender, program: &std::path::Path) -> anyhow::Result<Row> {
    let ends = TwoEnds::new()?;
    let tunnel = contender.start(&ends, program)?;
    ends.wait_for_peer()?;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let before = processor_time(&tunnel.processes())?;
        let octets = ends.stream_octets(1)?;
        let used = processor_time(&tunnel.processes())? - before;
        runs.push((octets, used));
    }
    runs.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (octets, used) = runs[RUNS / 2];
    Ok(Row {
        stream: two_ends::gigabits(octets),
        cpu_per_gigabyte: used / (octets / 1e9),
        streams: two_ends::gigabits(ends.stream_octets(8)?),
        datagrams: ends.datagram_gigabits()?,
        ping_ms: ends.ping_ms()?,
    })
}

fn print(contender: Contender, row: Row) {
    println!(
        "{:14} {:>4.2} Gb/s {:>9.2} s/GB {:>7.2} Gb/s {:>5.2} Gb/s {:>6.3} ms",
        contender.name(),
        row.stream,
        row.cpu_per_gigabyte,
        row.streams,
        row.datagrams,
        row.ping_ms
    );
}

fn judge(rows: &[(Contender, Row)]) {
    let of = |wanted: Contender| rows.iter().find(|(contender, _)| *contender == wanted).map(|(_, row)| *row);
    let Some(own) = of(Contender::Mesonet) else {
        return;
    };
    let bar = |name: &str, value: f64, is_reached: bool, limit: String| {
        println!("BAR {name} {value:.3} {limit} {}", if is_reached { "ok" } else { "MISS" });
    };
    bar("overlay_cpu_seconds_per_gb", own.cpu_per_gigabyte, own.cpu_per_gigabyte <= 2.3, "<= 2.3".to_owned());
    if let Some(gotatun) = of(Contender::Gotatun) {
        let ratio = own.stream / gotatun.stream;
        bar("overlay_stream_over_gotatun", ratio, ratio >= 5.0, ">= 5".to_owned());
    }
    let others = rows.iter().filter(|(contender, _)| *contender != Contender::Mesonet);
    if let Some(best) = others.map(|(_, row)| row.ping_ms).min_by(f64::total_cmp) {
        // Times of a ping differ by this between runs of the same program.
        let limit = best * 1.05;
        bar("overlay_ping_ms", own.ping_ms, own.ping_ms <= limit, format!("<= {limit:.3}"));
    }
}
