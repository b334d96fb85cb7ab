//! `./x bench proxy [SECONDS]`: CPU time of TCP balancers: the userspace proxy beside HAProxy and nginx stream.
//!
//! Each balancer has one thread and one core; the servers behind it and the client share another one, all on loopback.
//! What a balancer uses is its CPU time divided by what it carried: that depends less on what else the machine does
//! than requests per second do. All are measured in turns, several times. A turn compares what was measured within
//! seconds, so the ratio to a peer is the median of the turns' ratios, and the better peer is the one that is harder to
//! beat.

#![forbid(unsafe_code)]

mod balancers;
mod load;
mod process;

use std::process::ExitCode;
use std::time::Duration;

use balancers::{BALANCER_CPU, Balancer, Servers};
use load::{Cost, LOAD_CPU, Load};

/// Nothing is expected here that a caller could do something about.
type Measured<T> = Result<T, Box<dyn std::error::Error>>;

/// How often each balancer is measured with each load.
const ROUNDS: usize = 11;

/// How long each time, unless told: longer measurements tell no more.
const SECONDS: u64 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match words[..] {
        [] => run(SECONDS),
        ["balance", ref services @ ..] => balancers::balance(services),
        [seconds] => seconds.parse().map_err(Into::into).and_then(run),
        _ => Err("takes at most a number of seconds".into()),
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
fn run(seconds: u64) -> Measured<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err("needs two cores, one for client and servers".into());
    }
    let dir = tempfile::tempdir()?;
    let servers = Servers::start(dir.path())?;
    let balancers = [Balancer::haproxy(&servers)?, Balancer::nginx(&servers)?, Balancer::mesonet(&servers)?];
    for balancer in &balancers {
        balancer.wait_until_it_serves()?;
    }
    println!(
        "balancers with one thread on CPU {BALANCER_CPU}, client and servers on CPU {LOAD_CPU}; medians of {ROUNDS} \
         rounds of {seconds} s"
    );
    let mut errors = 0;
    for load in Load::ALL {
        let rounds = measure_in_turns(&balancers, load, Duration::from_secs(seconds))?;
        println!("\n{}", load.describe());
        for (at, balancer) in balancers.iter().enumerate() {
            let median = |of: fn(&Cost) -> f64| median(rounds.iter().map(|round| of(&round[at])).collect());
            let (cpu, rate) = (median(|cost| cost.cpu_each), median(|cost| cost.rate));
            println!("{:22} {}", balancer.name(), load.show(cpu, rate));
        }
        let [haproxy, nginx] = [0, 1].map(|peer| {
            median(rounds.iter().map(|round| round[MESONET].cpu_each / round[peer].cpu_each).collect())
        });
        println!("of HAProxy {haproxy:.2}, of nginx {nginx:.2}");
        bar(load.bar_name(), haproxy.max(nginx), load.bar());
        errors += rounds.iter().map(|round| round[MESONET].errors).sum::<u64>();
    }
    bar("proxy_errors", errors as f64, 0.0);
    Ok(())
}

/// The place of the proxy among the balancers.
const MESONET: usize = 2;

/// What each round has shown of each balancer. Who begins changes.
fn measure_in_turns(balancers: &[Balancer; 3], load: Load, time: Duration) -> Measured<Vec<[Cost; 3]>> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = [Cost::default(); 3];
        for turn in 0..balancers.len() {
            let at = (round + turn) % balancers.len();
            measured[at] = load::measure(&balancers[at], load, time)?;
        }
        rounds.push(measured);
    }
    Ok(rounds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints one bar and whether it is reached.
fn bar(name: &str, value: f64, limit: f64) {
    println!("BAR {name} {value:.3} <= {limit} {}", if value <= limit { "ok" } else { "MISS" });
}
