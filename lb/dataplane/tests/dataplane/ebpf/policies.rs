//! Endpoints are chosen as a service's policy says.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use mesonet_ebpf_abi::{Affinity, AffinityKey, LAYOUT, Words as _};
use mesonet_lb_plan::EndpointId;
use mesonet_model::EndpointState::{Draining, Ready};
use mesonet_model::{Algorithm, ServiceKey, ServicePolicy};
use socket2::SockRef;

use super::{Container, LOOKS, Site, vip};
use crate::fixture::{
    Node, PATIENCE, ask, connect, dead_address, read_name, serve, serve_name, serve_name_at, task,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A service with four endpoints that containers can reach.
fn service(node: &mut Node, policy: ServicePolicy) -> (ServiceKey, Vec<SocketAddr>) {
    let key = node.put_service("tcp", "web", vip(1));
    set_policy(node, &key, policy);
    let addresses: Vec<SocketAddr> = NAMES.iter().map(|name| serve_name_at(Container::HOST, name)).collect();
    for (name, address) in NAMES.iter().zip(&addresses) {
        node.put_endpoint(&key, name, *address, Ready);
    }
    (key, addresses)
}

fn set_policy(node: &mut Node, key: &ServiceKey, policy: ServicePolicy) {
    let service = node.view.services.get(key).map(|service| (**service).clone()).expect("it is there");
    node.view.services.insert(key.clone(), Arc::new(mesonet_model::Service { policy, ..service }));
}

fn counts(names: impl Iterator<Item = char>) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

#[test]
#[ignore = "needs root"]
fn the_least_loaded_of_two_is_chosen() {
    let site = Site::new("least");
    let _container = site.container();
    let mut node = site.node();
    let policy = ServicePolicy { algorithm: Algorithm::LeastConnections, ..ServicePolicy::default() };
    let (_, addresses) = service(&mut node, policy);
    site.run(node.apply());
    let open = |count: usize| -> Vec<(char, TcpStream)> {
        let each = |_| {
            let mut stream = connect(vip(1));
            (read_name(&mut stream).expect("a name"), stream)
        };
        (0..count).map(each).collect()
    };
    let streams = open(200);
    let spread = counts(streams.iter().map(|(name, _)| *name));
    // At random, some would be more than ten away.
    assert!(spread.len() == 4 && spread.values().all(|count| (42..=58).contains(count)), "{spread:?}");
    // One gets rid of all of its connections, and gets nearly every second one until it has as many as the others.
    let streams: Vec<_> = streams.into_iter().filter(|(name, _)| *name != 'a').collect();
    // Of so many that chance cannot make less than a fourth of a half.
    let more = open(100);
    let share = more.iter().filter(|(name, _)| *name == 'a').count();
    assert!(share > 25, "{share} of 100, and a fourth is 25");
    drop((streams, more, addresses));
}

#[test]
#[ignore = "needs root"]
fn all_of_a_namespace_go_to_one_endpoint_by_maglev() {
    let site = Site::new("maglev");
    let container = site.container();
    let mut node = site.node();
    let policy = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    let (key, addresses) = service(&mut node, policy);
    site.run(node.apply());
    let ask_some = || (0..10).map(|_| ask(vip(1)).expect("an answer")).collect::<Vec<char>>();
    for names in [ask_some(), container.within(ask_some)] {
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    }
    // When the endpoint of a client goes, it gets another one; when another goes, it stays.
    let own = ask(vip(1)).expect("an answer");
    let at = |name: char| NAMES.iter().position(|each| each.starts_with(name)).expect("one of four");
    let other = (at(own) + 1) % NAMES.len();
    node.remove_endpoint(&key, NAMES[other], addresses[other]);
    site.run(node.apply());
    assert_eq!(ask(vip(1)).expect("an answer"), own);
    node.remove_endpoint(&key, NAMES[at(own)], addresses[at(own)]);
    site.run(node.apply());
    let names = ask_some();
    assert!(names.iter().all(|name| *name == names[0] && *name != own), "{names:?}");
}

#[test]
#[ignore = "needs root"]
fn a_client_stays_with_its_endpoint_for_a_time() {
    let site = Site::new("affinity");
    let container = site.container();
    let mut node = site.node();
    let policy = ServicePolicy { affinity: Some(Duration::from_secs(3600)), ..ServicePolicy::default() };
    let (key, addresses) = service(&mut node, policy);
    site.run(node.apply());
    let ask_some = || (0..20).map(|_| ask(vip(1)).expect("an answer")).collect::<Vec<char>>();
    let names = ask_some();
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    let others = container.within(ask_some);
    assert!(others.iter().all(|name| *name == others[0]), "{others:?}");
    // Not to one that drains.
    let own = NAMES.iter().position(|each| each.starts_with(names[0])).expect("one of four");
    node.put_endpoint(&key, NAMES[own], addresses[own], Draining);
    site.run(node.apply());
    let after = ask_some();
    assert!(after.iter().all(|name| *name == after[0] && *name != names[0]), "{after:?}");
    // Nor for longer than wanted.
    set_policy(&mut node, &key, ServicePolicy { affinity: None, ..policy });
    site.run(node.apply());
    assert_eq!(counts((0..200).map(|_| ask(vip(1)).expect("an answer"))).len(), 3);
}

#[test]
#[ignore = "needs root"]
fn a_client_that_stays_is_known_to_the_endpoint_that_came_to_the_same_place() {
    let site = Site::new("replaced");
    let mut node = site.node();
    let key = node.put_service("tcp", "web", vip(1));
    let policy = ServicePolicy { affinity: Some(Duration::from_secs(3600)), ..ServicePolicy::default() };
    set_policy(&mut node, &key, policy);
    let place = serve_name("a");
    node.put_endpoint(&key, "first", place, Ready);
    site.run(node.apply());
    assert_eq!(ask(vip(1)).expect("an answer"), 'a');
    node.remove_endpoint(&key, "first", place);
    site.run(node.apply());
    assert!(TcpStream::connect(vip(1)).is_err());
    node.put_endpoint(&key, "second", place, Ready);
    site.run(node.apply());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    // Its connection keeps it, and ends with it.
    node.put_endpoint(&key, "second", place, Draining);
    site.run(node.apply());
    let busy = node.balancer.busy();
    let draining = Instant::now();
    while draining.elapsed() < LOOKS {
        assert!(busy.borrow().contains(&task("second")), "the task is taken for unused");
        thread::yield_now();
    }
    node.remove_endpoint(&key, "second", place);
    site.run(node.apply());
    assert!(stream.read_exact(&mut [0]).is_err(), "the connection goes on");
}

#[test]
#[ignore = "needs root"]
fn a_client_leaves_an_endpoint_that_has_no_weight_while_others_have_some() {
    let site = Site::new("weightless");
    let _container = site.container();
    let mut node = site.node();
    let policy = ServicePolicy { affinity: Some(Duration::from_secs(3600)), ..ServicePolicy::default() };
    let (key, addresses) = service(&mut node, policy);
    site.run(node.apply());
    let ask_some = || (0..20).map(|_| ask(vip(1)).expect("an answer")).collect::<Vec<char>>();
    let first = ask_some()[0];
    let own = NAMES.iter().position(|each| each.starts_with(first)).expect("one of four");
    node.set_weight(&key, NAMES[own], addresses[own], 0);
    site.run(node.apply());
    let next = ask_some();
    assert!(next.iter().all(|name| *name == next[0] && *name != first), "{next:?}");
    // It does not come back of itself, and where none has a weight, nobody has a reason to leave.
    for weight in [1, 0] {
        for (name, address) in NAMES.iter().zip(&addresses) {
            node.set_weight(&key, name, *address, weight);
        }
        site.run(node.apply());
        let names = ask_some();
        assert!(names.iter().all(|name| *name == next[0]), "weight {weight}: {names:?}");
    }
}

/// Makes every client come so much earlier than it did.
fn make_older(site: &Site, by: u32) {
    let map = MapData::from_pin(site.bpffs.join("mesonet").join(LAYOUT).join("AFFINITIES")).expect("the map");
    let mut map: HashMap<_, [u8; AffinityKey::SIZE], [u8; Affinity::SIZE]> =
        Map::LruHashMap(map).try_into().expect("the map's form");
    let all: Vec<_> = map.iter().collect::<Result<_, _>>().expect("clients");
    assert!(!all.is_empty());
    for (client, mut octets) in all {
        let affinity = Affinity::read(&octets);
        Affinity { used: affinity.used.wrapping_sub(by), ..affinity }.write(&mut octets);
        map.insert(client, octets, 0).expect("written");
    }
}

#[test]
#[ignore = "needs root"]
fn a_client_that_was_away_for_long_is_sent_anywhere() {
    let site = Site::new("away");
    let _container = site.container();
    let mut node = site.node();
    let policy = ServicePolicy { affinity: Some(Duration::from_secs(3600)), ..ServicePolicy::default() };
    service(&mut node, policy);
    site.run(node.apply());
    let own = ask(vip(1)).expect("an answer");
    for _ in 0..20 {
        // Its time begins again with each connection.
        make_older(&site, 2400);
        assert_eq!(ask(vip(1)).expect("an answer"), own);
    }
    let moved = (0..100).any(|_| {
        make_older(&site, 3602);
        ask(vip(1)).expect("an answer") != own
    });
    assert!(moved, "it stays for ever");
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_refuses_loses_its_weight_in_the_kernel() {
    let site = Site::new("outlier");
    let mut node = site.node();
    leaves_alone_with_the_other(&site, &mut node, dead_address(), || drop(TcpStream::connect(vip(1))));
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_resets_without_a_word_loses_its_weight_in_the_kernel() {
    let site = Site::new("spurn");
    let mut node = site.node();
    let bad = serve(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("valid"));
    leaves_alone_with_the_other(&site, &mut node, bad, || {
        // It may be reset before it is known to be there.
        let _ = ask(vip(1));
    });
}

/// A service has a good endpoint and a bad one, which connections take the weight from.
fn leaves_alone_with_the_other(site: &Site, node: &mut Node, bad: SocketAddr, connects: impl Fn()) {
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "good", serve_name("g"), Ready);
    node.put_endpoint(&service, "bad", bad, Ready);
    site.run(node.apply());
    let id = EndpointId { task: task("bad"), address: bad };
    let weight = |node: &Node| node.balancer.table().endpoint(&service, &id).expect("it is there").weight;
    let begun = Instant::now();
    while weight(node) > 0 {
        assert!(begun.elapsed() < PATIENCE, "the endpoint keeps its weight");
        // Half of them fail.
        connects();
        assert!(site.run(node.balancer.observe()).is_empty());
    }
    assert!((0..50).all(|_| ask(vip(1)).is_ok_and(|name| name == 'g')));
}
