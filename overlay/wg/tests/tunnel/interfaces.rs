//! The pair of interfaces: what passes it, what becomes of it, and whose it is.

use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use mesonet_overlay_wg::{DeviceError, OpenError, PrivateKey, Tunnel, TunnelSettings};

use crate::far_end::{DEVICE, Echo, PORT, exchange, inside, key, open, peer};
use crate::namespaces::{Namespaces, wait_until};

fn settings(key: &PrivateKey) -> TunnelSettings {
    TunnelSettings::new(DEVICE, PORT, key.clone())
}

/// Two ends that know each other.
fn connected(row: &Namespaces) -> [Tunnel; 2] {
    let keys = [key(), key()];
    let first = open(row, 0, 1, &settings(&keys[0]));
    let second = open(row, 1, 2, &settings(&keys[1]));
    first.set_peers([("right".to_owned(), peer(keys[1].public(), Some("10.9.0.2"), 2))].into());
    second.set_peers([("left".to_owned(), peer(keys[0].public(), Some("10.9.0.1"), 1))].into());
    [first, second]
}

/// What the interfaces of a namespace are.
fn interfaces(row: &Namespaces, place: usize) -> String {
    let list = std::process::Command::new("ip").args(["-n", row.name(place), "-d", "-o", "link"]).output();
    String::from_utf8(list.expect("ip").stdout).expect("text")
}

#[test]
#[ignore = "needs root"]
fn long_streams_of_both_families_pass_whole() {
    let row = Namespaces::in_a_row(2);
    let tunnels = connected(&row);
    for address in [inside(2), "fd01:b:2::1".parse().expect("an address")] {
        let echo = Echo::start(&row, 1, address);
        let mut connection = echo.connect(&row, 0);
        exchange(&mut connection, 20_000_000);
        drop(connection);
        echo.end();
    }
    for tunnel in &tunnels {
        let stats = tunnel.stats();
        assert_eq!(stats.drops.values().sum::<u64>(), 0, "{:?}", stats.drops);
    }
}

/// The kernel is not to leave to the tunnel what the header before a packet cannot tell, which it would drop.
#[test]
#[ignore = "needs root"]
fn a_stream_in_somebody_elses_tunnel_passes() {
    let row = Namespaces::in_a_row(2);
    let _tunnels = connected(&row);
    for (place, own, other) in [(0, 1, 2), (1, 2, 1)] {
        let [own, other] = [own, other].map(inside);
        row.ip(
            place,
            &format!("link add vx type vxlan id 7 dstport 4789 local {own} remote {other} dev {DEVICE}"),
        );
        row.ip(place, &format!("addr add 10.77.0.{}/24 dev vx", place + 1));
        row.ip(place, "link set vx up");
    }
    let echo = Echo::start(&row, 1, IpAddr::from([10, 77, 0, 2]));
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 3_000_000);
    drop(connection);
    echo.end();
}

#[test]
#[ignore = "needs root"]
fn an_end_that_somebody_switched_off_is_switched_on() {
    let row = Namespaces::in_a_row(2);
    let [first, _second] = connected(&row);
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            for _ in 0..40 {
                exchange(&mut connection, 1_000_000);
            }
        });
        for _ in 0..10 {
            row.ip(0, &format!("link set {DEVICE}-io down"));
            // Whether it is on again, also where nothing flows at the moment.
            wait_until("it is on again", || {
                interfaces(&row, 0)
                    .lines()
                    .any(|line| line.contains(&format!("{DEVICE}-io@")) && line.contains(",UP"))
            });
        }
        stream.join().expect("the stream");
    });
    assert!(!first.stats().is_device_gone);
    drop(connection);
    echo.end();
}

#[test]
#[ignore = "needs root"]
fn a_device_of_an_earlier_version_is_replaced() {
    let row = Namespaces::in_a_row(2);
    row.ip(0, &format!("tuntap add mode tun multi_queue vnet_hdr name {DEVICE}"));
    let [_first, _second] = connected(&row);
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 100_000);
    drop(connection);
    echo.end();
}

#[test]
#[ignore = "needs root"]
fn an_interface_of_somebody_else_is_left_alone() {
    let row = Namespaces::in_a_row(2);
    let foreign = [
        "type bridge",
        "type veth peer name another",
        // In a pair with an end in another namespace, the number of the peer may be that of anything here.
        "type veth peer name mnwg-io netns 1",
    ];
    for kind in foreign {
        let kind = kind.replace("netns 1", &format!("netns {}", row.name(1)));
        row.ip(0, &format!("link add {DEVICE} {kind}"));
        let before = interfaces(&row, 0);
        let error = row.inside(0, || Tunnel::open(&settings(&key())).expect_err("it is foreign"));
        assert!(matches!(error, OpenError::Device(DeviceError::Foreign { .. })), "{kind}: {error}");
        assert!(error.to_string().contains(DEVICE), "{error}");
        assert_eq!(interfaces(&row, 0), before, "{kind}");
        row.ip(0, &format!("link del {DEVICE}"));
    }
    wait_until("it is gone", || !interfaces(&row, 0).contains(DEVICE));
}

#[test]
#[ignore = "needs root"]
fn a_second_process_is_told_who_has_the_tunnel_and_changes_nothing() {
    let row = Namespaces::in_a_row(2);
    let [first, _second] = connected(&row);
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 100_000);
    let before = interfaces(&row, 0);
    let error = row.inside(0, || Tunnel::open(&settings(&key())).expect_err("it is taken"));
    let expected = format!("process {} (", std::process::id());
    assert!(error.to_string().starts_with(&expected) && error.to_string().contains(DEVICE), "{error}");
    assert_eq!(interfaces(&row, 0), before);
    exchange(&mut connection, 100_000);
    drop(connection);
    echo.end();

    // Whoever has the name alone, as every user can, has no tunnel.
    drop(first);
    let name = SocketAddr::from_abstract_name(format!("mesonet-tunnel/{DEVICE}")).expect("a name");
    let mut holder = None;
    // Programs that other tests start have it for a moment, too.
    wait_until("the name is free", || {
        holder = row.inside(0, || UnixListener::bind_addr(&name).ok());
        holder.is_some()
    });
    row.inside(0, || Tunnel::open(&settings(&key())).expect("it is nobody's"));
}
