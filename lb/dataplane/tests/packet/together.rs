//! Two processors have packets of the same flow at the same moment.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::packets::{UDP, packet};
use crate::site::{Balancer, Site};

/// Enough that some begin at once on both.
const FLOWS: usize = 2_000;

#[test]
#[ignore = "needs root"]
fn a_flow_that_begins_on_two_processors_is_counted_once() {
    for masquerade in [false, true] {
        let site = Site::new();
        let mut settings = site.settings(&["clients"], PacketMode::Tc);
        settings.masquerade = masquerade;
        let mut first = Balancer::start(&settings);
        first.put("udp/dns@marathon:53", "11.0.0.1:53", &[("10.2.0.9:53", Ready)]);
        // It has programs of its own for the same maps.
        let mut second = Balancer::start(&settings);
        let clients = first.balancer.attached()[0].index;
        let arrived = AtomicUsize::new(0);
        let begin_all = |node: &mut Balancer| -> Vec<Vec<u8>> {
            let begin = |number: usize| {
                let client = format!("10.1.{}.{}:{}", number / 200, 1 + number % 200, 20_000 + number);
                let octets = packet(UDP, &client, "11.0.0.1:53").octets();
                arrived.fetch_add(1, Ordering::SeqCst);
                // Without a pause both begin at once, if they run at once.
                let mut patience = 1_000;
                while arrived.load(Ordering::SeqCst) < 2 * (number + 1) {
                    match patience {
                        0 => thread::yield_now(),
                        _ => patience -= 1,
                    }
                }
                let run = node.balancer.run(PacketHook::In, &octets, clients, 1);
                run.expect("the kernel runs it").packet
            };
            (0..FLOWS).map(begin).collect()
        };
        let [sent, also_sent] = thread::scope(|scope| {
            [&mut first, &mut second]
                .map(|node| scope.spawn(|| begin_all(node)))
                .map(|all| all.join().expect("no panic"))
        });
        assert!(sent == also_sent, "{masquerade}: both go the same way");
        let counts = first.counts("udp", "11.0.0.1:53")[0].1;
        assert_eq!(counts.flows, FLOWS as u64, "{masquerade}");
        assert_eq!(counts.packets_in, 2 * FLOWS as u64, "{masquerade}");
    }
}
