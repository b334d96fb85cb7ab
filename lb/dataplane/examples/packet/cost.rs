//! Time per packet of the loaded programs (BPF_PROG_TEST_RUN).
//!
//! The kernel runs a program on the same octets again and again, and a packet that was translated is no more one for a
//! virtual address. So the endpoint has the virtual address itself: all is done each time, and nothing changes but the
//! hops left, of which a packet has 255.

use std::time::Duration;

use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::bar;
use crate::packets::{ACK, Packet, TCP, packet};
use crate::site::{Balancer, Side, Site};

/// Runs at a time; each takes a hop.
const RUNS: u32 = 200;

/// Times; the middle one of their means counts.
const TIMES: usize = 2_000;

const BAR_NANOSECONDS: f64 = 150.0;

pub fn run() {
    let site = Site::new();
    for place in ["10.2.0.9", "fd02::9"] {
        site.ip(Side::Node, &format!("neigh add {place} lladdr 02:00:00:00:00:09 dev servers"));
    }
    let mut node = Balancer::start(&site.settings(&["clients", "servers"], PacketMode::Xdp));
    let mut worst: f64 = 0.0;
    println!("time per translated TCP packet, by BPF_PROG_TEST_RUN");
    for (family, client, place, is_forwarded) in [
        ("IPv4", "10.1.0.2:40000", "10.2.0.9:80", true),
        ("IPv6", "[fd01::2]:40000", "[fd02::9]:80", true),
        ("IPv4", "10.1.0.2:40000", "10.9.0.9:80", false),
        ("IPv6", "[fd01::2]:40000", "[fd09::9]:80", false),
    ] {
        node.put("tcp/web@marathon:80", place, &[(place, Ready)]);
        let clients = node.balancer.attached()[0].index;
        for hook in [PacketHook::Xdp, PacketHook::In] {
            node.balancer.run(hook, &packet(TCP, client, place).octets(), clients, 1).expect("it runs");
            let packet = Packet { hops: 255, ..packet(TCP, client, place).with_flags(ACK) }.octets();
            let mut times: Vec<Duration> = (0..TIMES)
                .map(|_| node.balancer.run(hook, &packet, clients, RUNS).expect("it runs").time)
                .collect();
            times.sort();
            let nanoseconds = times[TIMES / 2].as_secs_f64() * 1e9;
            let way = if is_forwarded { "sent on by the program" } else { "handed to the kernel" };
            println!("  {:12} {family} {way}: {nanoseconds:.0} ns", hook.program());
            if hook == PacketHook::Xdp && is_forwarded && family == "IPv4" {
                worst = nanoseconds;
            }
        }
    }
    bar("packet_ns", worst, worst <= BAR_NANOSECONDS, "<= 150");
}
