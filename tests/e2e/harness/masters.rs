//! Several masters that share their state in etcd, and one node, all on loopback.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use mesonet_test_etcd::Etcd;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use ureq::http::Method;

use super::cluster::{find_service, mesonet, read_greeting};
use super::http::Reply;
use super::lane::Lane;
use super::{Outcome, PATIENCE, eventually, http, process, program};

/// Lines of each log that a failed test shows.
const LOG_TAIL: usize = 40;

/// The cluster. When dropped, all that it has started is ended; an error in a log fails the test.
pub struct Masters {
    masters: BTreeMap<&'static str, Master>,
    others: BTreeMap<&'static str, Child>,
    dir: TempDir,
    lane: Lane,
    etcd: Etcd,
}

struct Master {
    process: Child,
    api: SocketAddr,
    bus: SocketAddr,
}

impl Masters {
    /// Starts etcd and these masters, and waits until one of them leads.
    #[track_caller]
    pub fn start(names: &[&'static str]) -> Self {
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let etcd = Etcd::start(1);
        let mut cluster =
            Self { masters: BTreeMap::new(), others: BTreeMap::new(), dir, lane: Lane::take(), etcd };
        // Each master has a copy of the cluster's directory.
        let first = cluster.path(names[0]);
        program::outcome("mesonet init", mesonet().args(["init", "--dir"]).arg(&first).output()).success();
        for name in &names[1..] {
            copy(&first, &cluster.path(name));
        }
        for name in names {
            cluster.start_master(name);
        }
        eventually("a master leads", || cluster.leader().map(drop));
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    #[track_caller]
    fn start_master(&mut self, name: &'static str) {
        let dir = self.path(name);
        let etcd = format!("http://{}", self.etcd.address(0));
        let mut process = self.launch(
            name,
            "master",
            &["--name", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", "etcd"],
            &["--etcd", &etcd, "--vip-range", &self.lane.vip_range(), "--dir", &dir.display().to_string()],
        );
        let stdout = process.stdout.take().expect("piped");
        let (sender, greeting) = mpsc::channel();
        std::thread::spawn(move || read_greeting(stdout, "nodes", &sender));
        let Ok((api, bus)) = greeting.recv_timeout(PATIENCE) else {
            let _ = process.kill();
            let _ = process.wait();
            panic!("{name} does not start:\n{}", std::fs::read_to_string(self.log(name)).unwrap_or_default());
        };
        self.masters.insert(name, Master { process, api, bus });
    }

    /// Starts the agent and the network daemon of a node, which know every master.
    #[track_caller]
    pub fn start_node(&mut self) {
        let masters =
            self.masters.values().map(|master| master.bus.to_string()).collect::<Vec<_>>().join(",");
        let dir = self.path("node").display().to_string();
        let token = self.token();
        let node = ["--dir", &dir, "--node", "n1", "--master", &masters, "--join", &token];
        let ports = self.lane.host_ports();
        let fixed = ["--address", "127.0.0.1", "--cpus", "8", "--mem", "4096", "--disk", "4096"];
        let own = ["--host-ports", &ports, "--http", "127.0.0.1:0"];
        let agent = self.launch("agent", "agent", &node, &[&fixed[..], &own].concat());
        self.others.insert("agent", agent);
        eventually("the agent is registered", || {
            let agents = self.get("/v1/view")["agents"].as_object().map_or(0, serde_json::Map::len);
            super::equal(&agents, &1)
        });
        let net = ["--dns", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let net = self.launch("net", "net", &node[..6], &net);
        self.others.insert("net", net);
        eventually("every plane follows", || {
            super::equal(&self.get("/v1/planes")["planes"].as_array().map_or(0, Vec::len), &2)
        });
    }

    #[track_caller]
    fn launch(&self, name: &str, role: &str, first: &[&str], more: &[&str]) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name)).expect("log file");
        let mut command = mesonet();
        command.arg(role).args(first).args(more).args(["--log-format", "json"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        child.expect("the built binary starts")
    }

    /// A token for a node to join with, made in the directory of a master that need not lead.
    #[track_caller]
    fn token(&self) -> String {
        let dir = self.path(self.standbys()[0]);
        let etcd = format!("http://{}", self.etcd.address(0));
        let made = mesonet()
            .args(["join-token", "create", "--ttl", "10m", "--store", "etcd", "--etcd", &etcd, "--dir"])
            .arg(dir)
            .output();
        program::outcome("mesonet join-token", made).success().trim().to_owned()
    }

    /// The master that leads, if one does.
    pub fn leader(&self) -> Result<&'static str, String> {
        let leads = |(name, master): (&&'static str, &Master)| {
            let metrics = http::get(master.api, "/metrics").ok()?;
            metrics.lines().any(|line| line == "mesonet_master_leading 1").then_some(*name)
        };
        self.masters.iter().find_map(leads).ok_or_else(|| "no master leads".to_owned())
    }

    /// The masters that run and do not lead.
    #[track_caller]
    pub fn standbys(&self) -> Vec<&'static str> {
        let leader = self.leader().ok();
        self.masters.keys().copied().filter(|name| Some(*name) != leader).collect()
    }

    /// Kills a master as a power cut would.
    #[track_caller]
    pub fn kill(&mut self, name: &str) {
        let mut master = self.masters.remove(name).expect("a running master");
        process::signal(master.process.id(), Signal::KILL);
        master.process.wait().expect("the killed process ends");
    }

    /// Tells a master to end, and waits for that.
    #[track_caller]
    pub fn stop(&mut self, name: &str) {
        let mut master = self.masters.remove(name).expect("a running master");
        process::signal(master.process.id(), Signal::TERM);
        let status = master.process.wait().expect("the process ends");
        assert!(status.success(), "{name} ends with {status}");
    }

    /// Kills etcd.
    pub fn kill_etcd(&mut self) {
        self.etcd.kill(0);
    }

    /// Starts it again, with what it had.
    pub fn restart_etcd(&mut self) {
        self.etcd.restart(0);
    }

    /// Sends a request to the API of a master.
    #[track_caller]
    pub fn send(&self, name: &str, method: Method, path: &str, body: Option<&str>) -> Reply {
        http::send(method, &format!("http://{}{path}", self.masters[name].api), body)
    }

    /// Has a master make a change, which has to be answered with a status. On a busy machine a leader may be missing for
    /// longer than a master waits for one, or be replaced before it has answered; the master is asked again then.
    #[track_caller]
    pub fn change(&self, name: &str, method: &Method, path: &str, body: Option<&str>, status: u16) {
        let mut may_be_made = false;
        eventually("there is a leader", || {
            let reply = self.send(name, method.clone(), path, body);
            if reply.status == 503 {
                may_be_made |= !reply.text.contains("nothing has been changed");
                return Err(reply.text);
            }
            // What an attempt before has made or removed is there already, or is not there any more.
            if !(may_be_made && matches!(reply.status, 404 | 409)) {
                reply.expect(status);
            }
            Ok(())
        });
    }

    /// Reads a resource from any master.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let name = self.masters.keys().next().expect("a master");
        self.send(name, Method::GET, path, None).expect(200)
    }

    /// Runs a command against the API of a master.
    #[track_caller]
    pub fn mesonet(&self, name: &str, arguments: &[&str]) -> Outcome {
        let api = format!("http://{}", self.masters[name].api);
        program::outcome("mesonet", mesonet().args(["--api", &api]).args(arguments).output())
    }

    /// The address of an app's VIP.
    #[track_caller]
    pub fn vip(&self, app: &str) -> SocketAddr {
        eventually("the service has an address", || {
            let services = self.get("/v1/services");
            let service = find_service(&services, app).ok_or_else(|| services.to_string())?;
            let address = service["addresses"][0].as_str().ok_or_else(|| services.to_string())?;
            format!("{address}:{}", service["port"]).parse().map_err(|_| services.to_string())
        })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        let masters = self.masters.values_mut().map(|master| &mut master.process);
        for child in masters.chain(self.others.values_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        process::end_all_in(self.dir.path());
        let files =
            std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in files.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if std::thread::panicking() {
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
                eprintln!("--- the end of {} ---\n{}", log.display(), tail.join("\n"));
            } else {
                let errors: Vec<&str> =
                    text.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
                assert!(errors.is_empty(), "errors in {}: {errors:#?}", log.display());
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("directory");
    for entry in std::fs::read_dir(from).expect("list").map(|entry| entry.expect("entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
