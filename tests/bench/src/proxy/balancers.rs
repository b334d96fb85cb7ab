//! The balancers under test, and the servers behind them.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use super::load::LOAD_CPU;
use crate::fake_mesos;
use crate::pinned_process::{PinnedProcess, free_port};

/// The CPU of the balancers.
pub const BALANCER_CPU: &str = "0";

/// Where Debian puts the module; other builds of nginx have it compiled in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// How long a program may take to begin to listen.
const START_PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(50);

/// The address of the services: the last of the range of VIPs on loopback.
const VIP: Ipv4Addr = Ipv4Addr::new(127, 11, 255, 254);

/// An HTTP server and iperf3.
#[derive(Debug)]
pub struct Servers {
    dir: PathBuf,
    http: u16,
    bulk: u16,
    _processes: [PinnedProcess; 2],
}

impl Servers {
    /// Both, with their files below a directory.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let (http, bulk, folder) = (free_port()?, free_port()?, dir.display());
        let config = dir.join("server.conf");
        fs::write(
            &config,
            format!(
                "worker_processes 1;\ndaemon off;\npid {folder}/server.pid;\nerror_log {folder}/server.err;\n\
                 events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000;\n  \
                 client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  \
                 fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  \
                 scgi_temp_path {folder}/scgi;\n  server {{\n    listen 127.0.0.1:{http} reuseport backlog=4096;\n    \
                 location / {{ return 200 \"ok\\n\"; }}\n  }}\n}}\n"
            ),
        )?;
        let nginx = PinnedProcess::start("nginx", LOAD_CPU, Command::new("nginx").arg("-c").arg(config))?;
        let mut iperf = Command::new("iperf3");
        iperf.args(["-s", "-B", "127.0.0.1", "-p"]).arg(bulk.to_string());
        let iperf = PinnedProcess::start("iperf3", LOAD_CPU, &iperf)?;
        let servers = Self { dir: dir.to_owned(), http, bulk, _processes: [nginx, iperf] };
        for (name, port) in [("nginx", http), ("iperf3", bulk)] {
            wait_until_open(name, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        }
        Ok(servers)
    }
}

/// A balancer with two services, which lead to the servers.
#[derive(Debug)]
pub struct Balancer {
    process: PinnedProcess,
    http: SocketAddr,
    bulk: SocketAddr,
}

impl Balancer {
    /// HAProxy with one thread, which splices.
    pub fn haproxy(servers: &Servers) -> anyhow::Result<Self> {
        let (http, bulk) = (free_port()?, free_port()?);
        let config = servers.dir.join("haproxy.cfg");
        let listen = |name: &str, port: u16, server: u16| {
            format!("listen {name}\n  bind 127.0.0.1:{port}\n  server s 127.0.0.1:{server}\n")
        };
        let defaults = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
                        timeout client 30s\n  timeout server 30s\n  option splice-auto\n";
        let services = listen("web", http, servers.http) + &listen("bulk", bulk, servers.bulk);
        fs::write(&config, format!("{defaults}{services}"))?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(config);
        Self::start("haproxy", Ipv4Addr::LOCALHOST, http, bulk, &command)
    }

    /// nginx with one worker.
    pub fn nginx(servers: &Servers) -> anyhow::Result<Self> {
        let (http, bulk, folder) = (free_port()?, free_port()?, servers.dir.display());
        let config = servers.dir.join("stream.conf");
        let module = if Path::new(STREAM_MODULE).exists() {
            format!("load_module {STREAM_MODULE};\n")
        } else {
            String::new()
        };
        let server = |port: u16, server: u16| {
            format!("  server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{server}; }}\n")
        };
        let services = server(http, servers.http) + &server(bulk, servers.bulk);
        fs::write(
            &config,
            format!(
                "{module}worker_processes 1;\ndaemon off;\npid {folder}/stream.pid;\nerror_log {folder}/stream.err;\n\
                 events {{ worker_connections 8192; }}\nstream {{\n  access_log off;\n{services}}}\n"
            ),
        )?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(config);
        Self::start("nginx stream", Ipv4Addr::LOCALHOST, http, bulk, &command)
    }

    /// The network daemon with the proxy, and a static Mesos cluster as its source.
    pub fn mesonet(servers: &Servers) -> anyhow::Result<Self> {
        let (http, bulk) = (free_port()?, free_port()?);
        let vips = [(http, servers.http), (bulk, servers.bulk)];
        let source = fake_mesos::serve(|master| mesos_state(master, &vips))?;
        let mut command = Command::new(std::env::current_exe()?.with_file_name("mesonet"));
        command.args(["net", "--datapath", "proxy", "--refresh", "1h", "--dns-http", "off"]);
        command.args(["--http", "127.0.0.1:0", "--log", "warn"]);
        command.arg("--dir").arg(servers.dir.join("node"));
        command.arg("--dns").arg(format!("127.0.0.1:{}", free_port()?));
        command.arg("--source").arg(format!("mesos-state://{source}"));
        Self::start("mesonet", VIP, http, bulk, &command)
    }

    fn start(
        name: &'static str,
        address: Ipv4Addr,
        http: u16,
        bulk: u16,
        command: &Command,
    ) -> anyhow::Result<Self> {
        let process = PinnedProcess::start(name, BALANCER_CPU, command)?;
        Ok(Self { process, http: (address, http).into(), bulk: (address, bulk).into() })
    }

    /// Waits until both services are there.
    pub fn wait_until_it_serves(&self) -> anyhow::Result<()> {
        [self.http, self.bulk].into_iter().try_for_each(|address| wait_until_open(&self.to_string(), address))
    }

    /// Where the HTTP server is reached through it.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where iperf3 is reached through it.
    pub fn bulk(&self) -> SocketAddr {
        self.bulk
    }

    /// CPU time that it has used so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.process.cpu_seconds()
    }
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process.fmt(f)
    }
}

fn wait_until_open(name: &str, address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_PATIENCE;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("{name} does not listen at {address} after {START_PATIENCE:?}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// What `/master/state` says of a cluster in which each VIP port leads to a port of loopback.
fn mesos_state(master: &str, vips: &[(u16, u16)]) -> Value {
    let task = |(vip, port): &(u16, u16)| {
        json!({
            "id": format!("app{vip}.instance-1"), "name": format!("app{vip}"), "framework_id": "f",
            "slave_id": "c-S1", "state": "TASK_RUNNING",
            "discovery": {
                "visibility": "FRAMEWORK", "name": format!("app{vip}"),
                "ports": { "ports": [{
                    "number": port, "protocol": "tcp",
                    "labels": { "labels": [{ "key": "VIP_0", "value": format!("{VIP}:{vip}") }] },
                }] },
            },
            "statuses": [{
                "state": "TASK_RUNNING", "timestamp": 1.5,
                "container_status": { "network_infos": [{ "ip_addresses": [{ "ip_address": "127.0.0.1" }] }] },
            }],
        })
    };
    json!({
        "leader": format!("master@{master}"),
        "slaves": [{ "id": "c-S1", "pid": "slave(1)@10.0.0.2:5051", "hostname": "10.0.0.2", "active": true }],
        "frameworks": [{
            "id": "f", "name": "marathon", "pid": "scheduler-1@10.0.0.3:25501", "hostname": "10.0.0.3",
            "active": true, "tasks": vips.iter().map(task).collect::<Vec<Value>>(),
        }],
    })
}
