//! The kernel forgets entries of the map of flows one by one when there are too many.

use aya::maps::{HashMap, Map, MapData};
use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::packets::{ACK, LINK, SYN, TCP, packet};
use crate::site::{Balancer, Site};
use crate::tables::{eventually, run};

#[test]
#[ignore = "needs root"]
fn a_flow_of_which_half_is_forgotten_stays_where_it_is() {
    let (client, vip, endpoint) = ("10.1.0.2:40000", "11.0.0.1:80", "10.2.0.9:8080");
    for masquerade in [false, true] {
        let site = Site::new();
        let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        node.put("tcp/four@marathon:80", vip, &[(endpoint, Ready)]);
        let port_of = |node: &mut Balancer, flags: u8| {
            let sent = run(node, PacketHook::In, packet(TCP, client, vip).with_flags(flags)).packet;
            u16::from_be_bytes([sent[LINK + 20], sent[LINK + 21]])
        };
        let port = port_of(&mut node, SYN);
        let seen = format!("{}:{port}", if masquerade { "10.2.0.1" } else { "10.1.0.2" });
        let returned = packet(TCP, vip, client).with_flags(ACK).octets();
        let is_answered = |node: &mut Balancer| {
            run(node, PacketHook::Out, packet(TCP, endpoint, &seen).with_flags(ACK)).packet == returned
        };
        assert!(is_answered(&mut node));
        for is_request in [true, false] {
            forget(&site, is_request);
            eventually("its answers find their way again", || {
                assert_eq!(port_of(&mut node, ACK), port, "{masquerade} {is_request}");
                is_answered(&mut node)
            });
        }
    }
}

/// Removes the entry of one direction of the only flow that there is.
fn forget(site: &Site, is_request: bool) {
    let map = Map::LruHashMap(MapData::from_pin(site.pins().join("FLOWS")).expect("it is pinned"));
    let mut flows: HashMap<_, [u8; 40], [u8; 84]> = map.try_into().expect("of that form");
    let keys: Vec<[u8; 40]> = flows.keys().map(|key| key.expect("a key")).collect();
    // The destination of requests is virtual.
    let found = keys.iter().filter(|key| (key[28..32] == [11, 0, 0, 1]) == is_request);
    let removed = found.map(|key| flows.remove(key).expect("it is there")).count();
    assert_eq!(removed, 1);
}
