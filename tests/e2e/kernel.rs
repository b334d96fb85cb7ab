//! VIPs balanced by the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::kernel_place::KernelPlace;
use crate::harness::load::{Connections, Load};
use crate::harness::network::Network;
use crate::harness::{app, cluster, equal, eventually, process, program};

/// How often the daemon is killed.
const KILLS: usize = 5;

/// How many instances a restart replaces.
const RESTARTED: usize = 4;

/// What a host's daemon has in the kernel and on disk. Removed when dropped.
struct Hooks {
    place: KernelPlace,
}

impl Hooks {
    fn new(test: &str) -> Self {
        Self { place: KernelPlace::new(test) }
    }

    fn bpffs(&self) -> PathBuf {
        self.place.bpffs()
    }

    fn state(&self) -> PathBuf {
        self.place.dir().join("state")
    }

    fn command(&self, network: &Network, program: &str) -> Command {
        self.place.command(network, "host", program)
    }

    fn start(&self, network: &Network) -> Child {
        let mesonet = cluster::mesonet();
        let mut command = self.command(network, text(Path::new(mesonet.get_program())));
        command.args([
            "dev",
            "--dir",
            text(&self.state()),
            "--datapath",
            "ebpf",
            "--vip-range",
            "11.0.0.0/8",
        ]);
        command.args(["--cgroup", text(self.place.cgroup()), "--bpffs", text(&self.bpffs())]);
        // However long this machine takes to start tasks, those that they replace are there until they listen.
        command.args(["--drain-grace", "120s"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("mesonet dev starts")
    }

    /// The answer to a request, if there is one.
    fn get(&self, network: &Network, url: &str) -> Option<String> {
        let output =
            self.command(network, "curl").args(["-sf", "--max-time", "10", url]).output().expect("curl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn api(&self, network: &Network, path: &str) -> Option<Value> {
        serde_json::from_str(&self.get(network, &format!("http://127.0.0.1:8080{path}"))?).ok()
    }

    fn post(&self, network: &Network, path: &str, body: &str) {
        let url = format!("http://127.0.0.1:8080{path}");
        let post = ["-sf", "-H", "Content-Type: application/json", "-d", body, &url];
        assert!(self.command(network, "curl").args(post).output().expect("curl").status.success());
    }

    /// Runs the app `/web`. Returns the address of its service when all instances answer there.
    fn deploy_web(&self, network: &Network, instances: usize) -> String {
        let app = app::web("/web", instances as u32);
        self.post(network, "/v2/apps", &app.to_string());
        let vip = eventually("the service has all of its endpoints", || {
            let services = self.api(network, "/v1/services").ok_or("no answer")?;
            let service = cluster::find_service(&services, "web").ok_or("no service")?;
            equal(&service["endpoints"].as_array().map(Vec::len), &Some(instances))?;
            let address = service["addresses"][0].as_str().ok_or("no address")?;
            Ok(format!("{address}:{}", service["port"]))
        });
        let url = format!("http://{vip}/");
        eventually("all instances answer", || {
            let answers: Vec<_> = (0..4 * instances).map(|_| self.get(network, &url)).collect();
            if answers.iter().all(Option::is_some) { Ok(()) } else { Err(format!("{answers:?}")) }
        });
        vip
    }

    /// The tasks of the app `/web`.
    fn tasks(&self, network: &Network) -> Option<BTreeSet<String>> {
        let tasks = self.api(network, "/v2/apps/web/tasks")?;
        tasks["tasks"].as_array()?.iter().map(|task| task["id"].as_str().map(str::to_owned)).collect()
    }

    fn wait_until_up(&self, network: &Network) {
        eventually("the cluster is ready", || {
            match self.get(network, "http://127.0.0.1:8080/v1/health/ready") {
                Some(_) => Ok(()),
                None => Err("not ready".to_owned()),
            }
        });
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
#[ignore = "needs root"]
fn no_connection_is_lost_when_the_daemon_is_killed_under_load() {
    let network = Network::new(&["host"]);
    let hooks = Hooks::new("kill");
    let mut daemon = hooks.start(&network);
    hooks.wait_until_up(&network);
    let vip = hooks.deploy_web(&network, 3);
    let url = format!("http://{vip}/");

    let load = Load::start_with(hooks.command(&network, "wrk"), &vip, Connections::New);
    for _ in 0..KILLS {
        process::signal(daemon.id(), Signal::KILL);
        daemon.wait().expect("the killed process ends");
        assert!(hooks.get(&network, &url).is_some(), "the kernel goes on by itself");
        daemon = hooks.start(&network);
        hooks.wait_until_up(&network);
    }
    load.finish_without_failure();

    let mesonet = cluster::mesonet();
    let mesonet = text(Path::new(mesonet.get_program()));
    let bpffs = hooks.bpffs();
    let cleanup = ["net", "--cleanup", "--bpffs", text(&bpffs)];
    let second = [
        "dev",
        "--http",
        "127.0.0.1:0",
        "--dns",
        "127.0.0.1:0",
        "--datapath",
        "ebpf",
        "--cgroup",
        text(hooks.place.cgroup()),
        "--bpffs",
        text(&bpffs),
    ];
    for arguments in [&cleanup[..], &second] {
        let error = program::outcome("mesonet", hooks.command(&network, mesonet).args(arguments).output());
        let error = error.failure(1);
        assert!(error.contains("end it first") && error.contains(text(&bpffs)), "{error}");
    }
    assert!(hooks.get(&network, &url).is_some(), "who is told so has changed nothing");

    process::signal(daemon.id(), Signal::TERM);
    daemon.wait().expect("the process ends");
    program::run(mesonet, &cleanup).success();
    assert_eq!(hooks.get(&network, &url), None, "the address is none any more");
}

#[test]
#[ignore = "needs root"]
fn a_rolling_restart_under_load_loses_no_connection() {
    let network = Network::new(&["host"]);
    let hooks = Hooks::new("restart");
    let mut daemon = hooks.start(&network);
    hooks.wait_until_up(&network);
    let vip = hooks.deploy_web(&network, RESTARTED);
    let before = hooks.tasks(&network).expect("the tasks");

    let wrk = hooks.command(&network, "wrk");
    let load = Load::start_steady_with(wrk, &vip, Connections::New);
    hooks.post(&network, "/v2/apps/web/restart", "{}");
    eventually("every instance is another one", || {
        let deployments = hooks.api(&network, "/v2/deployments").ok_or("no answer")?;
        equal(&deployments, &json!([]))?;
        let tasks = hooks.tasks(&network).ok_or("no answer")?;
        if tasks.is_disjoint(&before) { equal(&tasks.len(), &RESTARTED) } else { Err(format!("{tasks:?}")) }
    });
    load.finish_without_failure();
    process::signal(daemon.id(), Signal::TERM);
    daemon.wait().expect("the process ends");
}

/// Apps whose tasks have addresses of their own, with two instances each.
const CONTAINED: [&str; 2] = ["a", "b"];

/// Starts apps whose tasks ask each other. They say in a directory what they have found out.
fn deploy_contained(hooks: &Hooks, network: &Network, dir: &Path) {
    let script = format!("{}/tests/e2e/apps/mesh.py", env!("CARGO_MANIFEST_DIR"));
    for app in CONTAINED {
        let port = |protocol: &str| {
            let vip = format!("/{app}:80");
            json!({ "containerPort": 8080, "protocol": protocol, "labels": { "VIP_0": vip } })
        };
        let app = json!({
            "id": format!("/{app}"), "args": ["python3", script, dir, app],
            "instances": 2, "cpus": 0.1, "mem": 32, "networks": [{ "mode": "container", "name": "both" }],
            "container": { "type": "MESOS", "portMappings": [port("tcp"), port("udp")] },
        });
        hooks.post(network, "/v2/apps", &app.to_string());
    }
}

/// The ways to the tasks' own addresses and to their VIPs, once there are all of them.
fn ways_to_contained(hooks: &Hooks, network: &Network) -> Vec<(String, u16)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    eventually("all endpoints have addresses", || {
        let mut ways = Vec::new();
        for app in CONTAINED {
            let tasks = hooks.api(network, &format!("/v2/apps/{app}/tasks")).ok_or("no answer")?;
            let tasks = tasks["tasks"].as_array().cloned().unwrap_or_default();
            let running = tasks.iter().filter(|task| task["state"] == "TASK_RUNNING");
            let addresses =
                running.flat_map(|task| task["ipAddresses"].as_array().cloned().unwrap_or_default());
            let addresses: Vec<_> = addresses.map(|each| (text(&each["ipAddress"]), 8080)).collect();
            equal(&addresses.len(), &4)?;
            let services = hooks.api(network, "/v1/services").ok_or("no answer")?;
            let service = cluster::find_service(&services, &format!("{app}@")).ok_or("no service")?;
            let vips = service["addresses"].as_array().cloned().unwrap_or_default();
            equal(&vips.len(), &2)?;
            ways.extend(addresses);
            ways.extend(vips.iter().map(|vip| (text(vip), 80)));
        }
        Ok(ways)
    })
}

#[test]
#[ignore = "needs root"]
fn tasks_with_addresses_of_their_own_reach_vips_by_hooks_and_stand_behind_them() {
    let network = Network::new(&["host"]);
    let hooks = Hooks::new("containers");
    let mut daemon = hooks.start(&network);
    hooks.wait_until_up(&network);
    let mesonet = cluster::mesonet();
    let create = ["network", "create", "both", "--subnet", "10.128.0.0/16", "--subnet6", "fd00:1::/64"];
    let mut command = hooks.command(&network, text(Path::new(mesonet.get_program())));
    program::outcome("mesonet", command.args(create).output()).success();
    let dir = hooks.place.dir().join("contained");
    fs::create_dir(&dir).expect("a directory");
    deploy_contained(&hooks, &network, &dir);
    let ways = ways_to_contained(&hooks, &network);
    let ask = ways.iter().map(|(host, port)| {
        let family = if host.contains(':') { "IPv6" } else { "IPv4" };
        json!({ "family": family, "host": host, "port": port, "count": 1 })
    });
    let ask = json!({
        "ask": ask.collect::<Vec<_>>(), "own": {}, "streams": {}, "iperf3": false,
    });
    fs::write(dir.join("ways.part"), ask.to_string()).expect("written");
    fs::rename(dir.join("ways.part"), dir.join("ways.json")).expect("renamed");
    let failures = eventually("four tasks say what they have asked", || {
        let entries = fs::read_dir(&dir).expect("list").flatten().map(|entry| entry.path());
        let said = entries
            .filter(|path| path.extension().is_some_and(|it| it == "json") && text(path).contains("/asked-"));
        let said: Vec<String> = said.map(|path| fs::read_to_string(path).expect("an answer")).collect();
        equal(&said.len(), &4).map(|()| said)
    });
    assert_eq!(failures, ["[]"; 4]);

    // The answer is what was sent: not of HTTP, but by a task.
    let (vip, port) = ways.iter().find(|(_, port)| *port == 80).expect("a VIP");
    let mut curl = hooks.command(&network, "curl");
    curl.args(["-s", "--http0.9", "--max-time", "10", &format!("http://{vip}:{port}/")]);
    let output = curl.output().expect("curl");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("GET / HTTP"), "{output:?}");
    process::signal(daemon.id(), Signal::TERM);
    daemon.wait().expect("the process ends");
}
