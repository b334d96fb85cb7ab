//! CPU time of TCP balancers: the userspace proxy beside HAProxy and nginx stream.
//!
//! Each balancer has one thread and one core; the servers behind it and the client share another one, all on loopback.
//! What a balancer uses is its CPU time divided by what it carried: that depends less on what else the machine does
//! than requests per second do. All are measured in turns, several times. A turn compares what was measured within
//! seconds, so the ratio to a peer is the median of the turns' ratios, and the better peer is the one that is harder to
//! beat.

mod balancers;
mod load;

use std::time::Duration;

use anyhow::ensure;

use crate::report::{Bar, bar};
use balancers::{BALANCER_CPU, Balancer, Servers};
use load::{LOAD_CPU, Load, Measured};

/// How often each balancer is measured with each load.
const ROUNDS: usize = 7;

/// Longer measurements take time and tell no more.
pub const SECONDS_MAX: u64 = 3;

/// Measures and prints.
pub fn run(seconds: u64) -> anyhow::Result<()> {
    ensure!(std::thread::available_parallelism()?.get() > 1, "needs two cores, one for client and servers");
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
            let median =
                |of: fn(&Measured) -> f64| median(rounds.iter().map(|round| of(&round[at])).collect());
            let (cpu, rate) = (median(|measured| measured.cpu_each), median(|measured| measured.rate));
            println!("{:22} {}", balancer.to_string(), load.show(cpu, rate));
        }
        let [haproxy, nginx] = [0, 1].map(|peer| {
            median(rounds.iter().map(|round| round[MESONET].cpu_each / round[peer].cpu_each).collect())
        });
        println!("of HAProxy {haproxy:.2}, of nginx {nginx:.2}");
        bar(load.bar_name(), haproxy.max(nginx), Bar::AtMost, load.bar());
        errors += rounds.iter().map(|round| round[MESONET].errors).sum::<u64>();
    }
    bar("proxy_errors", errors as f64, Bar::AtMost, 0.0);
    Ok(())
}

/// The place of the proxy among the balancers.
const MESONET: usize = 2;

/// What each round has shown of each balancer. Who begins changes.
fn measure_in_turns(
    balancers: &[Balancer; 3],
    load: Load,
    time: Duration,
) -> anyhow::Result<Vec<[Measured; 3]>> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = [Measured::default(); 3];
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
