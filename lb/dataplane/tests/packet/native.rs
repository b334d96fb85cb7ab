//! XDP in the driver of pairs of interfaces: what the other ends send lacks checksums, and they take nothing from XDP, unless
//! they are told otherwise.

use std::net::UdpSocket;
use std::time::Duration;

use mesonet_lb_dataplane::PacketMode;
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, address, run};
use crate::traffic::{Conversation, on, serve, serve_datagrams};

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Virtual addresses and endpoints.
const SERVED: [(&str, &str); 2] = [("11.0.0.1:80", "10.2.0.2:8001"), ("[fd11::1]:80", "[fd02::2]:8001")];

/// Packets that XDP has sent from one interface to another.
fn redirected(site: &Site) -> u64 {
    let count = |interface: &str| -> u64 {
        let said = run("ip", &["netns", "exec", &site.name(Side::Node), "ethtool", "-S", interface]);
        let counters = said.lines().filter_map(|line| line.trim().split_once("xdp_redirect: "));
        counters.map(|(_, count)| count.parse::<u64>().expect("a number")).sum()
    };
    count("clients") + count("servers")
}

fn converse(site: &Site, what: &str) {
    for (vip, _) in SERVED {
        let is_whole = on(site, Side::Client, move || {
            let mut conversation = Conversation::begin(address(vip)).expect("a connection");
            conversation.echoes(100) && conversation.echoes(1 << 20)
        });
        assert!(is_whole, "{what} {vip}");
        on(site, Side::Client, move || {
            let any = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("bind");
            socket.set_read_timeout(Some(PATIENCE)).expect("valid");
            socket.connect(address(vip)).expect("an address");
            for size in [1, 1000] {
                socket.send(&vec![7; size]).expect("sent");
                socket.recv(&mut [0; 64]).expect("an answer");
            }
        });
    }
}

#[test]
#[ignore = "needs root"]
fn drivers_of_virtual_interfaces_are_used_as_far_as_they_can_be() {
    for masquerade in [false, true] {
        let site = Site::new();
        for (_, endpoint) in SERVED {
            serve(&site, endpoint, 'a');
            serve_datagrams(&site, endpoint, 'a');
        }
        let mut settings = site.settings(&["clients", "servers"], PacketMode::Xdp);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        for (vip, endpoint) in SERVED {
            node.put(&format!("tcp/{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
            node.put(&format!("udp/{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
        }
        let tells_of_tc = |node: &Balancer| {
            let attached = node.balancer.attached();
            assert!(attached.iter().all(|each| each.mode == PacketMode::Xdp), "{attached:?}");
            let told: Vec<bool> = attached.iter().map(|each| each.why().contains("tc sends")).collect();
            assert!(told.iter().all(|each| *each == told[0]), "{attached:?}");
            told[0]
        };
        assert!(tells_of_tc(&node));
        converse(&site, "through tc");
        assert_eq!(redirected(&site), 0);

        for side in [Side::Client, Side::Server] {
            site.set_features(side, "tx off gro on");
        }
        node.balancer.follow_interfaces();
        assert!(!tells_of_tc(&node));
        converse(&site, "through XDP");
        assert!(redirected(&site) > 100);

        for side in [Side::Client, Side::Server] {
            site.set_features(side, "gro off");
        }
        node.balancer.follow_interfaces();
        assert!(tells_of_tc(&node));
        converse(&site, "through tc again");
    }
}

#[test]
#[ignore = "needs root"]
fn a_process_that_is_told_another_kind_of_xdp_uses_that() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    let mut old = None;
    for (mode, is_generic) in
        [(PacketMode::Xdp, false), (PacketMode::XdpGeneric, true), (PacketMode::Xdp, false)]
    {
        let mut node = Balancer::start(&site.settings(&["clients", "servers"], mode));
        node.put_together(&[("tcp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8001", Ready)])]);
        let said = run("ip", &["-n", &site.name(Side::Node), "link", "show", "clients"]);
        assert!(said.contains("xdp") && said.contains("xdpgeneric") == is_generic, "{mode:?}: {said}");
        let begin = || Conversation::begin(address("11.0.0.1:80")).expect("a connection");
        let conversation = old.get_or_insert_with(|| on(&site, Side::Client, begin));
        assert!(conversation.echoes(1000), "{mode:?}");
    }
}
