//! Two network namespaces with a wire between them, and what is measured across it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::steps::{SHORT, end, run, run_within};

/// Seconds of one measurement.
const SECONDS: u32 = 3;

/// How long one measurement may take in all: iperf3 also waits for what is still underway.
const MEASUREMENT_LIMIT: Duration = Duration::from_secs(SECONDS as u64 + 12);

/// Octets of the payload of datagrams that fill the tunnel's packets.
const DATAGRAM: u32 = 1392;

/// Pings of one turn, and the time between them.
const PINGS: (u32, &str) = (50, "0.005");

/// Where the kernel has the congestion control of a namespace.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// How long a peer may take to answer.
const PEER_TIME: Duration = Duration::from_secs(20);

/// Addresses on the wire.
pub const OUTSIDE: [&str; 2] = ["192.168.77.1", "192.168.77.2"];

/// Addresses in the tunnel.
pub const INSIDE: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// The namespaces. They are gone when it is dropped.
pub struct TwoEnds {
    /// Their names.
    pub names: [String; 2],
    server: Option<Child>,
}

impl TwoEnds {
    /// Makes both, and a server of iperf3 in the second one.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("mnb{}-{number}{end}", std::process::id()));
        let mut ends = Self { names: names.clone(), server: None };
        for name in &names {
            run("ip", &["netns", "add", name])?;
        }
        let wires = ["mnb0", "mnb1"];
        run("ip", &["-n", &names[0], "link", "add", wires[0], "type", "veth", "peer", "name", wires[1]])?;
        run("ip", &["-n", &names[0], "link", "set", wires[1], "netns", &names[1]])?;
        for ((name, wire), address) in names.iter().zip(wires).zip(OUTSIDE) {
            run("ip", &["-n", name, "addr", "add", &format!("{address}/24"), "dev", wire])?;
            run("ip", &["-n", name, "link", "set", wire, "up"])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        ends.server = Some(ends.spawn(1, Path::new("iperf3"), &["-s"])?);
        Ok(ends)
    }

    /// Starts a program in one of them.
    pub fn spawn(&self, end: usize, program: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
        Command::new("ip")
            .args(["netns", "exec", &self.names[end]])
            .arg(program)
            .args(arguments)
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))
    }

    /// Gives a tunnel's device its address.
    pub fn set_up(&self, end: usize, device: &str) -> anyhow::Result<()> {
        let name = &self.names[end];
        let deadline = Instant::now() + PEER_TIME;
        while run("ip", &["-n", name, "link", "show", "dev", device]).is_err() {
            ensure!(Instant::now() < deadline, "the device {device} does not appear");
            std::thread::sleep(Duration::from_millis(20));
        }
        run("ip", &["-n", name, "addr", "add", &format!("{}/24", INSIDE[end]), "dev", device])?;
        run("ip", &["-n", name, "link", "set", device, "mtu", "1420", "up"]).map(drop)
    }

    /// Waits until the tunnel carries something.
    pub fn wait_for_peer(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PEER_TIME;
        while self.run(&["ping", "-c", "1", "-W", "1", INSIDE[1]]).is_err() {
            ensure!(Instant::now() < deadline, "the other end does not answer");
        }
        Ok(())
    }

    /// Throughput of one TCP stream on the wire.
    pub fn gigabits_outside(&self) -> anyhow::Result<f64> {
        let deadline = Instant::now() + PEER_TIME;
        loop {
            match self.iperf(OUTSIDE[1], &[]).and_then(|result| received(&result)) {
                Ok(octets) => return Ok(gigabits(octets)),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The congestion control that senders use unless they say otherwise.
    pub fn congestion_control(&self) -> anyhow::Result<String> {
        let name = self.run(&["cat", CONGESTION_CONTROL])?;
        Ok(name.trim().to_owned())
    }

    /// Whether the kernel has one of that name.
    pub fn has_congestion_control(&self, name: &str) -> anyhow::Result<bool> {
        let names = self.run(&["cat", "/proc/sys/net/ipv4/tcp_available_congestion_control"])?;
        Ok(names.split_whitespace().any(|available| available == name))
    }

    /// Has TCP use another one from now on. What iperf3 has an option for is not the same: it says so to a socket that is
    /// connected, and one that has begun to send by a timer, as with BBR, goes on with it.
    pub fn set_congestion_control(&self, name: &str) -> anyhow::Result<()> {
        let command = format!("echo {name} > {CONGESTION_CONTROL}");
        self.run(&["sh", "-c", &command]).context("setting the congestion control").map(drop)
    }

    /// Octets that arrive by so many TCP streams.
    pub fn stream_octets(&self, streams: u32) -> anyhow::Result<f64> {
        received(&self.iperf(INSIDE[1], &["-P", &streams.to_string()])?)
    }

    /// Throughput of datagrams that arrive, sent as fast as possible.
    pub fn datagram_gigabits(&self) -> anyhow::Result<f64> {
        let length = DATAGRAM.to_string();
        let result = self.iperf(INSIDE[1], &["-u", "-b", "0", "-l", &length])?;
        let sum = &result["end"]["sum"];
        let number = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 tells no {name}"));
        Ok(gigabits((number("packets")? - number("lost_packets")?) * f64::from(DATAGRAM)))
    }

    /// Times of pings, in milliseconds.
    pub fn ping_times(&self) -> anyhow::Result<Vec<f64>> {
        let (count, interval) = PINGS;
        let count = count.to_string();
        let text = self.run(&["ping", "-c", &count, "-i", interval, INSIDE[1]])?;
        let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse().ok();
        let times: Vec<f64> = text.lines().filter_map(time).collect();
        ensure!(!times.is_empty(), "ping tells no times");
        Ok(times)
    }

    fn iperf(&self, address: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let seconds = SECONDS.to_string();
        let command = [&["iperf3", "-c", address, "-t", &seconds, "-J"], arguments].concat();
        let result: Value = serde_json::from_str(&self.run(&command)?)?;
        if let Some(error) = result["error"].as_str() {
            bail!("iperf3: {error}");
        }
        Ok(result)
    }

    fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        let command = [&["netns", "exec", self.names[0].as_str()], command].concat();
        run_within(MEASUREMENT_LIMIT + SHORT, "ip", &command, "")
    }
}

impl Drop for TwoEnds {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            end(server, "iperf3");
        }
        for name in &self.names {
            if let Err(error) = run("ip", &["netns", "del", name]) {
                println!("a namespace is left behind: {error:#}");
            }
        }
    }
}

/// Octets of one measurement as a rate.
pub fn gigabits(octets: f64) -> f64 {
    octets * 8.0 / f64::from(SECONDS) / 1e9
}

fn received(result: &Value) -> anyhow::Result<f64> {
    result["end"]["sum_received"]["bytes"].as_f64().context("iperf3 tells no octets")
}

/// Seconds of processor time that processes have used.
pub fn processor_time(processes: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0.0;
    for process in processes {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let times: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        ensure!(times.len() == 2, "/proc/{process}/stat is unreadable");
        ticks += times.iter().sum::<f64>();
    }
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
