//! What must end a connection, and nothing else.

use mesonet_model::{AgentId, AgentReport, Plane, PlaneReport, Revision};

use super::site::{Site, connects, hello, patiently, registration};
use crate::client::dial::dial;
use crate::wire::{First, FromNode, Hello};
use crate::{Reason, Role, pki};

fn plane_report() -> PlaneReport {
    PlaneReport {
        node: AgentId::new("somebody-else"),
        plane: Plane::Dns,
        applied: Revision(1),
        busy: Default::default(),
        failed: Default::default(),
        outage: None,
        tunnel: None,
    }
}

#[tokio::test]
async fn an_unknown_version_is_refused_with_both_ranges() {
    let site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw("n1").await;
    raw.say(&First::Hello(Hello { versions: (7, 9), ..hello("n1", Role::Net) })).await;
    let (reason, text) = raw.end().await;
    assert_eq!(reason, Some(Reason::Version));
    assert!(text.contains("7 to 9") && text.contains("1 to 1"), "{text}");
}

#[tokio::test]
async fn a_newer_node_is_spoken_to_in_the_common_version() {
    let site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw("n1").await;
    raw.say(&First::Hello(Hello { versions: (1, 9), ..hello("n1", Role::Net) })).await;
    assert!(matches!(raw.hear().await, crate::wire::FromMaster::Welcome { version: 1, .. }));
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_refused_before_it_is_received() {
    let site = Site::start();
    site.joined("n1").await;
    let mut first = site.raw("n1").await;
    first.send.write_all(&[0, 1, 0, 0, 0]).await.expect("sent");
    assert_eq!(first.end().await.0, Some(Reason::TooLarge));
    let mut later = site.raw_welcome("n1", Role::Net).await;
    later.send.write_all(&[0xff, 0xff, 0xff, 0xff, 0]).await.expect("sent");
    assert_eq!(later.end().await.0, Some(Reason::TooLarge));
    assert_eq!(site.refused(Reason::TooLarge), 2);
}

#[tokio::test]
async fn a_small_frame_that_expands_without_end_is_refused() {
    let site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw("n1").await;
    let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 1).expect("compressed");
    let length = u32::try_from(bomb.len() + 1).expect("small");
    raw.send.write_all(&length.to_be_bytes()).await.expect("sent");
    raw.send.write_all(&[1]).await.expect("sent");
    raw.send.write_all(&bomb).await.expect("sent");
    assert_eq!(raw.end().await.0, Some(Reason::BadMessage));
}

#[tokio::test]
async fn messages_of_another_role_end_the_connection() {
    let site = Site::start();
    site.joined("n1").await;
    for (role, message) in [
        (Role::Net, FromNode::Agent(registration(None, "h"))),
        (Role::Agent, FromNode::Plane(plane_report())),
        (Role::Agent, FromNode::Agent(AgentReport::Disconnected { agent: AgentId::new("c-S0") })),
    ] {
        let mut raw = site.raw_welcome("n1", role).await;
        raw.say(&message).await;
        assert_eq!(raw.end().await.0, Some(Reason::Role), "{message:?}");
    }
}

#[tokio::test]
async fn nobody_speaks_in_the_name_of_another_node() {
    let site = Site::start();
    site.joined("n1").await;
    let mut raw = site.raw("n1").await;
    raw.say(&First::Hello(hello("n2", Role::Net))).await;
    assert_eq!(raw.end().await.0, Some(Reason::Role));
}

#[tokio::test]
async fn without_a_certificate_a_node_can_only_join() {
    let site = Site::start();
    let token = site.token(1, &[Role::Agent]);
    let tls = pki::joining_config(token.authority).expect("tls");
    let idle = std::time::Duration::from_secs(10);
    let (_endpoint, connection) = dial(&site.master(), tls, idle).await.expect("connected");
    let (mut send, _receive) = connection.open_bi().await.expect("stream");
    crate::wire::send(&mut send, &First::Hello(hello("n1", Role::Net))).await.expect("sent");
    let end = crate::LinkError::from(patiently(connection.closed()).await);
    assert!(matches!(end, crate::LinkError::Refused { reason: Some(Reason::Role), .. }), "{end}");
}

#[tokio::test]
async fn an_offender_affects_nobody_else() {
    let site = Site::start();
    site.joined("good").await;
    site.joined("bad").await;
    let good = site.net("good", None);
    connects(&good.client).await;
    for _ in 0..20 {
        let mut raw = site.raw("bad").await;
        raw.send.write_all(&[0, 0, 0, 2, 9, 9]).await.expect("sent");
        assert_eq!(raw.end().await.0, Some(Reason::BadMessage));
    }
    assert_eq!((good.client.stats().connections, good.client.stats().failures), (1, 0));
    assert_eq!(site.server.connected().len(), 1);
}
