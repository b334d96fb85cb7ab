//! Views on their way to network daemons, and the planes' reports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use mesonet_model::{AgentId, Plane, Revision};

use super::site::{Site, connects, eventually, fails_with, hello, name, patiently};
use crate::wire::{self, First, ViewMessage};
use crate::{KnownView, PlaneNews, Role};

#[tokio::test]
async fn a_new_node_gets_a_snapshot_and_then_deltas() {
    let mut site = Site::start();
    let first = site.publish("a", "one".to_owned());
    site.joined("n1").await;
    let node = site.net("n1", None);
    assert_eq!(node.reaches(first.revision).await, first);
    let second = site.publish("b", "two".to_owned());
    assert_eq!(node.reaches(second.revision).await, second);
    assert_eq!((node.client.stats().snapshots, node.client.stats().deltas), (1, 1));
}

#[tokio::test]
async fn a_node_that_was_away_gets_what_has_changed_if_the_master_remembers() {
    let mut site = Site::start();
    let first = site.publish("a", "one".to_owned());
    site.joined("n1").await;
    let node = site.net("n1", None);
    node.reaches(first.revision).await;
    drop(node);
    let second = site.publish("b", "two".to_owned());
    let back = site.net("n1", Some(first.clone()));
    assert_eq!(back.reaches(second.revision).await, second);
    assert_eq!((back.client.stats().snapshots, back.client.stats().deltas), (0, 1));
    drop(back);

    let mut site = site.restart().await;
    let third = site.publish("c", "three".to_owned());
    let stranger = site.net("n1", Some(first));
    assert_eq!(stranger.reaches(third.revision).await, third);
    assert_eq!((stranger.client.stats().snapshots, stranger.client.stats().deltas), (1, 0));
}

#[tokio::test]
async fn a_slow_subscriber_gets_fewer_and_merged_deltas() {
    const VIEWS: u64 = 60;
    let mut site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw("n1").await;
    raw.say(&First::Hello(hello("n1", Role::Net))).await;
    // Digits of a generator hardly compress: all deltas are several times what the windows hold.
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = || (0..150_000).map(|_| random.alphanumeric()).collect::<String>();
    let mut newest = site.publish("a", text());
    for _ in 1..VIEWS {
        newest = site.publish("a", text());
        eventually("remembered", || {
            let seen = site.server.stats();
            (seen.snapshots + seen.deltas >= 1).then_some(())
        })
        .await;
    }
    let mut views = patiently(raw.connection.accept_uni()).await.expect("stream");
    let mut known = None;
    let mut frames = 0;
    while known.as_ref() != Some(&newest) {
        frames += 1;
        match patiently(wire::receive(&mut views, wire::VIEW_FRAME_BYTES_MAX)).await.expect("frame") {
            ViewMessage::Snapshot(view) => known = Some(view),
            ViewMessage::Delta(delta) => {
                known.as_mut().expect("a snapshot first").apply(&delta).expect("deltas follow each other");
            }
        }
    }
    assert!(frames < VIEWS, "{frames} frames for {VIEWS} views");
}

#[tokio::test]
async fn a_frame_is_encoded_once_for_all_subscribers() {
    const NODES: u64 = 5;
    let mut site = Site::start();
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let node = format!("n{number}");
        site.joined(&node).await;
        let node = site.net(&node, None);
        connects(&node.client).await;
        nodes.push(node);
    }
    for text in ["one", "two"] {
        let view = site.publish("a", text.to_owned());
        for node in &nodes {
            node.reaches(view.revision).await;
        }
    }
    let stats = site.server.stats();
    assert_eq!((stats.snapshots, stats.deltas, stats.encodings), (NODES, NODES, 2));
    assert_eq!(stats.connections[&Role::Net], NODES);
}

#[tokio::test]
async fn planes_report_in_the_name_of_their_node_and_are_gone_with_it() {
    let mut site = Site::start();
    site.joined("n1").await;
    let node = site.net("n1", None);
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Dns);
    site.publish("a", "one".to_owned());
    let update = patiently(plane.next()).await.expect("update");
    plane.report(update.view.revision, BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!((report.report.node, report.report.applied), (AgentId::new("n1"), Revision(1)));

    let second = site.publish("a", "two".to_owned());
    patiently(plane.next()).await.expect("update");
    plane.report(second.revision, BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!((report.report.applied, report.latencies.len()), (second.revision, 1));

    drop(node);
    let PlaneNews::Gone { node, plane } = site.plane_news().await else { panic!("not gone") };
    assert_eq!((node, plane), (AgentId::new("n1"), Plane::Dns));
}

#[tokio::test]
async fn planes_reports_are_repeated_to_the_next_master() {
    let mut site = Site::start();
    site.joined("n1").await;
    let node = site.net("n1", None);
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Lb);
    let view = site.publish("a", "one".to_owned());
    patiently(plane.next()).await.expect("update");
    plane.report(view.revision, BTreeSet::new(), BTreeMap::new()).await;
    assert!(matches!(site.plane_news().await, PlaneNews::Report(_)));
    let mut site = site.restart().await;
    site.publisher.publish(view.clone());
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!((report.report.node, report.report.plane), (AgentId::new("n1"), Plane::Lb));
    assert!(node.client.stats().connections >= 2);
}

#[tokio::test]
async fn a_master_with_older_records_hears_that_nodes_are_ahead_and_takes_nothing_for_applied() {
    let mut site = Site::start();
    site.joined("n1").await;
    let mut of_old = site.publish("a", "before the older records were put back".to_owned());
    of_old.revision = Revision(99);
    let node = site.net("n1", Some(of_old.clone()));
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Dns);
    plane.report(of_old.revision, BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Ahead { revision } = site.plane_news().await else { panic!("not ahead") };
    assert_eq!(revision, of_old.revision);
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!(report.report.applied, Revision::ZERO);

    // Nobody is believed who would use up the numbers of revisions.
    plane.report(Revision(u64::MAX), BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!(report.report.applied, Revision::ZERO);

    // The master goes on above.
    let mut next = of_old.clone();
    next.revision = Revision(200);
    site.publisher.publish(next.clone());
    assert_eq!(node.reaches(next.revision).await, next);
    plane.report(next.revision, BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!(report.report.applied, next.revision);
}

#[tokio::test]
async fn a_report_that_comes_before_the_first_view_waits_for_it() {
    let mut site = Site::start();
    site.joined("n1").await;
    let view = site.publish("a", "one".to_owned());
    let mut site = site.restart().await;
    let node = site.net("n1", Some(view.clone()));
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Dns);
    plane.report(view.revision, BTreeSet::new(), BTreeMap::new()).await;
    connects(&node.client).await;
    site.publisher.publish(view.clone());
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    assert_eq!(report.report.applied, view.revision);
}

#[tokio::test]
async fn the_next_master_is_told_how_old_the_view_was_that_a_node_served() {
    let mut site = Site::start();
    site.joined("n1").await;
    let view = site.publish("a", "one".to_owned());
    let confirmed = SystemTime::now() - Duration::from_secs(3600);
    let node = site.net_with("n1", Some(KnownView { view: view.clone(), confirmed }));
    let mut plane = node.feed.subscribe(AgentId::new("whatever"), Plane::Dns);
    plane.report(view.revision, BTreeSet::new(), BTreeMap::new()).await;
    let PlaneNews::Report(report) = site.plane_news().await else { panic!("no report") };
    let outage = report.report.outage.expect("an outage");
    assert!(outage.until.since(outage.since) >= Duration::from_secs(3600), "{outage:?}");
}

#[tokio::test]
async fn a_node_keeps_its_view_while_no_master_is_there() {
    let mut site = Site::start();
    let view = site.publish("a", "one".to_owned());
    site.joined("n1").await;
    let node = site.net("n1", None);
    node.reaches(view.revision).await;
    site.server.close().await;
    fails_with(&node.client, "").await;
    assert_eq!(node.feed.newest().as_deref(), Some(&view));
    assert_eq!(site.authority.nodes().expect("nodes")[0].name, name("n1"));
}
