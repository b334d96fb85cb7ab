//! Several masters: one leads, the others stand by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId, AgentReport, ClusterView, Plane, Revision};
use tokio::sync::{mpsc, watch};

use super::site::{
    AgentNode, IDLE_TIMEOUT, LONG, NetNode, Site, connects, eventually, fails_with, name, patiently,
    registration,
};
use crate::{
    Client, ClientSettings, LeaderAddress, LinkState, MasterEnds, PlaneNews, Publisher, Role, Server,
    ServerSettings, channel,
};

/// A master that stands by, of the cluster of a site.
struct Standby {
    server: Server,
    leader: watch::Sender<Option<LeaderAddress>>,
}

/// What a master that begins to lead is joined to.
struct Ends {
    publisher: Publisher,
    planes: mpsc::Receiver<PlaneNews>,
    reports: mpsc::Receiver<AgentReport>,
    _commands: mpsc::Sender<(AgentId, AgentCommand)>,
}

impl Standby {
    fn start(site: &Site, called: &str) -> Self {
        let (leader, follows) = watch::channel(None);
        let settings = ServerSettings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: name(called),
            idle_timeout: IDLE_TIMEOUT,
            certificate_lifetime: LONG,
        };
        let server = Server::start_standing(settings, site.authority.clone(), follows).expect("server");
        Self { server, leader }
    }

    /// One that follows the site's master.
    async fn following(site: &Site, called: &str) -> Self {
        let standby = Self::start(site, called);
        standby.follow(site.master(), 1);
        eventually("the standby is connected", || {
            site.server.standbys().into_iter().find(|standby| standby.name == name(called))
        })
        .await;
        standby
    }

    fn follow(&self, bus: String, term: u64) {
        self.leader.send_replace(Some(LeaderAddress { bus, term }));
    }

    fn master(&self) -> String {
        self.server.address().to_string()
    }

    /// It is elected.
    fn lead(&self, term: u64) -> Ends {
        let (publisher, feed, planes) = channel();
        let (reports_in, reports) = mpsc::channel(64);
        let (commands, commands_out) = mpsc::channel(64);
        let own = LeaderAddress { bus: self.master(), term };
        let ends = MasterEnds { feed, reports: reports_in, commands: commands_out };
        self.server.lead(term, ends, &own).expect("leads");
        Ends { publisher, planes, reports, _commands: commands }
    }
}

fn settings(site: &Site, node: &str, masters: &[String]) -> ClientSettings {
    ClientSettings { masters: masters.to_vec(), ..site.settings(node) }
}

fn agent(site: &Site, node: &str, masters: &[String]) -> AgentNode {
    let (commands_in, commands) = mpsc::channel(64);
    let (reports, reports_out) = mpsc::channel(64);
    let client = Client::start_agent(settings(site, node, masters), commands_in, reports_out);
    AgentNode { client: client.expect("client"), commands, reports }
}

fn net(site: &Site, node: &str, masters: &[String]) -> NetNode {
    let (publisher, feed, reports) = channel();
    let client = Client::start_net(settings(site, node, masters), None, publisher, reports);
    NetNode { client: client.expect("client"), feed }
}

async fn report(node: &NetNode, view: &ClusterView) {
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Dns);
    plane.report(view.revision, BTreeSet::new(), BTreeMap::new()).await;
}

/// The node and revision of the next report.
async fn reported(planes: &mut mpsc::Receiver<PlaneNews>) -> (String, Revision) {
    match patiently(planes.recv()).await.expect("news") {
        PlaneNews::Report(report) => (report.report.node.to_string(), report.report.applied),
        news => panic!("{news:?}"),
    }
}

/// The master that a client is connected to.
async fn connected_to(client: &Client, expected: &str) {
    let mut state = client.state();
    let is_there =
        |state: &LinkState| matches!(state, LinkState::Connected { master, .. } if master == expected);
    patiently(state.wait_for(is_there)).await.expect("state");
}

#[tokio::test]
async fn an_agent_is_sent_to_the_leader_also_if_that_is_elected_later() {
    let mut site = Site::start();
    site.joined("n1").await;
    let standby = Standby::start(&site, "m2");
    let mut node = agent(&site, "n1", &[standby.master()]);
    eventually("the agent waits", || (standby.server.stats().connections.is_empty()).then_some(())).await;
    standby.follow(site.master(), 1);
    site.register(&mut node, "host-1", "c-S0").await;
    connected_to(&node.client, &site.master()).await;
    assert_eq!(node.client.stats().failures, 0);
}

#[tokio::test]
async fn planes_of_a_node_at_a_standby_are_heard_of_by_the_leader() {
    let mut site = Site::start();
    let first = site.publish("a", "one".to_owned());
    site.joined("n1").await;
    let standby = Standby::following(&site, "m2").await;
    let node = net(&site, "n1", &[standby.master()]);
    assert_eq!(node.reaches(first.revision).await, first);
    connected_to(&node.client, &standby.master()).await;
    report(&node, &first).await;
    assert_eq!(reported(&mut site.planes).await, ("n1".to_owned(), first.revision));
    let second = site.publish("b", "two".to_owned());
    assert_eq!(node.reaches(second.revision).await, second);
    eventually("the leader knows how far the standby is", || {
        site.server.standbys().into_iter().find(|standby| standby.revision == second.revision)
    })
    .await;
    drop(node);
    let PlaneNews::Gone { node, plane } = site.plane_news().await else { panic!("a report") };
    assert_eq!((node.as_str(), plane), ("n1", Plane::Dns));
}

#[tokio::test]
async fn a_new_leader_hears_of_every_plane_and_agent_and_nobody_goes_back() {
    let mut site = Site::start();
    let first = site.publish("a", "one".to_owned());
    for node in ["n1", "n2"] {
        site.joined(node).await;
    }
    let elected = Standby::following(&site, "m2").await;
    let other = Standby::following(&site, "m3").await;
    let masters = [site.master(), elected.master(), other.master()];
    let stays = net(&site, "n1", &[other.master()]);
    stays.reaches(first.revision).await;
    report(&stays, &first).await;
    reported(&mut site.planes).await;
    let mut agent = agent(&site, "n2", &masters);
    site.register(&mut agent, "host-2", "c-S0").await;

    // The others hear of the election before the old leader does.
    let mut ends = elected.lead(2);
    other.follow(elected.master(), 2);
    assert_eq!(reported(&mut ends.planes).await, ("n1".to_owned(), first.revision));
    connected_to(&stays.client, &other.master()).await;
    site.server.stand_by(other.leader.subscribe()).expect("stands by");
    connected_to(&agent.client, &elected.master()).await;
    assert_eq!(patiently(agent.commands.recv()).await, Some(AgentCommand::Reregister));
    agent.reports.send(registration(None, "host-2")).await.expect("sent");
    let registered = patiently(ends.reports.recv()).await.expect("a report");
    assert_eq!(registered, registration(Some("c-S0"), "host-2"), "it keeps its id");
    let mut second = first.clone();
    second.revision = first.revision.next();
    ends.publisher.publish(second.clone());
    stays.reaches(second.revision).await;
    assert_eq!((stays.client.stats().snapshots, stays.client.stats().deltas), (1, 1));
    assert_eq!(stays.client.stats().failures, 0, "its connection has held");
}

#[tokio::test]
async fn a_master_of_an_earlier_term_is_not_followed() {
    let site = Site::start();
    site.joined("n1").await;
    let newest = Standby::start(&site, "m2");
    let _ends = newest.lead(8);
    let node = agent(&site, "n1", &[newest.master()]);
    connects(&node.client).await;
    // It was deposed and does not know.
    let old = Standby::start(&site, "m3");
    let _old_ends = old.lead(6);
    let (_leader, leader) = watch::channel(Some(LeaderAddress { bus: old.master(), term: 6 }));
    newest.server.stand_by(leader).expect("stands by");
    fails_with(&node.client, "of term 6, and there was one of term 8").await;
}

#[tokio::test]
async fn a_standby_that_follows_nobody_does_not_pass_for_a_source_of_views() {
    let mut site = Site::start();
    let first = site.publish("a", "one".to_owned());
    site.joined("n1").await;
    let lonely = Standby::start(&site, "m2");
    let node = net(&site, "n1", &[lonely.master(), site.master()]);
    node.reaches(first.revision).await;
    connected_to(&node.client, &site.master()).await;
}

#[tokio::test]
async fn the_end_of_a_masters_process_is_noticed_without_waiting_for_silence() {
    let site = Site::start();
    site.joined("n1").await;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("runtime");
    let guard = runtime.enter();
    let dying = Standby::start(&site, "m2");
    let _ends = dying.lead(1);
    drop(guard);
    // Far longer than this test's patience.
    let idle_timeout = Duration::from_secs(600);
    let masters = vec![dying.master()];
    let (commands, mut commands_out) = mpsc::channel(8);
    let (reports, reports_out) = mpsc::channel(8);
    let settings = ClientSettings { masters, idle_timeout, ..site.settings("n1") };
    let client = Client::start_agent(settings, commands, reports_out).expect("client");
    connects(&client).await;
    assert!(client.stats().connections == 1 && commands_out.try_recv().is_err());
    // It ends without a word, as a process does that is killed.
    std::mem::forget(dying);
    runtime.shutdown_background();
    reports.send(registration(None, "host-1")).await.expect("sent");
    let mut state = client.state();
    let is_lost = |state: &LinkState| matches!(state, LinkState::Disconnected { .. });
    patiently(state.wait_for(is_lost)).await.expect("state");
}

#[tokio::test]
async fn only_masters_speak_for_other_nodes() {
    let site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw_welcome("n1", Role::Net).await;
    raw.say(&crate::wire::FromNode::Standby { revision: Revision(1) }).await;
    assert_eq!(raw.end().await.0, Some(crate::Reason::Role));
    let mut raw = site.raw("n1").await;
    raw.say(&crate::wire::First::Hello(super::site::hello("n1", Role::Master))).await;
    assert_eq!(raw.end().await.0, Some(crate::Reason::Role));
}
