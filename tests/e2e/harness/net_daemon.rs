//! A running `mesonet net` whose view does not come from a cluster of mesonet.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, cluster, equal, eventually, http, process, program};

/// The daemon, with a directory of its own. Ended when dropped; an error in its log fails the test.
pub struct NetDaemon {
    child: Child,
    dir: TempDir,
    addresses: Addresses,
}

/// Where it serves, as its greeting says.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    dns: SocketAddr,
    api: SocketAddr,
    metrics: SocketAddr,
    tls: Option<SocketAddr>,
    https: Option<SocketAddr>,
    quic: Option<SocketAddr>,
}

/// Ports that the system chooses, for everything that has a port.
pub const ANY_PORTS: [&str; 6] =
    ["--dns", "127.0.0.1:0", "--dns-http", "127.0.0.1:0", "--http", "127.0.0.1:0"];

impl NetDaemon {
    /// Starts one with these arguments.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_by(cluster::mesonet(), &[&ANY_PORTS, arguments].concat())
    }

    /// Starts one by a command that ends in the program.
    #[track_caller]
    pub fn start_by(command: Command, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("mesonet-e2e-").tempdir().expect("temporary directory");
        let (child, addresses) = launch(command, dir.path(), arguments);
        Self { child, dir, addresses }
    }

    /// Kills it as a power cut would, and starts it again in the same directory.
    #[track_caller]
    pub fn crash_and_start(&mut self, command: Command, arguments: &[&str]) {
        process::signal(self.child.id(), Signal::KILL);
        self.child.wait().expect("the killed process ends");
        (self.child, self.addresses) = launch(command, self.dir.path(), arguments);
    }

    /// Tells it to end and waits until it has.
    #[track_caller]
    pub fn end(&mut self) {
        process::signal(self.child.id(), Signal::TERM);
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Where names are served.
    pub fn dns(&self) -> SocketAddr {
        self.addresses.dns
    }

    /// Where names are served over TLS, HTTPS and QUIC, in this order.
    pub fn encrypted(&self) -> [Option<SocketAddr>; 3] {
        [self.addresses.tls, self.addresses.https, self.addresses.quic]
    }

    /// Where the API of mesos-dns is.
    pub fn api(&self) -> SocketAddr {
        self.addresses.api
    }

    /// Reads a resource of that API with curl.
    #[track_caller]
    pub fn curl(&self, path: &str) -> Value {
        let text = self.curl_text(path);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path} is no JSON ({error}): {text}"))
    }

    /// The same as text.
    #[track_caller]
    pub fn curl_text(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.addresses.api);
        let arguments =
            ["-sS", "--fail", "--max-time", "10", "--noproxy", "*", "-H", "Accept: application/json"];
        program::run("curl", &[&arguments[..], &[&url]].concat()).success()
    }

    /// A number that it shows.
    pub fn metric(&self, name: &str) -> Result<f64, String> {
        let text = http::get(self.addresses.metrics, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("no {name} in {text}"))
    }

    /// Waits until a name leads to these addresses.
    #[track_caller]
    pub fn wait_for(&self, name: &str, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
        eventually(&format!("{name} is {expected:?}"), || {
            let found = super::dns::short(self.addresses.dns, name, "A");
            equal(&found, &expected)
        });
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(self.dir.path())).unwrap_or_default()
    }
}

impl Drop for NetDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- the log of mesonet net ---\n{log}");
        } else {
            let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
            assert!(errors.is_empty(), "errors in the log: {errors:#?}");
        }
    }
}

#[track_caller]
fn launch(mut command: Command, dir: &Path, arguments: &[&str]) -> (Child, Addresses) {
    let log = OpenOptions::new().create(true).append(true).open(log_path(dir)).expect("log file");
    let state = dir.join("state").display().to_string();
    command.arg("net").args(["--dir", &state, "--log-format", "json"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().expect("the built binary starts");
    let stdout = child.stdout.take().expect("piped");
    let (sender, greeting) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut dns, mut api) = (None, None);
        let (mut tls, mut https, mut quic) = (None, None, None);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let address =
                |text: &str| text.trim_start_matches("http://").split([',', '/']).next()?.parse().ok();
            match words[..] {
                ["DNS", "API", url] => api = address(url),
                ["DoT", place] => tls = address(place),
                ["DoH", place] => https = address(place),
                ["DoQ", place] => quic = address(place),
                ["DNS", place, ..] if dns.is_none() => dns = address(place),
                ["metrics", url] => {
                    if let (Some(dns), Some(api), Some(metrics)) = (dns, api, address(url)) {
                        // Who started the process may have given up.
                        let _ = sender.send(Addresses { dns, api, metrics, tls, https, quic });
                    }
                }
                _ => {}
            }
        }
    });
    let Ok(addresses) = greeting.recv_timeout(PATIENCE) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("mesonet net does not start:\n{}", std::fs::read_to_string(log_path(dir)).unwrap_or_default());
    };
    (child, addresses)
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("log")
}
