//! The balancers under test, and the servers behind them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::LoadBalancer;
use mesonet_model::{
    AgentId, ClusterId, ClusterView, Delta, Endpoint, EndpointKey, EndpointState, FrameworkId, Service,
    ServiceKey, TaskId, TaskKey,
};
use mesonet_test_process::{PinnedProcess, free_port};

use crate::Measured;
use crate::load::LOAD_CPU;

/// The CPU of the balancers.
pub const BALANCER_CPU: &str = "0";

/// Where Debian puts the module; other builds of nginx have it compiled in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The address of the services: the last of the range of VIPs on loopback.
const VIP: Ipv4Addr = Ipv4Addr::new(127, 11, 255, 254);

/// How long a program may take to begin to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// An HTTP server and iperf3.
pub struct Servers {
    dir: PathBuf,
    http: u16,
    bulk: u16,
    _processes: [PinnedProcess; 2],
}

impl Servers {
    /// Both, with their files below a directory.
    pub fn start(dir: &Path) -> Measured<Self> {
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
        let mut nginx = Command::new("nginx");
        nginx.arg("-c").arg(config);
        let nginx = PinnedProcess::start("nginx", LOAD_CPU, &nginx, Stdio::null())?;
        let mut iperf = Command::new("iperf3");
        iperf.args(["-s", "-B", "127.0.0.1", "-p"]).arg(bulk.to_string());
        let iperf = PinnedProcess::start("iperf3", LOAD_CPU, &iperf, Stdio::null())?;
        for (process, port) in [(&nginx, http), (&iperf, bulk)] {
            wait_until_open(process, (Ipv4Addr::LOCALHOST, port).into())?;
        }
        Ok(Self { dir: dir.to_owned(), http, bulk, _processes: [nginx, iperf] })
    }
}

/// A balancer with services that lead to the servers.
pub struct Balancer {
    process: PinnedProcess,
    http: SocketAddr,
    bulk: Option<SocketAddr>,
}

impl Balancer {
    /// HAProxy with one thread, which splices.
    pub fn haproxy(servers: &Servers) -> Measured<Self> {
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
        Self::start("haproxy", &command, Ipv4Addr::LOCALHOST, http, Some(bulk))
    }

    /// nginx with one worker.
    pub fn nginx(servers: &Servers) -> Measured<Self> {
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
        Self::start("nginx stream", &command, Ipv4Addr::LOCALHOST, http, Some(bulk))
    }

    /// The proxy, in a process of this program.
    pub fn mesonet(servers: &Servers) -> Measured<Self> {
        let (http, bulk) = (free_port()?, free_port()?);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("balance");
        command.args([(http, servers.http), (bulk, servers.bulk)].map(|(vip, to)| format!("{vip}:{to}")));
        Self::start("mesonet", &command, VIP, http, Some(bulk))
    }

    /// What receives and sends and does nothing else, in a process of this program. It carries no bulk data.
    pub fn floor(servers: &Servers, pauses: bool) -> Measured<Self> {
        let http = free_port()?;
        let (name, mode) =
            if pauses { ("the same with pauses", "pausing-floor") } else { ("recv and send alone", "floor") };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(mode).arg(format!("{http}:{}", servers.http));
        Self::start(name, &command, Ipv4Addr::LOCALHOST, http, None)
    }

    fn start(
        name: &'static str,
        command: &Command,
        address: Ipv4Addr,
        http: u16,
        bulk: Option<u16>,
    ) -> Measured<Self> {
        let process = PinnedProcess::start(name, BALANCER_CPU, command, Stdio::null())?;
        let at = |port: u16| (address, port).into();
        Ok(Self { process, http: at(http), bulk: bulk.map(at) })
    }

    /// Waits until its services are there.
    pub fn wait_until_it_serves(&self) -> Measured<()> {
        [Some(self.http), self.bulk]
            .into_iter()
            .flatten()
            .try_for_each(|address| wait_until_open(&self.process, address))
    }

    /// What it is.
    pub fn name(&self) -> &'static str {
        self.process.name()
    }

    /// Where the HTTP server is reached through it.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where iperf3 is reached through it, if it carries bulk data.
    pub fn bulk(&self) -> Option<SocketAddr> {
        self.bulk
    }

    /// CPU time that it has used so far.
    pub fn cpu_seconds(&self) -> Measured<f64> {
        Ok(self.process.cpu_seconds()?)
    }
}

/// Waits until a program listens.
fn wait_until_open(process: &PinnedProcess, address: SocketAddr) -> Measured<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(format!("{process} does not listen at {address} after {PATIENCE:?}").into());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Balances services of one endpoint each, given as `PORT:PORT`, until the process is ended.
pub fn balance(services: &[&str]) -> Measured<()> {
    let mut view = ClusterView::empty(ClusterId::new("bench"));
    for ports in services {
        let (vip, port) = ports.split_once(':').ok_or("not two ports")?;
        let key: ServiceKey = format!("tcp/app{vip}@marathon:{vip}").parse()?;
        let service = Service { ipv4: Some(VIP), ..Service::new(key.clone()) };
        view.services.insert(key.clone(), Arc::new(service));
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(*ports));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?));
        let endpoint = Endpoint::new(AgentId::new("agent"), EndpointState::Ready, 100);
        view.endpoints.insert(EndpointKey { service: key, task, address }, Arc::new(endpoint));
    }
    let empty = ClusterView::empty(ClusterId::new("bench"));
    view.revision = empty.revision.next();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut balancer = LoadBalancer::proxy(&prometheus::Registry::new());
        let failures = balancer.apply(&view, &Delta::between(&empty, &view)).await;
        if failures.is_empty() { std::future::pending().await } else { Err(format!("{failures:?}").into()) }
    })
}
