//! Packets that are longer than what the way takes: whoever sends them is told.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_ebpf_abi::PacketEvent;
use mesonet_lb_dataplane::{PacketHook, PacketMode};
use mesonet_lb_plan::RouteState::Ready;
use rustix::io::Errno;

use crate::packets::{ACK, LINK, Packet, TCP, UDP, checksum, packet, too_long, tunnelled};
use crate::site::{Balancer, Side, Site, address};
use crate::traffic::{WAYS, on};

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const TC_ACT_REDIRECT: u32 = 7;

/// Client, virtual address, an endpoint that a narrow way leads to, and who it thinks that the client is if the node
/// stands for it.
const FLOWS: [(&str, &str, &str, &str); 2] = [
    ("10.1.0.2:40000", "11.0.0.1:80", "10.2.0.9:8080", "10.2.0.1"),
    ("[fd01::2]:40000", "[fd11::1]:80", "[fd02::9]:8080", "fd02::1"),
];

/// What the kernel's routes to the endpoints take, which their interface does not know of.
const NARROW: usize = 1300;

/// Has the node know that the ways to endpoints and clients are narrow.
fn narrow(site: &Site) {
    for (place, interface) in
        [("10.2.0.9", "servers"), ("fd02::9", "servers"), ("10.1.0.2", "clients"), ("fd01::2", "clients")]
    {
        let family = if place.contains(':') { "-6 " } else { "" };
        site.ip(Side::Node, &format!("neigh add {place} lladdr 02:00:00:00:00:09 dev {interface}"));
        site.ip(Side::Node, &format!("{family}route add {place} dev {interface} mtu lock {NARROW}"));
    }
}

/// A packet of such a length without link headers.
fn of_length(protocol: u8, from: &str, to: &str, length: usize) -> Packet {
    let header = if from.starts_with('[') { 40 } else { 20 };
    let transport = if protocol == TCP { 20 } else { 8 };
    let payload = vec![7; length - header - transport];
    Packet { payload, ..packet(protocol, from, to).with_flags(ACK) }
}

#[test]
#[ignore = "needs root"]
fn senders_are_told_how_long_packets_may_be() {
    for masquerade in [false, true] {
        let site = Site::new();
        narrow(&site);
        let mut settings = site.settings(&["clients", "servers"], PacketMode::Tc);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        for (_, vip, endpoint, _) in FLOWS {
            node.put(&format!("tcp/{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
            node.put(&format!("udp/{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
        }
        let [clients, servers] = [0, 1].map(|at| node.balancer.attached()[at].index);
        let mut too_many = 0;
        for (client, vip, endpoint, stand_in) in FLOWS {
            for protocol in [TCP, UDP] {
                let fits = of_length(protocol, client, vip, NARROW);
                let mut run = |hook, octets: &[u8], interface| {
                    node.balancer.run(hook, octets, interface, 1).expect("the kernel runs it")
                };
                let sent = run(PacketHook::In, &fits.octets(), clients);
                assert_eq!((sent.verdict, sent.packet.len()), (TC_ACT_REDIRECT, LINK + NARROW));
                let port = {
                    let at = LINK + if vip.starts_with('[') { 40 } else { 20 };
                    u16::from_be_bytes([sent.packet[at], sent.packet[at + 1]])
                };
                // The way back is as narrow.
                let seen = if masquerade {
                    let host =
                        if vip.starts_with('[') { format!("[{stand_in}]") } else { stand_in.to_owned() };
                    format!("{host}:{port}")
                } else {
                    client.to_owned()
                };
                let answer =
                    run(PacketHook::In, &of_length(protocol, endpoint, &seen, NARROW).octets(), servers);
                assert_eq!((answer.verdict, answer.packet.len()), (TC_ACT_REDIRECT, LINK + NARROW));
                for (from, to, interface) in [(client, vip, clients), (endpoint, seen.as_str(), servers)] {
                    for length in [NARROW + 1, NARROW + 4, 1500, 1800] {
                        let packet = of_length(protocol, from, to, length);
                        let told = run(PacketHook::In, &packet.octets(), interface);
                        assert!(
                            told.packet.len() < 150,
                            "{masquerade} {protocol} {to} {length}: it is sent on"
                        );
                        let expected = (TC_ACT_REDIRECT, too_long(&packet, NARROW as u16));
                        assert_eq!(
                            (told.verdict, told.packet),
                            expected,
                            "{masquerade} {protocol} {to} {length}"
                        );
                        too_many += 1;
                    }
                }
                // What comes first at the driver is told by the next program.
                let long = of_length(protocol, client, vip, NARROW + 1).octets();
                let early = run(PacketHook::Xdp, &long, clients);
                let is_left =
                    early.verdict == PacketHook::Xdp.pass() && (!masquerade || early.packet == long);
                assert!(is_left, "{masquerade} {protocol} {vip}");
            }
            let counts = node.counts("tcp", vip)[0].1;
            let of_xdp = u64::from(!masquerade);
            assert_eq!((counts.packets_in, counts.packets_out), (1 + of_xdp, 1), "{masquerade}");
        }
        assert_eq!(node.balancer.events()[&PacketEvent::TooLong], too_many);
    }
}

#[test]
#[ignore = "needs root"]
fn what_routers_may_cut_is_the_kernels() {
    let site = Site::new();
    narrow(&site);
    let mut node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    let (client, vip, endpoint, _) = FLOWS[0];
    node.put("udp/web@marathon:80", vip, &[(endpoint, Ready)]);
    let clients = node.balancer.attached()[0].index;
    let may_be_cut = |packet: &Packet| {
        let mut octets = packet.octets();
        octets[LINK + 6] = 0;
        octets[LINK + 10..LINK + 12].fill(0);
        let sum = checksum(&octets[LINK..LINK + 20]);
        octets[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
        octets
    };
    let before = may_be_cut(&of_length(UDP, client, vip, 1500));
    let run = node.balancer.run(PacketHook::In, &before, clients, 1).expect("the kernel runs it");
    let after = may_be_cut(&of_length(UDP, client, endpoint, 1500));
    assert!(run.verdict == PacketHook::In.pass() && run.packet == after, "the kernel cuts it");
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_takes_what_the_route_takes() {
    let site = Site::new();
    narrow(&site);
    let mut settings = site.settings(&["clients"], PacketMode::Tc);
    settings.masquerade = true;
    let mut node = Balancer::start(&settings);
    node.set_nodes(&["10.2.0.1", "fd02::1", "10.2.0.9", "fd02::9"]);
    let clients = node.balancer.attached()[0].index;
    for (client, vip, endpoint, source) in FLOWS {
        node.put_direct(&format!("tcp/{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
        let longest = NARROW - if vip.starts_with('[') { 48 } else { 28 };
        let fits = of_length(TCP, client, vip, longest);
        let sent = node.balancer.run(PacketHook::In, &fits.octets(), clients, 1).expect("it runs");
        let inner = Packet { hops: fits.hops - 1, ..fits };
        assert_eq!(sent.packet[12..], tunnelled(source, endpoint, &inner)[12..]);
        for length in [longest + 1, NARROW, NARROW + 1, 1500] {
            let packet = of_length(TCP, client, vip, length);
            let told = node.balancer.run(PacketHook::In, &packet.octets(), clients, 1).expect("it runs");
            assert!(told.packet.len() < 150, "{length}: it is sent on");
            assert_eq!(
                (told.verdict, told.packet),
                (TC_ACT_REDIRECT, too_long(&packet, longest as u16)),
                "{length}"
            );
        }
        let counts = node.counts("tcp", vip)[0].1;
        let octets = longest as u64;
        assert_eq!((counts.packets_in, counts.bytes_in), (1, octets), "what is too long is not counted");
    }
}

/// Makes the pair of interfaces between the node and others narrow. They say in their connections that they are not, as
/// whoever is behind a narrow way does not know of it.
fn squeeze(site: &Site, side: Side, name: &str, network: u8) {
    site.ip(Side::Node, &format!("link set {name} mtu {NARROW}"));
    site.ip(side, &format!("link set eth0 mtu {NARROW}"));
    site.ip(side, &format!("route replace default via 10.{network}.0.1 advmss 1460"));
    site.ip(side, &format!("-6 route replace default via fd0{network}::1 advmss 1440"));
}

/// Reads until the end, and says how much it was.
fn sink(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut octets = Vec::new();
                let _ = stream.read_to_end(&mut octets);
                let _ = write!(stream, "{}", octets.len());
            });
        }
    });
}

/// Sends as much as there is to say.
fn source(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || stream.write_all(&[7; AMOUNT]));
        }
    });
}

const AMOUNT: usize = 200_000;

fn uploads(vip: &str) {
    let mut stream = TcpStream::connect_timeout(&address(vip), PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    stream.write_all(&[7; AMOUNT]).expect("written");
    stream.shutdown(std::net::Shutdown::Write).expect("ended");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("an answer");
    assert_eq!(said, AMOUNT.to_string());
}

fn downloads(vip: &str) {
    let mut stream = TcpStream::connect_timeout(&address(vip), PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).expect("the whole answer");
    assert_eq!(octets.len(), AMOUNT);
}

/// A client whose datagrams are never cut hears that they are too long.
fn hears(vip: &str) {
    let socket = UdpSocket::bind(if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).expect("bind");
    socket.connect(address(vip)).expect("an address");
    never_cut(&socket, vip.starts_with('['));
    let deadline = Instant::now() + PATIENCE;
    let fits = NARROW - if vip.starts_with('[') { 48 } else { 28 };
    let is_told = || {
        let sent = socket.send(&vec![7; fits + 1]).map_err(|error| error.raw_os_error());
        sent == Err(Some(Errno::MSGSIZE.raw_os_error()))
    };
    while !is_told() {
        assert!(Instant::now() < deadline, "{vip}: nobody says that they are too long");
    }
    // What was said of those before is told, too.
    while let Err(error) = socket.send(&vec![7; fits]) {
        assert!(Instant::now() < deadline, "{vip}: {error}");
    }
}

#[expect(unsafe_code, reason = "no library offers the option")]
fn never_cut(socket: &UdpSocket, is_v6: bool) {
    use std::os::fd::AsRawFd as _;
    let (level, name, value) = if is_v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    };
    // SAFETY: the value is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "needs root"]
fn clients_and_servers_learn_how_narrow_the_way_is() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        for (at, kind) in
            [("10.2.0.2:8001", 0), ("[fd02::2]:8001", 0), ("10.2.0.2:8002", 1), ("[fd02::2]:8002", 1)]
        {
            let listener = on(&site, Side::Server, move || TcpListener::bind(at).expect("bind"));
            if kind == 0 { sink(listener) } else { source(listener) }
        }
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        for (family, vips, endpoints) in [
            ("four", ["11.0.0.1:80", "11.0.0.2:80"], ["10.2.0.2:8001", "10.2.0.2:8002"]),
            ("six", ["[fd11::1]:80", "[fd11::2]:80"], ["[fd02::2]:8001", "[fd02::2]:8002"]),
        ] {
            node.put(&format!("tcp/up{family}@marathon:80"), vips[0], &[(endpoints[0], Ready)]);
            node.put(&format!("udp/up{family}@marathon:80"), vips[0], &[(endpoints[0], Ready)]);
            node.put(&format!("tcp/down{family}@marathon:80"), vips[1], &[(endpoints[1], Ready)]);
        }
        squeeze(&site, Side::Server, "servers", 2);
        for vip in ["11.0.0.1:80", "[fd11::1]:80"] {
            on(&site, Side::Client, move || {
                uploads(vip);
                hears(vip);
            });
        }
        site.ip(Side::Node, "link set servers mtu 1500");
        site.ip(Side::Server, "link set eth0 mtu 1500");
        squeeze(&site, Side::Client, "clients", 1);
        for vip in ["11.0.0.2:80", "[fd11::2]:80"] {
            on(&site, Side::Client, move || downloads(vip));
        }
    }
}
