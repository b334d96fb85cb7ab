//! The kernel forgets entries of the map of flows one by one when there are too many.

use aya::maps::{HashMap, Map, MapData};
use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::packets::{ACK, LINK, RST, SYN, TCP, packet};
use crate::site::{Balancer, Side, Site};
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
    let mut flows = flows(site);
    let removed = keys(&flows, is_request).iter().map(|key| flows.remove(key).expect("it is there")).count();
    assert_eq!(removed, 1);
}

/// Changes what is noted of the answers of the only flow that there is.
fn change(site: &Site, what: impl Fn(&mut Track)) {
    let mut flows = flows(site);
    let [key] = keys(&flows, false)[..] else { panic!("one flow") };
    let mut track = flows.get(&key, 0).expect("it is there");
    what(&mut track);
    flows.insert(key, track, 0).expect("it is taken");
}

type Key = [u8; 40];
type Track = [u8; 84];

fn flows(site: &Site) -> HashMap<MapData, Key, Track> {
    let map = Map::LruHashMap(MapData::from_pin(site.pins().join("FLOWS")).expect("it is pinned"));
    map.try_into().expect("of that form")
}

fn keys(flows: &HashMap<MapData, Key, Track>, is_of_requests: bool) -> Vec<Key> {
    let keys = flows.keys().map(|key| key.expect("a key"));
    // The destination of requests is virtual.
    keys.filter(|key| (key[28..32] == [11, 0, 0, 1]) == is_of_requests).collect()
}

/// A client that the node stands for, and another one that has got its port after the kernel had forgotten who had it.
struct Stolen {
    node: Balancer,
    port: u16,
    site: Site,
}

const VIP: &str = "11.0.0.1:80";
const FORMER: &str = "10.1.0.2:40000";
const PRESENT: &str = "10.1.0.3:40000";
const ENDPOINT: &str = "10.2.0.9:8080";

impl Stolen {
    /// The former has sent such packets before.
    fn new(sent: &[u8]) -> Self {
        let site = Site::new();
        // XDP knows the way.
        site.ip(Side::Node, "neigh add 10.2.0.9 lladdr 02:00:00:00:00:09 dev servers");
        site.set_features(Side::Server, "gro on");
        let mut settings = site.settings(&["clients", "servers"], PacketMode::Xdp);
        settings.masquerade = true;
        let mut node = Balancer::start(&settings);
        node.put("tcp/four@marathon:80", VIP, &[(ENDPOINT, Ready)]);
        let mut stolen = Self { node, port: 0, site };
        stolen.port = stolen.send(SYN);
        for flags in sent {
            stolen.send(*flags);
        }
        change(&stolen.site, |track| track[31] = 3);
        assert!(stolen.is_answered(), "the answers are the present one's");
        stolen
    }

    /// Returns the port of the node that the packet comes from.
    fn send(&mut self, flags: u8) -> u16 {
        let sent = run(&mut self.node, PacketHook::In, packet(TCP, FORMER, VIP).with_flags(flags)).packet;
        u16::from_be_bytes([sent[LINK + 20], sent[LINK + 21]])
    }

    /// Whether the present owner of the port has its answers.
    fn is_answered(&mut self) -> bool {
        let answer = packet(TCP, ENDPOINT, &format!("10.2.0.1:{}", self.port)).with_flags(ACK);
        let returned = packet(TCP, VIP, PRESENT).with_flags(ACK).octets();
        run(&mut self.node, PacketHook::Out, answer).packet == returned
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_that_another_flow_has_got_is_not_used_by_who_had_it() {
    let mut stolen = Stolen::new(&[]);
    let sent = packet(TCP, FORMER, VIP).with_flags(ACK);
    eventually("XDP leaves it to tc", || {
        let run = run(&mut stolen.node, PacketHook::Xdp, sent.clone());
        (run.verdict, run.packet) == (PacketHook::Xdp.pass(), sent.octets())
    });
    assert_ne!(stolen.send(ACK), stolen.port);
    assert!(stolen.is_answered());
}

#[test]
#[ignore = "needs root"]
fn who_begins_anew_does_not_take_the_answers_of_another_flow_away() {
    let mut stolen = Stolen::new(&[RST]);
    assert_ne!(stolen.send(SYN), stolen.port);
    assert!(stolen.is_answered());
}
