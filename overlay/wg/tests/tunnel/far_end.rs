//! Ends of tunnels, and what is sent through.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use mesonet_overlay_wg::{OpenError, PeerSettings, PrivateKey, PublicKey, Tunnel, TunnelSettings};

use crate::namespaces::{Namespaces, PATIENCE, wait_until};

/// Name of the device in each namespace.
pub const DEVICE: &str = "mnwg";

/// The port of tunnels, and the one of servers inside.
pub const PORT: u16 = 51820;
const SERVER_PORT: u16 = 7000;

/// A new key.
pub fn key() -> PrivateKey {
    PrivateKey::generate().expect("randomness")
}

/// Address of an end inside the tunnel.
pub fn inside(end: u8) -> IpAddr {
    IpAddr::from([9, 0, end, 1])
}

/// A peer that has the addresses of an end.
pub fn peer(key: PublicKey, endpoint: Option<&str>, end: u8) -> PeerSettings {
    PeerSettings {
        key,
        other_key: None,
        endpoint: endpoint.map(|address| SocketAddr::new(address.parse().expect("an address"), PORT)),
        addresses: vec![
            format!("9.0.{end}.0/24").parse().expect("a range"),
            format!("fd01:b:{end}::/48").parse().expect("a range"),
        ],
        keepalive: None,
    }
}

/// Opens a tunnel in a namespace, and gives its device the addresses of an end.
pub fn open(row: &Namespaces, place: usize, end: u8, settings: &TunnelSettings) -> Tunnel {
    let tunnel = reopen(row, place, settings);
    give_addresses(row, place, end);
    tunnel
}

/// Opens a tunnel in a namespace where there may have been one. A program that another test starts meanwhile holds the
/// former one's socket, too, until it has begun.
pub fn reopen(row: &Namespaces, place: usize, settings: &TunnelSettings) -> Tunnel {
    let mut tunnel = None;
    wait_until("the port is free", || {
        tunnel = match row.inside(place, || Tunnel::open(settings)) {
            Err(OpenError::Socket { .. }) => None,
            opened => Some(opened.expect("a tunnel")),
        };
        tunnel.is_some()
    });
    tunnel.expect("it was waited for")
}

/// Gives a device the addresses of an end and the routes to all others.
pub fn give_addresses(row: &Namespaces, place: usize, end: u8) {
    row.ip(place, &format!("addr add 9.0.{end}.1/8 dev {DEVICE}"));
    row.ip(place, &format!("addr add fd01:b:{end}::1/32 dev {DEVICE} nodad"));
    row.ip(place, &format!("link set {DEVICE} mtu 1420 up"));
}

/// A server that sends back what it gets, in a namespace, for one connection.
pub struct Echo {
    thread: JoinHandle<()>,
    address: SocketAddr,
}

impl Echo {
    /// Starts it.
    pub fn start(row: &Namespaces, place: usize, address: IpAddr) -> Self {
        let address = SocketAddr::new(address, SERVER_PORT);
        let listener = row.inside(place, || TcpListener::bind(address).expect("a server"));
        let thread = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            connection.set_read_timeout(Some(PATIENCE)).expect("a limit");
            let mut octets = vec![0; 1 << 16];
            while let Ok(length @ 1..) = connection.read(&mut octets) {
                connection.write_all(&octets[..length]).expect("an answer");
            }
        });
        Self { thread, address }
    }

    /// Connects to it from another namespace.
    pub fn connect(&self, row: &Namespaces, place: usize) -> TcpStream {
        let connection =
            row.inside(place, || TcpStream::connect_timeout(&self.address, PATIENCE).expect("a connection"));
        connection.set_read_timeout(Some(PATIENCE)).expect("a limit");
        connection.set_write_timeout(Some(PATIENCE)).expect("a limit");
        connection
    }

    /// Waits for its end, after the connection was closed.
    pub fn end(self) {
        self.thread.join().expect("the server");
    }
}

/// Sends so many octets to an echo and back, and compares.
pub fn exchange(connection: &mut TcpStream, length: usize) {
    let octets: Vec<u8> = (0..length).map(|place| (place / 3 * 7) as u8).collect();
    let mut writer = connection.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&octets).expect("octets are sent"));
        let mut back = vec![0; length];
        connection.read_exact(&mut back).expect("octets come back");
        assert!(back == octets, "what comes back is what was sent");
    });
}

/// Whether a ping of a payload is answered.
pub fn ping(row: &Namespaces, place: usize, address: IpAddr, length: usize) -> bool {
    let done = std::process::Command::new("ip")
        .args(["netns", "exec", row.name(place), "ping", "-c", "1", "-W", "1", "-s", &length.to_string()])
        .arg(address.to_string())
        .output();
    done.is_ok_and(|done| done.status.success())
}
