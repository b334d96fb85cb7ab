//! Traffic through an interface without link headers. Its other end is the test itself, octet by octet.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::PacketMode;
use mesonet_lb_plan::RouteState::Ready;

use crate::packets::{ACK, Arrived, LINK, Packet, RST, SYN, TCP, UDP, packet, reset, too_long, unreachable};
use crate::site::{Balancer, Side, Site, address};
use crate::traffic::{serve, serve_datagrams};

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of the tunnel that is not the node's: 10.4.0.2 and fd04::2. Before each packet stands what a virtual machine says
/// of it (`struct virtio_net_hdr` of linux/virtio_net.h).
struct Tunnel(File);

/// Octets of that.
const SAID: usize = 10;

impl Tunnel {
    /// In the namespace of the calling thread, which is the node's.
    fn new(site: &Site) -> Self {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").expect("tunnels");
        make_interface(&file, "tunnel");
        site.ip(Side::Node, "addr add 10.4.0.1/24 dev tunnel");
        site.ip(Side::Node, "addr add fd04::1/64 dev tunnel nodad");
        site.ip(Side::Node, "link set tunnel up");
        Self(file)
    }

    fn send(&mut self, packet: &Packet) {
        self.write(&[&[0; SAID][..], &packet.without_link()].concat());
    }

    /// Sends a bundle of packets of one flow, each with so many octets of the payload.
    fn send_bundle(&mut self, packet: &Packet, size: u16) {
        const NEEDS_CHECKSUM: u8 = 1;
        let start = if packet.from.is_ipv4() { 20 } else { 40 };
        let (kind, transport, checksum_at) = match (packet.protocol, packet.from.is_ipv4()) {
            (TCP, true) => (1, 20, 16),
            (TCP, false) => (4, 20, 16),
            (_, _) => (5, 8, 6),
        };
        let mut octets = packet.without_link();
        // The receiver makes the checksums, of which only the part is there that the payload is not in.
        octets[start + checksum_at..][..2].copy_from_slice(&packet.pseudo_sum().to_be_bytes());
        let words = [start + transport, usize::from(size), start, checksum_at];
        let words = words.iter().flat_map(|word| (*word as u16).to_ne_bytes());
        let said: Vec<u8> = [NEEDS_CHECKSUM, kind].into_iter().chain(words).collect();
        self.write(&[said, octets].concat());
    }

    fn write(&mut self, octets: &[u8]) {
        assert_eq!(self.0.write(octets).expect("the interface is up"), octets.len());
    }

    /// The next packet for a client. The kernel has things to say of its own, too.
    #[track_caller]
    fn receive(&mut self, client: &str) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) if is_for(&buffer[SAID..length], client) => return buffer[SAID..length].to_vec(),
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "nothing arrives");
            thread::yield_now();
        }
    }
}

fn is_for(packet: &[u8], client: &str) -> bool {
    match address(client).ip() {
        std::net::IpAddr::V4(ip) => packet.len() > 20 && packet[0] == 0x45 && packet[16..20] == ip.octets(),
        std::net::IpAddr::V6(ip) => packet.len() > 40 && packet[0] >> 4 == 6 && packet[24..40] == ip.octets(),
    }
}

/// Makes a file the other side of a new interface that carries plain packets (linux/if_tun.h).
#[expect(unsafe_code, reason = "no library offers the call")]
fn make_interface(file: &File, name: &str) {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN: u16 = 1;
    const IFF_NO_PI: u16 = 0x1000;
    const IFF_VNET_HDR: u16 = 0x4000;
    let mut request = Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request is as long as the kernel reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Clients, virtual addresses, and the addresses that endpoints see with and without masquerading.
const FLOWS: [(&str, &str, [&str; 2]); 2] = [
    ("10.4.0.2:40000", "11.0.0.1:80", ["10.4.0.2", "10.2.0.1"]),
    ("[fd04::2]:40000", "[fd11::1]:80", ["fd04::2", "fd02::1"]),
];

#[test]
#[ignore = "needs root"]
fn packets_of_a_tunnel_reach_endpoints_and_answers_come_back() {
    for masquerade in [false, true] {
        let site = Site::new();
        let mut tunnel = Tunnel::new(&site);
        for at in ["10.2.0.2:8001", "[fd02::2]:8001"] {
            serve(&site, at, 'a');
            serve_datagrams(&site, at, 'a');
        }
        let mut settings = site.settings(&["tunnel", "servers"], PacketMode::Auto);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        assert_eq!(node.balancer.attached()[0].mode, PacketMode::Tc);
        for protocol in ["tcp", "udp"] {
            node.put(&format!("{protocol}/four@marathon:80"), "11.0.0.1:80", &[("10.2.0.2:8001", Ready)]);
            node.put(&format!("{protocol}/six@marathon:80"), "[fd11::1]:80", &[("[fd02::2]:8001", Ready)]);
        }
        for (client, vip, seen) in FLOWS {
            // The first packet finds out who the neighbour is, and others know.
            for _ in 0..3 {
                tunnel.send(&packet(UDP, client, vip));
                let answer = Arrived::parse(&tunnel.receive(client));
                assert_eq!((answer.from, answer.to), (address(vip), address(client)));
                assert_eq!(answer.payload(), format!("a {}", seen[usize::from(masquerade)]).as_bytes());
            }
            for _ in 0..3 {
                tunnel.send(&Packet { payload: Vec::new(), ..packet(TCP, client, vip) });
                let answer = Arrived::parse(&tunnel.receive(client));
                assert_eq!((answer.from, answer.to), (address(vip), address(client)));
                assert_eq!(answer.flags(), SYN | ACK);
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn bundles_that_nobody_has_counted_are_packets_that_are_short_enough() {
    const SIZE: u16 = 1000;
    let site = Site::new();
    let mut tunnel = Tunnel::new(&site);
    let endpoints = ["10.2.0.2:8001", "[fd02::2]:8001"];
    endpoints.iter().for_each(|at| serve_datagrams(&site, at, 'a'));
    let mut node = Balancer::start(&site.settings(&["tunnel", "servers"], PacketMode::Tc));
    for ((client, vip, _), endpoint) in FLOWS.into_iter().zip(endpoints) {
        for protocol in ["tcp", "udp"] {
            node.put(&format!("{protocol}/web{}@marathon:80", vip.len()), vip, &[(endpoint, Ready)]);
        }
        let bundle = |protocol: u8| {
            let payload = vec![7; usize::from(SIZE) * 2 + 1];
            Packet { payload, ..packet(protocol, client, vip).with_flags(ACK) }
        };
        tunnel.send_bundle(&bundle(UDP), SIZE);
        for _ in 0..3 {
            let answer = Arrived::parse(&tunnel.receive(client));
            assert_eq!((answer.from, answer.to), (address(vip), address(client)));
        }
        // Nobody has such a connection there.
        tunnel.send_bundle(&bundle(TCP), SIZE);
        let answer = Arrived::parse(&tunnel.receive(client));
        assert_eq!((answer.from, answer.flags()), (address(vip), RST));
        for (protocol, number) in [("udp", UDP), ("tcp", TCP)] {
            let counts = node.counts(protocol, vip)[0].1;
            let octets = bundle(number).without_link().len() as u64;
            assert_eq!((counts.packets_in, counts.bytes_in), (3, octets), "{protocol} {vip}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn clients_behind_a_tunnel_are_told_why_they_reach_nobody() {
    let site = Site::new();
    site.ip(Side::Node, "link set servers mtu 1300");
    let mut tunnel = Tunnel::new(&site);
    let mut node = Balancer::start(&site.settings(&["tunnel"], PacketMode::Tc));
    for ((client, vip, _), endpoint) in FLOWS.into_iter().zip(["10.2.0.2:8001", "[fd02::2]:8001"]) {
        node.put("tcp/none@marathon:80", vip, &[]);
        node.put("udp/none@marathon:80", vip, &[]);
        let segment = packet(TCP, client, vip);
        tunnel.send(&segment);
        assert_eq!(tunnel.receive(client), reset(&segment)[LINK..]);
        let datagram = packet(UDP, client, vip);
        tunnel.send(&datagram);
        assert_eq!(tunnel.receive(client), unreachable(&datagram)[LINK..]);
        node.put("tcp/none@marathon:80", vip, &[(endpoint, Ready)]);
        let long = Packet { payload: vec![7; 1300], ..segment }.with_flags(ACK);
        tunnel.send(&long);
        assert!(tunnel.receive(client) == too_long(&long, 1300)[LINK..], "{vip}: the way is narrow");
    }
}
