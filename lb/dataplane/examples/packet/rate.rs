//! Packets per second through the node, beside nftables' DNAT on the same way.
//!
//! Frames of 64 octets come as a network card's driver has them, without a socket that would cost more than all the rest:
//! the kernel runs a program of XDP that sends each through a pair of interfaces to the node (live frames of
//! BPF_PROG_TEST_RUN). One processor does everything, from sending to receiving, and loses nothing, so that a rate is the
//! inverse of the time that it has spent on each packet. The endpoint counts what arrives and drops it, where that is
//! the cheapest for each way: XDP, or tc for what was a packet of the kernel's stack.

use std::fs;

use aya::maps::{Array, PerCpuArray};
use aya::programs::{
    SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
};
use aya::{Ebpf, EbpfLoader};
use mesonet_lb_dataplane::PacketMode;
use mesonet_lb_plan::RouteState::Ready;

use crate::bar;
use crate::packets::{Packet, UDP, packet};
use crate::site::{self, Balancer, Side, Site};

/// The source and the sink, built from ebpf/programs by ebpf/build.sh.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/object/meter.o");

/// Packets at a time, and how often: the ways take turns, so that what else the machine does meets all of them.
const PACKETS: u32 = 8_192;
const ROUNDS: usize = 201;

/// Frames that the kernel makes before it lets the other side have its turn.
const BATCH: u32 = 64;

/// Octets of frames.
const LENGTH: usize = 64;

const BAR_RATIO: f64 = 3.0;

/// A way of the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They are dropped where they would come into the node: what source and sink alone cost.
    Nowhere,
    Nftables,
    Mesonet,
}

const WAYS: [Way; 3] = [Way::Nowhere, Way::Nftables, Way::Mesonet];

pub fn run() {
    let mut lanes: Vec<Lane> = WAYS.into_iter().map(Lane::new).collect();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); WAYS.len()];
    for _ in 0..ROUNDS {
        for (lane, times) in lanes.iter_mut().zip(&mut times) {
            times.extend(lane.measure());
        }
    }
    println!(
        "datagrams of 64 octets through the node, one processor, up to {ROUNDS} times {PACKETS} in turns"
    );
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    assert!(times.iter().all(|times| times.len() > ROUNDS / 4), "the machine is too busy to measure");
    let middle = |way: Way| times[way as usize][times[way as usize].len() / 2];
    for way in WAYS {
        let (best, middle) = (times[way as usize][0], middle(way));
        let name = match way {
            Way::Nowhere => "source and sink alone",
            Way::Nftables => "nftables",
            Way::Mesonet => "mesonet (XDP)",
        };
        println!(
            "  {name}: {:.0} packets/s, {middle:.0} ns of processor each (best {:.0}/s, {best:.0} ns)",
            1e9 / middle,
            1e9 / best
        );
    }
    let alone = middle(Way::Nowhere);
    let (theirs, ours) = (middle(Way::Nftables), middle(Way::Mesonet));
    println!("  in the node alone: nftables {:.0} ns, mesonet {:.0} ns", theirs - alone, ours - alone);
    bar("packet_rate_ratio", theirs / ours, theirs / ours >= BAR_RATIO, ">= 3");
}

/// One way with namespaces of its own.
struct Lane {
    meter: Ebpf,
    _node: Option<Balancer>,
    site: Site,
}

impl Lane {
    fn new(way: Way) -> Self {
        let site = Site::new();
        for (side, name, octet) in
            [(Side::Node, "clients", 1), (Side::Node, "servers", 2), (Side::Server, "eth0", 9)]
        {
            site.ip(side, &format!("link set {name} address 02:00:00:00:00:0{octet}"));
        }
        site.ip(Side::Node, "neigh replace 10.2.0.2 lladdr 02:00:00:00:00:09 dev servers");
        // So that a pair of interfaces takes frames of XDP even where no program is attached.
        site::run("ip", &["netns", "exec", &site.name(Side::Node), "ethtool", "-K", "clients", "gro", "on"]);
        let mut meter = EbpfLoader::new().load(OBJECT).expect("the kernel takes the object");
        for name in ["mesonet_source", "mesonet_sink"] {
            program(&mut meter, name).load().expect("the kernel takes the program");
        }
        let mut node = None;
        match way {
            Way::Nowhere => attach_sink(&mut meter, &site, Side::Node, "clients"),
            Way::Nftables => {
                attach_sink_of_packets(&mut meter, &site);
                let rules = "add table ip nat; add chain ip nat in { type nat hook prerouting priority dstnat; }; \
                             add rule ip nat in ip daddr 11.0.0.1 udp dport 80 dnat to 10.2.0.2:8080";
                site::run("ip", &["netns", "exec", &site.name(Side::Node), "nft", rules]);
            }
            Way::Mesonet => {
                attach_sink(&mut meter, &site, Side::Server, "eth0");
                site.entry(Side::Node).enter();
                let mut balancer = Balancer::start(&site.settings(&["clients", "servers"], PacketMode::Xdp));
                balancer.put("udp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8080", Ready)]);
                node = Some(balancer);
            }
        }
        site.entry(Side::Client).enter();
        let target = fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0").expect("the interface");
        let target: u32 =
            target.split_whitespace().nth(1).and_then(|index| index.parse().ok()).expect("its number");
        let frame =
            Packet { has_checksum: false, payload: vec![0; 22], ..packet(UDP, "10.1.0.2:9", "11.0.0.1:80") };
        let mut octets = frame.octets();
        octets[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        let octets: [u8; LENGTH] = octets.try_into().expect("as long as is said");
        set(&mut meter, "TARGET", target);
        set(&mut meter, "FRAME", octets);
        Self { meter, _node: node, site }
    }

    /// Nanoseconds for a packet; nothing if the processor had something else to do, so that queues overflowed.
    fn measure(&mut self) -> Option<f64> {
        self.site.entry(Side::Client).enter();
        let before = self.received();
        let mut options = TestRunOptions::new();
        let frame = [0; LENGTH];
        options.data_in = Some(&frame);
        options.repeat = PACKETS;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        // The kernel's own time leaves out what it takes to prepare, and what others get in between.
        let run = program(&mut self.meter, "mesonet_source").test_run(options).expect("the kernel sends");
        let received = self.received() - before;
        // Of what a queue has lost, and of what another thread has received, the time is not known.
        (received >= u64::from(PACKETS) * 9 / 10 && received <= u64::from(PACKETS))
            .then(|| run.duration.as_secs_f64() * 1e9 * f64::from(PACKETS) / received as f64)
    }

    /// Packets that have arrived.
    fn received(&self) -> u64 {
        let map = self.meter.map("RECEIVED").expect("the object has it");
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).expect("of this kind");
        counts.get(&0, 0).expect("one entry").iter().sum()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.site.entry(Side::Node).enter();
    }
}

fn program<'a>(meter: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    meter.program_mut(name).expect("the object has it").try_into().expect("of XDP")
}

fn set<T: aya::Pod>(meter: &mut Ebpf, name: &str, value: T) {
    let map = meter.map_mut(name).expect("the object has it");
    Array::try_from(map).expect("of this kind").set(0, value, 0).expect("one entry");
}

fn attach_sink(meter: &mut Ebpf, site: &Site, side: Side, name: &str) {
    site.entry(side).enter();
    program(meter, "mesonet_sink").attach(name, XdpMode::Driver).expect("the interface takes it");
}

fn attach_sink_of_packets(meter: &mut Ebpf, site: &Site) {
    site.entry(Side::Server).enter();
    let program = meter.program_mut("mesonet_sink_tc").expect("the object has it");
    let program: &mut SchedClassifier = program.try_into().expect("of tc");
    program.load().expect("the kernel takes the program");
    program.attach("eth0", TcAttachType::Ingress).expect("the interface takes it");
}
