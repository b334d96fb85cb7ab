//! With wireguard-go, the reference implementation for user space.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mesonet_overlay_wg::{Limits, PrivateKey, PublicKey, Tunnel, TunnelSettings};

use crate::far_end::{DEVICE, Echo, PORT, exchange, give_addresses, inside, key, open, peer, ping};
use crate::namespaces::{Namespaces, wait_until};

/// Sessions that a test waits for.
const SESSIONS: u64 = 4;

/// wireguard-go in a namespace. It ends when this is dropped.
struct WireguardGo(Child, String);

impl WireguardGo {
    fn start(
        row: &Namespaces,
        place: usize,
        own: &PrivateKey,
        other: PublicKey,
        endpoint: Option<&str>,
    ) -> Self {
        // Its sockets for configuration are named for the device, for all namespaces together.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let device = format!("mgo{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let child = Command::new("ip")
            .args(["netns", "exec", row.name(place), "wireguard-go", "-f", &device])
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go");
        let go = Self(child, device);
        let (peer, port) = (other.to_string(), PORT.to_string());
        let mut command =
            vec!["set", &go.1, "listen-port", &port, "private-key", "/dev/stdin", "peer", &peer];
        command.extend(["allowed-ips", "9.0.1.0/24,fd01:b:1::/48"]);
        let endpoint = endpoint.map(|address| format!("{address}:{PORT}"));
        if let Some(endpoint) = &endpoint {
            command.extend(["endpoint", endpoint]);
        }
        wait_until("wireguard-go is configured", || go.wg(row, place, &command, own));
        row.ip(place, &format!("link set {} name {DEVICE}", go.1));
        give_addresses(row, place, 2);
        go
    }

    fn wg(&self, row: &Namespaces, place: usize, command: &[&str], key: &PrivateKey) -> bool {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.encode(key.expose());
        let mut wg = Command::new("ip")
            .args(["netns", "exec", row.name(place), "wg"])
            .args(command)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("wg");
        let _ = wg.stdin.take().expect("its input").write_all(key.as_bytes());
        wg.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.1));
    }
}

fn sessions(tunnel: &Tunnel) -> u64 {
    tunnel.stats().peers["go"].sessions
}

fn with_limits(limits: Limits, is_go_first: bool) {
    let row = Namespaces::in_a_row(2);
    let keys = [key(), key()];
    let settings = TunnelSettings { limits, ..TunnelSettings::new(DEVICE, PORT, keys[0].clone()) };
    let tunnel = open(&row, 0, 1, &settings);
    let endpoint = (!is_go_first).then_some("10.9.0.2");
    tunnel.set_peers([("go".to_owned(), peer(keys[1].public(), endpoint, 2))].into());
    let endpoint = is_go_first.then_some("10.9.0.1");
    let _go = WireguardGo::start(&row, 1, &keys[1], keys[0].public(), endpoint);
    if is_go_first {
        wait_until("the other end begins", || ping(&row, 1, inside(1), 56));
    }
    for (address, length) in [(inside(2), 300_000), ("fd01:b:2::1".parse().expect("an address"), 100_000)] {
        let echo = Echo::start(&row, 1, address);
        let mut connection = echo.connect(&row, 0);
        exchange(&mut connection, length);
        drop(connection);
        echo.end();
    }
    if is_go_first {
        return;
    }
    let echo = Echo::start(&row, 1, inside(2));
    let mut connection = echo.connect(&row, 0);
    wait_until("sessions are renewed", || {
        exchange(&mut connection, 5_000);
        sessions(&tunnel) >= SESSIONS
    });
    exchange(&mut connection, 5_000);
    drop(connection);
    echo.end();
}

#[test]
#[ignore = "needs root"]
fn wireguard_go_and_rekeying_by_time() {
    with_limits(Limits { rekey_after: Duration::from_secs(1), ..Limits::default() }, false);
}

#[test]
#[ignore = "needs root"]
fn wireguard_go_and_rekeying_by_messages() {
    with_limits(Limits { rekey_after_messages: 100, ..Limits::default() }, false);
}

#[test]
#[ignore = "needs root"]
fn wireguard_go_begins() {
    with_limits(Limits::default(), true);
}
