//! Restarts, new keys, and a kernel that can less.

use mesonet_overlay_wg::{Offloads, OwnKeys, TunnelSettings};

use crate::far_end::{DEVICE, Echo, PORT, exchange, inside, key, open, peer, reopen};
use crate::namespaces::{Namespaces, wait_until};

fn settings(key: &mesonet_overlay_wg::PrivateKey) -> TunnelSettings {
    TunnelSettings::new(DEVICE, PORT, key.clone())
}

#[test]
#[ignore = "needs root"]
fn a_restart_breaks_no_connection_and_a_removal_leaves_nothing() {
    let row = Namespaces::in_a_row(2);
    let keys = [key(), key()];
    let left = [("right".to_owned(), peer(keys[1].public(), Some("10.9.0.2"), 2))];
    let right = [("left".to_owned(), peer(keys[0].public(), Some("10.9.0.1"), 1))];
    let mut first = open(&row, 0, 1, &settings(&keys[0]));
    let mut second = open(&row, 1, 2, &settings(&keys[1]));
    first.set_peers(left.clone().into());
    second.set_peers(right.clone().into());
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 500_000);

    // Addresses and routes stay with the device.
    drop(first);
    first = reopen(&row, 0, &settings(&keys[0]));
    first.set_peers(left.into());
    exchange(&mut connection, 500_000);
    drop(second);
    second = reopen(&row, 1, &settings(&keys[1]));
    second.set_peers(right.into());
    exchange(&mut connection, 500_000);
    drop(connection);
    echo.end();

    first.remove().expect("the device goes");
    let is_there =
        || row.inside(0, || std::fs::read_to_string("/proc/thread-self/net/dev").expect("devices"));
    wait_until("the device is gone", || !is_there().contains(DEVICE));
}

#[test]
#[ignore = "needs root"]
fn a_device_that_somebody_removed_is_noticed() {
    let row = Namespaces::in_a_row(2);
    let tunnel = open(&row, 0, 1, &settings(&key()));
    let mut changes = tunnel.changes();
    changes.mark_unchanged();
    row.ip(0, &format!("link del {DEVICE}"));
    wait_until("the removal is noticed", || tunnel.stats().is_device_gone);
    wait_until("its owner is told", || changes.has_changed().expect("the tunnel"));
    drop(tunnel);
    open(&row, 0, 1, &settings(&key())).remove().expect("a new device goes");
}

#[test]
#[ignore = "needs root"]
fn keys_change_under_a_transfer() {
    let row = Namespaces::in_a_row(2);
    let keys = [key(), key()];
    let first = open(&row, 0, 1, &settings(&keys[0]));
    let second = open(&row, 1, 2, &settings(&keys[1]));
    first.set_peers([("right".to_owned(), peer(keys[1].public(), Some("10.9.0.2"), 2))].into());
    let known = |primary: &mesonet_overlay_wg::PrivateKey, other: Option<&mesonet_overlay_wg::PrivateKey>| {
        let mut peer = peer(primary.public(), Some("10.9.0.1"), 1);
        peer.other_key = other.map(|key| key.public());
        second.set_peers([("left".to_owned(), peer)].into());
    };
    known(&keys[0], None);
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    let mut old = keys[0].clone();
    for _ in 0..20 {
        let new = key();
        first.set_keys(&OwnKeys { primary: old.clone(), other: Some(new.clone()) });
        known(&old, Some(&new));
        exchange(&mut connection, 50_000);
        let before = first.stats().peers["right"].sessions;
        first.set_keys(&OwnKeys { primary: new.clone(), other: Some(old.clone()) });
        wait_until("the new key is used", || {
            exchange(&mut connection, 1_000);
            first.stats().peers["right"].sessions > before
        });
        known(&new, Some(&old));
        first.set_keys(&OwnKeys { primary: new.clone(), other: None });
        known(&new, None);
        exchange(&mut connection, 50_000);
        old = new;
    }
    drop(connection);
    echo.end();
}

#[test]
#[ignore = "needs root"]
fn several_workers_and_no_offloads_carry_the_same() {
    let row = Namespaces::in_a_row(2);
    let keys = [key(), key()];
    let plain = TunnelSettings { offloads: Offloads::NONE, workers: 1, ..settings(&keys[0]) };
    let wide = TunnelSettings { workers: 4, ..settings(&keys[1]) };
    let first = open(&row, 0, 1, &plain);
    let second = open(&row, 1, 2, &wide);
    assert_eq!(first.stats().offloads, Offloads::NONE);
    first.set_peers([("right".to_owned(), peer(keys[1].public(), Some("10.9.0.2"), 2))].into());
    second.set_peers([("left".to_owned(), peer(keys[0].public(), Some("10.9.0.1"), 1))].into());
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 3_000_000);
    drop(connection);
    echo.end();
    let stats = second.stats().peers["left"].clone();
    assert!(stats.received_octets > 3_000_000 && stats.sent_octets > 3_000_000, "{stats:?}");
}
