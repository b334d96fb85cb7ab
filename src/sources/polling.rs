//! Polls `/master/state` of Mesos masters, as mesos-dns does (spec/dcos-networking.md §1.1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use mesonet_mesos::{Options, StateFollower};
use mesonet_model::ClusterView;

use super::backoff::Backoff;
use super::host_names;
use super::http_client::{MesosClient, Question, Reply};
use super::sink::Sink;
use super::{MesosSettings, SIZE_MAX};
use crate::clock::WallClock;
use crate::config::Endpoint;

const STATE_PATH: &str = "/master/state";

/// Polls until it is dropped.
pub async fn poll(settings: MesosSettings, mut sink: Sink) {
    let mut poller = Poller::new(settings);
    let mut backoff = Backoff::default();
    loop {
        sink.metrics.attempts.inc();
        let wait = match poller.poll_once(&sink).await {
            Ok(view) => {
                sink.found(&view);
                backoff.reset();
                poller.settings.refresh
            }
            Err(error) => {
                sink.lost(&error);
                backoff.next_wait().min(poller.settings.refresh)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

struct Poller {
    settings: MesosSettings,
    client: MesosClient,
    state: StateReader,
    /// The master that led last, if it is not where the settings say.
    leader: Option<Endpoint>,
}

impl Poller {
    fn new(settings: MesosSettings) -> Self {
        let client = MesosClient::new(settings.authorization.clone());
        let state = StateReader::new(settings.masters.iter().map(Endpoint::to_string).collect());
        Self { settings, client, state, leader: None }
    }

    /// Asks the master that led last, then the others, until one knows the cluster.
    async fn poll_once(&mut self, sink: &Sink) -> anyhow::Result<ClusterView> {
        let known = self.leader.take();
        let mut candidates = self.settings.masters.clone();
        candidates.retain(|master| Some(master) != known.as_ref());
        let mut failures = Vec::new();
        for master in known.into_iter().chain(candidates) {
            match self.ask(&master, sink).await {
                Ok(view) => return Ok(view),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(%master, error, "A master does not give the state");
                    failures.push(error);
                }
            }
        }
        Err(anyhow!("no master gives the state: {}", failures.join("; ")))
    }

    async fn ask(&mut self, master: &Endpoint, sink: &Sink) -> anyhow::Result<ClusterView> {
        let (state, from, peer) = self.fetch(master, sink).await?;
        let leader = StateFollower::leader_of(&state).with_context(|| bad_state(&from))?;
        let leader = leader.map(|(host, port)| Endpoint { host, port });
        // A master that does not lead knows too little. Only if its leader cannot be reached is its word taken.
        if let Some(leader) = leader.filter(|leader| !is_at(leader, &from, peer)) {
            match self.fetch(&leader, sink).await {
                Ok((state, from, _)) => {
                    let view = self.state.read(state, sink).await.with_context(|| bad_state(&from))?;
                    self.leader = Some(leader);
                    return Ok(view);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(%master, %leader, error, "The leader that a master names is not reached");
                }
            }
        }
        let view = self.state.read(state, sink).await.with_context(|| bad_state(&from))?;
        self.leader = Some(from);
        Ok(view)
    }

    async fn fetch(&self, master: &Endpoint, sink: &Sink) -> anyhow::Result<(Vec<u8>, Endpoint, IpAddr)> {
        let timeout = self.settings.timeout;
        let question = Question { path: STATE_PATH, body: None, timeout };
        let reply = self.client.ask(master, &question).await?;
        let Reply { from, peer, .. } = &reply;
        let (from, peer) = (from.clone(), *peer);
        let state = reply.whole(SIZE_MAX, timeout).await?;
        sink.metrics.received_bytes.inc_by(state.len() as u64);
        Ok((state, from, peer))
    }
}

fn bad_state(master: &Endpoint) -> String {
    format!("what {master} gives is not the state of a cluster")
}

/// Whether the leader is who was asked. As in mesos-dns, its port may be another one, as behind a proxy.
fn is_at(leader: &Endpoint, asked: &Endpoint, peer: IpAddr) -> bool {
    leader.host == asked.host || leader.host.parse() == Ok(peer)
}

/// Turns states into views, with the addresses of the host names in them.
#[derive(Debug)]
pub struct StateReader {
    /// `None` only while it is at work on another thread.
    follower: Option<StateFollower>,
    hosts: BTreeMap<String, Vec<IpAddr>>,
    clock: WallClock,
}

impl StateReader {
    /// Begins with an empty cluster of these masters.
    pub fn new(masters: Vec<String>) -> Self {
        let options = Options { masters, ..Options::default() };
        let follower = Some(StateFollower::new(options));
        Self { follower, hosts: BTreeMap::new(), clock: WallClock::default() }
    }

    /// The view that a state describes.
    ///
    /// # Errors
    /// When it describes none.
    pub async fn read(&mut self, state: Vec<u8>, sink: &Sink) -> anyhow::Result<ClusterView> {
        // As in mesos-dns, names are looked up each time. Those without an address at the moment keep theirs.
        let known: BTreeSet<String> = self.hosts.keys().cloned().collect();
        self.look_up(known).await;
        let mut follower = self.follower.take().context("BUG: two states are read at once")?;
        for (host, addresses) in &self.hosts {
            follower.set_host(host, addresses);
        }
        // Parsing a large state takes seconds.
        let now = self.clock.now();
        let reading = tokio::task::spawn_blocking(move || {
            let view = follower.apply_state(&state, now);
            (follower, view)
        });
        let (mut follower, view) = reading.await.context("BUG: reading a state has failed")?;
        let unresolved = follower.unresolved_hosts().clone();
        sink.metrics.left_out.inc_by(follower.rejected() as u64);
        let mut view = match view {
            Ok(view) => view,
            Err(error) => {
                self.follower = Some(follower);
                return Err(error.into());
            }
        };
        if !unresolved.is_empty() {
            self.look_up(unresolved.clone()).await;
            for host in &unresolved {
                view = follower.set_host(host, self.hosts.get(host).map_or(&[], Vec::as_slice));
            }
        }
        self.follower = Some(follower);
        Ok(view)
    }

    async fn look_up(&mut self, names: BTreeSet<String>) {
        for (name, addresses) in host_names::look_up(names).await {
            let known = self.hosts.entry(name).or_default();
            if !addresses.is_empty() {
                *known = addresses;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::super::sink::SourceMetrics;
    use super::*;

    /// A master at an address of this machine that gives its state to whoever asks, and does not redirect.
    async fn master(ip: &str, state: impl Fn(&str) -> String, servers: &mut JoinSet<()>) -> Endpoint {
        let listener = TcpListener::bind((ip, 0)).await.expect("listens");
        let address = listener.local_addr().expect("address");
        let body = state(&address.to_string());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        servers.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("connection");
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Endpoint { host: ip.to_owned(), port: address.port() }
    }

    fn state(leader: &str, framework: &str) -> String {
        format!(
            r#"{{"leader": "master@{leader}", "slaves": [], "frameworks": [{{"id": "f", "name": "{framework}"}}]}}"#
        )
    }

    /// The names of the frameworks that are found.
    async fn poll_once(master: &Endpoint) -> Vec<String> {
        let settings = MesosSettings {
            masters: vec![master.clone()],
            refresh: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            authorization: None,
        };
        let metrics = SourceMetrics::register(&Registry::new()).expect("metrics");
        let (publisher, _feed, _reports) = mesonet_bus::channel();
        let nothing = ClusterView::empty(mesonet_model::ClusterId::new("c"));
        let (sink, _state) = Sink::new(publisher, nothing, metrics);
        let view = Poller::new(settings).poll_once(&sink).await.expect("a view");
        view.frameworks.values().map(|framework| framework.name.clone()).collect()
    }

    #[tokio::test]
    async fn the_word_of_the_leader_counts_if_it_can_be_reached() {
        let mut servers = JoinSet::new();
        let leader = master("127.0.0.2", |own| state(own, "right"), &mut servers).await;
        let other = master("127.0.0.1", |_| state(&leader.to_string(), "wrong"), &mut servers).await;
        assert_eq!(poll_once(&other).await, ["right"]);
        // As behind a proxy: the port that the leader names is another one.
        let proxied = master("127.0.0.1", |_| state("127.0.0.1:1", "right"), &mut servers).await;
        assert_eq!(poll_once(&proxied).await, ["right"]);
        let alone = master("127.0.0.1", |_| state("127.0.0.3:1", "known"), &mut servers).await;
        assert_eq!(poll_once(&alone).await, ["known"], "nobody listens at the leader's address");
    }
}
