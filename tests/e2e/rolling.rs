//! Every instance of an app is replaced, and the daemon killed, while wrk opens a connection for each request.
//! `./x bench rolling` does it in each data path, with many instances and as fast as wrk can; the test with few.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::harness::app::Identity;
use crate::harness::kernel_place::KernelPlace;
use crate::harness::load::{Connections, Load, Requests};
use crate::harness::{Nodes, app, eventually, program};

/// The hosts with instances. The first one balances; it is the clients' own, unless the data path is for others.
const HOSTS: [&str; 2] = ["n1", "n2"];
const BALANCER: &str = HOSTS[0];

/// A host without agent and daemon.
const STRANGER: &str = "client";

/// How many instances, and how often the daemon is killed.
const INSTANCES: u32 = 6;
const KILLS: u32 = 3;

/// How many of them have to answer for them to be reached.
const SEVERAL: usize = 4;

/// Names another data path than packets, for which the test is.
const DATAPATH_VARIABLE: &str = "MESONET_E2E_DATAPATH";

/// Names other numbers. With the first one it is measured what becomes of all requests that can be made.
const INSTANCES_VARIABLE: &str = "MESONET_E2E_INSTANCES";
const KILLS_VARIABLE: &str = "MESONET_E2E_KILLS";

/// What the master is told: addresses that are nobody's own, and how long connections of draining tasks are waited for.
const RANGE: [&str; 2] = ["--vip-range", "11.0.0.0/8"];
/// However long a busy machine takes to start tasks, those that they replace are there until they listen.
const PATIENT: [&str; 2] = ["--drain-grace", "120s"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Proxy,
    Ebpf,
    Packets,
}

/// A cluster with an app, and its clients.
struct Site {
    path: Path,
    is_measured: bool,
    vip: String,
    nodes: Nodes,
    // Removed after the processes have ended.
    place: KernelPlace,
}

impl Path {
    fn of_environment() -> Self {
        match std::env::var(DATAPATH_VARIABLE).as_deref() {
            Ok("proxy") => Self::Proxy,
            Ok("ebpf") => Self::Ebpf,
            Ok("packets") | Err(_) => Self::Packets,
            Ok(other) => panic!("{DATAPATH_VARIABLE} is proxy, ebpf or packets, not {other}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Ebpf => "ebpf",
            Self::Packets => "packets",
        }
    }

    /// The host of the clients.
    fn clients(self) -> &'static str {
        if self == Self::Packets { STRANGER } else { BALANCER }
    }
}

impl Site {
    #[track_caller]
    fn start(path: Path) -> Self {
        let asked = number_of(INSTANCES_VARIABLE);
        let is_measured = asked.is_some();
        let place = KernelPlace::new("rolling");
        let range = if path == Path::Proxy { &[][..] } else { &RANGE };
        let patience = if is_measured { &[][..] } else { &PATIENT };
        let hosts = [&HOSTS[..], &[STRANGER]].concat();
        let nodes = Nodes::start_patient_with(&hosts, &[range, patience].concat());
        let instances = asked.unwrap_or(INSTANCES);
        assert!(instances as usize >= SEVERAL, "{INSTANCES_VARIABLE} is at least {SEVERAL}");
        let mut site = Self { path, is_measured, vip: String::new(), nodes, place };
        site.nodes.start_agents(&HOSTS);
        site.route();
        site.start_net();
        let mut app = app::brief("/web", instances);
        app["cpus"] = json!(0.01);
        app["upgradeStrategy"] = json!({ "minimumHealthCapacity": 0.9, "maximumOverCapacity": 0.1 });
        site.nodes.deploy(&app);
        site.vip = site.nodes.vip("web");
        site.wait_until_all_listen();
        site.who_several();
        site
    }

    /// Whoever is there from the beginning gets connections at once: nobody else could take them.
    #[track_caller]
    fn wait_until_all_listen(&self) {
        let tasks = self.nodes.get("/v2/apps/web/tasks");
        for task in tasks["tasks"].as_array().expect("tasks") {
            let host = task["host"].as_str().expect("a host");
            let url = format!("http://{host}:{}/", task["ports"][0]);
            eventually("an instance listens", || self.nodes.curl(BALANCER, &url));
        }
    }

    /// Has others' packets for virtual addresses come to the node that balances, and go on from there.
    #[track_caller]
    fn route(&self) {
        let via = self.nodes.network().address(BALANCER);
        let route = format!("ip route add 11.0.0.0/8 via {via}");
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward".to_owned();
        for (host, script) in [(STRANGER, route), (BALANCER, forward)] {
            let mut command = self.nodes.network().command(host, "sh");
            program::outcome("sh", command.args(["-c", &script]).output()).success();
        }
    }

    #[track_caller]
    fn start_net(&mut self) {
        let (bpffs, cgroup) = (self.place.bpffs(), self.place.cgroup());
        let (bpffs, cgroup) = (bpffs.to_string_lossy(), cgroup.to_string_lossy());
        let arguments = match self.path {
            Path::Proxy => vec!["--datapath", "proxy"],
            Path::Ebpf => vec!["--datapath", "ebpf", "--cgroup", &cgroup, "--bpffs", &bpffs],
            Path::Packets => vec!["--datapath", "proxy", "--packet-interface", "eth0", "--bpffs", &bpffs],
        };
        self.nodes.start_net_with(BALANCER, &arguments);
        // It answers when its programs are where they have to be.
        eventually("the daemon is up", || self.nodes.curl(BALANCER, "http://127.0.0.1:8081/metrics"));
        eventually("it has heard of the cluster", || {
            let outcome = self.nodes.mesonet(&["converge", "--timeout", "5s"]);
            if outcome.code == Some(0) { Ok(()) } else { Err(outcome.stderr) }
        });
    }

    /// A program of the clients.
    fn command(&self, program: &str) -> Command {
        match self.path {
            Path::Ebpf => self.place.command(self.nodes.network(), BALANCER, program),
            path => self.nodes.network().command(path.clients(), program),
        }
    }

    /// Who answers a client.
    fn who(&self) -> Result<Identity, String> {
        let mut command = self.command("curl");
        command
            .args(["-sS", "--fail", "--max-time", "20", "--noproxy", "*"])
            .arg(format!("http://{}/", self.vip));
        let outcome = program::outcome("curl", command.stdin(Stdio::null()).output());
        if outcome.code == Some(0) { app::read(&outcome.stdout) } else { Err(outcome.stderr) }
    }

    /// Asks until several instances have answered: to hear of each of many by chance takes long.
    #[track_caller]
    fn who_several(&self) -> BTreeSet<Identity> {
        let mut seen = BTreeSet::new();
        eventually("instances are reached", || {
            seen.insert(self.who()?);
            if seen.len() == SEVERAL { Ok(()) } else { Err(format!("{} have answered", seen.len())) }
        });
        seen
    }

    /// Does something while requests go on, and prints what became of them. Returns how many failed.
    #[track_caller]
    fn under_load(&mut self, what: &str, step: impl FnOnce(&mut Self)) -> u64 {
        let wrk = self.command("wrk");
        let start = if self.is_measured { Load::start_with } else { Load::start_steady_with };
        let load = start(wrk, &self.vip, Connections::New);
        let began = Instant::now();
        step(self);
        let took = began.elapsed().as_secs_f64();
        let Requests { answered, failed, unconnected, slowest } = load.finish();
        let path = self.path.name();
        println!(
            "STEP {path}, {what}: {took:.1} s, {answered} requests, {failed} failed, {unconnected} of them when they connected, slowest {:.0} ms",
            slowest.as_secs_f64() * 1e3
        );
        let verdict = if failed == 0 { "ok" } else { "MISS" };
        println!("BAR rolling_{path}_{}_failed {failed} <= 0 {verdict}", what.replace([' ', ',', '-'], "_"));
        assert!(answered > 0, "{what}");
        failed
    }

    /// Replaces every instance by one with another greeting.
    #[track_caller]
    fn replace(&mut self, greeting: &str, strategy: &serde_json::Value) {
        let change = format!("env.GREETING={greeting}");
        let strategy = format!("upgradeStrategy={strategy}");
        let update = ["app", "update", "web", &change, &strategy, "--timeout", "600s"];
        self.nodes.mesonet(&update).success();
        assert!(self.who_several().iter().all(|each| each.greeting == greeting));
    }

    /// Kills the daemon as often as told, and starts it again.
    #[track_caller]
    fn kill(&mut self) {
        for _ in 0..number_of(KILLS_VARIABLE).unwrap_or(KILLS) {
            self.nodes.kill(BALANCER, "net");
            for _ in 0..10 {
                self.who().expect("the kernel goes on by itself");
            }
            self.start_net();
        }
    }
}

#[track_caller]
fn number_of(variable: &str) -> Option<u32> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
#[ignore = "needs root"]
fn no_request_fails_while_instances_are_replaced_and_daemons_killed() {
    let mut site = Site::start(Path::of_environment());
    let few = json!({ "minimumHealthCapacity": 0.9, "maximumOverCapacity": 0.1 });
    let mut failed = site.under_load("replaced by tenths", |site| site.replace("second", &few));
    let all = json!({ "minimumHealthCapacity": 1.0, "maximumOverCapacity": 1.0 });
    failed += site.under_load("all replaced at once", |site| site.replace("third", &all));
    // Whoever is connected through the proxy loses the connection with it.
    if site.path != Path::Proxy {
        failed += site.under_load("daemon killed", Site::kill);
    }
    assert_eq!(failed, 0, "requests have failed");
}
