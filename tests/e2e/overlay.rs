//! Three nodes with four tasks each: who reaches whom, what is on the wire, and what a restart costs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Nodes, equal, eventually, program};

const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// Each has an instance on every host.
const APPS: [&str; 4] = ["a", "b", "c", "d"];

/// Of the instances of one app, which suffice to have streams between every two hosts.
const STREAMING: &str = "a";

const NET: [&str; 6] = ["--overlay", "on", "--overlay-port", "51820", "--dns-address", "198.51.100.1"];

/// After its restart, a daemon changes its key as often as it can.
const CHANGING: [&str; 2] = ["--overlay-key-age", "500ms"];

/// Changes of keys on each node under the streams.
const KEY_CHANGES: u32 = 7;

/// Names another number of them; with that, tasks run iperf3 as well.
const KEY_CHANGES_VARIABLE: &str = "MESONET_E2E_KEY_CHANGES";

/// Twelve tasks that ask each other, and who reads along.
struct Mesh {
    nodes: Nodes,
    dir: PathBuf,
    wire: Child,
    key_changes: u32,
    has_iperf3: bool,
}

impl Mesh {
    fn start() -> Self {
        let mut nodes = Nodes::start_with(&HOSTS, &["--vip-range", "11.0.0.0/24"]);
        let dir = PathBuf::from(nodes.host_dir("mesh"));
        std::fs::create_dir(&dir).expect("directory");
        let wire = read_wire(&nodes, &dir);
        let token = nodes.token(3);
        for host in HOSTS {
            // Addresses of VIPs are the host's own, so that its balancer gets what tasks send there.
            let own = "ip -4 route add local 11.0.0.0/24 dev lo && ip -6 route add local fd01:c::/64 dev lo";
            let mut shell = nodes.network().command(host, "sh");
            program::outcome("sh", shell.args(["-c", own]).output()).success();
            nodes.start_agent(host, Some(&token));
        }
        eventually("every agent is registered", || {
            let agents = nodes.get("/v1/view")["agents"].as_object().map_or(0, serde_json::Map::len);
            equal(&agents, &HOSTS.len())
        });
        for host in HOSTS {
            nodes.start_net_with(host, &NET);
        }
        nodes
            .mesonet(&["network", "create", "both", "--subnet", "10.128.0.0/16", "--subnet6", "fd00:1::/64"])
            .success();
        let asked = std::env::var(KEY_CHANGES_VARIABLE).ok();
        let (has_iperf3, asked) = (asked.is_some(), asked.map(|text| text.parse().expect("a number")));
        let mesh = Self { nodes, dir, wire, key_changes: asked.unwrap_or(KEY_CHANGES), has_iperf3 };
        for app in APPS {
            mesh.nodes.deploy(&mesh.app(app));
        }
        mesh
    }

    fn app(&self, name: &str) -> Value {
        let script = format!("{}/tests/e2e/apps/mesh.py", env!("CARGO_MANIFEST_DIR"));
        let port = |protocol: &str| {
            let vip = format!("/{name}:80");
            json!({ "containerPort": 8080, "protocol": protocol, "labels": { "VIP_0": vip } })
        };
        json!({
            "id": format!("/{name}"), "args": ["python3", script, self.dir, name],
            "instances": 3, "cpus": 0.1, "mem": 32, "constraints": [["hostname", "UNIQUE"]],
            "networks": [{ "mode": "container", "name": "both" }],
            "container": { "type": "MESOS", "portMappings": [port("tcp"), port("udp")] },
        })
    }

    /// The addresses of an app's tasks by task, once all run.
    fn addresses(&self, app: &str) -> BTreeMap<String, Vec<String>> {
        eventually("three tasks run", || {
            let tasks = self.nodes.get(&format!("/v2/apps/{app}/tasks"))["tasks"].clone();
            let tasks = tasks.as_array().cloned().unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let of_task = |task: &Value| {
                let addresses = task["ipAddresses"].as_array().cloned().unwrap_or_default();
                (text(&task["id"]), addresses.iter().map(|each| text(&each["ipAddress"])).collect::<Vec<_>>())
            };
            let all: BTreeMap<_, _> = tasks.iter().map(of_task).collect();
            equal(&all.values().map(Vec::len).collect::<Vec<_>>(), &vec![2; 3]).map(|()| all)
        })
    }

    /// Has every task ask every other by address, by name and by VIP, with both families and protocols.
    fn ask(&self) {
        let own: BTreeMap<String, Vec<String>> = APPS.iter().flat_map(|app| self.addresses(app)).collect();
        let mut ways = Vec::new();
        for address in own.values().flatten() {
            let family = if address.contains(':') { "IPv6" } else { "IPv4" };
            ways.push(json!({ "family": family, "host": address, "port": 8080, "count": 1 }));
        }
        for (app, family) in APPS.iter().flat_map(|app| [(app, "IPv4"), (app, "IPv6")]) {
            let name = format!("{app}.marathon.containerip.dcos.thisdcos.directory");
            ways.push(json!({ "family": family, "host": name, "port": 8080, "count": 3 }));
            let vip = format!("{app}.marathon.l4lb.thisdcos.directory");
            ways.push(json!({ "family": family, "host": vip, "port": 80, "count": 1 }));
        }
        let streams: Vec<String> = self.addresses(STREAMING).into_values().flatten().collect();
        let streams = json!({ STREAMING: streams });
        let text = json!({ "ask": ways, "own": own, "streams": streams, "iperf3": self.has_iperf3 });
        let part = self.dir.join("ways.part");
        std::fs::write(&part, text.to_string()).expect("written");
        std::fs::rename(&part, self.dir.join("ways.json")).expect("renamed");
        let answers = self.said("asked", 12);
        let failures: Vec<&Value> = answers.iter().filter_map(Value::as_array).flatten().collect();
        assert!(failures.is_empty(), "{failures:#?}");
    }

    /// Asks each host about a VIP: of three endpoints, each with two addresses, two are behind tunnels.
    fn explain(&self) {
        for host in HOSTS {
            let to = format!("{STREAMING}.marathon.l4lb.thisdcos.directory:80");
            let url = format!("http://127.0.0.1:8081/v1/explain?client=10.77.0.9&to={to}");
            eventually("the tunnels are explained", || {
                let answer = self.nodes.curl(host, &url)?;
                let answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
                let candidates = answer["candidates"].as_array().cloned().unwrap_or_default();
                let is_tunnel = |each: &Value| match each["tunnel"]["mtu"].as_u64() {
                    Some(mtu) => each["tunnel"]["node"] == each["node"] && mtu > 1000,
                    None => false,
                };
                let (far, near): (Vec<&Value>, Vec<&Value>) =
                    candidates.iter().partition(|each| is_tunnel(each));
                let is_near = |each: &&Value| each["node"] == host;
                let expected = far.len() == 4 && near.len() == 2 && near.iter().all(is_near);
                if expected { Ok(()) } else { Err(answer.to_string()) }
            });
        }
    }

    /// Begins streams from every task of an app to every other, by both families.
    fn stream(&self) {
        self.touch("go");
        self.said("streaming", 3);
    }

    /// Ends the streams, of which none is broken. The longest times without data, in restarts and in changes of keys.
    fn end_streams(&self) -> Vec<[f64; 2]> {
        self.touch("stop");
        let said = self.said("streams", 12);
        let streams: Vec<&Value> = said.iter().filter_map(Value::as_array).flatten().collect();
        let iperf3 = if self.has_iperf3 { HOSTS.len() } else { 0 };
        assert_eq!(streams.len(), 12 + iperf3, "three tasks to two others by two families");
        let finished = |stream: &&Value| {
            assert!(stream["taken"].is_u64() && stream["sent"] == stream["taken"], "broken: {stream}");
            [0, 1].map(|phase| stream["stalls"][phase].as_f64().expect("a time"))
        };
        streams.iter().map(finished).collect()
    }

    /// What so many tasks have said of something.
    fn said(&self, what: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} tasks say what they have {what}"), || {
            let files =
                std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let is_wanted = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.starts_with(&format!("{what}-")) && name.ends_with(".json")
            };
            let read = |path: PathBuf| {
                let text = std::fs::read(path).map_err(|error| error.to_string())?;
                serde_json::from_slice::<Value>(&text).map_err(|error| error.to_string())
            };
            let all: Vec<Value> = files.filter(is_wanted).map(read).collect::<Result<_, _>>()?;
            equal(&all.len(), &count).map(|()| all)
        })
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.dir.join(name), "").expect("written");
    }

    /// Restarts a host's network daemon, until packets come and go by both of its tunnels. Says how long that took.
    fn restart(&mut self, host: &str) {
        let start = Instant::now();
        self.nodes.stop(host, "net");
        let stopped = start.elapsed();
        self.nodes.start_net_with(host, &[&NET[..], &CHANGING].concat());
        eventually("the daemon answers", || self.nodes.curl(host, "http://127.0.0.1:8081/metrics"));
        let answered = start.elapsed();
        for peer in HOSTS.iter().filter(|peer| **peer != host) {
            for direction in ["sent", "received"] {
                let name = format!("mesonet_overlay_packets{{direction=\"{direction}\",peer=\"{peer}\"}}");
                eventually("packets go through the tunnel", || match self.nodes.metric(host, &name)? {
                    0.0 => Err("none yet".to_owned()),
                    _ => Ok(()),
                });
            }
        }
        let [stopped, answered, sent] = [stopped, answered, start.elapsed()].map(|time| time.as_secs_f64());
        eprintln!("{host}: ended after {stopped:.3} s, up after {answered:.3} s, packets after {sent:.3} s");
    }

    /// Waits until each node has changed its key so many times. How many changes that were on all of them.
    fn change_keys(&self) -> f64 {
        let changes = || -> Result<Vec<f64>, String> {
            let name = "mesonet_overlay_key_changes_total";
            HOSTS.iter().map(|host| self.nodes.metric(host, name)).collect()
        };
        for count in 1..=self.key_changes {
            eventually("keys change", || {
                let changes = changes()?;
                let is_done = changes.iter().all(|each| *each >= f64::from(count));
                if is_done { Ok(()) } else { Err(format!("{changes:?} changes")) }
            });
        }
        eventually("changes are counted", || Ok(changes()?.iter().sum()))
    }

    fn keys(&self) -> BTreeMap<String, String> {
        let tunnels = self.nodes.get("/v1/view")["tunnels"].as_object().cloned().unwrap_or_default();
        tunnels.into_iter().map(|(node, end)| (node, end["key"].to_string())).collect()
    }

    /// Declares a node's certificates void: the others have no tunnel to it any more.
    fn revoke(&self, node: &str) {
        self.nodes.revoke(node);
        eventually("its tunnels are gone from the view", || equal(&self.keys().contains_key(node), &false));
        for host in HOSTS.iter().filter(|host| **host != node) {
            let name = format!("mesonet_overlay_path_mtu_octets{{peer=\"{node}\"}}");
            eventually("a node has no tunnel to it", || match self.nodes.metric(host, &name) {
                Ok(_) => Err("there is one".to_owned()),
                Err(_) => Ok(()),
            });
        }
    }

    /// What was on the wire, by kind.
    fn end_wire(&mut self) -> BTreeMap<String, u64> {
        self.touch("wire-ends");
        self.wire.wait().expect("the reader ends");
        let text = std::fs::read(self.dir.join("wire.json")).expect("what was seen");
        serde_json::from_slice(&text).expect("JSON")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.wire.kill();
        let _ = self.wire.wait();
    }
}

fn read_wire(nodes: &Nodes, dir: &std::path::Path) -> Child {
    let script = format!("{}/tests/e2e/apps/wire.py", env!("CARGO_MANIFEST_DIR"));
    let mut command = nodes.network().on_wire("python3");
    command.arg(script).arg(dir.join("wire.json")).arg(dir.join("wire-ends")).args(["51820", "7070"]);
    let child = command.stdin(Stdio::null()).spawn().expect("python3 starts");
    eventually("somebody reads along", || {
        dir.join("wire.ready").exists().then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    child
}

#[test]
#[ignore = "needs root"]
fn every_task_reaches_every_other_only_through_tunnels_whatever_becomes_of_daemons_and_keys() {
    let mut mesh = Mesh::start();
    mesh.ask();
    mesh.explain();
    let keys = mesh.keys();
    mesh.stream();
    for host in HOSTS {
        mesh.restart(host);
    }
    mesh.touch("next");
    let changes = mesh.change_keys();
    let streams = mesh.end_streams();
    assert!(mesh.keys().values().all(|key| keys.values().all(|before| before != key)), "{keys:?}");
    let stall = |phase: usize| streams.iter().map(|stream| stream[phase]).fold(0.0, f64::max);
    eprintln!(
        "the longest stalls of {} streams: {:.3} s in 3 restarts, {:.3} s in {changes} changes of keys",
        streams.len(),
        stall(0),
        stall(1)
    );
    mesh.revoke("n3");

    let seen = mesh.end_wire();
    eprintln!("on the wire: {seen:?}");
    let unexpected: Vec<_> = seen
        .iter()
        .filter(|(kind, _)| !["tunnel", "bus", "neighbours", "refused"].contains(&kind.as_str()))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    assert!(seen.get("tunnel").is_some_and(|count| *count > 1000), "{seen:?}");
}

/// Runs a line on a host.
fn shell(nodes: &Nodes, host: &str, line: &str) -> program::Outcome {
    let mut shell = nodes.network().command(host, "sh");
    program::outcome("sh", shell.args(["-c", line]).output())
}

#[test]
#[ignore = "needs root"]
fn a_host_without_ipv6_that_has_addresses_of_a_network_itself_keeps_these_and_has_the_rest() {
    const TWO: [&str; 2] = ["n1", "n2"];
    let mut nodes = Nodes::start(&TWO);
    nodes.start_agents(&TWO);
    let create = ["network", "create", "blue", "--subnet", "10.128.0.0/16"];
    nodes.mesonet(&create).success();
    let part = |network: &str| {
        let network = nodes.get(&format!("/v1/networks/{network}"));
        let parts = network["nodes"].as_array().cloned().unwrap_or_default();
        let part = parts.iter().find(|part| part["node"] == "n1").expect("the node has a part");
        let part = part["subnets"][0].as_str().expect("a range");
        part.strip_suffix(".0/24").expect("256 addresses").to_owned()
    };
    let (taken, free) = (part("dcos"), part("blue"));
    let set_up = format!(
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 \
         && ip link add lan type veth peer name other && ip addr add {taken}.77/24 dev lan && ip link set lan up"
    );
    shell(&nodes, "n2", &set_up).success();
    nodes.start_net_with("n1", &NET);
    nodes.start_net_with("n2", &NET);

    let way = |address: &str| {
        let way = shell(&nodes, "n2", &format!("ip -4 route get {address}.1"));
        // There may be none yet.
        way.stdout + &way.stderr
    };
    eventually("the rest goes through the tunnel", || {
        let way = way(&free);
        if way.contains("dev mesonet-wg") { Ok(()) } else { Err(way) }
    });
    eventually("the other node answers", || {
        let pinged = shell(&nodes, "n2", &format!("ping -c 1 -W 2 {free}.1"));
        if pinged.code == Some(0) { Ok(()) } else { Err(pinged.stdout) }
    });
    assert!(way(&taken).contains("dev lan"), "{}", way(&taken));
    for what in ["IPv6, which is turned off on this host", &format!("{taken}.0/24, in which this host has")] {
        eventually("the operator is told", || nodes.log_says("n2", "net", what));
    }
    eventually("the overlay counts as in effect", || {
        let outcome = nodes.mesonet(&["converge", "--timeout", "5s"]);
        if outcome.code == Some(0) { Ok(()) } else { Err(outcome.stderr) }
    });

    shell(&nodes, "n2", "ip link del lan").success();
    eventually("what was in the way is gone", || {
        let way = way(&taken);
        if way.contains("dev mesonet-wg") { Ok(()) } else { Err(way) }
    });
    somebody_elses_route_is_left(&nodes, &free);
    the_switches_of_the_device_are_kept(&nodes);
    what_cannot_be_carried_out_is_not_in_effect(&nodes);
    a_second_daemon_is_refused(&nodes);
}

/// A second daemon with an overlay on `n2` says who has it, and leaves it alone.
#[track_caller]
fn a_second_daemon_is_refused(nodes: &Nodes) {
    let master = format!("{}:7070", nodes.network().address("master"));
    let (dir, program) = (nodes.host_dir("n2"), env!("CARGO_BIN_EXE_mesonet"));
    let others = "--http 127.0.0.1:0 --dns 127.0.0.1:0 --overlay on --overlay-port 51821";
    let line = format!("{program} net --dir {dir} --master {master} {others}");
    let error = shell(nodes, "n2", &line).failure(1);
    assert!(error.contains("(mesonet) has the tunnel 'mesonet-wg'"), "{error}");
    nodes.metric("n2", "mesonet_overlay_omissions{kind=\"ipv6\"}").expect("the first goes on");
}

/// Whoever turns off what the device on `n2` needs, as by setting all switches anew, does not do so for long.
#[track_caller]
fn the_switches_of_the_device_are_kept(nodes: &Nodes) {
    let switches =
        ["forwarding", "rp_filter"].map(|name| format!("/proc/sys/net/ipv4/conf/mesonet-wg/{name}"));
    for switch in &switches {
        shell(nodes, "n2", &format!("echo 0 > {switch}")).success();
    }
    eventually("they are set again", || {
        let values = shell(nodes, "n2", &format!("cat {}", switches.join(" "))).success();
        equal(&values.split_whitespace().collect::<Vec<_>>(), &vec!["1", "2"])
    });
}

/// While nothing can be done to the device of `n2`, no change counts as in effect there, nor as had what it goes without.
#[track_caller]
fn what_cannot_be_carried_out_is_not_in_effect(nodes: &Nodes) {
    let counted = |kind: &str| nodes.metric("n2", &format!("mesonet_overlay_omissions{{kind=\"{kind}\"}}"));
    shell(nodes, "n2", "ip link set mesonet-wg down && ip link set mesonet-wg name other").success();
    nodes.mesonet(&["network", "create", "green", "--subnet", "10.129.0.0/16"]).success();
    eventually("both count", || equal(&["ipv6", "refused"].map(counted), &[1.0, 1.0].map(Ok)));
    let lags = nodes.mesonet(&["converge", "--timeout", "1s"]).failure(1);
    assert!(lags.contains("overlay of node n2 is at"), "{lags}");
    shell(nodes, "n2", "ip link set other name mesonet-wg").success();
    eventually("it is in effect", || {
        let outcome = nodes.mesonet(&["converge", "--timeout", "5s"]);
        if outcome.code == Some(0) { Ok(()) } else { Err(outcome.stderr) }
    });
    eventually("one counts", || equal(&["ipv6", "refused"].map(counted), &[1.0, 0.0].map(Ok)));
}

/// Whoever makes a route of its own to another node's part on `n2` keeps it, and the operator is told.
#[track_caller]
fn somebody_elses_route_is_left(nodes: &Nodes, part: &str) {
    let counted = |kind: &str| nodes.metric("n2", &format!("mesonet_overlay_omissions{{kind=\"{kind}\"}}"));
    let gateway = nodes.network().address("n1");
    shell(nodes, "n2", &format!("ip route replace {part}.0/24 via {gateway}")).success();
    eventually("it counts", || equal(&["ipv6", "address", "route"].map(counted), &[1.0, 0.0, 1.0].map(Ok)));
    nodes.log_says("n2", "net", "to which somebody has made another one").expect("the operator is told");
    let routes = || shell(nodes, "n2", &format!("ip -4 route show {part}.0/24")).success();
    let theirs = routes();
    assert!(theirs.lines().count() == 1 && theirs.contains(&gateway), "{theirs}");
    shell(nodes, "n2", &format!("ip route del {part}.0/24")).success();
    eventually("the tunnel's route is there again", || {
        let routes = routes();
        if routes.contains("dev mesonet-wg") { Ok(()) } else { Err(routes) }
    });
    eventually("it does not count any more", || equal(&counted("route"), &Ok(0.0)));
}

/// A program that has the table of nftables which the overlay wants, so that the kernel lets nobody else change it.
struct TableOwner(Child);

impl TableOwner {
    #[track_caller]
    fn start(nodes: &Nodes, host: &str) -> Self {
        let mut owner = nodes.network().command(host, "nft");
        let mut owner =
            owner.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nft starts");
        let orders = owner.stdin.as_mut().expect("piped");
        let table = "add table inet mesonet { flags owner; }\nadd chain inet mesonet theirs\n\
                     add rule inet mesonet theirs accept\n";
        orders.write_all(table.as_bytes()).expect("written");
        let owner = Self(owner);
        eventually("the table is somebody else's", || {
            let theirs = shell(nodes, host, "nft list table inet mesonet").stdout;
            if theirs.contains("accept") { Ok(()) } else { Err(theirs) }
        });
        owner
    }
}

impl Drop for TableOwner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_refuses_takes_nothing_else_away_and_comes_once_it_is_let() {
    const TWO: [&str; 2] = ["n1", "n2"];
    let mut nodes = Nodes::start(&TWO);
    nodes.start_agents(&TWO);
    let owner = TableOwner::start(&nodes, "n2");
    nodes.start_net_with("n1", &NET);
    nodes.start_net_with("n2", &[&NET[..], &["--overlay-masquerade", "on"]].concat());
    let part = |node: &str| {
        let network = nodes.get("/v1/networks/dcos");
        let parts = network["nodes"].as_array().cloned().unwrap_or_default();
        let part = parts.iter().find(|part| part["node"] == node).expect("the node has a part");
        part["subnets"][0].as_str().expect("a range").strip_suffix(".0/24").expect("256 addresses").to_owned()
    };
    let [near, far] = TWO.map(part);
    eventually("the nodes have tunnels", || {
        let pinged = shell(&nodes, "n2", &format!("ping -c 1 -W 2 {near}.1"));
        if pinged.code == Some(0) { Ok(()) } else { Err(pinged.stdout) }
    });
    let refused = |count: f64| {
        let counted = nodes.metric("n2", "mesonet_overlay_omissions{kind=\"refused\"}");
        equal(&counted, &Ok(count))
    };
    let shown = || nodes.mesonet(&["overlay", "list"]).success();
    eventually("it counts", || refused(1.0));
    eventually("it is shown", || {
        let shown = shown();
        let refusal = "does without what the kernel refuses: cannot set the rules of mesonet";
        if shown.contains(refusal) { Ok(()) } else { Err(shown) }
    });
    // The kernel makes no route with a source that is not the host's.
    let local = format!("local {far}.1 dev mesonet-wg table local scope host src {far}.1");
    shell(&nodes, "n2", &format!("ip route del {local} && ip -4 route flush proto 77")).success();
    eventually("both count", || refused(2.0));

    shell(&nodes, "n2", &format!("ip route add {local}")).success();
    drop(owner);
    eventually("packets are translated", || {
        let rules = shell(&nodes, "n2", "nft list table inet mesonet").stdout;
        if rules.contains("masquerade") { Ok(()) } else { Err(rules) }
    });
    eventually("nothing is left out", || refused(0.0));
    eventually("nothing is shown", || {
        let shown = shown();
        if shown.contains("does without") { Err(shown) } else { Ok(()) }
    });
    let way = shell(&nodes, "n2", &format!("ip route get {near}.1")).success();
    assert!(way.contains("dev mesonet-wg"), "{way}");
    let log = nodes.log("n2", "net");
    for what in ["cannot set the rules of mesonet", &format!("cannot make the route to {near}.0")] {
        let told = log.lines().filter(|line| line.contains("does without a part") && line.contains(what));
        assert_eq!(told.count(), 1, "{what}: {log}");
    }

    nodes.stop("n2", "net");
    shell(&nodes, "n2", "nft delete table inet mesonet").success();
    let owner = TableOwner::start(&nodes, "n2");
    let (dir, program) = (nodes.host_dir("n2"), env!("CARGO_BIN_EXE_mesonet"));
    let clean_up = format!("{program} net --cleanup --dir {dir} --bpffs {dir}");
    let error = shell(&nodes, "n2", &clean_up).failure(1);
    assert!(error.contains("cannot set the rules of mesonet"), "{error}");
    let links = shell(&nodes, "n2", "ip -o link").success();
    assert!(!links.contains("mesonet-wg"), "the rest is gone: {links}");
    drop(owner);
    shell(&nodes, "n2", &clean_up).success();
}

#[test]
#[ignore = "needs root"]
fn a_revoked_node_that_joins_again_has_another_key_also_while_its_daemon_runs() {
    let mut nodes = Nodes::start(&["n1"]);
    nodes.start_agents(&["n1"]);
    nodes.start_net_with("n1", &NET);
    let key = |nodes: &Nodes| nodes.get("/v1/view")["tunnels"]["n1"]["key"].as_str().map(str::to_owned);
    let first =
        eventually("the node's key is known", || key(&nodes).ok_or_else(|| "there is none".to_owned()));
    nodes.revoke("n1");
    eventually("its tunnels are gone", || equal(&key(&nodes), &None));
    nodes.stop("n1", "agent");
    std::fs::remove_dir_all(format!("{}/identity", nodes.host_dir("n1"))).expect("removed");
    let token = nodes.token(1);
    nodes.start_agent("n1", Some(&token));
    eventually("it has another key", || match key(&nodes) {
        Some(key) if key != first => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // Whose file is lost while it runs goes on with a new one, too.
    let second = key(&nodes);
    std::fs::remove_file(format!("{}/overlay.key", nodes.host_dir("n1"))).expect("removed");
    eventually("it has a third key", || match key(&nodes) {
        Some(key) if Some(&key) != second.as_ref() => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
