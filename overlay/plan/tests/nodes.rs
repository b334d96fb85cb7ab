//! The overlays of all nodes of random clusters agree with each other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, Attribute, ClusterId, ClusterView, NODE_ATTRIBUTE, NetworkName,
    NetworkRange, NodeSubnets, Resources, Subnet, Timestamp, TunnelEnd, VirtualNetwork,
};
use mesonet_overlay_plan::{Outward, RouteScope, difference, outward, plan};
use proptest::prelude::*;

fn name(node: u8) -> AgentId {
    AgentId::new(format!("node{node}"))
}

fn agent(node: u8) -> Agent {
    Agent {
        id: AgentId::new(format!("c-S{node}")),
        info: AgentInfo {
            hostname: format!("host{node}"),
            address: [10, 0, 0, node].into(),
            port: 0,
            resources: Resources::default(),
            attributes: vec![Attribute { name: NODE_ATTRIBUTE.to_owned(), value: format!("node{node}") }],
            container_networks: true,
        },
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    }
}

/// Nodes with or without tunnels and parts, by number.
fn cluster(nodes: &[(bool, bool)]) -> ClusterView {
    let mut view = ClusterView::empty(ClusterId::new("c"));
    for (node, (has_tunnel, has_parts)) in (1..).zip(nodes) {
        let agent = agent(node);
        if *has_parts {
            let parts = [format!("9.0.{node}.0/24"), format!("fd01:b:0:0:{node}::/80")];
            let parts = parts.map(|part| part.parse().expect("range")).to_vec();
            let subnets = NodeSubnets([("dual".parse().expect("name"), parts)].into());
            view.subnets.insert(agent.id.clone(), Arc::new(subnets));
        }
        if *has_tunnel {
            let end = TunnelEnd {
                key: format!("key{node}"),
                other_key: None,
                port: 51_820,
                made: Timestamp::default(),
                is_acknowledged: false,
            };
            view.tunnels.insert(name(node), Arc::new(end));
        }
        view.agents.insert(agent.id.clone(), Arc::new(agent));
    }
    view
}

#[test]
fn what_leaves_the_networks_leaves_in_the_name_of_the_node() {
    let mut view = cluster(&[(true, true), (true, false)]);
    for (name, ipv4, ipv6) in
        [("dual", Some("9.0.0.0/8"), Some("fd01:b::/64")), ("v4", Some("10.128.0.0/16"), None)]
    {
        let range = |text: &str| NetworkRange { subnet: text.parse().expect("range"), node_prefix: 30 };
        let name: NetworkName = name.parse().expect("name");
        let network = VirtualNetwork { name: name.clone(), ipv4: ipv4.map(range), ipv6: ipv6.map(range) };
        view.networks.insert(name, Arc::new(network));
    }
    let rules = |node: u8| outward(&view, &plan(&view, &name(node)));
    let subnet = |text: &str| text.parse().expect("range");
    let bridge = Outward::TranslateFrom(subnet("172.31.254.0/24"));
    let expected = [
        bridge,
        Outward::KeepThroughTunnel,
        Outward::KeepTo(subnet("9.0.0.0/8")),
        Outward::KeepTo(subnet("fd01:b::/64")),
        Outward::KeepTo(subnet("10.128.0.0/16")),
        Outward::TranslateFrom(subnet("9.0.1.0/24")),
        Outward::TranslateFrom(subnet("fd01:b:0:0:1::/80")),
    ];
    assert_eq!(rules(1), expected);
    assert_eq!(rules(2), [bridge], "no task of it has an address in a network");
}

#[test]
fn two_nodes_reach_each_others_parts_and_each_other() {
    let overlay = plan(&cluster(&[(true, true), (true, true)]), &name(1));
    let routes: Vec<String> = overlay
        .routes
        .iter()
        .map(|route| format!("{:?} {} from {:?}", route.scope, route.destination, route.source))
        .collect();
    assert_eq!(
        routes,
        [
            "All 9.0.2.0/24 from Some(9.0.1.1)",
            "All fd01:b:0:0:2::/80 from Some(fd01:b::1:0:0:1)",
            "Tasks 10.0.0.2/32 from None",
        ]
    );
    let peer = &overlay.peers[&name(2)];
    assert_eq!((peer.endpoint.to_string(), peer.key.as_str()), ("10.0.0.2:51820".to_owned(), "key2"));
    let addresses: Vec<String> = peer.addresses.iter().map(Subnet::to_string).collect();
    assert_eq!(addresses, ["9.0.2.0/24", "fd01:b:0:0:2::/80", "10.0.0.2/32"]);
}

proptest! {
    #[test]
    fn what_one_node_sends_the_other_lets_through(nodes in prop::collection::vec(any::<(bool, bool)>(), 1..8)) {
        let view = cluster(&nodes);
        let own = |node: u8| plan(&view, &name(node));
        for node in 1..=u8::try_from(nodes.len()).expect("few") {
            let overlay = own(node);
            let behind = |address: IpAddr| {
                overlay.peers.iter().find(|(_, peer)| peer.addresses.iter().any(|part| part.contains(address)))
            };
            for route in &overlay.routes {
                let (to, _) = behind(route.destination.first()).expect("a route has a peer behind it");
                let back = plan(&view, to);
                // A node without a tunnel of its own is unknown to the others.
                if let Some(source) = route.source
                    && let Some(peer) = back.peers.get(&name(node))
                {
                    prop_assert!(peer.addresses.iter().any(|part| part.contains(source)));
                }
                prop_assert!(!overlay.own.iter().any(|own| own.overlaps(&route.destination)));
                prop_assert!(route.scope == RouteScope::All || !overlay.own.is_empty());
            }
            let mut seen: Vec<Subnet> = Vec::new();
            for part in overlay.peers.values().flat_map(|peer| &peer.addresses) {
                prop_assert!(!seen.iter().any(|other| other.overlaps(part)), "one peer for each address");
                seen.push(*part);
            }
        }
    }

    #[test]
    fn the_difference_leads_there_and_is_the_least(
        desired in prop::collection::btree_set(0..20_u8, 0..10),
        actual in prop::collection::btree_set(0..20_u8, 0..10),
    ) {
        let ops = difference(&desired, &actual);
        let mut there = actual.clone();
        for each in &ops.remove {
            prop_assert!(there.remove(each), "only what is there is removed");
        }
        for each in &ops.add {
            prop_assert!(there.insert(*each), "only what is missing is added");
        }
        prop_assert_eq!(&there, &desired);
        prop_assert_eq!(difference(&desired, &there).add, Vec::<u8>::new());
        let none = BTreeSet::new();
        prop_assert_eq!(difference(&none, &actual).remove.len(), actual.len());
    }
}
