//! Ends of tunnels: who has said what, and whether everybody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_master::Input;
use mesonet_model::{
    AgentId, AgentReport, AgentState, Plane, PlaneReport, Revision, Timestamp, TunnelEnd, TunnelReport,
};

use crate::cluster::{Cluster, agent_info};

fn tunnel_end() -> TunnelEnd {
    let key = "k".repeat(44);
    TunnelEnd { key, other_key: None, port: 51_820, made: Timestamp::default(), is_acknowledged: false }
}

/// An overlay reports that it has applied a revision, and what its end of tunnels is.
fn say_end(cluster: &mut Cluster, node: &AgentId, applied: Revision, end: &TunnelEnd) {
    say(cluster, node, applied, end, &[]);
}

/// The same, with nodes that do not answer.
fn say(cluster: &mut Cluster, node: &AgentId, applied: Revision, end: &TunnelEnd, silent: &[&str]) {
    cluster.handle(Input::Plane(PlaneReport {
        node: node.clone(),
        plane: Plane::Overlay,
        applied,
        busy: BTreeSet::new(),
        failed: BTreeMap::new(),
        outage: None,
        tunnel: Some(Box::new(TunnelReport {
            end: end.clone(),
            silent: silent.iter().map(|it| AgentId::new(*it)).collect(),
            omissions: Vec::new(),
        })),
    }));
}

fn is_acknowledged(cluster: &Cluster, node: &AgentId) -> bool {
    cluster.view().tunnels[node].is_acknowledged
}

/// Three nodes with tunnels, of which the first has said another key at the revision that is returned.
fn key_change() -> (Cluster, [AgentId; 3], TunnelEnd, Revision) {
    let mut cluster = Cluster::new();
    let nodes = ["a", "b", "c"].map(AgentId::new);
    for node in &nodes {
        let revision = cluster.view().revision;
        say_end(&mut cluster, node, revision, &tunnel_end());
    }
    let end = TunnelEnd { other_key: Some("o".repeat(44)), ..tunnel_end() };
    let before = cluster.view().revision;
    say_end(&mut cluster, &nodes[0], before, &end);
    let revision = cluster.view().revision;
    (cluster, nodes, end, revision)
}

#[test]
fn a_key_is_acknowledged_once_every_live_node_has_it() {
    let (mut cluster, [a, b, c], end, revision) = key_change();
    say_end(&mut cluster, &a, revision, &end);
    say_end(&mut cluster, &b, revision, &tunnel_end());
    assert!(!is_acknowledged(&cluster, &a));
    say_end(&mut cluster, &c, revision, &tunnel_end());
    assert!(is_acknowledged(&cluster, &a));
    let acknowledged = cluster.view().revision;
    say_end(&mut cluster, &a, acknowledged, &end);
    assert!(is_acknowledged(&cluster, &a), "saying the same again changes nothing");
    assert_eq!(cluster.view().revision, acknowledged);
    say_end(&mut cluster, &a, acknowledged, &TunnelEnd { key: "n".repeat(44), ..end });
    assert!(!is_acknowledged(&cluster, &a), "another change is to be acknowledged anew");
}

#[test]
fn a_node_that_never_acknowledges_is_waited_for_while_it_lives() {
    let (mut cluster, [a, b, c], end, revision) = key_change();
    say_end(&mut cluster, &a, revision, &end);
    say_end(&mut cluster, &b, revision, &tunnel_end());
    cluster.pass(Duration::from_secs(24 * 3600));
    assert!(!is_acknowledged(&cluster, &a), "it is connected");
    cluster.plane_gone(&c, Plane::Overlay);
    cluster.pass(Duration::from_secs(599));
    assert!(!is_acknowledged(&cluster, &a), "it may have lost its master only");
    cluster.pass(Duration::from_secs(1));
    assert!(is_acknowledged(&cluster, &a));
}

#[test]
fn a_change_of_keys_goes_on_after_a_restart_of_the_master() {
    let (mut cluster, nodes, end, _) = key_change();
    cluster.restart();
    let revision = cluster.view().revision;
    for (node, end) in nodes.iter().zip([&end, &tunnel_end(), &tunnel_end()]) {
        assert!(!is_acknowledged(&cluster, &nodes[0]));
        say_end(&mut cluster, node, revision, end);
    }
    assert!(is_acknowledged(&cluster, &nodes[0]));
}

#[test]
fn nobody_has_a_tunnel_to_a_revoked_node_from_the_next_revision_on() {
    let (mut cluster, [a, b, c], end, revision) = key_change();
    cluster.handle(Input::NodeRevoked { node: c.clone() });
    assert_eq!(cluster.view().revision, revision.next());
    assert_eq!(cluster.view().tunnels.keys().collect::<Vec<_>>(), [&a, &b]);
    cluster.handle(Input::NodeRevoked { node: c });
    assert_eq!(cluster.view().revision, revision.next(), "said twice");
    say_end(&mut cluster, &a, revision, &end);
    say_end(&mut cluster, &b, revision, &tunnel_end());
    assert!(is_acknowledged(&cluster, &a), "it is not waited for");
}

#[test]
fn an_agent_that_nobody_hears_is_given_up_at_once_and_a_hint_alone_does_nothing() {
    let mut cluster = Cluster::new();
    let [a, b, _c] = [1, 2, 3].map(|n| cluster.register(None, agent_info(n, 4), Vec::new()));
    let node_of = |cluster: &Cluster, agent: &AgentId| cluster.view().agents[agent].node_name().to_owned();
    let state = |cluster: &Cluster| cluster.view().agents[&a].state;
    let (hinted, witness) = (node_of(&cluster, &a), AgentId::new(node_of(&cluster, &b)));
    let revision = cluster.view().revision;
    say(&mut cluster, &witness, revision, &tunnel_end(), &[&hinted]);
    cluster.pass(Duration::from_secs(60));
    assert_eq!(state(&cluster), AgentState::Active, "its connection is there");
    cluster.handle(Input::Agent(AgentReport::Disconnected { agent: a.clone() }));
    assert_eq!(state(&cluster), AgentState::Unreachable);

    let again = cluster.register(Some(&a), agent_info(1, 4), Vec::new());
    assert_eq!(again, a);
    say_end(&mut cluster, &witness, revision, &tunnel_end());
    cluster.handle(Input::Agent(AgentReport::Disconnected { agent: a.clone() }));
    assert_eq!(state(&cluster), AgentState::Suspect, "others hear it");
    say(&mut cluster, &witness, revision, &tunnel_end(), &[&hinted]);
    assert_eq!(state(&cluster), AgentState::Unreachable);
}

#[test]
fn the_end_of_a_nodes_tunnels_is_known_until_the_node_is_gone() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let end = tunnel_end();
    let revision = cluster.view().revision;
    say_end(&mut cluster, &agent, revision, &TunnelEnd { key: "k".repeat(65), ..end.clone() });
    cluster.plane(&agent, Plane::Lb, revision, &[]);
    assert!(cluster.view().tunnels.is_empty(), "only the overlay says it, and no nonsense");
    say_end(&mut cluster, &agent, revision, &end);
    let revision = cluster.view().revision;
    say_end(&mut cluster, &agent, revision, &end);
    assert_eq!(cluster.view().revision, revision, "nothing is new");
    cluster.restart();
    cluster.handle(Input::Tick);
    assert_eq!(cluster.view().tunnels.get(&agent).map(|known| known.as_ref()), Some(&end));
    cluster.handle(Input::RemoveNode { agent: agent.clone() });
    assert!(cluster.view().tunnels.is_empty());
}
