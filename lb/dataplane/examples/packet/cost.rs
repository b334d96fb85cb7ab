//! Time per packet of the loaded programs (BPF_PROG_TEST_RUN), and what its parts cost.
//!
//! The kernel runs a program on the same octets again and again, and a packet that was translated is no more one for a
//! virtual address. So the endpoint has the virtual address itself: all is done each time, and nothing changes but the
//! hops left, of which a packet has 255.
//!
//! All cases take turns, and the least mean of each counts: what else the machine does makes a program slower, and nothing
//! makes it faster than it is.

use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;

use crate::bar;
use crate::packets::{ACK, Packet, TCP, packet};
use crate::site::{Balancer, Side, Site};

/// Runs at a time, of which the kernel tells the mean; each takes a hop.
const RUNS: u32 = 200;

/// How often each case has its turn, and how often it is run then.
const TURNS: usize = 40;
const TIMES: usize = 50;

const BAR_NANOSECONDS: f64 = 150.0;

/// What is done with a packet.
struct Case {
    what: &'static str,
    family: &'static str,
    hook: PacketHook,
    packet: Vec<u8>,
    /// Nanoseconds.
    times: Vec<u64>,
}

pub fn run() {
    let site = Site::new();
    for place in ["10.2.0.9", "fd02::9"] {
        site.ip(Side::Node, &format!("neigh add {place} lladdr 02:00:00:00:00:09 dev servers"));
    }
    site.set_features(Side::Server, "gro on");
    let mut node = Balancer::start(&site.settings(&["clients", "servers"], PacketMode::Xdp));
    let clients = node.balancer.attached()[0].index;
    let mut cases = Vec::new();
    for (family, client, forwarded, kept, unknown) in [
        ("IPv4", "10.1.0.2:40000", "10.2.0.9:80", "10.9.0.9:80", "10.2.0.9:81"),
        ("IPv6", "[fd01::2]:40000", "[fd02::9]:80", "[fd09::9]:80", "[fd02::9]:81"),
    ] {
        for place in [forwarded, kept] {
            node.put(&format!("tcp/web-{place}@marathon:80"), place, &[(place, Ready)]);
        }
        for hook in [PacketHook::Xdp, PacketHook::In] {
            let mut tagged = packet(TCP, client, unknown).octets();
            tagged[12] = 0x81;
            for (what, to) in [
                ("called, packet not looked at", None),
                ("looked up, no service", Some(unknown)),
                ("translated, left to the kernel", Some(kept)),
                ("translated and sent on", Some(forwarded)),
            ] {
                let octets = match to {
                    Some(to) => {
                        node.balancer
                            .run(hook, &packet(TCP, client, to).octets(), clients, 1)
                            .expect("it runs");
                        Packet { hops: 255, ..packet(TCP, client, to).with_flags(ACK) }.octets()
                    }
                    None => tagged.clone(),
                };
                cases.push(Case { what, family, hook, packet: octets, times: Vec::new() });
            }
        }
    }
    for _ in 0..TURNS {
        for case in &mut cases {
            for _ in 0..TIMES {
                let run = node.balancer.run(case.hook, &case.packet, clients, RUNS).expect("it runs");
                // Some nanoseconds.
                case.times.push(run.time.as_nanos() as u64);
            }
        }
    }
    println!("time per TCP packet, by BPF_PROG_TEST_RUN: the least mean of {RUNS}, and the middle one");
    for case in &mut cases {
        case.times.sort_unstable();
        let (least, middle) = (case.times[0], case.times[case.times.len() / 2]);
        let hook = case.hook.program();
        println!("  {hook:12} {} {:30} {least:4} ns, {middle:4} ns", case.family, case.what);
    }
    for (name, family) in [("packet_ns", "IPv4"), ("packet_ns_ipv6", "IPv6")] {
        let is_it = |case: &&Case| {
            case.hook == PacketHook::Xdp && case.family == family && case.what.ends_with("sent on")
        };
        let least = cases.iter().find(is_it).map_or(f64::INFINITY, |case| case.times[0] as f64);
        bar(name, least, least <= BAR_NANOSECONDS, "<= 150");
    }
}
