//! VIPs for clients elsewhere: a node between them and the servers balances packets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Endpoint, EndpointKey, EndpointState,
    FrameworkId, Resources, Revision, Service, ServiceKey, ServicePolicy, TaskId, TaskKey, Timestamp,
};
use serde_json::Value;

use crate::harness::load::{Connections, Load};
use crate::harness::net_daemon::NetDaemon;
use crate::harness::network::Network;
use crate::harness::{cluster, equal, eventually, program};

/// How often the daemon is killed.
const KILLS: usize = 3;

/// The web at its virtual addresses.
const WEB: [&str; 2] = ["11.0.0.1", "[fd11::1]"];

/// The two servers of the web, at both addresses of their host.
const A: [&str; 2] = ["10.77.0.3:8001", "[fd77::3]:8001"];
const B: [&str; 2] = ["10.77.0.3:8002", "[fd77::3]:8002"];

/// Where the daemon in its namespace answers questions.
const API: &str = "http://127.0.0.1:9273";

/// A client, a node that balances for it, and a host with servers, whose addresses end in 1, 2 and 3.
struct Site {
    servers: Vec<Child>,
    dir: tempfile::TempDir,
    // Removed after the processes have ended.
    network: Network,
}

impl Site {
    fn new() -> Self {
        let network = Network::new(&["client", "node", "servers"]);
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let mut site = Self { servers: Vec::new(), dir, network };
        std::fs::create_dir(site.bpffs()).expect("a directory");
        program::run("mount", &["-t", "bpf", "bpf", text(&site.bpffs())]).success();
        for (host, number) in [("client", 1), ("node", 2), ("servers", 3)] {
            let address = format!("fd77::{number}/64");
            site.run(host, "ip", &["addr", "add", &address, "dev", "eth0", "nodad"]);
        }
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        site.run("node", "sh", &["-c", forward]);
        site.run("client", "ip", &["route", "add", "11.0.0.0/8", "via", "10.77.0.2"]);
        site.run("client", "ip", &["-6", "route", "add", "fd11::/16", "via", "fd77::2"]);
        for (name, port) in [("a", "8001"), ("b", "8002")] {
            let mut server = site.network.command("servers", "python3");
            server.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/apps/whoami.py"));
            server.envs([("MESOS_TASK_ID", name), ("HOST", "::"), ("PORT0", port), ("KEEP_ALIVE", "1")]);
            site.serve(server);
        }
        let mut server = site.network.command("servers", "iperf3");
        server.args(["--server", "--port", "8003"]);
        site.serve(server);
        site
    }

    fn serve(&mut self, mut command: Command) {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(command.spawn().expect("the server starts"));
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    fn view(&self) -> PathBuf {
        self.dir.path().join("view.json")
    }

    /// Has the daemon hear of another view: whoever serves the web, and services that stay as they are.
    fn show(&self, revision: u64, web: &[([&str; 2], EndpointState)]) {
        self.show_with(ServicePolicy::default(), revision, web);
    }

    /// The same with a policy of all services.
    fn show_with(&self, policy: ServicePolicy, revision: u64, web: &[([&str; 2], EndpointState)]) {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        view.revision = Revision(revision);
        view.agents.extend([agent("node", 2), agent("servers", 3)]);
        let ready = |at: [&'static str; 2]| vec![(at, EndpointState::Ready)];
        let others = [
            ("tcp/bulk@marathon:5201", 2, ready(["10.77.0.3:8003", "[fd77::3]:8003"])),
            ("udp/bulk@marathon:5201", 2, ready(["10.77.0.3:8003", "[fd77::3]:8003"])),
            ("tcp/dns@marathon:53", 3, ready(["10.77.0.2:8053", "[fd77::3]:8053"])),
            ("udp/dns@marathon:53", 3, ready(["10.77.0.2:8053", "[fd77::3]:8053"])),
        ];
        for (key, vip, endpoints) in [("tcp/web@marathon:80", 1, web.to_vec())].into_iter().chain(others) {
            let key: ServiceKey = key.parse().expect("a key");
            let ipv6 = [0xfd11, 0, 0, 0, 0, 0, 0, vip.into()].into();
            let service = Service {
                ipv4: Some([11, 0, 0, vip].into()),
                ipv6: Some(ipv6),
                policy,
                ..Service::new(key.clone())
            };
            view.services.insert(key.clone(), Arc::new(service));
            for (at, state) in endpoints.iter().flat_map(|(at, state)| at.map(|at| (at, *state))) {
                let address = at.parse().expect("an address");
                let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(at));
                let endpoint = Endpoint::new(AgentId::new("servers"), state, 1);
                view.endpoints
                    .insert(EndpointKey { service: key.clone(), task, address }, Arc::new(endpoint));
            }
        }
        let text = serde_json::to_string(&view).expect("JSON");
        let new = self.dir.path().join("new.json");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.view()).expect("renamed");
    }

    /// What a daemon in a host's namespace has counted of packets for the web.
    fn counted(&self, host: &str, direction: &str) -> Result<u64, String> {
        let mut command = self.network.command(host, "curl");
        let output =
            command.args(["-sS", "--max-time", "10", "--noproxy", "*", &format!("{API}/metrics")]).output();
        let metrics = program::outcome("curl", output).stdout;
        let name = format!(
            "mesonet_lb_packet_translations_total{{direction=\"{direction}\",service=\"tcp/web@marathon:80\"}} "
        );
        let series =
            metrics.lines().filter_map(|line| line.rsplit_once(' ').filter(|_| !line.starts_with('#')));
        let mut seen = BTreeSet::new();
        let repeated: Vec<_> = series.filter(|(series, _)| !seen.insert(*series)).collect();
        assert!(repeated.is_empty(), "each is there once: {repeated:?}");
        let number = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
        number.ok_or_else(|| format!("no {name} in {metrics}"))
    }

    /// The program on the node.
    fn mesonet(&self) -> Command {
        self.mesonet_on("node")
    }

    fn mesonet_on(&self, host: &str) -> Command {
        self.network.command(host, text(Path::new(cluster::mesonet().get_program())))
    }

    #[track_caller]
    fn run(&self, host: &str, name: &str, arguments: &[&str]) -> String {
        let mut command = self.network.command(host, name);
        program::outcome(name, command.args(arguments).stdin(Stdio::null()).output()).success()
    }

    /// Asks the web as the client. Who has answered, or the exit status of curl.
    fn ask(&self, vip: &str, arguments: &[&str]) -> Result<String, Option<i32>> {
        let mut command = self.network.command("client", "curl");
        let url = format!("http://{vip}/");
        let quiet = ["-sS", "--max-time", "20", "--noproxy", "*"];
        let output = command.args(quiet).args(arguments).arg(url).output().expect("curl");
        if !output.status.success() {
            return Err(output.status.code());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Waits until exactly these servers answer.
    #[track_caller]
    fn wait_for(&self, vip: &str, servers: &[&str]) {
        let wanted: Vec<String> = servers.iter().map(|&name| name.to_owned()).collect();
        eventually(&format!("{servers:?} answer at {vip}"), || {
            let answers: Result<Vec<String>, _> = (0..20).map(|_| self.ask(vip, &[])).collect();
            let mut seen = answers.map_err(|code| format!("curl ends with {code:?}"))?;
            seen.sort();
            seen.dedup();
            equal(&seen, &wanted)
        });
    }

    /// Sends 20 MB, and datagrams, and gets them back.
    #[track_caller]
    fn sends_bulk(&self, vip: &str) {
        let tcp = ["--bytes", "20M"];
        for arguments in
            [&tcp[..], &["--bytes", "20M", "--reverse"], &["--udp", "--bytes", "1M", "--bitrate", "50M"]]
        {
            eventually(&format!("iperf3 {arguments:?} to {vip}"), || {
                let mut command = self.network.command("client", "iperf3");
                command.args(["--client", vip, "--connect-timeout", "5000"]).args(arguments);
                // A server that has not heard of the end of the client before is busy.
                let outcome = program::outcome("iperf3", command.output());
                if outcome.code == Some(0) { Ok(()) } else { Err(format!("{outcome:?}")) }
            });
        }
    }

    /// Names that are asked for through a VIP, in front of the node's own name server and of one elsewhere.
    #[track_caller]
    fn resolves_names(&self) {
        for vip in ["@11.0.0.3", "@fd11::3"] {
            for transport in ["+notcp", "+tcp"] {
                let answer = self.run("client", "dig", &[vip, transport, "+tries=5", "ns1.mesos"]);
                assert!(answer.contains("status: NOERROR"), "{answer}");
            }
        }
    }

    /// What the daemon says of a connection is what becomes of it, whatever its port.
    #[track_caller]
    fn explains_connections(&self) {
        // A port is not used twice, since the client waits with it for late packets.
        for (vip, client, servers, ports) in [
            (WEB[0], "10.77.0.1", [(A[0], "a"), (B[0], "b")], 20_001..20_006),
            (WEB[1], "[fd77::1]", [(A[1], "a"), (B[1], "b")], 20_101..20_106),
        ] {
            for port in ports {
                let (from, to) = (format!("{client}:{port}"), format!("{vip}:80"));
                let mut command = self.mesonet();
                command.args(["explain", "--api", API, "--json", &from, "->", &to]);
                let told = program::outcome("mesonet explain", command.output()).success();
                let told: Value = serde_json::from_str(&told).expect("JSON");
                assert_eq!(
                    (&told["carrier"]["name"], &told["packet"]["verdict"]),
                    (&"packets".into(), &"goes".into())
                );
                assert_eq!(told["choice"]["address"], told["packet"]["to"], "{told}");
                let (_, name) =
                    servers.iter().find(|(at, _)| told["packet"]["to"] == *at).expect("an endpoint");
                let answer = self.ask(vip, &["--local-port", &port.to_string()]);
                assert_eq!(answer.as_deref(), Ok(*name), "{told}");
            }
        }
        let mut command = self.mesonet();
        command.args(["route", "list", "--api", API]);
        let listed = program::outcome("mesonet route list", command.output()).success();
        assert!(listed.contains("packets:  tc at eth0: "), "{listed}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = Command::new("umount").args(["--lazy", text(&self.bpffs())]).output();
    }
}

/// A node whose addresses end in a number.
fn agent(name: &str, number: u16) -> (AgentId, Arc<Agent>) {
    let info = AgentInfo {
        hostname: name.to_owned(),
        address: [10, 77, 0, number as u8].into(),
        port: 5051,
        resources: Resources::default(),
        attributes: Vec::new(),
        container_networks: false,
    };
    let agent = Agent {
        id: AgentId::new(name),
        info,
        other_addresses: vec![[0xfd77, 0, 0, 0, 0, 0, 0, number].into()],
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::from_millis(0),
    };
    (agent.id.clone(), Arc::new(agent))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
#[ignore = "needs root"]
fn clients_elsewhere_reach_vips_through_a_node() {
    use EndpointState::{Draining, Ready};
    let site = Site::new();
    site.show(1, &[(A, Ready), (B, Ready)]);
    let (source, bpffs) = (format!("file:{}", site.view().display()), site.bpffs());
    let arguments = [
        ["--dns", "10.77.0.2:8053"],
        ["--dns-http", "127.0.0.1:0"],
        ["--http", "127.0.0.1:9273"],
        ["--source", &source],
        ["--datapath", "proxy"],
        ["--packet-interface", "eth0"],
        ["--bpffs", text(&bpffs)],
    ];
    let arguments = arguments.concat();
    let mut net = NetDaemon::start_by(site.mesonet(), &arguments);
    let names = ["--dns", "[fd77::3]:8053", "--dns-http", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let names = [&names[..], &["--source", &source, "--datapath", "none"]].concat();
    let _names = NetDaemon::start_by(site.mesonet_on("servers"), &names);
    for vip in WEB {
        site.wait_for(vip, &["a", "b"]);
    }
    site.explains_connections();
    for vip in ["11.0.0.2", "fd11::2"] {
        site.sends_bulk(vip);
    }
    site.resolves_names();

    // A daemon that is killed and comes back, and an endpoint that drains, fail no request.
    let kinds = [Connections::New, Connections::Kept];
    let start = |vip| kinds.map(|kind| Load::start_steady(&site.network, "client", vip, kind));
    let loads = WEB.map(start);
    for _ in 0..KILLS {
        net.crash_and_start(site.mesonet(), &arguments);
        assert!(site.ask(WEB[0], &[]).is_ok(), "the kernel goes on by itself");
    }
    site.show(2, &[(A, Draining), (B, Ready)]);
    for vip in WEB {
        site.wait_for(vip, &["b"]);
    }
    loads.into_iter().flatten().for_each(Load::finish_without_failure);

    // A dead endpoint gets nothing, and who asks for nobody is told at once.
    site.show(3, &[(A, Ready)]);
    for vip in WEB {
        site.wait_for(vip, &["a"]);
    }
    site.show(4, &[]);
    const REFUSED: Option<i32> = Some(7);
    for vip in WEB {
        eventually("clients are refused", || equal(&site.ask(vip, &[]), &Err(REFUSED)));
    }

    // Who does not balance packets leaves nobody else to do it.
    net.end();
    let left = || std::fs::read_dir(bpffs.join("mesonet")).map_or(0, |left| left.count());
    assert_ne!(left(), 0, "the kernel goes on");
    let without = [&arguments[..arguments.len() - 4], &["--bpffs", text(&bpffs)]].concat();
    let net = NetDaemon::start_by(site.mesonet(), &without);
    assert_eq!(left(), 0, "everything is removed");
    assert!(net.log().contains("Took the programs for packets away"), "{}", net.log());
}

#[test]
#[ignore = "needs root"]
fn servers_answer_clients_directly_where_their_service_asks_for_it() {
    let site = Site::new();
    let policy = ServicePolicy { direct_return: true, ..ServicePolicy::default() };
    site.show_with(policy, 1, &[(A, EndpointState::Ready), (B, EndpointState::Ready)]);
    let (source, bpffs) = (format!("file:{}", site.view().display()), site.bpffs());
    // Hosts of the test share the file system.
    let own = ["node", "servers"].map(|host| bpffs.join(host));
    let [node, servers] = &own;
    let arguments = |pins: &PathBuf| {
        let pins = text(pins).to_owned();
        let settings = ["--dns", "127.0.0.1:0", "--dns-http", "127.0.0.1:0", "--http", "127.0.0.1:9273"];
        // Nothing but packets is balanced, as nothing else is asked for.
        let packets = ["--source", &source, "--packet-interface", "eth0", "--bpffs"];
        [&settings[..], &packets].concat().into_iter().map(str::to_owned).chain([pins]).collect::<Vec<_>>()
    };
    let start = |host: &str, pins: &PathBuf| {
        let arguments = arguments(pins);
        NetDaemon::start_by(site.mesonet_on(host), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let daemons = [start("node", node), start("servers", servers)];
    for vip in WEB {
        site.wait_for(vip, &["a", "b"]);
    }
    let loads = WEB.map(|vip| Load::start_steady(&site.network, "client", vip, Connections::Kept));
    for vip in ["11.0.0.2", "fd11::2"] {
        site.sends_bulk(vip);
    }
    loads.into_iter().for_each(Load::finish_without_failure);
    for (host, direction, is_counted) in
        [("node", "in", true), ("node", "out", false), ("servers", "in", true), ("servers", "out", true)]
    {
        let counted = site.counted(host, direction).expect("it is counted");
        assert_eq!(counted > 0, is_counted, "{host} {direction}: {counted}");
    }
    let mut command = site.mesonet();
    let output = command.args(["explain", "--api", API, "10.77.0.1:20001", "11.0.0.1:80"]).output();
    let told = program::outcome("mesonet explain", output).success();
    assert!(told.contains("answers it directly"), "{told}");
    drop(daemons);
    for pins in &own {
        let mut command = site.mesonet();
        program::outcome("mesonet net", command.args(["net", "--cleanup", "--bpffs", text(pins)]).output())
            .success();
        let left = std::fs::read_dir(pins.join("mesonet")).map_or(0, |left| left.count());
        assert_eq!(left, 0, "everything is removed");
    }
}
