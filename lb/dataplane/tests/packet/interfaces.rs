//! Interfaces that go and come back.

use mesonet_lb_dataplane::{PacketBalancer, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, address};
use crate::traffic::{Conversation, on, serve};

#[test]
#[ignore = "needs root"]
fn an_interface_that_comes_back_is_balanced_again() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let mut node = Balancer::start(&site.settings(&["clients", "servers"], mode));
        node.put("tcp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8001", Ready)]);
        let ask = || on(&site, Side::Client, || Conversation::begin(address("11.0.0.1:80")).map(drop));
        ask().expect("it is balanced");
        let before = node.balancer.attached().to_vec();

        site.ip(Side::Node, "link delete clients");
        node.balancer.follow_interfaces();
        let [clients, servers] = node.balancer.attached() else { panic!("two are named") };
        assert!(!clients.is_present() && clients.reason.contains("clients"), "{clients:?}");
        assert_eq!(*servers, before[1], "the other one is as it was");
        let links = || {
            let names = std::fs::read_dir(site.pins()).expect("a directory").flatten();
            names.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect::<Vec<_>>()
        };
        let ending = format!("_{}", before[0].index);
        assert!(!links().iter().any(|name| name.ends_with(&ending)), "{:?}", links());

        site.connect(Side::Client, "clients", 1);
        site.ip(Side::Client, "route add default via 10.1.0.1");
        node.balancer.follow_interfaces();
        let back = &node.balancer.attached()[0];
        assert!(back.is_present() && back.index != before[0].index, "{back:?}");
        assert_eq!((back.mode, &back.reason), (before[0].mode, &before[0].reason));
        ask().expect("it is balanced again");
    }
}

#[test]
#[ignore = "needs root"]
fn programs_that_somebody_takes_away_are_put_back() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let settings = site.settings(&["clients", "servers"], mode);
        let mut node = Balancer::start(&settings);
        node.put("tcp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8001", Ready)]);
        let ask = || on(&site, Side::Client, || Conversation::begin(address("11.0.0.1:80")).map(drop));
        ask().expect("it is balanced");
        assert!(node.balancer.missing().is_nothing());

        PacketBalancer::cleanup(&settings.bpffs).expect("all programs are ended, and their pins removed");
        let missing = node.balancer.missing();
        let of_each = if mode == PacketMode::Tc { 2 } else { 3 };
        assert_eq!(missing.packet_programs, 2 * of_each, "{missing:?}");
        assert!(missing.pins > missing.packet_programs, "maps, too: {missing:?}");
        node.balancer.restore().expect("the kernel takes them");
        assert!(node.balancer.missing().is_nothing());
        ask().expect("it is balanced again");
        // Another process takes over what is pinned.
        drop(node);
        ask().expect("nobody runs");
        PacketBalancer::remove_unused(&settings.bpffs).expect("it is known that nobody runs");
    }
}
