//! The CNI plugin, called as a runtime calls it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::network::Network;
use crate::harness::{Nodes, cluster, equal, eventually, program};

/// A node, without daemons, and two containers that lack an interface.
struct Runtime {
    network: Network,
    directory: tempfile::TempDir,
}

impl Runtime {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let node = directory.path().join("node");
        fs::create_dir_all(node.join("agent/meta")).expect("directory");
        fs::write(node.join("agent/meta/agent"), "\"agent-1\"").expect("written");
        let parts = json!({ "both": ["10.128.1.0/29", "fd00:1:0:0:1::/80"] });
        let view = json!({ "format": 1, "view": { "subnets": { "agent-1": parts } } });
        fs::write(node.join("view.json"), view.to_string()).expect("written");
        symlink(cluster::mesonet().get_program(), directory.path().join("mesonet-cni")).expect("linked");
        Self { network: Network::new(&["node", "a", "b"]), directory }
    }

    fn node(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "mesonet-cni",
            "network": "both", "dir": self.node(), "nameServer": "198.51.100.1",
        })
    }

    /// What the plugin says to a command about a container.
    fn call(&self, command: &str, container: &str, config: &Value) -> (Option<i32>, Value) {
        let plugin = self.directory.path().join("mesonet-cni");
        let mut called = self.network.command("node", plugin.to_str().expect("UTF-8"));
        called.env("CNI_COMMAND", command).env("CNI_PATH", self.directory.path());
        if !container.is_empty() {
            called.env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth1");
            called.env("CNI_NETNS", self.network.file(container));
        }
        let outcome = program::run_with_input(&mut called, &config.to_string());
        let said = if outcome.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&outcome.stdout).expect("JSON")
        };
        (outcome.code, said)
    }

    #[track_caller]
    fn done(&self, command: &str, container: &str, config: &Value) -> Value {
        let (code, said) = self.call(command, container, config);
        assert_eq!(code, Some(0), "{command} {container}: {said}");
        said
    }

    #[track_caller]
    fn refused(&self, command: &str, container: &str, config: &Value) -> (Value, String) {
        let (code, said) = self.call(command, container, config);
        assert_eq!(code, Some(1), "{command} {container}: {said}");
        assert_eq!(said["cniVersion"], "1.1.0");
        (said["code"].clone(), said["msg"].as_str().expect("a text").to_owned())
    }

    /// Whether a command succeeds on a host.
    fn ip(&self, host: &str, arguments: &str) -> bool {
        let mut command = self.network.command(host, "ip");
        program::outcome("ip", command.args(arguments.split(' ')).output()).code == Some(0)
    }

    /// The first packet may be lost, because the kernel takes interfaces into use on its own time.
    #[track_caller]
    fn assert_reaches(&self, host: &str, address: &str) {
        eventually("an address answers", || {
            let mut command = self.network.command(host, "ping");
            let outcome = program::outcome("ping", command.args(["-c", "1", "-W", "1", address]).output());
            equal(&outcome.code, &Some(0))
        });
    }
}

fn with(config: &Value, name: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[name] = value;
    config
}

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().expect("addresses");
    ips.iter().filter_map(|ip| ip["address"].as_str()).collect()
}

#[test]
#[ignore = "needs root"]
fn a_runtime_gives_containers_interfaces_and_takes_them_back() {
    let runtime = Runtime::new();
    let config = runtime.config();
    assert_eq!(runtime.done("STATUS", "", &config), Value::Null);
    let first = runtime.done("ADD", "a", &config);
    let port = first["interfaces"][1]["name"].as_str().expect("a name").to_owned();
    let mac = first["interfaces"][2]["mac"].as_str().expect("an address on the wire").to_owned();
    let mut link = runtime.network.command("a", "ip");
    let link = program::outcome("ip", link.args(["link", "show", "dev", "eth1"]).output()).success();
    assert!(link.contains(&format!("link/ether {mac} ")), "{mac}: {link}");
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "m-both" },
            { "name": port },
            { "name": "eth1", "sandbox": runtime.network.file("a"), "mac": mac, "mtu": 1420 },
        ],
        "ips": [
            { "address": "10.128.1.2/29", "gateway": "10.128.1.1", "interface": 2 },
            { "address": "fd00:1::1:0:0:2/80", "gateway": "fd00:1::1:0:0:1", "interface": 2 },
        ],
        "routes": [
            { "dst": "0.0.0.0/0", "gw": "10.128.1.1" },
            { "dst": "::/0", "gw": "fd00:1::1:0:0:1" },
        ],
        "dns": { "nameservers": ["198.51.100.1"] },
    });
    assert_eq!(first, expected);
    let second = runtime.done("ADD", "b", &with(&config, "cniVersion", json!("1.0.0")));
    assert_eq!(second["cniVersion"], "1.0.0");
    assert_eq!(addresses(&second), ["10.128.1.3/29", "fd00:1::1:0:0:3/80"]);
    for address in ["10.128.1.3", "fd00:1::1:0:0:3", "10.128.1.1"] {
        runtime.assert_reaches("a", address);
    }
    runtime.assert_reaches("node", "10.128.1.2");
    let (code, message) = runtime.refused("ADD", "a", &config);
    assert_eq!(
        (code, message.as_str()),
        (json!(100), "container 'a' has the interface 'eth1' from this node")
    );

    for _ in 0..2 {
        assert_eq!(runtime.done("DEL", "a", &config), Value::Null);
    }
    assert!(!runtime.ip("a", "link show dev eth1"), "the interface is gone");
    assert!(runtime.ip("node", "link show dev m-both"), "the bridge is in use");
    let again = runtime.done("ADD", "a", &config);
    assert_eq!(addresses(&again)[0], "10.128.1.4/29", "not the address that was just given back");
    for container in ["a", "b"] {
        runtime.done("DEL", container, &config);
    }
    assert!(!runtime.ip("node", "link show dev m-both"), "the bridge has gone with the last one");
}

#[test]
#[ignore = "needs root"]
fn what_is_not_as_it_was_made_is_found_and_what_nobody_has_is_collected() {
    let runtime = Runtime::new();
    let config = runtime.config();
    let result = runtime.done("ADD", "a", &config);
    let other = runtime.done("ADD", "b", &with(&config, "name", json!("other")));
    let checked = with(&config, "prevResult", result);
    assert_eq!(runtime.done("CHECK", "a", &checked), Value::Null);
    let (code, message) = runtime.refused("CHECK", "a", &with(&config, "prevResult", other));
    assert_eq!((code, message.as_str()), (json!(102), "prevResult does not have the address 10.128.1.2/29"));
    assert!(runtime.ip("a", "address del 10.128.1.2/29 dev eth1"));
    let (code, message) = runtime.refused("CHECK", "a", &checked);
    assert_eq!((code, message.as_str()), (json!(102), "the interface eth1 lacks 10.128.1.2/29"));

    let valid = |valid: Value| with(&config, "cni.dev/valid-attachments", valid);
    runtime.done("GC", "", &valid(json!([{ "containerID": "a", "ifname": "eth1" }])));
    assert!(runtime.ip("a", "link show dev eth1"), "it is wanted");
    runtime.done("GC", "", &valid(json!([])));
    assert!(!runtime.ip("a", "link show dev eth1"), "nobody wants it");
    assert!(runtime.ip("b", "link show dev eth1"), "it is of another network");
    assert_eq!(runtime.refused("CHECK", "a", &checked).0, 3);
}

#[test]
#[ignore = "needs root"]
fn a_container_that_cannot_have_an_interface_leaves_nothing() {
    let runtime = Runtime::new();
    let config = runtime.config();
    let written = || -> Vec<String> {
        let entries = fs::read_dir(runtime.node().join("agent/cni")).expect("list");
        let names = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains('@')).collect()
    };
    assert_eq!(runtime.refused("ADD", "nowhere", &config).0, 3, "there is no such namespace");
    assert!(runtime.ip("a", "link add eth1 type bridge"));
    assert_eq!(runtime.refused("ADD", "a", &config).0, 100, "the container has an interface of the name");
    let (code, message) = runtime.refused("ADD", "b", &with(&config, "network", json!("other")));
    assert_eq!((code, message.as_str()), (json!(11), "this node has no part of network 'other'"));
    assert_eq!(runtime.refused("STATUS", "", &with(&config, "network", json!("other"))).0, 50);
    assert_eq!(written(), Vec::<String>::new());
    assert!(!runtime.ip("node", "link show dev m-both"));
    assert!(runtime.ip("a", "link show dev eth1"), "what is somebody else's stays");
    fs::write(Path::new(&runtime.node()).join("view.json"), "{\"format\":1,").expect("written");
    assert_eq!(runtime.refused("STATUS", "", &config).0, 50, "what is no view is told");
    runtime.done("DEL", "a", &config);
}

#[test]
#[ignore = "needs root"]
fn the_cluster_knows_of_containers_that_have_joined() {
    let mut nodes = Nodes::start_patient(&["n1", "box"]);
    nodes.start_agents(&["n1"]);
    nodes.start_net("n1");
    nodes.mesonet(&["network", "create", "tiny", "--subnet", "10.140.0.0/28", "--prefix", "30"]).success();
    let dir = nodes.host_dir("n1");
    let plugin = format!("{dir}/mesonet-cni");
    symlink(cluster::mesonet().get_program(), &plugin).expect("linked");
    let config =
        json!({ "cniVersion": "1.1.0", "name": "net", "type": "mesonet-cni", "network": "tiny", "dir": dir });
    let call = |command: &str| {
        let mut called = nodes.network().command("n1", &plugin);
        called.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "f00").env("CNI_IFNAME", "eth1");
        called.env("CNI_NETNS", nodes.network().file("box"));
        program::run_with_input(&mut called, &config.to_string())
    };
    let address = eventually("the node has its part of the network", || {
        let outcome = call("ADD");
        let said: Value = serde_json::from_str(&outcome.stdout).map_err(|error| error.to_string())?;
        said["ips"][0]["address"].as_str().map(str::to_owned).ok_or_else(|| said.to_string())
    });
    let used = || {
        let shown = nodes.get("/v1/networks/tiny");
        (shown["containers"].clone(), shown["free"].clone())
    };
    eventually("it is counted", || equal(&used(), &(json!(1), json!(0))));
    let bare = address.trim_end_matches("/30");
    assert_eq!(
        nodes.mesonet(&["explain", bare]).success().trim(),
        format!(
            "{bare} is a container that has joined by CNI: id f00, interface eth1, in network tiny on node n1"
        )
    );
    let refused = nodes.mesonet(&["network", "remove", "tiny"]).failure(1);
    assert!(refused.contains("1 containers of other runtimes"), "{refused}");
    let app = json!({
        "id": "/late", "cmd": "exec sleep 3600", "cpus": 0.1, "mem": 32,
        "networks": [{ "mode": "container", "name": "tiny" }],
    });
    let (body, json_type) = (app.to_string(), "Content-Type: application/json");
    let mut post = nodes.network().command("master", "curl");
    let post = post.args(["-sf", "--noproxy", "*", "-H", json_type, "-d", &body, "127.0.0.1:8080/v2/apps"]);
    program::outcome("curl", post.output()).success();
    eventually("a task waits for an address", || {
        let queue = nodes.get("/v2/queue");
        let reasons = queue["queue"][0]["processedOffersSummary"]["rejectSummaryLastOffers"].clone();
        let is_why = |each: &Value| each["reason"] == "InsufficientAddresses" && each["declined"] == 1;
        let is_said = reasons.as_array().is_some_and(|reasons| reasons.iter().any(is_why));
        if is_said { Ok(()) } else { Err(queue.to_string()) }
    });
    assert_eq!(call("DEL").code, Some(0));
    eventually("and has it then", || equal(&nodes.tasks("/late").len(), &1));
    eventually("others are not counted any more", || equal(&used(), &(json!(0), json!(0))));
}
