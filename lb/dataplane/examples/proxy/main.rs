//! `./x bench proxy [ROUNDS]`: CPU time of TCP balancers: the userspace proxy beside HAProxy and nginx stream.
//!
//! Each balancer has one thread and one core; the servers behind it and the client share another one, all on loopback.
//! What a balancer uses is its CPU time divided by what it carried: that depends less on what else the machine does
//! than requests per second do. All are measured in turns, in many short rounds. A round compares what was measured
//! within seconds, so the ratio to a peer is the median of the rounds' ratios, and the better peer is the one that is
//! harder to beat. One round says little: half of them are further off than the spread that is printed beside the median.
//! How the kernel has placed what a process uses is luck that lasts as long as the process, so all are started anew for
//! each sitting.
//!
//! What the kernel takes of a balancer's time is shown by two that do next to nothing else. There is no bar for them.

#![forbid(unsafe_code)]

mod balancers;
mod floor;
mod load;

use std::fmt;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use balancers::{BALANCER_CPU, Balancer, Servers};
use load::{Cost, LOAD_CPU, Load};

/// Nothing is expected here that a caller could do something about.
type Measured<T> = Result<T, Box<dyn std::error::Error>>;

/// How often everything is started.
const SITTINGS: usize = 3;

/// How often each balancer is measured with each load in a sitting, unless told.
const ROUNDS: usize = 11;

/// How long each time: the shortest that wrk and iperf3 take. More rounds tell more than longer ones.
const TIME: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match words[..] {
        [] => run(ROUNDS),
        ["balance", ref services @ ..] => balancers::balance(services),
        ["floor", ports] => floor::pass_on(ports, false),
        ["pausing-floor", ports] => floor::pass_on(ports, true),
        [rounds] => rounds.parse::<NonZeroUsize>().map_err(Into::into).and_then(|rounds| run(rounds.get())),
        _ => Err("takes at most a number of rounds".into()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("could not measure: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints.
fn run(rounds: usize) -> Measured<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err("needs two cores, one for client and servers".into());
    }
    println!(
        "balancers with one thread on CPU {BALANCER_CPU}, client and servers on CPU {LOAD_CPU}; medians of {SITTINGS} \
         sittings of {rounds} rounds of {TIME:?}"
    );
    let mut names = Vec::new();
    let mut measured: [Vec<Vec<Cost>>; Load::ALL.len()] = Default::default();
    for _ in 0..SITTINGS {
        let dir = tempfile::tempdir()?;
        let servers = Servers::start(dir.path())?;
        let balancers = [
            Balancer::haproxy(&servers)?,
            Balancer::nginx(&servers)?,
            Balancer::mesonet(&servers)?,
            Balancer::floor(&servers, false)?,
            Balancer::floor(&servers, true)?,
        ];
        for balancer in &balancers {
            balancer.wait_until_it_serves()?;
        }
        for (load, measured) in Load::ALL.into_iter().zip(&mut measured) {
            measured.extend(measure_in_turns(&balancers[..taking_part(load)], load, rounds)?);
        }
        names = balancers.iter().map(Balancer::name).collect();
    }
    for (load, measured) in Load::ALL.into_iter().zip(&measured) {
        report(load, &names, measured);
    }
    let errors: u64 = measured.iter().flatten().map(|round| round[MESONET].errors).sum();
    bar("proxy_errors", errors as f64, 0.0);
    Ok(())
}

/// Prints what the rounds have shown with one load.
fn report(load: Load, names: &[&str], rounds: &[Vec<Cost>]) {
    println!("\n{}", load.describe());
    let names = &names[..taking_part(load)];
    for (at, name) in names.iter().enumerate() {
        let median = |of: fn(&Cost) -> f64| Spread::of(rounds.iter().map(|round| of(&round[at]))).median;
        println!("{name:22} {}", load.show(median(|cost| cost.cpu_each), median(|cost| cost.rate)));
    }
    let ratio =
        |of: usize, to: usize| Spread::of(rounds.iter().map(|round| round[of].cpu_each / round[to].cpu_each));
    let [haproxy, nginx] = [HAPROXY, NGINX].map(|peer| ratio(MESONET, peer));
    println!("of HAProxy {haproxy}, of nginx {nginx}");
    for (floor, name) in names.iter().enumerate().skip(MESONET + 1) {
        let [haproxy, nginx, mesonet] = [HAPROXY, NGINX, MESONET].map(|balancer| ratio(floor, balancer));
        println!("{name}: of HAProxy {haproxy}, of nginx {nginx}, of mesonet {mesonet}");
    }
    bar(load.bar_name(), haproxy.median.max(nginx.median), load.bar());
}

/// The places of the balancers. Behind them are those that show what the kernel takes of it.
const HAPROXY: usize = 0;
const NGINX: usize = 1;
const MESONET: usize = 2;

/// How many of the balancers are measured with a load.
fn taking_part(load: Load) -> usize {
    match load {
        Load::KeepAlive => 5,
        // With pauses there is one client in each round.
        Load::Connections => 4,
        Load::Bulk => 3,
    }
}

/// What each round has shown of each balancer. Who begins changes.
fn measure_in_turns(balancers: &[Balancer], load: Load, count: usize) -> Measured<Vec<Vec<Cost>>> {
    let mut rounds = Vec::new();
    for round in 0..count {
        let mut measured = vec![Cost::default(); balancers.len()];
        for turn in 0..balancers.len() {
            let at = (round + turn) % balancers.len();
            measured[at] = load::measure(&balancers[at], load, TIME)?;
        }
        rounds.push(measured);
    }
    Ok(rounds)
}

/// How values lie.
struct Spread {
    median: f64,
    /// Half of the values lie between these.
    quartiles: [f64; 2],
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Self { median: values[values.len() / 2], quartiles: [values[last / 4], values[last - last / 4]] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, to] = self.quartiles;
        write!(f, "{:.3} (half of the rounds {from:.2} to {to:.2})", self.median)
    }
}

/// Prints one bar and whether it is reached.
fn bar(name: &str, value: f64, limit: f64) {
    println!("BAR {name} {value:.3} <= {limit} {}", if value <= limit { "ok" } else { "MISS" });
}
