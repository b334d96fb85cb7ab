//! Virtual networks: which are made, and which part of each is an agent's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesonet_master::{Effect, Input};
use mesonet_model::{
    AgentId, AgentReport, Attachment, ClusterView, JoinedContainer, NetworkName, NetworkRefusal, PartUse,
    Subnet, TaskNetworking, TaskState, VirtualNetwork,
};

use crate::cluster::{Cluster, agent_info};

/// No address is given to two agents, and every part is one of a network that is there.
pub fn check_parts(view: &ClusterView) {
    let mut seen: BTreeSet<Subnet> = BTreeSet::new();
    for (agent, subnets) in &view.subnets {
        assert!(view.agents.contains_key(agent), "{agent} is gone and has parts");
        for (name, parts) in &subnets.0 {
            let network = &view.networks[name];
            assert_eq!(parts.len(), network.ranges().count(), "one part of each range of {name}");
            for part in parts {
                assert!(!seen.iter().any(|other| other.overlaps(part)), "{part} is given twice");
                assert!(seen.insert(*part));
                let is_inside = |range: &mesonet_model::NetworkRange| {
                    range.subnet.contains(part.first()) && range.node_prefix == part.prefix()
                };
                assert!(network.ranges().any(is_inside), "{part} is no part of {name}");
            }
        }
    }
    for (address, container) in &view.joined {
        assert_eq!(container.addresses.first(), Some(address));
        let parts = view.subnets.get(&container.agent).map(|subnets| subnets.of(&container.network).to_vec());
        for address in &container.addresses {
            let is_inside = parts.iter().flatten().any(|part| part.contains(*address));
            assert!(is_inside, "{address} is in no part of agent {}", container.agent);
        }
    }
}

pub fn joined_container(
    agent: &AgentId,
    network: &str,
    container: &str,
    addresses: &[IpAddr],
) -> JoinedContainer {
    JoinedContainer {
        agent: agent.clone(),
        network: name(network),
        container: container.to_owned(),
        interface: "eth0".to_owned(),
        addresses: addresses.to_vec(),
    }
}

fn name(text: &str) -> NetworkName {
    text.parse().expect("name")
}

fn network(text: &str) -> VirtualNetwork {
    serde_json::from_str(text).expect("network")
}

/// A network of four nodes.
fn small() -> VirtualNetwork {
    network(
        r#"{"name": "small", "ipv4": {"subnet": "10.9.0.0/28", "nodePrefix": 30},
        "ipv6": {"subnet": "fd00:9::/62", "nodePrefix": 64}}"#,
    )
}

fn create(cluster: &mut Cluster, network: VirtualNetwork) -> Option<NetworkRefusal> {
    cluster.handle(Input::CreateNetwork { number: 9, network });
    refusal(cluster)
}

fn remove(cluster: &mut Cluster, text: &str) -> Option<NetworkRefusal> {
    cluster.handle(Input::RemoveNetwork { number: 9, name: name(text) });
    refusal(cluster)
}

fn refusal(cluster: &mut Cluster) -> Option<NetworkRefusal> {
    let is_refusal = |effect: &Effect| matches!(effect, Effect::Refused { .. });
    let at = cluster.said.iter().position(is_refusal)?;
    match cluster.said.remove(at) {
        Effect::Refused { number: 9, refusal } => Some(refusal),
        other => panic!("{other:?}"),
    }
}

fn parts(cluster: &Cluster, agent: &AgentId, network: &str) -> Vec<String> {
    let subnets = cluster.view().subnets.get(agent);
    let parts = subnets.map(|subnets| subnets.of(&name(network)).to_vec()).unwrap_or_default();
    parts.iter().map(Subnet::to_string).collect()
}

#[test]
fn a_new_cluster_has_the_networks_of_dcos() {
    let mut cluster = Cluster::new();
    let first = cluster.register(None, agent_info(1, 4), Vec::new());
    let second = cluster.register(None, agent_info(2, 4), Vec::new());
    assert_eq!(parts(&cluster, &first, "dcos"), ["9.0.0.0/24"]);
    assert_eq!(parts(&cluster, &second, "dcos"), ["9.0.1.0/24"]);
    assert_eq!(parts(&cluster, &second, "dcos6"), ["fd01:b:0:0:1::/80"]);
    assert_eq!(remove(&mut cluster, "dcos6"), None);
    let before = cluster.view().subnets.clone();
    cluster.restart();
    cluster.handle(Input::Tick);
    assert_eq!(cluster.view().subnets, before);
    assert!(!cluster.view().networks.contains_key(&name("dcos6")), "what was removed does not come back");
}

#[test]
fn an_agent_without_the_rights_or_in_the_network_has_no_part() {
    let mut cluster = Cluster::new();
    let mut unable = agent_info(1, 4);
    unable.container_networks = false;
    let unable = cluster.register(None, unable, Vec::new());
    let mut inside = agent_info(2, 4);
    inside.address = [9, 1, 2, 3].into();
    let inside = cluster.register(None, inside, Vec::new());
    assert_eq!(cluster.view().subnets.get(&unable), None);
    assert_eq!(parts(&cluster, &inside, "dcos"), Vec::<String>::new());
    assert_eq!(parts(&cluster, &inside, "dcos6"), ["fd01:b::/80"]);
}

#[test]
fn a_part_comes_back_when_its_agent_is_gone_and_goes_to_who_has_none() {
    let mut cluster = Cluster::new();
    assert_eq!(create(&mut cluster, small()), None);
    let agents: Vec<AgentId> =
        (1..=5).map(|n| cluster.register(None, agent_info(n, 4), Vec::new())).collect();
    assert_eq!(parts(&cluster, &agents[3], "small"), ["10.9.0.12/30", "fd00:9:0:3::/64"]);
    assert_eq!(parts(&cluster, &agents[4], "small"), Vec::<String>::new());
    let exhausted = Effect::NetworkExhausted { network: name("small"), agent: agents[4].clone() };
    assert!(cluster.said.contains(&exhausted), "an operator is told");
    cluster.disconnect(&agents[1]);
    cluster.handle(Input::RemoveNode { agent: agents[1].clone() });
    assert_eq!(parts(&cluster, &agents[4], "small"), ["10.9.0.4/30", "fd00:9:0:1::/64"]);
    check_parts(cluster.view());
}

#[test]
fn networks_that_are_in_the_way_of_something_are_refused() {
    let mut cluster = Cluster::new();
    cluster.register(None, agent_info(1, 4), Vec::new());
    let v4 = |name: &str, subnet: &str, bits: u8| {
        network(&format!(r#"{{"name": "{name}", "ipv4": {{"subnet": "{subnet}", "nodePrefix": {bits}}}}}"#))
    };
    for (network, reason) in [
        (v4("dcos", "10.9.0.0/16", 24), "network 'dcos' exists"),
        (v4("a", "9.9.0.0/16", 24), "9.9.0.0/16 overlaps 9.0.0.0/8, which network 'dcos' has"),
        (
            v4("a", "11.9.0.0/16", 24),
            "11.9.0.0/16 overlaps 11.0.0.0/32, from where on to 11.255.255.255 VIPs are given",
        ),
        (v4("a", "10.0.0.0/16", 24), "10.0.0.0/16 overlaps 10.0.0.1/32, the address of node c-S0"),
        (v4("a", "127.9.0.0/16", 24), "127.9.0.0/16 overlaps 127.0.0.0/8, which is every host's own"),
        (
            v4("a", "172.31.0.0/16", 24),
            "172.31.0.0/16 overlaps 172.31.254.0/24, which the own bridges of nodes have",
        ),
        (
            v4("a", "10.9.0.0/16", 31),
            "nodes cannot have parts of /31 of 10.9.0.0/16: their prefix must be from /16 to /30",
        ),
        (network(r#"{"name": "a"}"#), "network 'a' has neither an IPv4 nor an IPv6 range"),
    ] {
        let refusal = create(&mut cluster, network).map(|refusal| refusal.to_string());
        assert_eq!(refusal.as_deref(), Some(reason));
    }
    let refusal = remove(&mut cluster, "a").map(|refusal| refusal.to_string());
    assert_eq!(refusal.as_deref(), Some("network 'a' does not exist"));
}

#[test]
fn names_without_room_for_a_bridge_are_refused() {
    let error = "fourteen-chars".parse::<NetworkName>().expect_err("too long").to_string();
    assert!(error.contains("more than 13 characters"), "{error}");
    assert!("Web".parse::<NetworkName>().is_err() && "host".parse::<NetworkName>().is_err());
}

#[test]
fn a_full_part_is_offered_as_such_and_a_task_too_many_is_refused() {
    let mut cluster = Cluster::new();
    assert_eq!(create(&mut cluster, small()), None);
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let in_small = |cluster: &Cluster, task: &str| {
        let mut spec = cluster.spec(&agent, task, Vec::new());
        let attachment = Attachment { network: Some(name("small")), subnets: Vec::new() };
        spec.networking = Some(TaskNetworking { attachments: vec![attachment], mappings: Vec::new() });
        spec
    };
    let framework = cluster.framework.clone();
    let offer = cluster.take_offers(&framework).pop().expect("an offer");
    assert_eq!(offer.networks.get(&name("small")), Some(&1), "room for one");
    let (first, second) = (in_small(&cluster, "a"), in_small(&cluster, "b"));
    cluster.handle(Input::Call {
        framework: framework.clone(),
        call: mesonet_model::SchedulerCall::Accept {
            offer: offer.id,
            tasks: vec![first, second],
            refuse: std::time::Duration::ZERO,
        },
    });
    let launched = cluster.commands().into_iter().find_map(|(_, command)| match command {
        mesonet_model::AgentCommand::Launch(spec) => spec.networking,
        _ => None,
    });
    let subnets = &launched.expect("the first is launched").attachments[0].subnets;
    assert_eq!(subnets.iter().map(Subnet::to_string).collect::<Vec<_>>(), ["10.9.0.0/30", "fd00:9::/64"]);
    let refused = cluster.updates().pop().expect("the second is refused");
    assert_eq!(refused.state, TaskState::Error);
    assert_eq!(refused.message, format!("agent {agent} has no address left in network 'small'"));
    cluster.handle(Input::Call { framework: framework.clone(), call: mesonet_model::SchedulerCall::Revive });
    let offer = cluster.take_offers(&framework).pop().expect("an offer of the rest");
    assert_eq!(offer.networks.get(&name("small")), Some(&0), "who waits can be told why");
    let in_use = remove(&mut cluster, "small").map(|refusal| refusal.to_string());
    assert_eq!(in_use.as_deref(), Some("network 'small' is used by 1 tasks"));
    cluster.status(&agent, "a", TaskState::Running);
    cluster.report("a", TaskState::Finished);
    assert_eq!(remove(&mut cluster, "small"), None, "its last task has ended");
}

#[test]
fn containers_of_other_runtimes_take_addresses_until_they_or_their_node_are_gone() {
    let mut cluster = Cluster::new();
    assert_eq!(create(&mut cluster, small()), None);
    let agents: Vec<AgentId> =
        (1..=2).map(|n| cluster.register(None, agent_info(n, 4), Vec::new())).collect();
    let own = joined_container(&agents[0], "small", "c1", &[[10, 9, 0, 2].into(), v6("fd00:9::2")]);
    // A node is believed about its own parts only.
    let foreign = joined_container(&agents[0], "small", "c2", &[[10, 9, 0, 6].into()]);
    let elsewhere = joined_container(&agents[0], "dcos", "c3", &[[10, 9, 0, 2].into()]);
    let nowhere = joined_container(&agents[0], "small", "c4", &[]);
    tell(&mut cluster, &agents[0], vec![own.clone(), foreign, elsewhere, nowhere]);
    let joined = |cluster: &Cluster| -> Vec<String> {
        cluster.view().joined.values().map(|each| each.container.clone()).collect()
    };
    assert_eq!(joined(&cluster), ["c1"]);
    let part =
        |cluster: &Cluster, agent: &AgentId| cluster.view().part_uses()[&(name("small"), agent.clone())];
    assert_eq!(part(&cluster, &agents[0]), PartUse { tasks: 0, containers: 1, free: 0 });
    assert_eq!(part(&cluster, &agents[1]), PartUse { tasks: 0, containers: 0, free: 1 });
    let revision = cluster.view().revision;
    tell(&mut cluster, &agents[0], vec![own.clone()]);
    assert_eq!(cluster.view().revision, revision, "what is known is no change");
    let in_use = remove(&mut cluster, "small").map(|refusal| refusal.to_string());
    assert_eq!(
        in_use.as_deref(),
        Some("network 'small' is used by 0 tasks and 1 containers of other runtimes")
    );
    cluster.restart();
    cluster.handle(Input::Tick);
    assert_eq!(joined(&cluster), ["c1"], "the store has them");
    tell(&mut cluster, &agents[0], Vec::new());
    assert_eq!(joined(&cluster), ["c1"], "an agent that is not connected says nothing");
    cluster.register(Some(&agents[0]), agent_info(1, 4), Vec::new());
    assert_eq!(joined(&cluster), Vec::<String>::new(), "the registration says that there are none");
    tell(&mut cluster, &agents[0], vec![own]);
    cluster.disconnect(&agents[0]);
    cluster.handle(Input::RemoveNode { agent: agents[0].clone() });
    assert_eq!(joined(&cluster), Vec::<String>::new());
    check_parts(cluster.view());
}

fn tell(cluster: &mut Cluster, agent: &AgentId, containers: Vec<JoinedContainer>) {
    cluster.handle(Input::Agent(AgentReport::Containers { agent: agent.clone(), containers }));
}

fn v6(text: &str) -> IpAddr {
    text.parse().expect("address")
}
