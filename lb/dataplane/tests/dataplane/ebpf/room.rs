//! What finds no room in the kernel's maps.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use mesonet_model::EndpointState::Ready;
use mesonet_model::{Algorithm, Service, ServiceKey, ServicePolicy};

use super::{Site, vip};
use crate::fixture::{self, Node, ask, eventually, serve_name};

/// Services that choose by the client, as many as find room.
const FITTING: u32 = 3840;

/// A service that chooses by the client, which takes 64 of the map's entries.
fn put_maglev(node: &mut Node, number: u32, endpoint: SocketAddr) -> (ServiceKey, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::from(0x0b01_0000 + number), 80));
    let key = node.put_service("tcp", &format!("maglev{number}"), address);
    let policy = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    let service = Service { policy, ..Service::clone(&node.view.services[&key]) };
    node.view.services.insert(key.clone(), Arc::new(service));
    node.put_endpoint(&key, "a", endpoint, Ready);
    (key, address)
}

#[test]
#[ignore = "needs root"]
fn a_service_that_does_not_fit_waits_for_room() {
    let site = Site::new("room");
    let mut node = site.run(async { Node::ebpf(&site.settings()) });
    let (a, b) = (serve_name("a"), serve_name("b"));
    let web = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&web, "a", a, Ready);
    let fitting: Vec<_> = (0..FITTING).map(|number| put_maglev(&mut node, number, a)).collect();
    assert_eq!(site.run(node.apply()), [].into());
    let (late, late_address) = put_maglev(&mut node, FITTING, a);
    let failures = site.run(node.apply());
    assert_eq!(failures.keys().collect::<Vec<_>>(), [&late], "{failures:?}");
    let reason = format!("cannot balance {late_address} in the kernel: the map of positions has no room for");
    assert!(failures[&late].starts_with(&reason), "{failures:?}");
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 1.0);
    assert_eq!(node.metric("mesonet_lb_map_entries", "positions"), 245_760.0);
    assert_eq!(site.run(node.balancer.observe()), failures, "it is still not in effect");

    let (first, first_address) = &fitting[0];
    node.put_endpoint(first, "b", b, Ready);
    node.remove_endpoint(first, "a", a);
    assert_eq!(site.run(node.apply()), failures, "others change");
    assert_eq!((ask(vip(1)).ok(), ask(*first_address).ok()), (Some('a'), Some('b')));

    node.remove_endpoint(&fitting[1].0, "a", a);
    node.view.services.remove(&fitting[1].0);
    site.run(node.apply());
    eventually("there is room", || site.run(node.balancer.observe()).is_empty());
    assert_eq!(node.metric("mesonet_lb_failed_services", ""), 0.0);
    assert_eq!(ask(late_address).expect("there is room"), 'a');
}

/// Fills a map with entries that belong to nothing.
fn fill(site: &Site) {
    let layouts = fs::read_dir(site.bpffs.join("mesonet")).expect("pins");
    let layout = layouts.last().expect("a layout").expect("pins").path();
    let data = MapData::from_pin(layout.join("SLOTS")).expect("a map");
    let mut slots: HashMap<_, [u32; 3], [u32; 9]> = Map::HashMap(data).try_into().expect("its form");
    let full = (0..).find_map(|index| slots.insert([u32::MAX, 0, index], [0; 9], 0).err());
    assert!(full.is_some());
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_has_started_gets_connections_once_there_is_room() {
    let site = Site::new("roomlater");
    let mut node = site.run(async { Node::ebpf(&site.settings()) });
    let web = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&web, "a", serve_name("a"), Ready);
    assert_eq!(site.run(node.apply()), [].into());
    let late = fixture::vip();
    node.put_endpoint(&web, "b", late, Ready);
    assert_eq!(site.run(node.apply()), [].into());
    fill(&site);
    let listener = TcpListener::bind(late).expect("free");
    let (asked, by_node) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The node only looks whether it connects, and has gone.
            let _gone = stream.write_all(b"b");
            let _test_is_over = asked.send(());
        }
    });
    by_node.recv_timeout(fixture::PATIENCE).expect("the node finds that it listens");
    eventually("it gets connections", || {
        drop(site.run(node.balancer.observe()));
        ask(vip(1)).is_ok_and(|name| name == 'b')
    });
}
