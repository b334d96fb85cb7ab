//! A cluster of many nodes: masters and nodes with agent and network daemon, each process on its own host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::app::Identity;
use super::cluster::{find_service, mesonet};
use super::network::Network;
use super::writer::Writer;
use super::{Outcome, equal, eventually, process, program};

/// The host of the only master.
pub const MASTER: &str = "master";

/// The hosts of three masters, each with a member of the etcd that keeps their state.
pub const MASTERS: [&str; 3] = ["m1", "m2", "m3"];

/// etcd's ports for clients and for its other members, its defaults.
const ETCD_CLIENT_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// An argument of masters that is short here unless a test says otherwise.
pub const UNREACHABLE_AFTER: &str = "--unreachable-after";

/// Soon, because tests wait for it.
const SILENCE: &str = "4s";

/// Longer than any process of a busy machine stands still.
const LONG_SILENCE: &str = "60s";

/// Lines of each log that a failed test shows.
const LOG_TAIL: usize = 30;

/// The cluster. When dropped, all that it has started is ended and its network removed; an error in a log fails the
/// test.
pub struct Nodes {
    masters: &'static [&'static str],
    /// For how long master and nodes may hear nothing of each other.
    silence: &'static str,
    processes: BTreeMap<(String, &'static str), Child>,
    dir: TempDir,
    // Dropped after the processes have ended.
    network: Network,
}

impl Nodes {
    /// Makes a cluster with a running master and these hosts, on which nothing runs yet.
    #[track_caller]
    pub fn start(hosts: &[&str]) -> Self {
        Self::start_with(hosts, &[])
    }

    /// The same with further arguments of the master.
    #[track_caller]
    pub fn start_with(hosts: &[&str], arguments: &[&str]) -> Self {
        let mut nodes = Self::bare(&[MASTER], hosts);
        nodes.start_master_with(MASTER, arguments);
        nodes
    }

    /// The same for a test in which nobody may lose a connection because the machine is busy.
    #[track_caller]
    pub fn start_patient(hosts: &[&str]) -> Self {
        Self::start_patient_with(hosts, &[])
    }

    /// The same with further arguments of the master.
    #[track_caller]
    pub fn start_patient_with(hosts: &[&str], arguments: &[&str]) -> Self {
        let mut nodes = Self::bare(&[MASTER], hosts);
        nodes.silence = LONG_SILENCE;
        nodes.start_master_with(MASTER, arguments);
        nodes
    }

    /// The same with three masters and three members of etcd.
    #[track_caller]
    pub fn start_on_etcd(hosts: &[&str]) -> Self {
        let mut nodes = Self::bare(&MASTERS, hosts);
        for host in &MASTERS[1..] {
            nodes.copy_authority(host);
        }
        MASTERS.into_iter().for_each(|host| nodes.launch_etcd(host));
        MASTERS.into_iter().for_each(|host| nodes.wait_for_etcd(host));
        MASTERS.into_iter().for_each(|host| nodes.start_master(host));
        nodes
    }

    #[track_caller]
    fn bare(masters: &'static [&'static str], hosts: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let network = Network::new(&[masters, hosts].concat());
        let nodes = Self { masters, silence: SILENCE, processes: BTreeMap::new(), dir, network };
        let dir = nodes.host_dir(masters[0]);
        nodes.clean_mesonet(masters[0], &["init", "--dir", &dir]).success();
        nodes
    }

    /// Brings the first master's authority to another.
    #[track_caller]
    fn copy_authority(&self, host: &str) {
        let from = format!("{}/authority", self.host_dir(self.masters[0]));
        let to = self.host_dir(host);
        std::fs::create_dir(&to).expect("directory");
        program::run("cp", &["-a", &from, &to]).success();
    }

    /// Starts a member of etcd.
    #[track_caller]
    pub fn start_etcd(&mut self, host: &'static str) {
        self.launch_etcd(host);
        self.wait_for_etcd(host);
    }

    #[track_caller]
    fn launch_etcd(&mut self, host: &'static str) {
        let url = |host: &str, port: u16| format!("http://{}:{port}", self.network.address(host));
        let members: Vec<String> =
            self.masters.iter().map(|host| format!("{host}={}", url(host, ETCD_PEER_PORT))).collect();
        let (clients, peers) = (url(host, ETCD_CLIENT_PORT), url(host, ETCD_PEER_PORT));
        let data = format!("{}/etcd", self.host_dir(host));
        let mut command = self.network.command(host, "etcd");
        command.args(["--name", host, "--data-dir", &data, "--initial-cluster", &members.join(",")]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--logger", "zap", "--log-level", "error"]);
        self.spawn(host, "etcd", &mut command);
    }

    #[track_caller]
    fn wait_for_etcd(&self, host: &str) {
        let url = format!("http://{}:{ETCD_CLIENT_PORT}/health", self.network.address(host));
        eventually("etcd is healthy", || {
            let health = self.curl(host, &url)?;
            if health.contains("\"true\"") { Ok(()) } else { Err(health) }
        });
    }

    /// Starts a master.
    #[track_caller]
    pub fn start_master(&mut self, host: &'static str) {
        self.start_master_with(host, &[]);
    }

    #[track_caller]
    fn start_master_with(&mut self, host: &'static str, further: &[&str]) {
        let dir = self.host_dir(host);
        let mut arguments = [&["--dir", &dir, "--node-timeout", self.silence], further].concat();
        if !further.contains(&UNREACHABLE_AFTER) {
            arguments.extend([UNREACHABLE_AFTER, "2s"]);
        }
        let (endpoints, address) = (self.etcd_endpoints(), self.network.address(host));
        if self.masters.len() > 1 {
            // Others reach its API, and so it listens on more than loopback.
            arguments.extend(["--store", "etcd", "--etcd", &endpoints, "--name", host]);
            arguments.extend(["--http", "0.0.0.0:8080", "--address", &address]);
        }
        self.launch(host, "master", &arguments);
        eventually("the master is ready", || {
            self.curl(host, "http://127.0.0.1:8080/v1/health/ready").map(drop)
        });
    }

    fn etcd_endpoints(&self) -> String {
        let members = self.masters.iter();
        let urls = members.map(|host| format!("http://{}:{ETCD_CLIENT_PORT}", self.network.address(host)));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Runs a command on the authority, with the settings of a master that runs.
    #[track_caller]
    fn with_authority(&self, arguments: &[&str]) -> Outcome {
        let (dir, endpoints) = (self.host_dir(self.speaker()), self.etcd_endpoints());
        let store: &[&str] =
            if self.masters.len() > 1 { &["--store", "etcd", "--etcd", &endpoints] } else { &[] };
        self.mesonet(&[arguments, &["--dir", &dir], store].concat())
    }

    /// The host of the master that leads.
    #[track_caller]
    pub fn leader(&self) -> &'static str {
        eventually("a master leads", || {
            let answer = self.curl(self.speaker(), "http://127.0.0.1:8080/v2/leader")?;
            let is_at = |host: &&&str| answer.contains(&format!("{}:", self.network.address(host)));
            self.masters.iter().find(is_at).copied().ok_or(answer)
        })
    }

    /// Starts to write apps from a host, to one master after the other.
    #[track_caller]
    pub fn start_writer(&self, host: &str) -> Writer {
        let masters = self.masters.iter().map(|master| format!("{}:8080", self.network.address(master)));
        Writer::start(&self.network, host, &masters.collect::<Vec<_>>(), self.dir.path())
    }

    /// The hosts of the masters.
    pub fn masters(&self) -> &'static [&'static str] {
        self.masters
    }

    /// A host whose master runs.
    #[track_caller]
    pub fn speaker(&self) -> &'static str {
        let runs = |host: &&str| self.processes.contains_key(&((**host).to_owned(), "master"));
        self.masters.iter().copied().find(runs).unwrap_or(self.masters[0])
    }

    /// A token for nodes to join with.
    #[track_caller]
    pub fn token(&self, uses: u32) -> String {
        self.token_for(uses, "10m")
    }

    /// A token that is valid for so long.
    #[track_caller]
    pub fn token_for(&self, uses: u32, time: &str) -> String {
        let uses = uses.to_string();
        let made = self.with_authority(&["join-token", "create", "--ttl", time, "--uses", &uses]);
        made.success().trim().to_owned()
    }

    /// A token of a cluster that is none of this one's.
    #[track_caller]
    pub fn token_of_another_cluster(&self) -> String {
        let dir = self.host_dir("another-cluster");
        self.mesonet(&["init", "--dir", &dir]).success();
        self.mesonet(&["join-token", "create", "--dir", &dir]).success().trim().to_owned()
    }

    /// Declares a node's certificates void.
    #[track_caller]
    pub fn revoke(&self, node: &str) {
        self.try_revoke(node).success();
    }

    /// The same with a node that there may not be.
    #[track_caller]
    pub fn try_revoke(&self, node: &str) -> Outcome {
        self.with_authority(&["node", "revoke", node])
    }

    /// Starts the agents of hosts that join, and waits until all are registered.
    #[track_caller]
    pub fn start_agents(&mut self, hosts: &[&str]) {
        let token = self.token(u32::try_from(hosts.len()).expect("few"));
        hosts.iter().for_each(|host| self.start_agent(host, Some(&token)));
        eventually("every agent is registered", || {
            let agents = self.get("/v1/view")["agents"].as_object().map_or(0, serde_json::Map::len);
            equal(&agents, &hosts.len())
        });
    }

    /// Starts a host's agent; with a token, it can join.
    #[track_caller]
    pub fn start_agent(&mut self, host: &str, token: Option<&str>) {
        // Far more than the tests use, so that no app waits for room on a small machine.
        let fixed = ["--node", host, "--cpus", "8", "--mem", "4096", "--disk", "4096"];
        let join = token.map_or_else(Vec::new, |token| vec!["--join", token]);
        self.launch_daemon(host, "agent", &[&fixed[..], &join].concat());
    }

    /// Starts the agent of a host that has joined, with another time than the machine's.
    #[track_caller]
    pub fn start_agent_at(&mut self, clock: &str, host: &str) {
        let (dir, masters) = (self.host_dir(host), self.master_addresses());
        let mut command = self.at_clock(clock, host);
        command.args(["agent", "--dir", &dir, "--master", &masters, "--node", host]);
        command.args(["--master-timeout", self.silence, "--log-format", "json"]);
        self.spawn(host, "agent", &mut command);
    }

    /// Starts the network daemon of a host without agent.
    #[track_caller]
    pub fn start_net_alone(&mut self, host: &str, token: &str) {
        self.launch_daemon(host, "net", &["--stale-after", "2s", "--node", host, "--join", token]);
    }

    /// Starts a host's network daemon.
    #[track_caller]
    pub fn start_net(&mut self, host: &str) {
        self.start_net_with(host, &[]);
    }

    /// The same with further arguments.
    #[track_caller]
    pub fn start_net_with(&mut self, host: &str, arguments: &[&str]) {
        self.launch_daemon(host, "net", &[&["--stale-after", "2s"], arguments].concat());
    }

    #[track_caller]
    fn launch_daemon(&mut self, host: &str, role: &'static str, arguments: &[&str]) {
        let dir = self.host_dir(host);
        let masters = self.master_addresses();
        let common = ["--dir", &dir, "--master", &masters, "--master-timeout", self.silence];
        self.launch(host, role, &[&common, arguments].concat());
    }

    /// Where nodes reach the masters.
    fn master_addresses(&self) -> String {
        let addresses = self.masters.iter().map(|host| format!("{}:7070", self.network.address(host)));
        addresses.collect::<Vec<_>>().join(",")
    }

    #[track_caller]
    fn launch(&mut self, host: &str, role: &'static str, arguments: &[&str]) {
        let mut command = self.clean(host, env!("CARGO_BIN_EXE_mesonet"));
        command.arg(role).args(arguments).args(["--log-format", "json"]);
        self.spawn(host, role, &mut command);
    }

    #[track_caller]
    fn spawn(&mut self, host: &str, role: &'static str, command: &mut Command) {
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_path(host, role)).expect("log file");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let before = self.processes.insert((host.to_owned(), role), child.expect("the program starts"));
        assert!(before.is_none(), "{role} of {host} runs already");
    }

    /// Kills a process as a power cut would.
    #[track_caller]
    pub fn kill(&mut self, host: &str, role: &'static str) {
        self.end(host, role, Signal::KILL);
    }

    /// Stops a process as a service manager would.
    #[track_caller]
    pub fn stop(&mut self, host: &str, role: &'static str) {
        self.end(host, role, Signal::TERM);
    }

    #[track_caller]
    fn end(&mut self, host: &str, role: &'static str, signal: Signal) {
        let mut child = self.processes.remove(&(host.to_owned(), role)).expect("a running process");
        process::signal(child.id(), signal);
        child.wait().expect("the process ends");
    }

    /// The wire between the hosts.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Runs the command line on the host of a master that runs.
    #[track_caller]
    pub fn mesonet(&self, arguments: &[&str]) -> Outcome {
        self.clean_mesonet(self.speaker(), arguments)
    }

    #[track_caller]
    fn clean_mesonet(&self, host: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.clean(host, env!("CARGO_BIN_EXE_mesonet"));
        program::outcome("mesonet", command.args(arguments).stdin(Stdio::null()).output())
    }

    /// Runs the command line on a host and with arguments of which one may have to be refused.
    #[track_caller]
    pub fn try_agent(&self, host: &str, token: &str) -> Outcome {
        self.try_agent_as(host, host, token)
    }

    /// The same under a name of its own.
    #[track_caller]
    pub fn try_agent_as(&self, host: &str, node: &str, token: &str) -> Outcome {
        self.try_to_join(self.clean(host, env!("CARGO_BIN_EXE_mesonet")), host, node, token)
    }

    /// The same with another time than the machine's.
    #[track_caller]
    pub fn try_agent_at(&self, clock: &str, host: &str, token: &str) -> Outcome {
        self.try_to_join(self.at_clock(clock, host), host, host, token)
    }

    #[track_caller]
    fn try_to_join(&self, mut command: Command, host: &str, node: &str, token: &str) -> Outcome {
        let masters = self.master_addresses();
        command.args(["agent", "--dir", &self.host_dir(host), "--master", &masters, "--join", token]);
        program::outcome("mesonet", command.args(["--node", node]).stdin(Stdio::null()).output())
    }

    /// The built binary on a host with another time of day.
    fn at_clock(&self, clock: &str, host: &str) -> Command {
        let mut command = self.clean(host, "faketime");
        command.args(["--exclude-monotonic", "-f", clock, env!("CARGO_BIN_EXE_mesonet")]);
        command
    }

    /// A program on a host, without settings of the environment.
    fn clean(&self, host: &str, name: &str) -> Command {
        let mut command = self.network.command(host, name);
        for (name, _) in mesonet().get_envs() {
            command.env_remove(name);
        }
        command
    }

    /// Asks for a resource of the API.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        eventually("the API answers", || {
            let text = self.curl(self.speaker(), &format!("http://127.0.0.1:8080{path}"))?;
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
        })
    }

    /// Posts an app and waits until it is deployed.
    #[track_caller]
    pub fn deploy(&self, app: &Value) {
        self.try_deploy(app).success();
    }

    /// Posts an app, which may be refused.
    #[track_caller]
    pub fn try_deploy(&self, app: &Value) -> Outcome {
        let file = self.dir.path().join("app.json");
        std::fs::write(&file, app.to_string()).expect("written");
        self.mesonet(&["app", "add", &file.display().to_string(), "--timeout", "180s"])
    }

    /// The only address of the only service whose key contains a text.
    #[track_caller]
    pub fn vip(&self, name: &str) -> String {
        eventually("the service has an address", || {
            let services = self.get("/v1/services");
            let service = find_service(&services, name).ok_or_else(|| services.to_string())?;
            let address = service["addresses"][0].as_str().ok_or_else(|| services.to_string())?;
            Ok(format!("{address}:{}", service["port"]))
        })
    }

    /// Asks a web server from a host; one attempt.
    pub fn curl(&self, host: &str, url: &str) -> Result<String, String> {
        let mut command = self.network.command(host, "curl");
        let output = command.args(["-sS", "--fail", "--max-time", "5", "--noproxy", "*", url]).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Runs dig on a host, against the host's own name server.
    #[track_caller]
    pub fn dig(&self, host: &str, arguments: &[&str]) -> String {
        let mut command = self.network.command(host, "dig");
        command.args(["@127.0.0.1", "-p", "8053", "+tries=3", "+time=5"]).args(arguments);
        program::outcome("dig", command.output()).success()
    }

    /// Asks an app of `app::web` from a host until so many instances have answered, each without fail.
    #[track_caller]
    pub fn who_all(&self, host: &str, vip: &str, count: usize) -> BTreeSet<Identity> {
        let mut seen = BTreeSet::new();
        eventually(&format!("every instance is reached from {host}"), || {
            let answer = self.curl(host, &format!("http://{vip}/"))?;
            seen.insert(super::app::read(&answer)?);
            if seen.len() == count { Ok(()) } else { Err(format!("{} of {count} answered", seen.len())) }
        });
        seen
    }

    /// The tasks of an app by host address.
    #[track_caller]
    pub fn tasks(&self, app: &str) -> Vec<(String, String)> {
        let tasks = self.get(&format!("/v2/apps{app}/tasks"));
        let all = tasks["tasks"].as_array().expect("list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut running: Vec<(String, String)> = all
            .filter(|task| task["state"] == "TASK_RUNNING")
            .map(|task| (text(&task["host"]), text(&task["id"])))
            .collect();
        running.sort();
        running
    }

    /// The newest revision.
    #[track_caller]
    pub fn revision(&self) -> Value {
        self.get("/v1/planes")["revision"].clone()
    }

    /// The revision of the view that a host's network daemon has on disk.
    #[track_caller]
    pub fn kept_revision(&self, host: &str) -> Value {
        let text = std::fs::read(self.dir.path().join(host).join("view.json")).unwrap_or_default();
        let kept: Value = serde_json::from_slice(&text).unwrap_or_default();
        kept["view"]["revision"].clone()
    }

    /// A number that a host's network daemon shows.
    #[track_caller]
    pub fn metric(&self, host: &str, name: &str) -> Result<f64, String> {
        let text = self.curl(host, "http://127.0.0.1:8081/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("no {name} in {text}"))
    }

    /// The sum over all labels of a metric that a host's network daemon shows.
    #[track_caller]
    pub fn metric_sum(&self, host: &str, name: &str) -> f64 {
        let text = eventually("the metrics are shown", || self.curl(host, "http://127.0.0.1:8081/metrics"));
        let lines = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until so many planes are connected.
    #[track_caller]
    pub fn wait_for_planes(&self, count: usize) {
        eventually("every plane follows", || {
            equal(&self.get("/v1/planes")["planes"].as_array().map_or(0, Vec::len), &count)
        });
    }

    /// What a process of a host has logged.
    pub fn log(&self, host: &str, role: &str) -> String {
        std::fs::read_to_string(self.log_path(host, role)).unwrap_or_default()
    }

    /// Whether a process of a host has logged a text.
    pub fn log_says(&self, host: &str, role: &str, text: &str) -> Result<(), String> {
        let log = self.log(host, role);
        if log.contains(text) { Ok(()) } else { Err(log) }
    }

    /// A host's directory.
    pub fn host_dir(&self, host: &str) -> String {
        self.dir.path().join(host).display().to_string()
    }

    fn log_path(&self, host: &str, role: &str) -> PathBuf {
        self.dir.path().join(format!("{host}-{role}.log"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        process::end_all_in(self.dir.path());
        let logs = logs(self.dir.path());
        if std::thread::panicking() {
            for (name, text) in logs {
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
                eprintln!("--- the end of {name} ---\n{}", tail.join("\n"));
            }
        } else {
            for (name, text) in logs {
                let errors: Vec<&str> =
                    text.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
                assert!(errors.is_empty(), "errors in {name}: {errors:#?}");
            }
        }
    }
}

fn logs(dir: &Path) -> Vec<(String, String)> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<(String, String)> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap_or_default()))
        .collect();
    logs.sort();
    logs
}
