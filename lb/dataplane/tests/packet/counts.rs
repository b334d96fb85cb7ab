//! How many connections of clients elsewhere an endpoint has.

use mesonet_lb_dataplane::PacketMode;
use mesonet_lb_plan::EndpointCount;
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, address};
use crate::tables::eventually;
use crate::traffic::{Conversation, on, serve};

/// Waits until so many connections of an endpoint are counted, and so many of them are open.
#[track_caller]
fn has(node: &Balancer, service: &str, endpoint: &str, connections: u64, active: u64) {
    let key = service.parse().expect("a key");
    let expected = EndpointCount { connections, active, failures: 0 };
    eventually(&format!("{endpoint} has {connections}, {active} open"), || {
        node.balancer.count(&key, address(endpoint)) == expected
    });
}

#[test]
#[ignore = "needs root"]
fn connections_are_counted_as_long_as_they_are_open() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
    settings.masquerade = true;
    let mut node = Balancer::start(&settings);
    let (service, vip, a) = ("tcp/web@marathon:80", "11.0.0.1:80", "10.2.0.2:8001");
    node.put(service, vip, &[(a, Ready)]);
    let begin = || on(&site, Side::Client, move || Conversation::begin(address(vip)).expect("a connection"));
    has(&node, service, a, 0, 0);
    let (first, mut second) = (begin(), begin());
    has(&node, service, a, 2, 2);
    drop(first);
    has(&node, service, a, 2, 1);

    // Whoever takes over sees what is open.
    drop(node);
    let mut node = Balancer::start(&settings);
    node.put(service, vip, &[(a, Ready)]);
    has(&node, service, a, 1, 1);
    assert!(second.echoes(1000));
    let third = begin();
    has(&node, service, a, 2, 2);
    drop((second, third));
    has(&node, service, a, 2, 0);

    // Another endpoint may get its number, with which that one has nothing to do.
    let begun = begin();
    has(&node, service, a, 3, 1);
    node.put(service, vip, &[]);
    has(&node, service, a, 0, 0);
    node.put(service, vip, &[("10.2.0.2:8002", Ready)]);
    has(&node, service, "10.2.0.2:8002", 0, 0);
    // What the client of a dead endpoint sends goes to the other one, which resets the connection.
    drop(begun);
    has(&node, service, "10.2.0.2:8002", 1, 0);
}
