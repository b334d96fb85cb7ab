//! The master's end of the bus, and the events.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesonet_bus::{Authority, MasterEnds, Role, Server, ServerSettings, TokenTerms, channel};
use mesonet_model::{AgentId, ClusterView, Delta, TaskKey};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::mpsc;

use super::tally::Followed;
use super::{Measured, Order, TASKS, command, wire_bytes};
use crate::filled_cluster::FilledCluster;
use crate::process::{Usage, monotonic_nanos};

/// A peer that is silent for so long is lost: longer than a machine with a thousand handshakes on two cores is busy.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Agents of the cluster; each has room for the tasks of many services.
const AGENTS: u32 = 100;

/// Longer than the benchmark.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The process of the subscribers.
pub(super) struct Subscribers {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Where the events come from: one task after the other gets ill and well again.
pub(super) struct Events {
    cluster: FilledCluster,
    tasks: Vec<(TaskKey, AgentId)>,
    next: usize,
}

/// Serves so many nodes and prints what was measured.
pub(super) fn run(order: Order) -> anyhow::Result<()> {
    let measured =
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(order))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

async fn serve(mut order: Order) -> anyhow::Result<Measured> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut events = Events::new()?;
    let mut known = events.view();
    let authority = Authority::create(&dir.path().join("authority"), &known.cluster)?;
    let (publisher, feed, mut reports) = channel();
    let (agents, _reports_of_agents) = mpsc::channel(1);
    let (_commands, commands) = mpsc::channel(1);
    let settings = ServerSettings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        name: "master".parse()?,
        idle_timeout: IDLE_TIMEOUT,
        certificate_lifetime: LIFETIME,
    };
    let ends = MasterEnds { feed, reports: agents, commands };
    let server = Server::start(settings, authority.clone(), ends)?;
    let acknowledging = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    publisher.publish(known.clone());
    let terms = TokenTerms { ttl: LIFETIME, uses: order.subscribers, roles: [Role::Net].into() };
    order.token = authority.create_token(&terms)?.to_string();
    order.server = server.address().to_string();
    order.dir = dir.path().display().to_string();
    order.first = known.revision.0;

    let mut nodes = Subscribers::start("bus-nodes", &order)?;
    nodes.hear("joined").await?;
    let idle = Usage::of_self()?;
    nodes.say("connect").await?;
    nodes.hear("connected").await?;
    let connected = Usage::of_self()?;
    let wire_before = wire_bytes::on_loopback()?;
    let mut committed_at = Vec::new();
    let mut delta_bytes = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(order.pace_ms));
    for _ in 0..order.events {
        pace.tick().await;
        let view = events.next()?;
        delta_bytes = serde_json::to_vec(&Delta::between(&known, &view))?.len();
        known = view.clone();
        committed_at.push(monotonic_nanos());
        publisher.publish(view);
    }
    let followed = nodes.end().await?;
    let usage = Usage::of_self()?;
    let wire_after = wire_bytes::on_loopback()?;
    server.close().await;
    acknowledging.abort();
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

/// From each commit to the last subscriber.
pub(super) fn latencies(committed_at: &[u64], followed: &Followed) -> anyhow::Result<Vec<u64>> {
    ensure!(committed_at.len() == followed.applied_at.len(), "there are not as many events as answers");
    let pairs = committed_at.iter().zip(&followed.applied_at);
    Ok(pairs.map(|(committed, applied)| applied.saturating_sub(*committed)).collect())
}

impl Events {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut cluster = FilledCluster::new()?;
        (0..AGENTS).for_each(|number| cluster.register(number));
        cluster.fill(TASKS)?;
        let tasks =
            cluster.view().tasks.values().map(|task| (task.key.clone(), task.agent.clone())).collect();
        Ok(Self { cluster, tasks, next: 0 })
    }

    pub(super) fn view(&self) -> ClusterView {
        self.cluster.view().clone()
    }

    /// The view after the next event, whose revision is the next one.
    pub(super) fn next(&mut self) -> anyhow::Result<ClusterView> {
        let before = self.cluster.view().revision;
        let (task, agent) = &self.tasks[self.next % self.tasks.len()];
        let is_healthy = (self.next / self.tasks.len()) % 2 == 1;
        self.next += 1;
        self.cluster.report_health(task, agent, is_healthy);
        ensure!(self.cluster.view().revision == before.next(), "an event has made no revision");
        Ok(self.view())
    }
}

impl Subscribers {
    /// Starts the process.
    pub(super) fn start(part: &str, order: &Order) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::from(command(part, order)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the subscribers")?;
        let input = child.stdin.take().context("BUG: no input")?;
        let output = child.stdout.take().context("BUG: no output")?;
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    /// Waits until it says this.
    pub(super) async fn hear(&mut self, what: &str) -> anyhow::Result<()> {
        let line = self.output.next_line().await?;
        ensure!(line.as_deref() == Some(what), "the subscribers say {line:?} and not '{what}'");
        Ok(())
    }

    pub(super) async fn say(&mut self, what: &str) -> anyhow::Result<()> {
        Ok(self.input.write_all(format!("{what}\n").as_bytes()).await?)
    }

    /// There are no more events: what it has seen of them.
    pub(super) async fn end(mut self) -> anyhow::Result<Followed> {
        self.say("end").await?;
        let line = self.output.next_line().await?.context("the subscribers have failed")?;
        let followed = serde_json::from_str(&line).context("the subscribers say what is no result")?;
        self.child.wait().await?;
        Ok(followed)
    }
}
