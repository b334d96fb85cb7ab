//! Addresses and routes of the node that come later than the services.

use mesonet_lb_dataplane::PacketMode;
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, address};
use crate::traffic::{Conversation, on, serve};

#[test]
#[ignore = "needs root"]
fn endpoints_see_the_address_that_the_node_has_now() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    site.ip(Side::Node, "link set servers down");
    let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
    settings.masquerade = true;
    let mut node = Balancer::start(&settings);
    let (service, vip) = ("tcp/web@marathon:80", "11.0.0.1:80");
    node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
    let begin = || {
        on(&site, Side::Client, move || {
            Conversation::begin(address(vip)).map(|begun| begun.line).map_err(|error| error.kind())
        })
    };
    // Nobody is sent there with the client's own address, which replies would go past the node to.
    assert_eq!(begin(), Err(std::io::ErrorKind::ConnectionRefused));
    let reason = "cannot send packets to 10.2.0.2:8001: no route leads there; it gets them once one does";
    assert_eq!(node.unreached(), [reason]);

    site.ip(Side::Node, "link set servers up");
    node.wait_for_reroute();
    assert_eq!(begin(), Ok("a 10.2.0.1".to_owned()));
    assert_eq!(node.unreached(), [""; 0]);

    // With the first address, the others of its network go.
    site.ip(Side::Node, "addr del 10.2.0.1/24 dev servers");
    site.ip(Side::Node, "addr add 10.2.0.7/24 dev servers");
    node.wait_for_reroute();
    assert_eq!(begin(), Ok("a 10.2.0.7".to_owned()));

    // A way that is lost for a while changes nothing, and whoever takes over meanwhile knows the address, too.
    site.ip(Side::Node, "link set servers down");
    drop(node);
    let mut node = Balancer::start(&settings);
    node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
    assert_eq!(node.unreached(), [""; 0]);
    site.ip(Side::Node, "link set servers up");
    assert_eq!(begin(), Ok("a 10.2.0.7".to_owned()));
}
