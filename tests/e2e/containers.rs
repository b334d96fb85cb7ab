//! Tasks with addresses of their own, on one node and on several.

use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::network::Network;
use crate::harness::nodes::UNREACHABLE_AFTER;
use crate::harness::{Nodes, cluster, equal, eventually, process, program};

/// A local cluster on a host of a network. Its tasks end with it.
struct Host {
    network: Network,
    daemon: Child,
}

impl Host {
    fn start() -> Self {
        let network = Network::new(&["host"]);
        for arguments in ["addr add 198.51.100.1/32 dev lo", "route add local 11.0.0.0/24 dev lo"] {
            let status = network.command("host", "ip").args(arguments.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {arguments}");
        }
        let mesonet = cluster::mesonet();
        let program = Path::new(mesonet.get_program()).to_str().expect("UTF-8").to_owned();
        let mut command = network.command("host", &program);
        command.args(["dev", "--dns", "198.51.100.1:53", "--vip-range", "11.0.0.0/24"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = command.spawn().expect("mesonet dev starts");
        let host = Self { network, daemon };
        eventually("the cluster is ready", || host.get("127.0.0.1:8080/v1/health/ready"));
        host
    }

    fn get(&self, url: &str) -> Result<String, String> {
        let mut command = self.network.command("host", "curl");
        let output = command.args(["-sf", "--max-time", "10", url]).output().expect("curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(format!("{url}: {}", output.status)) }
    }

    fn api(&self, path: &str) -> Result<Value, String> {
        let text = self.get(&format!("127.0.0.1:8080{path}"))?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    fn mesonet(&self, arguments: &[&str]) -> program::Outcome {
        let mesonet = cluster::mesonet();
        let mut command = self.network.command("host", mesonet.get_program().to_str().expect("UTF-8"));
        program::outcome("mesonet", command.args(arguments).output())
    }

    fn deploy(&self, app: &Value) {
        let app = app.to_string();
        let mut command = self.network.command("host", "curl");
        command.args(["-sf", "-H", "Content-Type: application/json", "-d", &app, "127.0.0.1:8080/v2/apps"]);
        assert!(command.output().expect("curl").status.success(), "{app}");
    }

    /// The only task of an app, once it runs.
    fn task(&self, app: &str) -> Value {
        eventually("the app runs", || {
            let tasks = self.api(&format!("/v2/apps{app}/tasks"))?;
            let task = tasks["tasks"][0].clone();
            equal(&task["state"], &json!("TASK_RUNNING")).map(|()| task)
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        process::signal(self.daemon.id(), Signal::TERM);
        let _ = self.daemon.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn a_task_is_reached_by_its_address_its_name_and_its_vip() {
    let host = Host::start();
    host.mesonet(&["network", "create", "both", "--subnet", "10.128.0.0/16", "--subnet6", "fd00:1::/64"])
        .success();
    let networks = json!([{ "mode": "container", "name": "both" }]);
    host.deploy(&json!({
        "id": "/web", "cmd": "exec python3 -m http.server --bind :: 8080", "cpus": 0.1, "mem": 32,
        "networks": networks,
        "container": { "type": "MESOS", "portMappings": [
            { "containerPort": 8080, "labels": { "VIP_0": "/web:80" } },
        ] },
    }));
    let task = host.task("/web");
    let addresses: Vec<&str> = task["ipAddresses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address["ipAddress"].as_str())
        .collect();
    assert_eq!(addresses, ["10.128.0.2", "fd00:1::2"]);
    eventually("the host reaches it", || host.get("http://10.128.0.2:8080/"));
    eventually("the host reaches it by IPv6", || host.get("http://[fd00:1::2]:8080/"));
    eventually("the host reaches its VIP", || {
        let services = host.api("/v1/services")?;
        let service = cluster::find_service(&services, "web").ok_or("no service")?;
        host.get(&format!("http://{}/", service["addresses"][0].as_str().ok_or("no address")?))
    });

    let ask = "ask() { until curl -sf --max-time 5 \"http://$1/\"; do sleep 0.1; done > \"$2\" && mv \"$2\" \"$2.done\"; }; \
               ask web.marathon.containerip.dcos.thisdcos.directory:8080 name; \
               ask web.marathon.l4lb.thisdcos.directory vip; exec sleep 3600";
    host.deploy(&json!({
        "id": "/client", "cmd": ask, "cpus": 0.1, "mem": 32, "networks": networks,
        "container": { "type": "MESOS", "portMappings": [] },
    }));
    let client = host.task("/client");
    let id = client["id"].as_str().expect("an id");
    for way in ["name", "vip"] {
        eventually("another task reaches it by name", || {
            let file = host.api(&format!("/v1/tasks/{id}/files/{way}.done?offset=0"))?;
            let text = file["data"].as_str().ok_or("no data")?;
            if text.contains("Directory listing") { Ok(()) } else { Err(format!("{way}: {text:?}")) }
        });
    }
    let refused = host.mesonet(&["network", "remove", "both"]).failure(1);
    assert!(refused.contains("network 'both' is used by 2 tasks"), "{refused}");
}

const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// A network daemon of this kind is what tasks of several nodes need.
const OVERLAY: [&str; 4] = ["--overlay", "on", "--dns-address", "198.51.100.1"];

/// Starts agent and network daemon on every host, and makes a network.
fn start_nodes(nodes: &mut Nodes) {
    nodes.start_agents(&HOSTS);
    for host in HOSTS {
        nodes.start_net_with(host, &OVERLAY);
    }
    nodes
        .mesonet(&["network", "create", "both", "--subnet", "10.128.0.0/16", "--subnet6", "fd00:1::/64"])
        .success();
}

/// An app with a task on each host, in the network.
fn on_each(id: &str, cmd: &str) -> Value {
    json!({
        "id": id, "cmd": cmd, "instances": 3, "cpus": 0.1, "mem": 32,
        "constraints": [["hostname", "UNIQUE"]],
        "networks": [{ "mode": "container", "name": "both" }],
        "container": { "type": "MESOS", "portMappings": [] },
    })
}

/// Every address of an app's three tasks, of each family, once they run.
fn addresses(nodes: &Nodes, app: &str) -> Vec<String> {
    eventually("three tasks run", || {
        let tasks = nodes.get(&format!("/v2/apps{app}/tasks"))["tasks"].clone();
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let running = tasks.iter().filter(|task| task["state"] == "TASK_RUNNING");
        let all: Vec<String> = running
            .flat_map(|task| task["ipAddresses"].as_array().cloned().unwrap_or_default())
            .filter_map(|address| address["ipAddress"].as_str().map(str::to_owned))
            .map(|address| if address.contains(':') { format!("[{address}]") } else { address })
            .collect();
        equal(&all.len(), &6).map(|()| all)
    })
}

#[test]
#[ignore = "needs root"]
fn tasks_of_all_nodes_reach_each_other_through_tunnels() {
    let mut nodes = Nodes::start(&HOSTS);
    start_nodes(&mut nodes);
    nodes.deploy(&on_each("/web", "exec python3 -m http.server --bind :: 8080"));
    let servers = addresses(&nodes, "/web");
    let names = "web.marathon.containerip.dcos.thisdcos.directory";
    let ask = format!(
        "for there in {} {names}; do \
             until curl -gsf --max-time 5 \"http://$there:8080/\" > /dev/null; do sleep 0.2; done; \
         done; touch done; exec python3 -m http.server --bind :: 9090",
        servers.join(" ")
    );
    nodes.deploy(&on_each("/client", &ask));
    // A client only serves when it has reached every server, and each host reaches every client.
    for client in addresses(&nodes, "/client") {
        for host in HOSTS {
            eventually(&format!("{host} reaches {client}"), || {
                nodes.curl(host, &format!("http://{client}:9090/done"))
            });
        }
    }
    nodes.kill("n2", "net");
    nodes.start_net_with("n2", &OVERLAY);
    let mut remove = nodes.network().command("n3", "ip");
    program::outcome("ip", remove.args(["link", "del", "mesonet-wg"]).output()).success();
    for server in &servers {
        for host in HOSTS {
            eventually(&format!("{host} reaches {server} afterwards"), || {
                nodes.curl(host, &format!("http://{server}:8080/"))
            });
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_node_that_no_tunnel_reaches_is_given_up_before_its_time() {
    // Long after the test would have given up.
    let mut nodes = Nodes::start_with(&HOSTS, &[UNREACHABLE_AFTER, "1h"]);
    start_nodes(&mut nodes);
    nodes.deploy(&on_each("/web", "exec python3 -m http.server --bind :: 8080"));
    let far = eventually("its task runs", || {
        let tasks = nodes.get("/v2/apps/web/tasks")["tasks"].clone();
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let host = nodes.network().address("n3");
        let far = tasks.iter().find(|task| task["host"] == host).ok_or("no task")?;
        far["ipAddresses"][0]["ipAddress"].as_str().map(str::to_owned).ok_or("no address".to_owned())
    });
    let url = format!("http://{far}:8080/");
    eventually("its task is reached", || nodes.curl("n1", &url));
    let state = || {
        let agents = nodes.get("/v1/view")["agents"].as_object().cloned().unwrap_or_default();
        let agent = agents.values().find(|agent| agent["info"]["hostname"] == nodes.network().address("n3"));
        agent.map(|agent| agent["state"].clone()).ok_or_else(|| format!("{agents:?}"))
    };
    assert_eq!(state(), Ok(json!("active")));
    nodes.network().cut("n3");
    eventually("it is given up", || {
        let reached = nodes.curl("n1", &url);
        equal(&state()?, &json!("unreachable")).map_err(|error| format!("{error}, {reached:?}"))
    });
}

/// A server outside of the cluster, which says who asks it. It ends when dropped.
struct Outside(Child);

impl Outside {
    fn start(network: &Network, host: &str) -> Self {
        let script = format!("{}/tests/e2e/apps/caller.py", env!("CARGO_MANIFEST_DIR"));
        let mut command = network.command(host, "python3");
        Self(command.arg(script).stdin(Stdio::null()).spawn().expect("python3 starts"))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn succeed(nodes: &Nodes, host: &str, program: &str, arguments: &str) -> String {
    let mut command = nodes.network().command(host, program);
    program::outcome(program, command.args(arguments.split(' ')).output()).success()
}

#[test]
#[ignore = "needs root"]
fn tasks_reach_the_outside_in_the_name_of_their_node() {
    let mut nodes = Nodes::start(&["n1", "n2", "outside"]);
    for (host, address) in [("n1", "fd77::2/64"), ("outside", "fd77::3/64")] {
        succeed(&nodes, host, "ip", &format!("addr add {address} dev eth0 nodad"));
    }
    let _outside = Outside::start(nodes.network(), "outside");
    let token = nodes.token(2);
    for node in ["n1", "n2"] {
        nodes.start_agent(node, Some(&token));
    }
    eventually("the agents are registered", || {
        let view = nodes.get("/v1/view");
        equal(&view["agents"].as_object().map_or(0, serde_json::Map::len), &2)
    });
    for node in ["n1", "n2"] {
        nodes.start_net_with(node, &[&OVERLAY[..], &["--overlay-masquerade", "on"]].concat());
    }
    nodes
        .mesonet(&["network", "create", "both", "--subnet", "10.128.0.0/16", "--subnet6", "fd00:1::/64"])
        .success();
    let outside = nodes.network().address("outside");
    let ask = format!(
        "ask() {{ until curl -gsf --max-time 5 \"http://$1:8000/\" > \"$2\"; do sleep 0.2; done; }}; \
         ask {outside} v4; ask '[fd77::3]' v6; exec python3 -m http.server --bind :: 9090"
    );
    nodes.deploy(&json!({
        "id": "/client", "cmd": ask, "cpus": 0.1, "mem": 32, "constraints": on(&nodes, "n1"),
        "networks": [{ "mode": "container", "name": "both" }],
        "container": { "type": "MESOS", "portMappings": [] },
    }));
    let client = address_of(&nodes, "client");
    let callers = [("v4", nodes.network().address("n1")), ("v6", "fd77::2".to_owned())];
    for (way, caller) in callers {
        eventually("the task is known by its node's address", || {
            equal(&nodes.curl("n1", &format!("http://{client}:9090/{way}"))?, &caller)
        });
    }

    a_task_on_the_bridge_is_translated(&nodes, &outside);

    let table = "list table inet mesonet";
    succeed(&nodes, "n1", "nft", "delete table inet mesonet");
    eventually("what somebody removed comes back", || {
        let mut list = nodes.network().command("n1", "nft");
        let outcome = program::outcome("nft", list.args(table.split(' ')).output());
        equal(&outcome.stdout.contains("masquerade comment \"translated from 172.31.254.0/24\""), &true)
    });
    let dir = nodes.host_dir("n1");
    let clean_up = ["net", "--cleanup", "--dir", &dir, "--bpffs", &dir];
    let clean_up = |nodes: &Nodes| {
        let mut command = nodes.network().command("n1", env!("CARGO_BIN_EXE_mesonet"));
        program::outcome("mesonet", command.args(clean_up).output())
    };
    let refusal = clean_up(&nodes).failure(1);
    assert!(refusal.contains("end it first"), "{refusal}");
    succeed(&nodes, "n1", "nft", table);
    nodes.stop("n1", "net");
    clean_up(&nodes).success();
    assert_eq!(succeed(&nodes, "n1", "nft", "list tables"), "");
}

/// A task on the bridge of node `n1` is known by that node's addresses: outside, and to a task of network `both` on `n2`.
#[track_caller]
fn a_task_on_the_bridge_is_translated(nodes: &Nodes, outside: &str) {
    let server = format!("exec python3 {}/tests/e2e/apps/caller.py", env!("CARGO_MANIFEST_DIR"));
    nodes.deploy(&json!({
        "id": "/server", "cmd": server, "cpus": 0.1, "mem": 32, "constraints": on(nodes, "n2"),
        "networks": [{ "mode": "container", "name": "both" }],
        "container": { "type": "MESOS", "portMappings": [] },
    }));
    let server = address_of(nodes, "server");
    let ask = format!(
        "ask() {{ until curl -gsf --max-time 5 \"http://$1:8000/\" > \"$2\"; do sleep 0.2; done; }}; \
         ask {outside} outside; ask {server} network; exec python3 -m http.server --bind :: 9090"
    );
    nodes.deploy(&json!({
        "id": "/bridged", "cmd": ask, "cpus": 0.1, "mem": 32, "constraints": on(nodes, "n1"),
        "networks": [{ "mode": "container/bridge" }],
        "container": { "type": "MESOS", "portMappings": [] },
    }));
    eventually("a task on the node's bridge is known by its node's address", || {
        equal(&nodes.curl("n1", "http://172.31.254.2:9090/outside")?, &nodes.network().address("n1"))
    });
    eventually("in networks, too", || {
        let known_by = nodes.curl("n1", "http://172.31.254.2:9090/network")?;
        let own = succeed(nodes, "n1", "ip", "-4 -o addr show dev mesonet-wg");
        let is_own = own.contains(&format!(" {known_by}/"));
        if is_own { Ok(()) } else { Err(format!("'{known_by}' is none of {own}")) }
    });
}

/// Constraints of an app that is to run on one host.
fn on(nodes: &Nodes, host: &str) -> Value {
    json!([["hostname", "LIKE", nodes.network().address(host)]])
}

/// The IPv4 address of the only task of an app.
#[track_caller]
fn address_of(nodes: &Nodes, app: &str) -> String {
    eventually("the task has an address", || {
        let tasks = nodes.get(&format!("/v2/apps/{app}/tasks"));
        let address = tasks["tasks"][0]["ipAddresses"][0]["ipAddress"].as_str().map(str::to_owned);
        address.ok_or_else(|| tasks.to_string())
    })
}
