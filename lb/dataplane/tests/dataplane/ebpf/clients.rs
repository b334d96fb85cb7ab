//! Clients as people run them, on the host and in a container, and what servers see of them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_model::EndpointState::Ready;

use super::{Container, Site, vip, vip6};
use crate::fixture::{PATIENCE, connect};

/// A server that tells each client the address that it sees, as the body of an HTTP answer.
fn mirror(address: &str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let bound = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let body = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    bound
}

/// A name server that answers every query with the query, as an empty answer.
fn name_server(address: &str) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).expect("a free port");
    let bound = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut packet) {
            if length > 3 {
                // An answer, and no error.
                packet[2] |= 0x80;
                packet[3] = 0;
                let _ = socket.send_to(&packet[..length], client);
            }
        }
    });
    bound
}

/// What a mirror says to a client of this program.
fn reflection(address: SocketAddr) -> (SocketAddr, SocketAddr) {
    let mut stream = connect(address);
    assert_eq!(stream.peer_addr().expect("connected"), address);
    let own = stream.local_addr().expect("connected");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let seen = answer.rsplit("\r\n").next().and_then(|body| body.parse().ok());
    (own, seen.unwrap_or_else(|| panic!("no address in {answer}")))
}

fn success(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The same for a client of iperf3, whose server may be busy for a moment with what is left of the client before. That
/// is an error or none for the client, as its version has it.
fn served(mut client: Command) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = client.stdin(Stdio::null()).output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_busy = text.contains("the server is busy") && Instant::now() < deadline;
        if !is_busy {
            assert!(output.status.success(), "{client:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
            return text;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs root"]
fn servers_see_the_clients_address_and_clients_the_virtual_one() {
    let site = Site::new("address");
    let container = site.container();
    let mut node = site.node();
    for (vip, host) in [(vip(1), Container::HOST), (vip6(1), Container::HOST6)] {
        let service = node.put_service("tcp", &format!("m{}", vip.is_ipv4()), vip);
        node.put_endpoint(&service, "a", mirror(host), Ready);
    }
    site.run(node.apply());
    for vip in [vip(1), vip6(1)] {
        let (own, seen) = reflection(vip);
        assert_eq!(own, seen);
        let (own, seen) = container.within(|| reflection(vip));
        assert_eq!(own, seen);
        let expected = if vip.is_ipv4() { Container::OWN } else { Container::OWN6 };
        assert_eq!(seen.ip().to_string(), expected);
        // A client of another kind in the same place.
        let mut curl = container.command("curl");
        curl.args(["-sS", "-g", "--max-time", "20", &format!("http://{vip}/")]);
        let seen: SocketAddr = success(curl).parse().expect("an address");
        assert_eq!(seen.ip().to_string(), expected);
    }
}

#[test]
#[ignore = "needs root"]
fn a_task_reaches_itself() {
    let site = Site::new("hairpin");
    let container = site.container();
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "a", container.within(|| mirror(Container::OWN)), Ready);
    let names = node.put_service("udp", "names", vip(1));
    node.put_endpoint(&names, "a", container.within(|| name_server(Container::OWN)), Ready);
    site.run(node.apply());
    let (own, seen) = container.within(|| reflection(vip(1)));
    assert_eq!((own, own.ip().to_string().as_str()), (seen, Container::OWN));
    dig(container.command("dig"), vip(1));
    // And the host reaches it.
    assert_eq!(reflection(vip(1)).1.ip().to_string(), Container::HOST);
}

fn dig(mut dig: Command, vip: SocketAddr) {
    let (server, port) = (format!("@{}", vip.ip()), vip.port().to_string());
    dig.args([&server, "-p", &port, "+tries=1", "+time=15", "+noedns", "example.com"]);
    let answer = success(dig);
    assert!(answer.contains("status: NOERROR"), "{answer}");
}

#[test]
#[ignore = "needs root"]
fn name_servers_answer_from_the_virtual_address() {
    let site = Site::new("dig");
    let container = site.container();
    let mut node = site.node();
    for (vip, host) in [(vip(1), Container::HOST), (vip6(1), Container::HOST6)] {
        let service = node.put_service("udp", &format!("n{}", vip.is_ipv4()), vip);
        node.put_endpoint(&service, "a", name_server(host), Ready);
        node.put_endpoint(&service, "b", name_server(host), Ready);
    }
    site.run(node.apply());
    for vip in [vip(1), vip6(1)] {
        dig(Command::new("dig"), vip);
        dig(container.command("dig"), vip);
        // One socket for several servers, which dig does not do.
        let own = if vip.is_ipv4() { Container::OWN } else { Container::OWN6 };
        container.within(|| {
            let client = UdpSocket::bind((own, 0)).expect("a free port");
            client.set_read_timeout(Some(PATIENCE)).expect("valid");
            for _ in 0..3 {
                client.send_to(b"1234567890ab", vip).expect("sent");
                let (_, from) = client.recv_from(&mut [0; 64]).expect("an answer");
                assert_eq!(from, vip);
            }
        });
    }
}

#[test]
#[ignore = "needs root"]
fn sockets_of_ipv6_reach_ipv4_services() {
    let site = Site::new("mapped");
    let _container = site.container();
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "a", mirror(Container::HOST), Ready);
    let names = node.put_service("udp", "names", vip(1));
    node.put_endpoint(&names, "a", name_server(Container::HOST), Ready);
    // And an IPv6 address in front of an IPv4 endpoint.
    let six = node.put_service("tcp", "six", vip6(1));
    node.put_endpoint(&six, "a", mirror(Container::HOST), Ready);
    site.run(node.apply());
    let IpAddr::V4(ip) = vip(1).ip() else { unreachable!("the address is IPv4") };
    let mapped = SocketAddr::from((ip.to_ipv6_mapped(), vip(1).port()));

    let stream = connect_by_ipv6(mapped);
    assert_eq!(stream.peer_addr().expect("connected"), mapped);
    let stream = connect_by_ipv6(vip6(1));
    assert_eq!(stream.peer_addr().expect("connected"), vip6(1));

    for is_connected in [false, true] {
        let client = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a free port");
        client.set_read_timeout(Some(PATIENCE)).expect("valid");
        if is_connected {
            client.connect(mapped).expect("connect");
            assert_eq!(client.peer_addr().expect("connected"), mapped);
            client.send(b"1234567890ab").expect("sent");
        } else {
            client.send_to(b"1234567890ab", mapped).expect("sent");
        }
        let (_, from) = client.recv_from(&mut [0; 64]).expect("an answer");
        assert_eq!(from, mapped);
    }
}

fn connect_by_ipv6(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
    socket.connect(&address.into()).expect("the service listens");
    socket.into()
}

/// An iperf3 that serves until it is dropped.
struct Server(Child);

impl Server {
    /// It takes one client after the other; one that only looks whether it listens would be in the way.
    fn start(address: SocketAddr) -> Self {
        let mut command = Command::new("iperf3");
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["-s", "--forceflush", "-B", &host, "-p", &port]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("iperf3");
        let mut server = Self(child);
        let output = server.0.stdout.as_mut().expect("piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening")), "iperf3 does not listen");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn bulk_data_and_datagrams_pass() {
    let site = Site::new("bulk");
    let container = site.container();
    let mut node = site.node();
    for (vip, host) in [(vip(1), Container::HOST), (vip6(1), Container::HOST6)] {
        let port = TcpListener::bind((host, 0)).and_then(|socket| socket.local_addr()).expect("a free port");
        let _server = Server::start(port);
        for protocol in ["tcp", "udp"] {
            let service = node.put_service(protocol, &format!("bulk{}", vip.is_ipv4()), vip);
            node.put_endpoint(&service, "a", port, Ready);
        }
        site.run(node.apply());
        for udp in [&[][..], &["-u", "-b", "20M"]] {
            for mut client in [Command::new("iperf3"), container.command("iperf3")] {
                client.args(["-c", &vip.ip().to_string(), "-p", &vip.port().to_string(), "-n", "2M", "-J"]);
                client.args(udp);
                let report = served(client);
                assert!(report.contains("sum_received"), "{report}");
            }
        }
    }
}
