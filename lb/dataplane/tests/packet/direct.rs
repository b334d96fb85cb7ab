//! Endpoints on other nodes that get packets in a tunnel and answer clients directly.

use std::net::UdpSocket;
use std::time::Duration;

use mesonet_ebpf_abi::PacketEvent;
use mesonet_lb_dataplane::{PacketAnswer, PacketHook, PacketMode, PacketQuestion, PacketRun};
use mesonet_lb_plan::RouteState::{Draining, Ready};
use mesonet_model::Protocol;

use crate::packets::{ACK, LINK, Packet, TCP, UDP, packet, too_long, tunnelled};
use crate::site::{Balancer, Side, Site, address};
use crate::traffic::{Conversation, on, serve, serve_datagrams};

/// Client, virtual address, this node's address on the way, and an endpoint there.
const OUT: [(&str, &str, &str, &str); 2] = [
    ("10.1.0.2:40000", "11.0.0.1:80", "10.2.0.1", "10.2.0.9:8080"),
    ("[fd01::2]:40000", "[fd11::1]:80", "fd02::1", "[fd02::9]:8080"),
];

/// Client, virtual address, the node that has sent a packet, and an endpoint here.
const HERE: [(&str, &str, &str, &str); 2] = [
    ("10.1.0.2:40000", "11.0.0.2:80", "10.2.0.9", "10.2.0.1:8080"),
    ("[fd01::2]:40000", "[fd11::2]:80", "fd02::9", "[fd02::1]:8080"),
];

const TC_ACT_REDIRECT: u32 = 7;

/// A node beside another one, with services whose endpoints are there and others whose endpoints are here.
struct Table {
    node: Balancer,
    clients: u32,
    _site: Site,
}

impl Table {
    fn new() -> Self {
        let site = Site::new();
        for place in ["10.2.0.9", "fd02::9"] {
            site.ip(Side::Node, &format!("neigh add {place} lladdr 02:00:00:00:00:09 dev servers"));
        }
        let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
        settings.masquerade = true;
        let mut node = Balancer::start(&settings);
        assert!(node.set_nodes(&["10.2.0.1", "fd02::1", "10.2.0.9", "fd02::9"]));
        assert!(!node.set_nodes(&["10.2.0.1", "fd02::1", "10.2.0.9", "fd02::9"]));
        for protocol in ["tcp", "udp"] {
            for (name, (_, vip, _, endpoint)) in ["a", "b", "c", "d"].iter().zip(OUT.into_iter().chain(HERE))
            {
                let key = format!("{protocol}/{name}@marathon:80");
                node.put_direct(&key, vip, &[(endpoint, Ready)]);
            }
        }
        let clients = node.balancer.attached()[0].index;
        Self { node, clients, _site: site }
    }

    fn run(&mut self, hook: PacketHook, octets: &[u8]) -> PacketRun {
        self.node.balancer.run(hook, octets, self.clients, 1).expect("the kernel runs it")
    }

    #[track_caller]
    fn passes(&mut self, what: &str, hook: PacketHook, octets: &[u8]) {
        let run = self.run(hook, octets);
        assert_eq!((run.verdict, run.packet.as_slice()), (hook.pass(), octets), "{hook:?} {what}");
    }

    fn event(&self, event: PacketEvent) -> u64 {
        self.node.balancer.events()[&event]
    }
}

#[test]
#[ignore = "needs root"]
fn packets_for_another_node_go_there_in_a_tunnel() {
    let mut table = Table::new();
    for (client, vip, source, endpoint) in OUT {
        for protocol in [TCP, UDP] {
            for _ in 0..3 {
                let before = packet(protocol, client, vip);
                table.passes("tc does it", PacketHook::Xdp, &before.octets());
                let run = table.run(PacketHook::In, &before.octets());
                let inner = Packet { hops: before.hops - 1, ..before };
                let after = tunnelled(source, endpoint, &inner);
                assert_eq!(run.packet[12..], after[12..], "{protocol} {vip}");
                assert_eq!((run.verdict, &run.packet[..6]), (TC_ACT_REDIRECT, &[2, 0, 0, 0, 0, 9][..]));
            }
            let last = Packet { hops: 1, ..packet(protocol, client, vip) };
            table.passes(
                "the kernel tells that it was on its way for too long",
                PacketHook::In,
                &last.octets(),
            );
        }
        let counts = table.node.counts("tcp", vip)[0].1;
        assert_eq!((counts.flows, counts.packets_in, counts.packets_out), (1, 3, 0));
        let question = PacketQuestion { protocol: Protocol::Tcp, from: address(client), to: address(vip) };
        let answer = table.node.balancer.trace(&question).expect("an answer");
        assert_eq!(answer, PacketAnswer::Goes { from: address(client), to: address(endpoint) });
    }
}

#[test]
#[ignore = "needs root"]
fn clients_are_told_how_long_packets_through_a_tunnel_may_be() {
    let mut table = Table::new();
    for (client, vip, source, endpoint) in OUT {
        let (header, overhead) = if vip.starts_with('[') { (40, 48) } else { (20, 28) };
        for (protocol, transport) in [(TCP, 20), (UDP, 8)] {
            let longest = 1500 - overhead;
            let of_length = |length: usize| {
                let payload = vec![7; length - header - transport];
                Packet { payload, ..packet(protocol, client, vip).with_flags(ACK) }
            };
            let fits = of_length(longest);
            let run = table.run(PacketHook::In, &fits.octets());
            let inner = Packet { hops: fits.hops - 1, ..fits };
            assert_eq!(run.packet[12..], tunnelled(source, endpoint, &inner)[12..]);
            for length in [longest + 1, 1500, 1501, 1800] {
                let packet = of_length(length);
                let run = table.run(PacketHook::In, &packet.octets());
                let told = too_long(&packet, longest as u16);
                assert_eq!((run.verdict, run.packet), (TC_ACT_REDIRECT, told), "{protocol} {vip} {length}");
            }
        }
    }
    assert_eq!(table.event(PacketEvent::TooLong), 2 * 2 * 4);
}

#[test]
#[ignore = "needs root"]
fn packets_from_another_node_reach_the_endpoint_and_answers_have_the_virtual_address() {
    let mut table = Table::new();
    for (client, vip, node, endpoint) in HERE {
        for protocol in [TCP, UDP] {
            let inner = packet(protocol, client, vip);
            let octets = tunnelled(node, endpoint, &inner);
            table.passes("tc does it", PacketHook::Xdp, &octets);
            for flags in [inner.flags, ACK] {
                let inner = inner.clone().with_flags(flags);
                let run = table.run(PacketHook::In, &tunnelled(node, endpoint, &inner));
                let after = packet(protocol, client, endpoint).with_flags(flags).octets();
                assert_eq!((run.verdict, run.packet), (PacketHook::In.pass(), after), "{protocol} {vip}");
            }
            let answer = packet(protocol, endpoint, client).with_flags(ACK).octets();
            let run = table.run(PacketHook::Out, &answer);
            let after = packet(protocol, vip, client).with_flags(ACK).octets();
            assert_eq!((run.verdict, run.packet), (PacketHook::Out.pass(), after), "{protocol} {vip}");
        }
        let counts = table.node.counts("tcp", vip)[0].1;
        assert_eq!((counts.flows, counts.packets_in, counts.packets_out), (1, 2, 1));
    }
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_drains_goes_on_to_get_what_another_node_sends() {
    let mut table = Table::new();
    let (client, vip, node, endpoint) = HERE[0];
    table.node.put_direct("tcp/c@marathon:80", vip, &[(endpoint, Draining)]);
    // The other node may not have heard of it.
    for flags in [packet(TCP, client, vip).flags, ACK] {
        let run = table
            .run(PacketHook::In, &tunnelled(node, endpoint, &packet(TCP, client, vip).with_flags(flags)));
        let after = packet(TCP, client, endpoint).with_flags(flags).octets();
        assert_eq!((run.verdict, run.packet), (PacketHook::In.pass(), after));
    }
    table.node.remove("tcp/c@marathon:80");
    let late = tunnelled(node, endpoint, &packet(TCP, client, vip).with_flags(ACK));
    table.passes("its endpoint is gone", PacketHook::In, &late);
}

#[test]
#[ignore = "needs root"]
fn tunnels_of_strangers_and_to_others_are_left_alone() {
    let mut table = Table::new();
    for (client, vip, node, endpoint) in HERE {
        let is_v6 = vip.starts_with('[');
        let outer = LINK + if is_v6 { 40 } else { 20 };
        let stranger = if is_v6 { "fd02::8" } else { "10.2.0.8" };
        let elsewhere = if is_v6 { OUT[1] } else { OUT[0] };
        let whole = tunnelled(node, endpoint, &packet(TCP, client, vip));
        let changed = |at: usize, value: u8| {
            let mut octets = whole.clone();
            octets[outer + at] = value;
            octets
        };
        let place =
            |text: &str, port: u16| address(&format!("{}:{port}", text.rsplit_once(':').expect("a port").0));
        let other_port = place(endpoint, 8081).to_string();
        let other_vip = place(vip, 81).to_string();
        for (what, octets) in [
            ("a stranger's", tunnelled(stranger, endpoint, &packet(TCP, client, vip))),
            ("for another port", tunnelled(node, &other_port, &packet(TCP, client, vip))),
            ("for another service", tunnelled(node, endpoint, &packet(TCP, client, &other_vip))),
            ("for an endpoint elsewhere", tunnelled(node, elsewhere.3, &packet(TCP, client, elsewhere.1))),
            ("without a key", changed(0, 0)),
            ("with a checksum", changed(0, 0xa0)),
            ("of another version", changed(1, 1)),
            ("of another protocol", changed(3, 0x06)),
        ] {
            table.passes(what, PacketHook::In, &octets);
        }
        let reply = packet(TCP, endpoint, client).with_flags(ACK).octets();
        table.passes("no flow is known", PacketHook::Out, &reply);
        assert!(table.node.set_nodes(&["10.2.0.1", "fd02::1"]));
        table.passes("of a node that is gone", PacketHook::In, &whole);
        assert!(table.node.set_nodes(&["10.2.0.1", "fd02::1", "10.2.0.9", "fd02::9"]));
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_cut_in_a_tunnel_reaches_nobody() {
    let mut table = Table::new();
    let hook = PacketHook::In;
    for (client, vip, node, endpoint) in HERE {
        for protocol in [TCP, UDP] {
            let inner = packet(protocol, client, vip);
            let whole = tunnelled(node, endpoint, &inner);
            let header = if vip.starts_with('[') { 40 } else { 20 };
            for length in LINK + header..whole.len() {
                table.passes("longer than it is", hook, &whole[..length]);
            }
            // The outer packet is whole, the inner one is not.
            let start = whole.len() - inner.without_link().len();
            for length in start..whole.len() {
                let octets = shortened(&whole[..length]);
                let verdict = table.run(hook, &octets).verdict;
                assert!(hook.is_drop(verdict), "{vip} {protocol} {length}: {verdict}");
            }
            for (at, value) in [(0, 0x46), (0, 0x75), (6, 44), (9, 50)] {
                let is_of_family = match at {
                    0 => true,
                    6 => vip.starts_with('['),
                    _ => !vip.starts_with('['),
                };
                let mut octets = whole.clone();
                octets[start + at] = value;
                assert!(!is_of_family || hook.is_drop(table.run(hook, &octets).verdict), "{vip} {at}");
            }
            if !vip.starts_with('[') {
                let mut fragment = whole.clone();
                fragment[start + 6] = 0x20;
                assert!(hook.is_drop(table.run(hook, &fragment).verdict));
            }
        }
        let answer = packet(TCP, endpoint, client).with_flags(ACK).octets();
        table.passes("no flow is known", PacketHook::Out, &answer);
    }
}

/// Makes a packet's header say how long it is.
fn shortened(octets: &[u8]) -> Vec<u8> {
    let mut octets = octets.to_vec();
    let length = octets.len() - LINK;
    if octets[LINK] >> 4 == 4 {
        octets[LINK + 2..LINK + 4].copy_from_slice(&(length as u16).to_be_bytes());
        octets[LINK + 10..LINK + 12].fill(0);
        let sum = crate::packets::checksum(&octets[LINK..LINK + 20]);
        octets[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        octets[LINK + 4..LINK + 6].copy_from_slice(&(length as u16 - 40).to_be_bytes());
    }
    octets
}

/// Octets that came in through an interface of the calling thread's namespace.
fn received(interface: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
    let mut lines = table.lines().filter_map(|line| line.trim().split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| *name == interface).expect("the interface");
    numbers.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Connects clients and servers besides the node.
fn connect_directly(site: &Site) {
    let server = site.name(Side::Server);
    let pair = format!("link add direct type veth peer name direct netns {server}");
    site.ip(Side::Client, &pair);
    for (side, host) in [(Side::Client, 2), (Side::Server, 1)] {
        site.ip(side, &format!("addr add 10.5.0.{host}/24 dev direct"));
        site.ip(side, &format!("addr add fd05::{host}/64 dev direct nodad"));
        site.ip(side, "link set direct up");
        for name in ["all", "eth0", "direct"] {
            site.set(side, &format!("net/ipv4/conf/{name}/rp_filter"), "0");
        }
    }
    site.ip(Side::Server, "route add 10.1.0.2/32 via 10.5.0.2 dev direct");
    site.ip(Side::Server, "-6 route add fd01::2/128 via fd05::2 dev direct");
}

/// A connection with much to say, and datagrams, whose server says who it is and who its client is.
fn converses(vip: &str, any: &str, said: &str) {
    let begun = Conversation::begin(address(vip));
    let mut conversation = begun.unwrap_or_else(|error| panic!("{vip}: {error}"));
    assert_eq!(conversation.stream.peer_addr().expect("a peer"), address(vip));
    assert_eq!(conversation.line, said);
    assert!(conversation.echoes(4 << 20), "{vip}: bulk");
    let socket = UdpSocket::bind(any).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("valid");
    for _ in 0..3 {
        socket.send_to(b"?", address(vip)).expect("sent");
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!((&buffer[..length], from), (said.as_bytes(), address(vip)));
    }
}

#[test]
#[ignore = "needs root"]
fn answers_of_endpoints_elsewhere_do_not_pass_the_node_that_balances() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        connect_directly(&site);
        let endpoints = ["10.2.0.2:8001", "[fd02::2]:8001"];
        let nodes = ["10.2.0.1", "fd02::1", "10.2.0.2", "fd02::2"];
        for at in endpoints {
            serve(&site, at, 'a');
            serve_datagrams(&site, at, 'a');
        }
        let put = |node: &mut Balancer| {
            node.set_nodes(&nodes);
            for protocol in ["tcp", "udp"] {
                for (name, vip, endpoint) in
                    [("four", "11.0.0.1:80", endpoints[0]), ("six", "[fd11::1]:80", endpoints[1])]
                {
                    node.put_direct(&format!("{protocol}/{name}@marathon:80"), vip, &[(endpoint, Ready)]);
                }
            }
        };
        let mut settings = site.settings(&["clients"], mode);
        settings.masquerade = true;
        let mut node = Balancer::start(&settings);
        put(&mut node);
        // The servers' node has its own.
        settings.interfaces = ["eth0", "direct"].map(str::to_owned).into();
        settings.bpffs = settings.bpffs.join("server");
        site.entry(Side::Server).enter();
        let mut server = Balancer::start(&settings);
        put(&mut server);
        site.entry(Side::Node).enter();
        for (vip, client, any) in
            [("11.0.0.1:80", "10.1.0.2", "0.0.0.0:0"), ("[fd11::1]:80", "fd01::2", "[::]:0")]
        {
            let before = received("servers");
            on(&site, Side::Client, move || converses(vip, any, &format!("a {client}")));
            // Whose packets come one by one has to hear that they are too long.
            site.ip(Side::Client, "link set eth0 gso_max_segs 1");
            let sent = on(&site, Side::Client, move || {
                Conversation::begin(address(vip)).is_ok_and(|mut conversation| conversation.echoes(256 << 10))
            });
            assert!(sent, "{mode:?} {vip}: packets without bundles");
            site.ip(Side::Client, "link set eth0 gso_max_segs 65535");
            let answered = received("servers") - before;
            assert!(answered < 64 << 10, "{answered} octets of answers have passed the node");
            assert!(node.balancer.events()[&PacketEvent::TooLong] > 0);
            for protocol in ["tcp", "udp"] {
                let [(_, here)] = node.counts(protocol, vip)[..] else { panic!("one endpoint") };
                assert!(here.packets_in > 0 && here.packets_out == 0, "{here:?}");
                let [(_, there)] = server.counts(protocol, vip)[..] else { panic!("one endpoint") };
                assert!(there.packets_in > 0 && there.packets_out > 0, "{there:?}");
            }
        }
        site.entry(Side::Server).enter();
        drop(server);
        mesonet_lb_dataplane::PacketBalancer::cleanup(&settings.bpffs).expect("it is removed");
        site.entry(Side::Node).enter();
    }
}
