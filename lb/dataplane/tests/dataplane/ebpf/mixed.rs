//! Hooks for the processes of the cgroup, and the proxy for everybody else.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use mesonet_lb_dataplane::{
    Carrier, Connection, Explained, PacketBalancer, PacketMode, PacketSettings, Question,
};
use mesonet_lb_plan::{Deviation, EndpointId};
use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::{Algorithm, Protocol, Service, ServicePolicy};
use tokio::sync::oneshot;

use super::{Site, run, vip};
use crate::fixture::{Node, ask, connect, eventually, read_name, serve, serve_name, task};

/// A server that says which port its client has.
fn serve_ports() -> SocketAddr {
    serve(|mut stream| {
        let port = stream.peer_addr().expect("connected").port();
        // The client may have gone.
        let _gone = stream.write_all(&port.to_be_bytes());
    })
}

/// Whether the server behind an address sees the client's own port.
fn is_seen(address: SocketAddr) -> bool {
    let mut stream = connect(address);
    let mut port = [0; 2];
    stream.read_exact(&mut port).expect("an answer");
    stream.local_addr().expect("connected").port() == u16::from_be_bytes(port)
}

/// What the node says of a connection to a service.
fn explained(node: &mut Node, client: &str, to: SocketAddr) -> Explained {
    let (answer, explained) = oneshot::channel();
    let client = client.parse().expect("address");
    node.balancer.answer(Question::Explain(Connection { protocol: Protocol::Tcp, client, to }, answer));
    explained.blocking_recv().expect("an answer").expect("the address is that of a service")
}

#[test]
#[ignore = "needs root"]
fn the_proxy_serves_those_whom_the_hooks_do_not_see() {
    let site = Site::new("mixed");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let local: SocketAddr = "127.11.0.9:80".parse().expect("address");
    let web = node.put_service("tcp", "web", local);
    node.put_endpoint(&web, "a", serve_ports(), Ready);
    let away = node.put_service("tcp", "away", vip(1));
    node.put_endpoint(&away, "b", serve_name("b"), Ready);
    assert_eq!(site.run(node.apply()), [].into(), "an address that is not local is no failure");
    assert_eq!(
        (node.metric("mesonet_lb_datapath", "ebpf"), node.metric("mesonet_lb_datapath", "proxy")),
        (1.0, 1.0)
    );
    assert_eq!(node.metric("mesonet_lb_endpoints", "ready"), 2.0);

    assert!(is_seen(local), "a process of the cgroup connects to the endpoint itself");
    assert_eq!(ask(vip(1)).expect("an answer"), 'b');
    site.enter(&site.home);
    assert!(!is_seen(local), "everybody else comes by the proxy");
    site.enter(&site.cgroup);
}

#[test]
#[ignore = "needs root"]
fn what_packets_carry_is_no_failure_of_the_proxy() {
    let site = Site::new("mixedpackets");
    let _neighbour = site.container();
    let packets = PacketBalancer::start(&PacketSettings {
        interfaces: vec![format!("mn{}", std::process::id())],
        mode: PacketMode::Tc,
        masquerade: false,
        bpffs: site.settings().bpffs,
    });
    let mut node = site.run(async { Node::proxy().with_packets(packets.expect("the kernel takes it")) });
    let taken = TcpListener::bind("127.11.0.9:80").expect("free");
    let local = node.put_service("tcp", "local", taken.local_addr().expect("bound"));
    let away = node.put_service("tcp", "away", vip(1));
    node.put_endpoint(&away, "a", serve_name("a"), Ready);
    let failures = site.run(node.apply());
    assert_eq!(failures.keys().collect::<Vec<_>>(), [&local], "{failures:?}");
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 1.0);

    let there = explained(&mut node, "10.77.0.2:1234", vip(1));
    assert_eq!((there.carrier, there.routes.listeners), (Carrier::Packets, vec![vip(1)]));
    let here = explained(&mut node, "10.77.0.1:1234", vip(1));
    assert_eq!(here.carrier, Carrier::Nothing);
    assert!(here.carrier_why.contains("`ip route add local 11.0.0.1 dev lo`"), "{}", here.carrier_why);

    run("ip", &["-n", &site.name, "route", "add", "local", "11.0.0.1", "dev", "lo"]);
    drop(taken);
    assert_eq!(site.run(node.balancer.observe()), [].into());
    assert_eq!(explained(&mut node, "10.77.0.1:1234", vip(1)).carrier, Carrier::Proxy);
    assert_eq!(ask(vip(1)).expect("an answer"), 'a');
}

#[test]
#[ignore = "needs root"]
fn the_proxy_begins_to_serve_where_it_was_refused() {
    const OUTSIDE: &str = "192.0.2.9:4567";
    let site = Site::new("mixedlate");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let taken = TcpListener::bind("127.11.0.9:80").expect("free");
    let local = taken.local_addr().expect("bound");
    let web = node.put_service("tcp", "web", local);
    let away = node.put_service("tcp", "away", vip(1));
    for service in [&web, &away] {
        node.put_endpoint(service, "a", serve_name("a"), Ready);
    }
    let failures = site.run(node.apply());
    assert_eq!(failures.keys().collect::<Vec<_>>(), [&web], "{failures:?}");
    let reason = format!("cannot listen on {local}: Address already in use");
    assert!(failures[&web].contains(&reason), "{failures:?}");
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 1.0);
    let told = explained(&mut node, OUTSIDE, local);
    assert_eq!((told.carrier, told.routes.failure.as_ref()), (Carrier::Nothing, failures.get(&web)));
    assert!(told.carrier_why.contains(&reason), "{}", told.carrier_why);
    let told = explained(&mut node, OUTSIDE, vip(1));
    assert_eq!((told.carrier, told.routes.failure), (Carrier::Nothing, None));
    assert!(told.carrier_why.contains("`ip route add local 11.0.0.1 dev lo`"), "{}", told.carrier_why);
    let beside = told.datapath.beside.expect("the proxy");
    assert!(
        beside.contains(&format!("cannot serve: 1, such as {away}: cannot listen on 11.0.0.1:80")),
        "{beside}"
    );

    assert_eq!(site.run(node.balancer.observe()), failures);
    drop(taken);
    run("ip", &["-n", &site.name, "route", "add", "local", "11.0.0.1", "dev", "lo"]);
    assert_eq!(site.run(node.balancer.observe()), [].into());
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 0.0);
    site.enter(&site.home);
    for address in [local, vip(1)] {
        assert_eq!(ask(address).expect("an answer of the proxy"), 'a');
        assert_eq!(explained(&mut node, OUTSIDE, address).carrier, Carrier::Proxy);
    }
    site.enter(&site.cgroup);
}

#[test]
#[ignore = "needs root"]
fn who_carries_a_client_is_told_with_what_that_counts() {
    let site = Site::new("mixedtold");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let local: SocketAddr = "127.11.0.9:80".parse().expect("address");
    let web = node.put_service("tcp", "web", local);
    let policy = ServicePolicy { algorithm: Algorithm::LeastConnections, ..ServicePolicy::default() };
    let service = Service { policy, ..Service::clone(&node.view.services[&web]) };
    node.view.services.insert(web.clone(), Arc::new(service));
    let endpoints = [("a", serve_name("a")), ("b", serve_name("b"))];
    for (name, address) in endpoints {
        node.put_endpoint(&web, name, address, Ready);
    }
    let away = node.put_service("tcp", "away", vip(1));
    node.put_endpoint(&away, "a", endpoints[0].1, Ready);
    assert_eq!(site.run(node.apply()), [].into());
    site.enter(&site.home);
    let mut held = connect(local);
    let taken = read_name(&mut held).expect("an answer").to_string();
    site.enter(&site.cgroup);

    let mut told = |client: &str, to: SocketAddr| explained(&mut node, client, to);
    let here = told("127.0.0.1:0", local);
    assert_eq!((here.carrier, here.choice.endpoint), (Carrier::Hooks, None));
    assert!(here.datapath.beside.is_some());
    let elsewhere = told("192.0.2.9:4567", local);
    let free = endpoints.iter().find(|(name, _)| *name != taken).map(|(_, address)| *address);
    assert_eq!(elsewhere.carrier, Carrier::Proxy);
    assert_eq!(
        elsewhere.choice.endpoint.map(|id| id.address),
        free,
        "the proxy has a connection to the other"
    );
    assert_eq!(elsewhere.routes.counts.values().map(|count| count.active).sum::<u64>(), 1);
    assert_eq!(told("192.0.2.9:4567", vip(1)).carrier, Carrier::Nothing);
}

#[test]
#[ignore = "needs root"]
fn who_does_not_listen_yet_is_told_and_who_stands_in() {
    let site = Site::new("mixedlate");
    let _neighbour = site.container();
    let packets = PacketBalancer::start(&PacketSettings {
        interfaces: vec![format!("mn{}", std::process::id())],
        mode: PacketMode::Tc,
        masquerade: true,
        bpffs: site.settings().bpffs,
    });
    let packets = packets.expect("the kernel takes it");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_packets(packets) });
    let web = node.put_service("tcp", "web", vip(1));
    let first = TcpListener::bind("10.77.0.1:0").expect("a free port");
    let a = first.local_addr().expect("bound");
    node.put_endpoint(&web, "a", a, Ready);
    site.run(node.apply());
    let late = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    late.bind(&SocketAddr::from(([10, 77, 0, 1], 0)).into()).expect("a free port");
    let b = late.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    node.put_endpoint(&web, "b", b, Ready);
    site.run(node.apply());

    let told = |node: &mut Node, client: &str| {
        let (answer, explained) = oneshot::channel();
        let client = client.parse().expect("address");
        let connection = Connection { protocol: Protocol::Tcp, client, to: vip(1) };
        node.balancer.answer(Question::Explain(connection, answer));
        explained.blocking_recv().expect("an answer").expect("the address is that of a service")
    };
    let goes_to = |explained: &Explained| explained.choice.endpoint.as_ref().map(|id| id.address);
    let said = |of: &BTreeMap<EndpointId, Deviation>| -> Vec<(SocketAddr, Deviation)> {
        of.iter().map(|(id, deviation)| (id.address, *deviation)).collect()
    };
    let clients = [("10.77.0.1:0", Carrier::Hooks), ("10.77.0.2:1234", Carrier::Packets)];
    for stands_in in [false, true] {
        let mut expected = vec![(b, Deviation::NotListening)];
        if stands_in {
            node.put_endpoint(&web, "a", a, Draining);
            site.run(node.apply());
            expected.insert(0, (a, Deviation::StandsIn));
        }
        for (client, carrier) in clients {
            let explained = told(&mut node, client);
            assert_eq!((explained.carrier, goes_to(&explained)), (carrier, Some(a)), "{stands_in}");
            let reasons: Vec<_> = explained.excluded.iter().map(|(id, why)| (id.address, *why)).collect();
            assert_eq!(reasons, [(b, "does not listen yet")]);
            assert_eq!(said(&explained.routes.deviations), expected);
            assert_eq!(said(&explained.routes.packet_deviations), expected);
        }
    }
    late.listen(64).expect("it listens");
    for (client, carrier) in clients {
        eventually("it gets connections", || {
            site.run(node.balancer.observe());
            let explained = told(&mut node, client);
            (explained.carrier, goes_to(&explained)) == (carrier, Some(b)) && explained.excluded.is_empty()
        });
    }
    let routes = told(&mut node, "10.77.0.1:0").routes;
    assert_eq!((routes.deviations, routes.packet_deviations), (BTreeMap::new(), BTreeMap::new()));
}

#[test]
#[ignore = "needs root"]
fn connections_of_the_proxy_keep_a_draining_task_busy() {
    let site = Site::new("mixedbusy");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let local: SocketAddr = "127.11.0.9:80".parse().expect("address");
    let web = node.put_service("tcp", "web", local);
    let endpoint = serve_name("a");
    node.put_endpoint(&web, "a", endpoint, Ready);
    site.run(node.apply());
    let busy = site.run(async { node.balancer.busy() });
    site.enter(&site.home);
    let mut client = connect(local);
    assert_eq!(read_name(&mut client).expect("an answer"), 'a');
    site.enter(&site.cgroup);
    node.put_endpoint(&web, "a", endpoint, Draining);
    site.run(node.apply());
    eventually("the task is busy", || busy.borrow().contains(&task("a")));
    drop(client);
    eventually("the task is idle", || busy.borrow().is_empty());
}
