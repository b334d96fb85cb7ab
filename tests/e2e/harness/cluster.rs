//! A running `mesonet dev`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Method;

use super::http::Reply;
use super::lane::Lane;
use super::{Outcome, PATIENCE, POLL_INTERVAL, eventually, http, process, program};

/// How long tasks have to end when a test is done. What is left then is killed.
const FAREWELL: Duration = Duration::from_secs(3);

/// Lines of the log that a failed test shows.
const LOG_TAIL: usize = 60;

/// A cluster of one node, with a directory, ports and addresses of its own. When dropped, it and its tasks are ended;
/// an error in its log fails the test.
pub struct Cluster {
    dir: TempDir,
    lane: Lane,
    node: Child,
    api: SocketAddr,
    dns: SocketAddr,
}

impl Cluster {
    /// Starts a cluster.
    #[track_caller]
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let lane = Lane::take();
        let [api, dns] = lane.own_addresses();
        let (node, api, dns) = launch(dir.path(), &lane, api, dns);
        let cluster = Self { dir, lane, node, api, dns };
        cluster.wait_until_ready();
        cluster
    }

    /// Kills the process of the cluster as a power cut would, and leaves its tasks.
    pub fn crash(&mut self) {
        process::signal(self.node.id(), Signal::KILL);
        self.node.wait().expect("the killed process ends");
    }

    /// Starts it again in the same directory, at the same addresses.
    #[track_caller]
    pub fn start_again(&mut self) {
        let (node, api, dns) = launch(self.dir.path(), &self.lane, self.api, self.dns);
        assert_eq!((api, dns), (self.api, self.dns), "the addresses that were asked for");
        self.node = node;
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        eventually("the cluster is ready", || match self.get("/v1/health/ready").status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        });
    }

    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where names are served.
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        state_dir(self.dir.path())
    }

    /// Sends a request to the API.
    #[track_caller]
    pub fn send(&self, method: Method, path: &str, body: Option<&str>) -> Reply {
        http::send(method, &format!("http://{}{path}", self.api), body)
    }

    /// Reads a resource.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None)
    }

    /// Posts an app and waits until it is deployed.
    #[track_caller]
    pub fn deploy(&self, app: &Value) {
        self.send(Method::POST, "/v2/apps", Some(&app.to_string())).expect(201);
        self.wait_until_deployed();
    }

    /// Changes a part of an app and waits until that is deployed.
    #[track_caller]
    pub fn change(&self, app: &str, part: &Value) {
        self.send(Method::PUT, &format!("/v2/apps{app}"), Some(&part.to_string())).expect(200);
        self.wait_until_deployed();
    }

    /// Sets the number of instances and waits until they run.
    #[track_caller]
    pub fn scale(&self, app: &str, instances: u32) {
        self.change(app, &json!({ "instances": instances }));
    }

    /// Waits until no change is under way and names and addresses have followed.
    #[track_caller]
    pub fn wait_until_deployed(&self) {
        eventually("all deployments are done", || {
            let deployments = self.get("/v2/deployments").expect(200);
            if deployments == json!([]) { Ok(()) } else { Err(deployments.to_string()) }
        });
        let newest = self.get("/v1/planes").expect(200)["revision"].as_u64();
        eventually("that is in effect", || {
            let planes = self.get("/v1/planes").expect(200)["planes"].clone();
            let mut applied = planes.as_array().into_iter().flatten().map(|plane| plane["applied"].as_u64());
            if applied.all(|applied| applied >= newest) { Ok(()) } else { Err(planes.to_string()) }
        });
    }

    /// The running tasks of an app.
    #[track_caller]
    pub fn tasks(&self, app: &str) -> Vec<Value> {
        let tasks = self.get(&format!("/v2/apps{app}/tasks")).expect(200);
        let all = tasks["tasks"].as_array().expect("list").iter();
        all.filter(|task| task["state"] == "TASK_RUNNING").cloned().collect()
    }

    /// The address of the only service whose key contains a text.
    #[track_caller]
    pub fn vip(&self, name: &str) -> SocketAddr {
        eventually("the service has an address", || {
            let services = self.get("/v1/services").expect(200);
            let service = find_service(&services, name).ok_or_else(|| services.to_string())?;
            let address = service["addresses"][0].as_str().and_then(|address| address.parse::<IpAddr>().ok());
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok());
            address.zip(port).map(SocketAddr::from).ok_or_else(|| services.to_string())
        })
    }

    /// Runs the command line against this cluster.
    #[track_caller]
    pub fn mesonet(&self, arguments: &[&str]) -> Outcome {
        program::outcome("mesonet", self.command(arguments).output())
    }

    /// The command line against this cluster, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mesonet();
        command.args(arguments).env("MESONET_API", format!("http://{}", self.api)).stdin(Stdio::null());
        command
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(self.dir.path())).unwrap_or_default()
    }
}

impl Cluster {
    /// Lets the cluster end its tasks itself, so that their control groups go with them.
    fn end_tasks(&self) {
        let deadline = Instant::now() + FAREWELL;
        let apps = self.get("/v2/apps").json();
        for app in apps["apps"].as_array().into_iter().flatten() {
            let id = app["id"].as_str().unwrap_or_default();
            self.send(Method::DELETE, &format!("/v2/apps{id}?force=true"), None);
        }
        while !process::working_in(&self.dir().join("agent")).is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() && process::is_alive(self.node.id()) {
            self.end_tasks();
        }
        let _ = self.node.kill();
        let _ = self.node.wait();
        process::end_all_in(self.dir.path());
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
            eprintln!("--- the end of the log of mesonet dev ---\n{}", tail.join("\n"));
        } else {
            let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
            assert!(errors.is_empty(), "errors in the log: {errors:#?}");
        }
    }
}

/// The service whose key contains a text, in an answer of `/v1/services`.
pub fn find_service<'a>(services: &'a Value, name: &str) -> Option<&'a Value> {
    let mut all = services["services"].as_array()?.iter();
    all.find(|service| service["service"].as_str().is_some_and(|key| key.contains(name)))
}

/// The built binary, without settings of the environment.
pub fn mesonet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesonet"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MESONET_") {
            command.env_remove(name);
        }
    }
    command
}

/// The arguments that start a cluster.
fn arguments(dir: &Path, lane: &Lane, api: SocketAddr, dns: SocketAddr) -> Vec<String> {
    let dir = state_dir(dir).display().to_string();
    let (api, dns, ports, vips) = (api.to_string(), dns.to_string(), lane.host_ports(), lane.vip_range());
    // Far more than the tests use, so that no app waits for room on a small machine.
    let fixed = ["dev", "--cpus", "64", "--mem", "65536", "--disk", "65536", "--log-format", "json"];
    let own = ["--dir", &dir, "--http", &api, "--dns", &dns, "--host-ports", &ports, "--vip-range", &vips];
    fixed.iter().chain(&own).map(|&argument| argument.to_owned()).collect()
}

/// Starts the process and reads the addresses that it chose from its greeting.
#[track_caller]
fn launch(dir: &Path, lane: &Lane, api: SocketAddr, dns: SocketAddr) -> (Child, SocketAddr, SocketAddr) {
    let log = OpenOptions::new().create(true).append(true).open(log_path(dir)).expect("log file");
    let mut command = mesonet();
    command.args(arguments(dir, lane, api, dns));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
    let mut node = child.expect("the built binary starts");
    let stdout = node.stdout.take().expect("piped");
    let (sender, greeting) = mpsc::channel();
    std::thread::spawn(move || read_greeting(stdout, "DNS", &sender));
    let found = greeting.recv_timeout(PATIENCE);
    let Ok((api, dns)) = found else {
        let _ = node.kill();
        let _ = node.wait();
        process::end_all_in(dir);
        panic!("mesonet dev does not start:\n{}", std::fs::read_to_string(log_path(dir)).unwrap_or_default());
    };
    (node, api, dns)
}

/// Reads until the end, so that the process never waits for a reader; sends on the address of the API and another one.
pub fn read_greeting(stdout: impl Read, other: &str, found: &mpsc::Sender<(SocketAddr, SocketAddr)>) {
    let mut api = None;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("API"), Some(url)) => api = url.trim_start_matches("http://").parse().ok(),
            (Some(name), Some(address)) if name == other => {
                let address = address.trim_end_matches(',').parse().ok();
                if let Some(both) = api.zip(address) {
                    // Who started the process may have given up.
                    let _ = found.send(both);
                }
            }
            _ => {}
        }
    }
}

fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("log")
}
