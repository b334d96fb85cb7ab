//! The loaded programs as functions of packets (BPF_PROG_TEST_RUN).
//!
//! Those of interfaces without link headers cannot be run so: the kernel makes packets with headers of Ethernet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::PacketEvent;
use mesonet_lb_dataplane::{PacketAnswer, PacketHook, PacketMode, PacketQuestion, PacketRun};
use mesonet_lb_plan::RouteState::{Draining, Ready};
use mesonet_model::Protocol;

use crate::packets::{
    ACK, FIN, LINK, Packet, RST, SYN, TCP, UDP, checksum, error, packet, reset, too_long, unreachable,
};
use crate::site::{Balancer, Side, Site, address};

const HOOKS: [PacketHook; 2] = [PacketHook::Xdp, PacketHook::In];

/// A node with services whose endpoints no route leads to, so that packets go to the rest of the kernel.
struct Table {
    node: Balancer,
    clients: u32,
    _site: Site,
}

impl Table {
    fn new(masquerade: bool) -> Self {
        let site = Site::new();
        let mut settings = site.settings(&["clients"], PacketMode::Tc);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        for protocol in ["tcp", "udp"] {
            node.put(&format!("{protocol}/four@marathon:80"), "11.0.0.1:80", &[("10.9.0.2:8080", Ready)]);
            node.put(&format!("{protocol}/six@marathon:80"), "[fd11::1]:80", &[("[fd09::2]:8080", Ready)]);
            node.put(&format!("{protocol}/none@marathon:80"), "11.0.0.2:80", &[("10.9.0.2:8080", Draining)]);
            node.put(&format!("{protocol}/nobody@marathon:80"), "[fd11::2]:80", &[]);
        }
        let clients = node.balancer.attached()[0].index;
        Self { node, clients, _site: site }
    }

    fn run(&mut self, hook: PacketHook, octets: &[u8]) -> PacketRun {
        self.node.balancer.run(hook, octets, self.clients, 1).expect("the kernel runs it")
    }

    #[track_caller]
    fn becomes(&mut self, hook: PacketHook, before: &[u8], after: &[u8]) {
        let run = self.run(hook, before);
        assert_eq!((run.verdict, run.packet.as_slice()), (hook.pass(), after), "{hook:?}");
    }

    #[track_caller]
    fn passes(&mut self, what: &str, hook: PacketHook, octets: &[u8]) {
        let run = self.run(hook, octets);
        assert_eq!((run.verdict, run.packet.as_slice()), (hook.pass(), octets), "{hook:?} {what}");
    }
}

/// The places of a flow: client, virtual address, endpoint.
const FLOWS: [(&str, &str, &str); 2] = [
    ("10.1.0.2:40000", "11.0.0.1:80", "10.9.0.2:8080"),
    ("[fd01::2]:40000", "[fd11::1]:80", "[fd09::2]:8080"),
];

#[test]
#[ignore = "needs root"]
fn packets_of_a_flow_get_the_addresses_of_their_side() {
    for hook in HOOKS {
        let mut table = Table::new(false);
        for (client, vip, endpoint) in FLOWS {
            for protocol in [TCP, UDP] {
                let request = packet(protocol, client, vip);
                let arrived = packet(protocol, client, endpoint);
                table.becomes(hook, &request.octets(), &arrived.octets());
                let answer = packet(protocol, endpoint, client).with_flags(ACK);
                let returned = packet(protocol, vip, client).with_flags(ACK);
                table.becomes(PacketHook::Out, &answer.octets(), &returned.octets());
                match hook {
                    // The rest of the kernel would not take it, and tc meets it later.
                    PacketHook::Xdp => table.passes("a reply without a way", hook, &answer.octets()),
                    _ => {
                        let run = table.run(hook, &answer.octets());
                        let hops = returned.hops - 1;
                        let expected = Packet { hops, ..returned.clone() }.octets();
                        assert_eq!((run.verdict, &run.packet[..]), (TC_ACT_REDIRECT, &expected[..]));
                    }
                }
                let more = request.with_flags(ACK).octets();
                table.becomes(hook, &more, &arrived.with_flags(ACK).octets());
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_checksum_that_is_not_there_is_not_made_up() {
    let mut table = Table::new(false);
    let (client, vip, endpoint) = FLOWS[0];
    for hook in HOOKS {
        let before = Packet { has_checksum: false, ..packet(UDP, client, vip) };
        let after = Packet { has_checksum: false, ..packet(UDP, client, endpoint) };
        table.becomes(hook, &before.octets(), &after.octets());
    }
}

#[test]
#[ignore = "needs root"]
fn a_checksum_that_is_still_to_be_made_is_not_for_xdp() {
    let mut table = Table::new(false);
    for (client, vip, _) in FLOWS {
        for (protocol, at) in [(TCP, 16), (UDP, 6)] {
            let packet = Packet { payload: vec![7; 100], ..packet(protocol, client, vip) };
            let mut octets = packet.octets();
            let start = LINK + if vip.starts_with('[') { 40 } else { 20 };
            octets[start + at..][..2].copy_from_slice(&packet.pseudo_sum().to_be_bytes());
            table.passes("it lacks a checksum", PacketHook::Xdp, &octets);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn checksums_are_right_whatever_they_were() {
    let mut table = Table::new(false);
    let (client, vip, endpoint) = FLOWS[0];
    for hook in HOOKS {
        // Every value of a word, in steps: also those next to zero and 0xffff.
        for word in (0..=u16::MAX).step_by(251).chain([1, 2, 0xfffe, 0xffff]) {
            for protocol in [TCP, UDP] {
                let payload = word.to_be_bytes().to_vec();
                let before = Packet { payload: payload.clone(), ..packet(protocol, client, vip) };
                let after = Packet { payload, ..packet(protocol, client, endpoint) };
                let run = table.run(hook, &before.octets());
                assert_eq!(run.packet, after.octets(), "{hook:?} {word}");
            }
        }
    }
}

/// Replaces octets and makes the checksum of the IP header right.
fn changed(octets: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut octets = octets.to_vec();
    for (at, value) in changes {
        octets[LINK + at] = *value;
    }
    if octets[LINK] >> 4 == 4 {
        let end = LINK + usize::from(octets[LINK] & 15).max(5) * 4;
        octets[LINK + 10..LINK + 12].fill(0);
        let sum = checksum(&octets[LINK..end]);
        octets[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
    }
    octets
}

#[test]
#[ignore = "needs root"]
fn what_is_not_understood_goes_to_the_rest_of_the_kernel() {
    let mut table = Table::new(false);
    let four = packet(TCP, FLOWS[0].0, FLOWS[0].1).octets();
    let six = packet(TCP, FLOWS[1].0, FLOWS[1].1).octets();
    let tagged = [&four[..12], &[0x81, 0x00, 0, 7], &four[12..]].concat();
    let arp = [&four[..12], &[0x08, 0x06], &four[14..]].concat();
    for hook in HOOKS {
        for (what, octets) in [
            ("another address", packet(TCP, "10.1.0.2:40000", "11.0.0.9:80").octets()),
            ("another port", packet(TCP, "10.1.0.2:40000", "11.0.0.1:81").octets()),
            ("first fragment", changed(&four, &[(6, 0x20)])),
            ("later fragment", changed(&four, &[(6, 0), (7, 9)])),
            ("options", changed(&four, &[(0, 0x46)])),
            ("a header that is too short", changed(&four, &[(0, 0x44)])),
            ("another version", changed(&four, &[(0, 0x65)])),
            ("longer than it is", changed(&four, &[(2, 0x7f)])),
            ("another protocol", changed(&four, &[(9, 47)])),
            ("a virtual LAN", tagged.clone()),
            ("no IP", arp.clone()),
            ("IPv6: another version", changed(&six, &[(0, 0x45)])),
            ("IPv6: longer than it is", changed(&six, &[(4, 0x7f)])),
            ("IPv6: options", changed(&six, &[(6, 0)])),
            ("IPv6: a fragment", changed(&six, &[(6, 44)])),
            ("IPv6: routing", changed(&six, &[(6, 43)])),
            ("IPv6: another protocol", changed(&six, &[(6, 132)])),
        ] {
            table.passes(what, hook, &octets);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn packets_that_are_cut_are_left_alone_at_every_length() {
    let mut table = Table::new(false);
    for hook in HOOKS {
        for (client, vip, endpoint) in FLOWS {
            for protocol in [TCP, UDP] {
                table.run(hook, &packet(protocol, client, vip).octets());
                let error = error(3, ip(endpoint), ip(client), &packet(protocol, client, endpoint), 64);
                for whole in [
                    packet(protocol, client, vip).octets(),
                    packet(protocol, endpoint, client).octets(),
                    error,
                ] {
                    // The kernel itself makes no packet for tc whose IP header is cut.
                    let header = if vip.starts_with('[') { 40 } else { 20 };
                    let first = if hook == PacketHook::Xdp { LINK + 1 } else { LINK + header };
                    for length in first..whole.len() {
                        table.passes("cut", hook, &whole[..length]);
                    }
                }
            }
        }
    }
    let events = table.node.balancer.events();
    assert!(events.values().sum::<u64>() > 500, "{events:?}");
}

fn ip(place: &str) -> &str {
    place.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])
}

#[test]
#[ignore = "needs root"]
fn errors_reach_the_side_that_they_are_meant_for() {
    let mut table = Table::new(false);
    for (flow, kinds, router) in [(FLOWS[0], [3, 11, 12], "10.5.0.1"), (FLOWS[1], [1, 2, 3], "fd05::1")] {
        let (client, vip, endpoint) = flow;
        for protocol in [TCP, UDP] {
            for hook in HOOKS {
                table.run(hook, &packet(protocol, client, vip).octets());
                for kind in kinds {
                    // With the ports only, and with all of it.
                    for octets in [if vip.starts_with('[') { 48 } else { 28 }, 1000] {
                        // The endpoint's side complains about what the client has sent.
                        let (sent, seen) =
                            (packet(protocol, client, vip), packet(protocol, client, endpoint));
                        for (from, shown) in [(ip(endpoint), ip(vip)), (router, router)] {
                            let before = error(kind, from, ip(client), &seen, octets);
                            let after = error(kind, shown, ip(client), &sent, octets);
                            table.becomes(PacketHook::Out, &before, &after);
                        }
                        // The client's side complains about an answer.
                        let (sent, seen) =
                            (packet(protocol, endpoint, client), packet(protocol, vip, client));
                        let before = error(kind, router, ip(vip), &seen, octets);
                        let after = error(kind, router, ip(endpoint), &sent, octets);
                        table.becomes(hook, &before, &after);
                    }
                }
                let echo = if vip.starts_with('[') { 128 } else { 8 };
                let about = packet(protocol, vip, client);
                table.passes("an echo", hook, &error(echo, router, ip(vip), &about, 1000));
                let unknown =
                    packet(protocol, vip, if vip.starts_with('[') { "[fd01::2]:9" } else { "10.1.0.2:9" });
                table.passes("an unknown flow", hook, &error(kinds[0], router, ip(vip), &unknown, 1000));
            }
        }
    }
}

/// A client and a virtual address without endpoints.
const REFUSED: [(&str, &str); 2] = [("10.1.0.2:40000", "11.0.0.2:80"), ("[fd01::2]:40000", "[fd11::2]:80")];

#[test]
#[ignore = "needs root"]
fn clients_of_a_service_without_endpoints_are_told() {
    let mut table = Table::new(false);
    for (client, vip) in REFUSED {
        for length in 0..40 {
            let payload = vec![length; length.into()];
            let answered = |packet: &Packet| match packet.protocol {
                TCP => reset(packet),
                _ => unreachable(packet),
            };
            for (protocol, flags) in
                [(TCP, SYN), (TCP, ACK), (TCP, FIN | ACK), (TCP, FIN), (TCP, 0), (UDP, 0)]
            {
                let packet = Packet { payload: payload.clone(), ..packet(protocol, client, vip) };
                let packet = packet.with_flags(flags);
                // What comes first leaves it to what can answer.
                table.passes("nobody takes it", PacketHook::Xdp, &packet.octets());
                let run = table.run(PacketHook::In, &packet.octets());
                let expected = (TC_ACT_REDIRECT, answered(&packet));
                assert_eq!((run.verdict, run.packet), expected, "{packet:?}");
            }
        }
    }
    let counted = table.node.balancer.events();
    assert_eq!(counted[&PacketEvent::NoEndpoint], 2 * 40 * 6, "once each");
}

#[test]
#[ignore = "needs root"]
fn what_must_not_be_answered_is_dropped() {
    let mut table = Table::new(false);
    let hook = PacketHook::In;
    for (client, vip) in REFUSED {
        let mut is_dropped = |what: &str, octets: &[u8]| {
            assert!(hook.is_drop(table.run(hook, octets).verdict), "{what}");
        };
        let whole = packet(TCP, client, vip);
        is_dropped("a reset", &whole.clone().with_flags(RST | ACK).octets());
        let mut to_many = whole.octets();
        to_many[0] = 3;
        is_dropped("a frame for many", &to_many);
        let strangers: &[&str] = if vip.starts_with('[') {
            &["[ff02::1]:9", "[::]:9", "[fd11::2]:80"]
        } else {
            &["224.0.0.1:9", "255.255.255.255:9", "0.0.0.0:9", "127.0.0.1:9", "11.0.0.2:80"]
        };
        for stranger in strangers {
            for protocol in [TCP, UDP] {
                is_dropped(stranger, &packet(protocol, stranger, vip).octets());
            }
        }
        let header = if vip.starts_with('[') { 40 } else { 20 };
        for words in 0..=15_u8 {
            let octets = usize::from(words) * 4;
            let mut segment = whole.octets();
            segment[LINK + header + 12] = words << 4;
            if octets < 20 || octets > 20 + whole.payload.len() {
                is_dropped("options that are not there", &segment);
            }
        }
        for protocol in [TCP, UDP] {
            let whole = packet(protocol, client, vip).octets();
            for length in LINK + header..whole.len() {
                table.passes("cut", hook, &whole[..length]);
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn answers_are_limited() {
    let mut table = Table::new(false);
    let datagram = packet(UDP, REFUSED[0].0, REFUSED[0].1).octets();
    let begin = Instant::now();
    let answered =
        (0..5_000).filter(|_| table.run(PacketHook::In, &datagram).verdict == TC_ACT_REDIRECT).count();
    let seconds = begin.elapsed().as_secs() as usize + 2;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    assert!((1..=seconds * processors * 1_000).contains(&answered), "{answered}");
}

#[test]
#[ignore = "needs root"]
fn resets_of_no_flow_are_dropped() {
    let mut table = Table::new(false);
    for hook in HOOKS {
        let reset = packet(TCP, "10.1.0.2:40009", "11.0.0.1:80").with_flags(RST | ACK);
        assert!(hook.is_drop(table.run(hook, &reset.octets()).verdict), "there is nothing to reset");
    }
}

#[test]
#[ignore = "needs root"]
fn a_question_is_answered_and_leaves_nothing_behind() {
    let mut table = Table::new(false);
    for (client, vip, endpoint) in FLOWS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut ask = |to: &str| {
                let question = PacketQuestion { protocol, from: address(client), to: address(to) };
                table.node.balancer.trace(&question).expect("an answer")
            };
            assert_eq!(ask(vip), PacketAnswer::Goes { from: address(client), to: address(endpoint) });
            if vip.starts_with("11") {
                assert_eq!(ask("11.0.0.2:80"), PacketAnswer::Dropped);
                assert_eq!(ask("11.0.0.3:80"), PacketAnswer::Passes);
            }
        }
        let answer = packet(TCP, endpoint, client).octets();
        table.passes("no flow is known", PacketHook::Out, &answer);
    }
}

#[test]
#[ignore = "needs root"]
fn a_packet_that_is_forwarded_has_one_hop_less() {
    let site = Site::new();
    for (place, interface) in [("10.2.0.9", "servers"), ("fd02::9", "servers")] {
        site.ip(Side::Node, &format!("neigh add {place} lladdr 02:00:00:00:00:09 dev {interface}"));
    }
    let mut node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    node.put("tcp/four@marathon:80", "11.0.0.1:80", &[("10.2.0.9:8080", Ready)]);
    node.put("tcp/six@marathon:80", "[fd11::1]:80", &[("[fd02::9]:8080", Ready)]);
    let clients = node.balancer.attached()[0].index;
    for (client, vip, endpoint) in [
        ("10.1.0.2:40000", "11.0.0.1:80", "10.2.0.9:8080"),
        ("[fd01::2]:40000", "[fd11::1]:80", "[fd02::9]:8080"),
    ] {
        for (hops, is_sent) in [(64, true), (2, true), (1, false), (0, false)] {
            let before = Packet { hops, ..packet(TCP, client, vip) };
            let run = node.balancer.run(PacketHook::In, &before.octets(), clients, 1).expect("it runs");
            let left = if is_sent { hops - 1 } else { hops };
            let after = Packet { hops: left, ..packet(TCP, client, endpoint) };
            assert_eq!(run.packet[12..], after.octets()[12..], "{hops} {vip}");
            assert_eq!(run.verdict == TC_ACT_REDIRECT, is_sent, "{hops} {vip}");
            assert_eq!(run.packet[..6] == [2, 0, 0, 0, 0, 9], is_sent, "{hops} {vip}");
        }
    }
}

const TC_ACT_REDIRECT: u32 = 7;

#[test]
#[ignore = "needs root"]
fn a_way_that_is_remembered_takes_what_is_short_enough_and_is_soon_asked_for_again() {
    let site = Site::new();
    let neighbour = |octet: char| {
        for place in ["10.2.0.9", "fd02::9"] {
            site.ip(Side::Node, &format!("neigh replace {place} lladdr 02:00:00:00:00:0{octet} dev servers"));
        }
    };
    neighbour('9');
    site.set_features(Side::Server, "gro on");
    let mut node = Balancer::start(&site.settings(&["clients", "servers"], PacketMode::Xdp));
    node.put("tcp/four@marathon:80", "11.0.0.1:80", &[("10.2.0.9:8080", Ready)]);
    node.put("tcp/six@marathon:80", "[fd11::1]:80", &[("[fd02::9]:8080", Ready)]);
    let clients = node.balancer.attached()[0].index;
    for hook in HOOKS {
        for (client, vip) in [("10.1.0.2:40000", "11.0.0.1:80"), ("[fd01::2]:40000", "[fd11::1]:80")] {
            neighbour('9');
            let of = |payload: usize| Packet {
                payload: vec![0; payload],
                ..packet(TCP, client, vip).with_flags(ACK)
            };
            let mut run =
                |payload: usize| node.balancer.run(hook, &of(payload).octets(), clients, 1).expect("it runs");
            eventually("it is sent to the neighbour", || run(10).packet[..6] == [2, 0, 0, 0, 0, 9]);
            for _ in 0..10 {
                let sent = run(1000);
                assert!(sent.verdict != hook.pass() && !hook.is_drop(sent.verdict), "{sent:?}");
                let long = run(2000);
                if hook == PacketHook::Xdp {
                    assert_eq!(long.verdict, hook.pass(), "the kernel says that it is too long");
                } else {
                    assert_eq!(long.packet, too_long(&of(2000), 1500));
                }
            }
            neighbour('a');
            eventually("another neighbour has the address", || run(10).packet[..6] == [2, 0, 0, 0, 0, 10]);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_that_stands_for_a_client_is_used_again_when_its_connection_is_over() {
    let site = Site::new();
    let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
    settings.masquerade = true;
    let mut node = Balancer::start(&settings);
    let (vip, endpoint) = ("11.0.0.1:80", "10.2.0.9:8080");
    node.put("tcp/four@marathon:80", vip, &[(endpoint, Ready)]);
    // More than there are ports, and all of them open.
    let open: Vec<(String, u16)> = (0..5_000).filter_map(|number| begin(&mut node, number, vip)).collect();
    let ports: BTreeSet<u16> = open.iter().map(|(_, port)| *port).collect();
    assert_eq!(ports.len(), open.len(), "no port stands for two clients");
    assert!((4_000..=4_536).contains(&open.len()), "{}", open.len());
    let (client, port) = &open[7];
    run(&mut node, PacketHook::In, packet(TCP, client, vip).with_flags(RST));
    // Each client looks at four ports of thousands, so that one of very many finds the port that is free.
    let mut others = (6_000..200_000).filter_map(|number| begin(&mut node, number, vip));
    let (client, _) = others.find(|(_, each)| each == port).expect("a client finds the port that is free");
    // Replies reach who has it.
    let answer = packet(TCP, endpoint, &format!("10.2.0.1:{port}")).with_flags(ACK);
    let answered = run(&mut node, PacketHook::Out, answer);
    assert_eq!(answered.packet, packet(TCP, vip, &client).with_flags(ACK).octets());
}

/// Runs a program on a packet that has come from clients.
pub fn run(node: &mut Balancer, hook: PacketHook, packet: Packet) -> PacketRun {
    let clients = node.balancer.attached()[0].index;
    node.balancer.run(hook, &packet.octets(), clients, 1).expect("it runs")
}

/// A new connection of a client of that number, and the port that stands for it, unless there is none.
fn begin(node: &mut Balancer, number: u32, vip: &str) -> Option<(String, u16)> {
    let client = format!("10.1.{}.2:{}", number / 1000 + 1, 20_000 + number % 1000);
    let run = run(node, PacketHook::In, packet(TCP, &client, vip));
    let port = u16::from_be_bytes([run.packet[LINK + 20], run.packet[LINK + 21]]);
    (!PacketHook::In.is_drop(run.verdict)).then_some((client, port))
}

/// Waits for something that comes about in a moment.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_counted_is_what_was_run() {
    let mut table = Table::new(false);
    let (_, vip, endpoint) = FLOWS[0];
    let counts = |table: &Table| table.node.counts("tcp", vip)[0].1;
    let octets = |packet: &Packet| (packet.octets().len() - LINK) as u64;
    // Short frames have more octets than their packets.
    let padded = |packet: &Packet| [packet.octets(), vec![0; 6]].concat();
    let registry = prometheus::Registry::new();
    table.node.balancer.register(&registry).expect("new");
    let mut expected = counts(&table);
    for port in 0..20 {
        let client = format!("10.1.0.2:{}", 41_000 + port);
        let request = packet(TCP, &client, vip);
        table.run(PacketHook::In, &request.octets());
        table.run(PacketHook::Xdp, &padded(&request.clone().with_flags(ACK)));
        // A repetition of the first packet begins no other connection.
        table.run(PacketHook::In, &padded(&request));
        let answer = packet(TCP, endpoint, &client).with_flags(ACK);
        table.run(PacketHook::Out, &answer.octets());
        expected.flows += 1;
        expected.packets_in += 3;
        expected.bytes_in += 3 * octets(&request);
        expected.packets_out += 1;
        expected.bytes_out += octets(&answer);
        if port % 2 == 0 {
            table.run(PacketHook::In, &request.with_flags(FIN | ACK).octets());
            table.run(PacketHook::Out, &answer.with_flags(FIN | ACK).octets());
            expected.ended += 1;
            expected.packets_in += 1;
            expected.bytes_in += octets(&packet(TCP, &client, vip));
            expected.packets_out += 1;
            expected.bytes_out += octets(&packet(TCP, endpoint, &client));
        }
    }
    assert_eq!(counts(&table), expected);
    let exported = |name: &str| -> f64 {
        let families = registry.gather();
        let of_name = families.iter().filter(|family| family.name() == name);
        of_name.flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
    };
    let packets = (expected.packets_in + expected.packets_out) as f64;
    assert_eq!(exported("mesonet_lb_packet_translations_total"), packets);
    assert_eq!(exported("mesonet_lb_packet_flows_total"), expected.flows as f64);
    assert_eq!(exported("mesonet_lb_packet_flows_total"), expected.flows as f64, "not twice");
    assert_eq!(exported("mesonet_lb_packet_endpoint_flows_total"), expected.flows as f64);
    assert_eq!(exported("mesonet_lb_packet_endpoint_translations_total"), packets);
    let bytes = (expected.bytes_in + expected.bytes_out) as f64;
    assert_eq!(exported("mesonet_lb_packet_endpoint_bytes_total"), bytes);
    table.node.remove("tcp/four@marathon:80");
    assert_eq!(exported("mesonet_lb_packet_endpoint_flows_total"), 0.0, "it is gone");
    assert_eq!(exported("mesonet_lb_packet_endpoint_bytes_total"), 0.0);
    assert_eq!(exported("mesonet_lb_packet_flows_total"), expected.flows as f64, "its service's stay");
}
