//! Who is let in, with what, and for how long.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId};

use super::site::{IDLE_TIMEOUT, Site, connects, eventually, fails_with, name, patiently};
use crate::client::dial::{LinkError, dial_any};
use crate::{
    Authority, AuthorityError, Client, Identity, JoinError, JoinToken, PlaneNews, Reason, Role, TokenTerms,
    join, pki,
};

fn refusal(result: Result<Identity, JoinError>) -> (Option<Reason>, String) {
    match result {
        Err(JoinError::Refused { source: LinkError::Refused { reason, text }, .. }) => (reason, text),
        other => panic!("not refused but {other:?}"),
    }
}

#[tokio::test]
async fn a_node_joins_and_keeps_its_identity_for_itself() {
    let site = Site::start();
    let identity = site.join("n1", &site.token(1, &[Role::Agent, Role::Net])).await.expect("joined");
    assert_eq!((identity.name(), identity.cluster()), (&name("n1"), site.authority.cluster()));
    for file in ["node.key", "node.pem"] {
        let mode = site.node_dir("n1").join(file).metadata().expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let nodes = site.authority.nodes().expect("nodes");
    assert_eq!(nodes.iter().map(|node| &node.name).collect::<Vec<_>>(), [&name("n1")]);
    assert_eq!(site.server.stats().joined, 1);
}

#[tokio::test]
async fn a_master_is_found_at_any_address_of_its_host() {
    let site = Site::start();
    let token = site.token(1, &[Role::Agent]);
    let silent = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let closed = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let addresses = [closed, silent.local_addr().expect("address"), site.server.address()];
    let tls = || Arc::new(pki::joining_config(token.authority.clone()).expect("tls"));
    let (_ground, connection) =
        patiently(dial_any(&addresses, tls(), IDLE_TIMEOUT)).await.expect("connected");
    assert_eq!(connection.remote_address(), site.server.address());
    let nobody = patiently(dial_any(&[closed, closed], tls(), IDLE_TIMEOUT)).await;
    assert!(matches!(nobody, Err(LinkError::NobodyThere)), "{:?}", nobody.err());
}

#[tokio::test]
async fn a_token_is_refused_with_the_reason() {
    let site = Site::start();
    let good = site.token(1, &[Role::Agent]);
    let guessed = JoinToken { secret: "0".repeat(64), ..good.clone() };
    let expired = site.token_for(Duration::ZERO, 1, &[Role::Agent]);
    let (reason, text) = refusal(site.join("n1", &guessed).await);
    assert!(reason == Some(Reason::Token) && text.contains("unknown"), "{text}");
    let (reason, text) = refusal(site.join("n1", &expired).await);
    assert!(reason == Some(Reason::Token) && text.contains("expired"), "{text}");
    site.join("n1", &good).await.expect("joined");
    let (reason, text) = refusal(site.join("n2", &good).await);
    assert!(reason == Some(Reason::Token) && text.contains("used up"), "{text}");
    assert_eq!(site.refused(Reason::Token), 3);
}

#[tokio::test]
async fn a_token_outlives_the_master() {
    let site = Site::start();
    let text = site.token(2, &[Role::Agent]).to_string();
    site.join("n1", &text.parse().expect("token")).await.expect("joined");
    let site = site.restart().await;
    site.join("n2", &text.parse().expect("token")).await.expect("joined");
    let (reason, _) = refusal(site.join("n3", &text.parse().expect("token")).await);
    assert_eq!(reason, Some(Reason::Token));
}

#[tokio::test]
async fn a_node_whose_answer_was_lost_joins_again_with_the_same_token() {
    let site = Site::start();
    let token = site.token(1, &[Role::Agent]);
    site.join("n1", &token).await.expect("joined");
    std::fs::remove_file(site.node_dir("n1").join("node.pem")).expect("removed");
    site.join("n1", &token).await.expect("joined again");
}

#[tokio::test]
async fn the_secret_is_not_sent_to_the_master_of_another_cluster() {
    let (site, other) = (Site::start(), Site::start());
    let token = other.token(1, &[Role::Agent]);
    let result = site.join("n1", &token).await;
    assert!(matches!(result, Err(JoinError::Refused { source: LinkError::OtherCluster, .. })), "{result:?}");
    other.join("n1", &token).await.expect("the token is unused");
}

#[tokio::test]
async fn a_name_belongs_to_one_key_until_it_is_revoked() {
    let site = Site::start();
    site.joined("n1").await;
    let token = site.token(1, &[Role::Agent]);
    let elsewhere = site.node_dir("another-place");
    let master = [site.master()];
    let (reason, text) = refusal(join(&master, &token, &name("n1"), &elsewhere).await);
    assert!(reason == Some(Reason::NameTaken) && text.contains("n1"), "{text}");
    site.authority.revoke(&name("n1")).expect("revoked");
    join(&master, &token, &name("n1"), &elsewhere).await.expect("joined");
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_stays_out() {
    let mut site = Site::start();
    site.joined("n1").await;
    let node = site.net("n1", None);
    connects(&node.client).await;
    site.authority.revoke(&name("n1")).expect("revoked");
    fails_with(&node.client, "revoked").await;
    loop {
        match site.planes.recv().await.expect("the control plane is told") {
            PlaneNews::Revoked { node } => break assert_eq!(node.as_str(), "n1"),
            PlaneNews::Report(_) | PlaneNews::Gone { .. } | PlaneNews::Ahead { .. } => {}
        }
    }
    let again = site.net("n1", None);
    fails_with(&again.client, "revoked").await;
    assert_eq!(again.client.stats().connections, 0);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_told_so() {
    let (site, other) = (Site::start(), Site::start());
    other.joined("n1").await;
    let settings = crate::ClientSettings { masters: vec![site.master()], ..other.settings("n1") };
    let (publisher, _feed, reports) = crate::channel();
    let client = Client::start_net(settings, None, publisher, reports).expect("client");
    fails_with(&client, "different clusters").await;
}

#[tokio::test]
async fn a_node_cannot_pass_for_a_master() {
    let site = Site::start();
    let dir = site.joined("n1").await;
    let identity = Identity::load(&dir).expect("identity");
    let tls = pki::server_config(&identity.authority, identity.certificate, identity.key).expect("tls");
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let impostor = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).expect("endpoint");
    site.joined("n2").await;
    let master = impostor.local_addr().expect("address").to_string();
    let settings = crate::ClientSettings { masters: vec![master], ..site.settings("n2") };
    let (publisher, _feed, reports) = crate::channel();
    let accepting = tokio::spawn(async move {
        while let Some(incoming) = impostor.accept().await {
            let _ = incoming.await;
        }
    });
    let client = Client::start_net(settings, None, publisher, reports).expect("client");
    fails_with(&client, "certificate").await;
    accepting.abort();
}

#[tokio::test]
async fn a_role_that_was_not_given_is_refused() {
    let site = Site::start();
    site.join("n1", &site.token(1, &[Role::Net])).await.expect("joined");
    let node = site.agent("n1");
    fails_with(&node.client, "not for role agent").await;
    assert!(site.refused(Reason::Role) > 0);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_both_clocks() {
    let site = Site::with_lifetime(Duration::from_secs(8));
    let dir = site.joined("n1").await;
    let not_after = Identity::load(&dir).expect("identity").holder.not_after;
    let is_over = || (crate::clock::now().since(not_after) >= Duration::from_secs(1)).then_some(());
    eventually("the certificate has expired", is_over).await;
    // The master's own certificate has ended as well, so TLS of the node would refuse first.
    let site = site.restart().await;
    let node = site.net("n1", None);
    fails_with(&node.client, "the node's clock is").await;
    assert!(site.refused(Reason::CertificateTime) > 0);
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_expires() {
    // It is renewed after two thirds; the last third is for a busy machine.
    let site = Site::with_lifetime(Duration::from_secs(18));
    let dir = site.joined("n1").await;
    let first = Identity::load(&dir).expect("identity").holder;
    let node = site.net("n1", None);
    connects(&node.client).await;
    eventually("renewed", || (node.client.stats().renewed > 0).then_some(())).await;
    let second = Identity::load(&dir).expect("identity").holder;
    assert!(second.not_after > first.not_after && second.serial != first.serial && second.key == first.key);
    assert_eq!(node.client.stats().connections, 1, "the connection has held");
    patiently(site.server.close()).await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_kept_does_not_end_the_connection() {
    let mut site = Site::with_lifetime(Duration::from_secs(18));
    let dir = site.joined("n1").await;
    // In the way of the new file, as a full disk is, also for root.
    std::fs::create_dir(dir.join(format!("node.pem.{}.new", std::process::id()))).expect("made");
    let mut node = site.agent("n1");
    site.register(&mut node, "host-1", "c-S0").await;
    eventually("renewed", || (site.server.stats().renewed > 0).then_some(())).await;
    let command = AgentCommand::Reregister;
    site.commands.send((AgentId::new("c-S0"), command.clone())).await.expect("sent");
    assert_eq!(patiently(node.commands.recv()).await, Some(command));
    let stats = node.client.stats();
    assert_eq!((stats.connections, stats.renewed), (1, 0), "the connection has held");
}

#[test]
fn an_authority_is_made_once_and_refuses_tokens_that_make_no_sense() {
    let dir = tempfile::tempdir().expect("directory");
    let cluster = mesonet_model::ClusterId::new("c");
    let authority = Authority::create(dir.path(), &cluster).expect("authority");
    assert!(matches!(Authority::create(dir.path(), &cluster), Err(AuthorityError::Exists(_))));
    assert_eq!(Authority::load(dir.path()).expect("loaded").cluster(), &cluster);
    for (uses, roles) in [(0, vec![Role::Agent]), (1, vec![Role::Master]), (1, vec![])] {
        let terms = TokenTerms { ttl: Duration::from_secs(1), uses, roles: roles.into_iter().collect() };
        assert!(authority.create_token(&terms).is_err(), "{terms:?}");
    }
    assert!(matches!(authority.revoke(&name("n1")), Err(AuthorityError::UnknownNode(_))));
}

#[test]
fn what_is_no_token_or_name_is_refused() {
    for text in ["", "mesonet1", "mesonet1.a.b.c", "mesonet2.x.y.z", "../../etc/passwd"] {
        assert!(text.parse::<JoinToken>().is_err(), "{text}");
    }
    for text in ["", "..", "a/b", "A", "-a", "a_b", &"a".repeat(129)] {
        assert!(text.parse::<crate::NodeName>().is_err(), "{text}");
    }
}
