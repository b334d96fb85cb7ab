//! The same with etcd: a put per event, and watchers with a connection each.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mesonet_model::{ClusterView, Delta};
use tokio::task::JoinSet;

use super::etcd_api::{self, Client};
use super::master::{Events, Subscribers, latencies};
use super::tally::{self, Tally};
use super::{Measured, Order, wire_bytes};
use crate::process::{Usage, monotonic_nanos};

/// Where etcd's data is in memory, so that its disk is not what is measured.
const IN_MEMORY: &str = "/dev/shm";

/// The key that each event sets.
const KEY: &str = "/bench/delta";

/// A key that nobody watches.
const FIRST_KEY: &str = "/bench/first";

/// The file with the view that watchers begin with.
const VIEW_FILE: &str = "view.json";

/// How long etcd may take to begin.
const START_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether etcd has begun.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A server. Ended when dropped.
struct Server {
    child: Child,
    endpoint: String,
}

/// Measures so many watchers.
pub(super) fn run(order: &Order) -> anyhow::Result<Measured> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(order.clone()))
}

async fn serve(mut order: Order) -> anyhow::Result<Measured> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let memory = if Path::new(IN_MEMORY).is_dir() { PathBuf::from(IN_MEMORY) } else { std::env::temp_dir() };
    let private = Permissions::from_mode(0o700);
    let data =
        tempfile::Builder::new().prefix("mesonet-bench-etcd-").permissions(private).tempdir_in(memory)?;
    let mut events = Events::new()?;
    let mut known = events.view();
    std::fs::write(dir.path().join(VIEW_FILE), serde_json::to_vec(&known)?)?;
    let (server, mut client) = Server::start(data.path(), dir.path()).await?;
    order.server = server.endpoint.clone();
    order.dir = dir.path().display().to_string();
    order.first = known.revision.0;

    let idle = server.usage()?;
    let mut watchers = Subscribers::start("bus-watchers", &order)?;
    watchers.hear("connected").await?;
    let connected = server.usage()?;
    let wire_before = wire_bytes::on_loopback()?;
    let mut committed_at = Vec::new();
    let mut delta_bytes = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(order.pace_ms));
    for _ in 0..order.events {
        pace.tick().await;
        let view = events.next()?;
        let delta = serde_json::to_vec(&Delta::between(&known, &view))?;
        delta_bytes = delta.len();
        known = view;
        committed_at.push(monotonic_nanos());
        client.put(KEY, delta).await?;
    }
    let followed = watchers.end().await?;
    let usage = server.usage()?;
    let wire_after = wire_bytes::on_loopback()?;
    Ok(Measured {
        latencies: latencies(&committed_at, &followed)?,
        delta_bytes,
        server_cpu_s: usage.cpu_s - connected.cpu_s,
        subscribers_cpu_s: followed.cpu_s,
        server_memory_kib: usage.resident_kib.saturating_sub(idle.resident_kib),
        subscribers_memory_kib: followed.memory_kib,
        wire_bytes: wire_before.zip(wire_after).map(|(before, after)| after - before),
    })
}

/// Many watchers in one process.
pub(super) fn run_watchers(order: &Order) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(watch_all(order))
}

async fn watch_all(order: &Order) -> anyhow::Result<()> {
    let view = std::fs::read(Path::new(&order.dir).join(VIEW_FILE))?;
    let tally = Arc::new(Tally::new(order));
    let mut watchers = JoinSet::new();
    for _ in 0..order.subscribers {
        // Each has a view of its own, as every node has.
        let view: ClusterView = serde_json::from_slice(&view)?;
        watchers.spawn(watch(order.clone(), view, tally.clone()));
    }
    let mut input = tally::input();
    tokio::select! {
        done = tally.converse(&mut input) => done,
        Some(ended) = watchers.join_next() => match ended? {
            Ok(()) => bail!("a watch has ended"),
            Err(error) => Err(error.context("a watch has failed")),
        },
    }
}

async fn watch(order: Order, mut view: ClusterView, tally: Arc<Tally>) -> anyhow::Result<()> {
    let mut client = Client::connect(&order.server, Path::new(&order.dir)).await?;
    let mut answers = client.watch(KEY).await?;
    while let Some(answer) = answers.message().await? {
        ensure!(!answer.canceled, "etcd has ended the watch");
        if answer.created {
            tally.applied(0, view.revision.0);
        }
        for pair in answer.events.into_iter().filter_map(|event| event.pair) {
            let delta: Delta = serde_json::from_slice(&pair.value).context("etcd gives something else")?;
            let before = view.revision;
            view.apply(&delta)?;
            tally.applied(before.0, view.revision.0);
        }
    }
    Ok(())
}

impl Server {
    /// Starts it, and waits until it takes what is put.
    async fn start(data: &Path, dir: &Path) -> anyhow::Result<(Self, Client)> {
        let (clients, peers) =
            (format!("https://{}", free_address()?), format!("http://{}", free_address()?));
        let child = Command::new("etcd")
            .args(["--data-dir".as_ref(), data.as_os_str()])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(etcd_api::certify(dir)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run etcd; install it: apt-get install etcd-server")?;
        let server = Self { child, endpoint: clients };
        let deadline = Instant::now() + START_MAX;
        loop {
            let attempt = async {
                let mut client = Client::connect(&server.endpoint, dir).await?;
                client.put(FIRST_KEY, Vec::new()).await?;
                anyhow::Ok(client)
            };
            match attempt.await {
                Ok(client) => return Ok((server, client)),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("etcd does not answer at {}", server.endpoint)));
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of_process(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is ended already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that is free at this moment.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}
