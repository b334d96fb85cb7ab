//! The loaded programs as functions of packets.
use mesonet_lb_dataplane::{PacketAnswer, PacketMode, PacketQuestion};
use mesonet_lb_plan::RouteState;
use mesonet_model::Protocol;

use crate::site::{Balancer, Site, address};

#[test]
#[ignore = "needs root"]
fn a_question_is_answered_and_leaves_nothing_behind() {
    let site = Site::new();
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let mut node = Balancer::start(&site.settings(&["clients"], mode));
        node.put("tcp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8080", RouteState::Ready)]);
        let question = PacketQuestion {
            protocol: Protocol::Tcp,
            from: address("10.1.0.2:40000"),
            to: address("11.0.0.1:80"),
        };
        let answer = node.balancer.trace(&question).expect("an answer");
        assert_eq!(
            answer,
            PacketAnswer::Goes { from: address("10.1.0.2:40000"), to: address("10.2.0.2:8080") }
        );
    }
}
