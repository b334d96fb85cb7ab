//! Follows the v1 operator API of the leading Mesos master, event by event (spec/dcos-networking.md §2.2).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use mesonet_mesos::{OperatorFollower, Options};
use mesonet_model::ClusterView;

use super::backoff::Backoff;
use super::host_names;
use super::http_client::{MesosClient, Question, Reply};
use super::record_io::RecordReader;
use super::sink::Sink;
use super::{MesosSettings, SIZE_MAX};
use crate::clock::WallClock;
use crate::config::Endpoint;

const SUBSCRIBE: Question = Question {
    path: "/api/v1",
    body: Some("{\"type\":\"SUBSCRIBE\"}"),
    // As in dcos-net.
    timeout: Duration::from_secs(30),
};

/// A stream is dead when nothing has come for so many intervals of the master's heartbeats, as in dcos-net.
const HEARTBEATS_MISSED_MAX: u32 = 3;

/// How often the addresses of host names are looked up again, as often as mesos-dns does by default.
const HOSTS_INTERVAL: Duration = Duration::from_secs(60);

/// Records above this size are read on a thread of their own: the first one of a stream has the whole cluster.
const SMALL_RECORD: usize = 64 * 1024;

/// Follows until it is dropped.
pub async fn follow(settings: MesosSettings, mut sink: Sink) {
    let client = MesosClient::new(settings.authorization.clone());
    let mut subscription = Subscription::new(&settings.masters);
    let mut backoff = Backoff::default();
    let mut leader: Option<Endpoint> = None;
    loop {
        sink.metrics.attempts.inc();
        match subscribe(&client, leader.take(), &settings.masters).await {
            Ok(reply) => {
                tracing::info!(master = %reply.from, "Subscribed to the events of the leading master");
                let from = reply.from.clone();
                let ended = subscription.follow(reply, &mut sink).await;
                let error = match ended {
                    Ok(never) => match never {},
                    Err(error) => error.context(format!("the subscription to {from} has ended")),
                };
                // It may still lead: a proxy on the way may have closed the connection.
                leader = Some(from);
                if subscription.was_served {
                    backoff.reset();
                }
                sink.lost(&error);
            }
            Err(error) => sink.lost(&error),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Subscribes with the master that led last, or else with whichever leads.
async fn subscribe(
    client: &MesosClient,
    leader: Option<Endpoint>,
    masters: &[Endpoint],
) -> anyhow::Result<Reply> {
    let others = masters.iter().filter(|master| Some(*master) != leader.as_ref()).cloned();
    let mut failures = Vec::new();
    for master in leader.iter().cloned().chain(others) {
        match client.ask(&master, &SUBSCRIBE).await {
            Ok(reply) => return Ok(reply),
            Err(error) => failures.push(format!("{:#}", anyhow!(error))),
        }
    }
    Err(anyhow!("no master takes a subscription: {}", failures.join("; ")))
}

/// What is known of the cluster, over all streams.
struct Subscription {
    /// `None` only while it is at work on another thread.
    follower: Option<OperatorFollower>,
    masters: Vec<String>,
    hosts: BTreeMap<String, Vec<IpAddr>>,
    rejected: usize,
    clock: WallClock,
    /// Whether the stream's first record was read.
    has_begun: bool,
    /// Whether the stream said how things are.
    was_served: bool,
}

impl Subscription {
    fn new(masters: &[Endpoint]) -> Self {
        let masters: Vec<String> = masters.iter().map(Endpoint::to_string).collect();
        let options = Options { masters: masters.clone(), ..Options::default() };
        let follower = Some(OperatorFollower::new(options));
        Self {
            follower,
            masters,
            hosts: BTreeMap::new(),
            rejected: 0,
            clock: WallClock::default(),
            has_begun: false,
            was_served: false,
        }
    }

    /// Follows a stream to its end, which is always an error.
    async fn follow(&mut self, mut reply: Reply, sink: &mut Sink) -> anyhow::Result<Infallible> {
        (self.has_begun, self.was_served, self.rejected) = (false, false, 0);
        let leader = reply.from.to_string();
        let mut records = RecordReader::new(SIZE_MAX);
        let masters = self.masters.clone();
        let named = self.follower()?.set_masters(masters, Some(leader));
        self.pass_on(named, sink)?;
        let mut look_up_next = tokio::time::Instant::now() + HOSTS_INTERVAL;
        loop {
            let now = self.clock.now();
            let follower = self.follower()?;
            let silence_max = follower.heartbeat_interval() * HEARTBEATS_MISSED_MAX;
            let deadline = follower.deadline().map_or(Duration::MAX, |deadline| deadline.since(now));
            let mut newest = None;
            tokio::select! {
                piece = reply.piece(silence_max) => {
                    let Some(piece) = piece? else {
                        bail!("the master has closed the connection");
                    };
                    sink.metrics.received_bytes.inc_by(piece.len() as u64);
                    records.push(&piece);
                    while let Some(record) = records.next_record()? {
                        newest = self.apply(record).await?.or(newest);
                    }
                }
                () = tokio::time::sleep(deadline) => {
                    let now = self.clock.now();
                    newest = self.follower()?.handle_timeout(now);
                }
                () = tokio::time::sleep_until(look_up_next) => {
                    look_up_next = tokio::time::Instant::now() + HOSTS_INTERVAL;
                    newest = self.look_up(self.hosts.keys().cloned().collect()).await?;
                }
            }
            let unresolved = self.follower()?.unresolved_hosts().clone();
            if !unresolved.is_empty() {
                newest = self.look_up(unresolved).await?.or(newest);
            }
            self.pass_on(newest, sink)?;
        }
    }

    /// Takes a record. What cannot be read is left out; the stream goes on.
    async fn apply(&mut self, record: Vec<u8>) -> anyhow::Result<Option<ClusterView>> {
        let now = self.clock.now();
        let mut follower = self.follower.take().context("BUG: two records are read at once")?;
        let applied = if record.len() < SMALL_RECORD {
            follower.apply(&record, now)
        } else {
            let reading = tokio::task::spawn_blocking(move || {
                let applied = follower.apply(&record, now);
                (follower, applied)
            });
            let (back, applied) = reading.await.context("BUG: reading an event has failed")?;
            follower = back;
            applied
        };
        self.follower = Some(follower);
        match applied {
            Ok(view) => {
                self.has_begun = true;
                Ok(view)
            }
            Err(error) => {
                let error = anyhow!(error);
                tracing::warn!(error = format!("{error:#}"), "An event of the master is left out");
                Ok(None)
            }
        }
    }

    /// Publishes what has changed, and says that nothing else has.
    fn pass_on(&mut self, newest: Option<ClusterView>, sink: &mut Sink) -> anyhow::Result<()> {
        let follower = self.follower()?;
        // It waits for a time only while agents or tasks are awaited.
        let (rejected, is_waiting) = (follower.rejected(), follower.deadline().is_some());
        if rejected > self.rejected {
            sink.metrics.left_out.inc_by((rejected - self.rejected) as u64);
            self.rejected = rejected;
        }
        if let Some(view) = newest {
            sink.publish(&view);
        }
        if self.has_begun && !is_waiting {
            self.was_served = true;
            sink.confirm();
        }
        Ok(())
    }

    fn follower(&mut self) -> anyhow::Result<&mut OperatorFollower> {
        self.follower.as_mut().context("BUG: an event is being read")
    }

    /// Looks up host names. Those without an address at the moment keep what they have.
    async fn look_up(&mut self, names: BTreeSet<String>) -> anyhow::Result<Option<ClusterView>> {
        let mut newest = None;
        for (name, addresses) in host_names::look_up(names).await {
            let known = self.hosts.entry(name.clone()).or_default();
            if !addresses.is_empty() {
                *known = addresses;
            }
            let known = known.clone();
            newest = self.follower()?.set_host(&name, &known).or(newest);
        }
        Ok(newest)
    }
}
