//! A path that carries less than the ends think, and says nothing about it.

use std::time::Instant;

use mesonet_overlay_wg::TunnelSettings;

use crate::far_end::{DEVICE, Echo, PORT, exchange, inside, key, open, peer, ping};
use crate::namespaces::{Namespaces, wait_until};

/// What the wire in the middle carries.
const MTU: u16 = 1296;

/// And what is left of it for packets.
const INSIDE: u16 = MTU - 20 - 8 - 32;

#[test]
#[ignore = "needs root"]
fn a_narrow_path_without_icmp_carries_large_transfers() {
    let row = Namespaces::in_a_row(4);
    row.ip(1, &format!("link set right mtu {MTU}"));
    row.ip(2, &format!("link set left mtu {MTU}"));
    row.ip(0, "route add default via 10.9.0.2");
    row.ip(1, "route add 10.9.2.0/24 via 10.9.1.2");
    row.ip(2, "route add 10.9.0.0/24 via 10.9.1.1");
    row.ip(3, "route add default via 10.9.2.1");
    for router in [1, 2] {
        row.ip(router, "rule add iif lo ipproto icmp blackhole");
    }
    let keys = [key(), key()];
    let tunnels = [(0, 1), (3, 2)].map(|(place, end)| {
        open(&row, place, end, &TunnelSettings::new(DEVICE, PORT, keys[usize::from(end) - 1].clone()))
    });
    tunnels[0].set_peers([("far".to_owned(), peer(keys[1].public(), Some("10.9.2.2"), 2))].into());
    tunnels[1].set_peers([("far".to_owned(), peer(keys[0].public(), Some("10.9.0.1"), 1))].into());

    // The first transfer begins before anything is known of the path.
    let echo = Echo::start(&row, 3, inside(2));
    let start = Instant::now();
    let mut connection = echo.connect(&row, 0);
    exchange(&mut connection, 2_000_000);
    eprintln!("2 MB went and came back {:.3} s after the start", start.elapsed().as_secs_f64());
    for tunnel in &tunnels {
        wait_until("the path is measured", || {
            exchange(&mut connection, 1_000);
            (INSIDE - 8..=INSIDE).contains(&tunnel.stats().peers["far"].path_mtu)
        });
    }
    drop(connection);
    echo.end();

    // A datagram that does not fit is refused, and with that its sender knows.
    wait_until("what fits passes", || ping(&row, 0, inside(2), usize::from(INSIDE) - 8 - 28));
    wait_until("the sender knows", || ping(&row, 0, inside(2), 1380));
}
