//! The sockets of this network namespace, by netlink's `SOCK_DIAG` (linux/inet_diag.h): which are connected, and the end
//! of those whose endpoint is dead.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesonet_model::Protocol;
use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Octets of a message's header.
const HEADER: usize = 16;

/// Octets of a request for or to sockets.
const REQUEST: usize = 56;

/// Octets of what is told of a socket.
const ENTRY: usize = 72;

/// Octets of the part that names a socket, and where it is in a request and in an entry.
const IDENTITY: usize = 48;
const IDENTITY_IN_REQUEST: usize = 8;
const IDENTITY_IN_ENTRY: usize = 4;

/// TCP's states in which a client has something to expect: ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
/// A connected UDP socket is ESTABLISHED.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;

/// The kernel fills at most this much per read.
const BUFFER: usize = 64 << 10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A connected socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    family: u8,
    protocol: u8,
    identity: [u8; IDENTITY],
    /// Whom it is connected to.
    pub(super) peer: SocketAddr,
    /// The kernel's cookie of the socket, low word first.
    pub(super) cookie: [u32; 2],
}

/// Every connected socket of the protocol in this network namespace.
pub(super) fn connected(protocol: Protocol) -> io::Result<Vec<Connection>> {
    let protocol = number(protocol);
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let socket = open()?;
        let mut body = [0; REQUEST];
        body[0] = family;
        body[1] = protocol;
        body[4..8].copy_from_slice(&CONNECTED.to_ne_bytes());
        ask(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &body)?;
        read_dump(&socket, |entry| found.extend(connection(protocol, entry)))?;
    }
    Ok(found)
}

/// Ends a connection: TCP sees a reset, connected UDP an error. One that has ended meanwhile is fine.
pub(super) fn destroy(connection: &Connection) -> io::Result<()> {
    let socket = open()?;
    let mut body = [0; REQUEST];
    body[0] = connection.family;
    body[1] = connection.protocol;
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    body[IDENTITY_IN_REQUEST..].copy_from_slice(&connection.identity);
    ask(&socket, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &body)?;
    match read_dump(&socket, |_| {}) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => mesonet_ebpf_abi::TCP,
        Protocol::Udp => mesonet_ebpf_abi::UDP,
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8; REQUEST]) -> io::Result<()> {
    let mut message = [0; HEADER + REQUEST];
    // The length is a constant that fits.
    message[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[HEADER..].copy_from_slice(body);
    send(socket, &message, SendFlags::empty())?;
    Ok(())
}

/// Reads the answers to a request until the last one.
fn read_dump(socket: &OwnedFd, mut entry: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if size < HEADER || size > rest.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut"));
            }
            let body = &rest[HEADER..size];
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return error_of(body),
                _ => entry(body),
            }
            // Messages begin at multiples of four.
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What an acknowledgement says; zero is success.
fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

fn connection(protocol: u8, entry: &[u8]) -> Option<Connection> {
    let entry = entry.get(..ENTRY)?;
    let family = entry[0];
    let mut identity = [0; IDENTITY];
    identity.copy_from_slice(&entry[IDENTITY_IN_ENTRY..IDENTITY_IN_ENTRY + IDENTITY]);
    let port = u16::from_be_bytes([identity[2], identity[3]]);
    let mut octets = [0; 16];
    octets.copy_from_slice(&identity[20..36]);
    let ip = if family == AF_INET {
        IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
    } else {
        Ipv6Addr::from(octets).to_canonical()
    };
    let word =
        |at: usize| u32::from_ne_bytes([identity[at], identity[at + 1], identity[at + 2], identity[at + 3]]);
    let cookie = [word(40), word(44)];
    Some(Connection { family, protocol, identity, peer: SocketAddr::new(ip, port), cookie })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_found_from_both_of_its_ends() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("bind");
            let server = listener.local_addr().expect("address");
            let client = TcpStream::connect(server).expect("connect");
            let own = client.local_addr().expect("address");
            let found = connected(Protocol::Tcp).expect("sockets");
            assert_eq!(found.iter().filter(|each| each.peer == server).count(), 1);
            assert_eq!(found.iter().filter(|each| each.peer == own).count(), 1);
            let cookies: Vec<[u32; 2]> =
                found.iter().filter(|each| each.peer == server).map(|each| each.cookie).collect();
            assert_ne!(cookies, [[0, 0]]);
        }
    }

    #[test]
    fn answers_that_are_cut_have_no_connection() {
        assert_eq!(connection(6, &[2; ENTRY - 1]), None);
        assert_eq!(error_of(&[0; 4]).ok(), Some(()));
        assert_eq!(
            error_of(&(-2_i32).to_ne_bytes()).map_err(|error| error.kind()),
            Err(io::ErrorKind::NotFound)
        );
    }
}
