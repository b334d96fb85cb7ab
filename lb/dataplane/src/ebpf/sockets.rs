//! The sockets of a network namespace, by netlink's `SOCK_DIAG` (linux/inet_diag.h): which are connected to an endpoint,
//! and the end of those whose endpoint is dead.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::thread::{self, ScopedJoinHandle};

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

/// The attribute of a request that holds a filter.
const FILTER: u16 = 1;

/// Instructions of a filter.
const JUMP: u8 = 1;
const PEER_IS: u8 = 8;

/// The kernel looks at every socket anyway; a filter spares what is told of the others. A longer one than for this many
/// peers costs more than it spares.
const FILTER_PEERS_MAX: usize = 64;

/// Requests that are sent together: what the kernel queues of errors fits into a socket's default buffer.
const REQUESTS: usize = 64;

/// Connections that a thread of its own is worth for.
const PART_MIN: usize = 1000;

/// Octets of a message's header.
const HEADER: usize = 16;

/// Octets of a request for or to sockets.
const REQUEST: usize = 56;

/// Octets of the head of an attribute.
const ATTRIBUTE: usize = 4;

/// Octets of what is told of a socket.
const ENTRY: usize = 72;

/// Octets of the part that names a socket, and where it is in a request and in an entry.
const IDENTITY: usize = 48;
const IDENTITY_IN_REQUEST: usize = 8;
const IDENTITY_IN_ENTRY: usize = 4;

/// TCP's states in which a client has something to expect: ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
/// A connected UDP socket is ESTABLISHED.
pub(super) const CONNECTED: u32 = LIVE | 1 << 8;

/// The same without CLOSE_WAIT, in which the other side has ended.
pub(super) const LIVE: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5;

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

/// The sockets that are connected to one of the peers and in one of the states, in the namespace of the netlink socket.
pub(super) fn connected(
    netlink: &OwnedFd,
    protocol: Protocol,
    peers: &BTreeSet<SocketAddr>,
    states: u32,
) -> io::Result<Vec<Connection>> {
    let filter = if peers.len() <= FILTER_PEERS_MAX { filter(peers) } else { Vec::new() };
    let of = |netlink: &OwnedFd, family| {
        connected_of(netlink, (family, number(protocol)), peers, (&filter, states))
    };
    // The kernel walks through its whole table for each family. A thread is in the namespace of the one that made it.
    let (ipv4, ipv6) = thread::scope(|scope| {
        let other = scope.spawn(|| of(&open()?, AF_INET6));
        (of(netlink, AF_INET), joined(other))
    });
    let mut found = ipv4?;
    found.extend(ipv6?);
    Ok(found)
}

fn connected_of(
    netlink: &OwnedFd,
    (family, protocol): (u8, u8),
    peers: &BTreeSet<SocketAddr>,
    (filter, states): (&[u8], u32),
) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    let mut body = [0; REQUEST];
    body[0] = family;
    body[1] = protocol;
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    send(netlink, &message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, 0, &body, filter), SendFlags::empty())?;
    read_answers(netlink, |entry| {
        found.extend(connection(protocol, entry).filter(|each| peers.contains(&each.peer)));
    })?;
    Ok(found)
}

/// Ends connections: TCP sees a reset, connected UDP an error. Those that have ended meanwhile are fine. Where there are
/// many, all processors do it: most of the time goes into telling both sides.
pub(super) fn destroy(netlink: &OwnedFd, connections: &[Connection]) -> io::Result<()> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let part = connections.len().div_ceil(processors).max(PART_MIN);
    if connections.len() <= part {
        return destroy_some(netlink, connections);
    }
    thread::scope(|scope| {
        let parts = connections.chunks(part).map(|some| scope.spawn(move || destroy_some(&open()?, some)));
        parts.collect::<Vec<_>>().into_iter().try_for_each(joined)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("BUG: a thread has failed")))
}

fn destroy_some(netlink: &OwnedFd, connections: &[Connection]) -> io::Result<()> {
    for some in connections.chunks(REQUESTS) {
        let mut messages = Vec::with_capacity(some.len() * (HEADER + REQUEST));
        let numbers = 1..=some.len() as u32;
        for (number, each) in numbers.zip(some) {
            let mut body = [0; REQUEST];
            body[0] = each.family;
            body[1] = each.protocol;
            body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
            body[IDENTITY_IN_REQUEST..].copy_from_slice(&each.identity);
            // Errors come for each, and an answer for the last.
            let flags = if number as usize == some.len() { NLM_F_ACK } else { 0 };
            messages.extend(message(SOCK_DESTROY, flags, number, &body, &[]));
        }
        send(netlink, &messages, SendFlags::empty())?;
        read_errors(netlink, some.len() as u32)?;
    }
    Ok(())
}

/// A filter that accepts sockets with one of the peers: for each, a condition, and a jump to the end if it holds.
fn filter(peers: &BTreeSet<SocketAddr>) -> Vec<u8> {
    let conditions: Vec<Vec<u8>> = peers.iter().map(condition).collect();
    let jump = 4;
    let mut left: usize = conditions.iter().map(|each| each.len() + jump).sum::<usize>().saturating_sub(jump);
    let mut filter = vec![];
    for each in conditions {
        // Sizes of few conditions fit. Whoever jumps to the end is accepted, and refused further than that.
        let next = (each.len() + jump) as u16;
        filter.extend([PEER_IS, each.len() as u8]);
        filter.extend(next.to_ne_bytes());
        filter.extend(&each[jump..]);
        left -= each.len();
        if left > 0 {
            filter.extend([JUMP, jump as u8]);
            filter.extend((left as u16).to_ne_bytes());
            left -= jump;
        }
    }
    filter
}

/// A condition on the peer, with room for the instruction in front. A condition on an IPv4 address includes its mapped
/// form.
fn condition(peer: &SocketAddr) -> Vec<u8> {
    let (family, octets) = match peer.ip() {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    };
    // As many bits as an address has.
    let mut condition = vec![0, 0, 0, 0, family, (octets.len() * 8) as u8, 0, 0];
    condition.extend(i32::from(peer.port()).to_ne_bytes());
    condition.extend(octets);
    condition
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => mesonet_ebpf_abi::TCP,
        Protocol::Udp => mesonet_ebpf_abi::UDP,
    }
}

/// A socket for requests, in the network namespace of the thread.
pub(super) fn open() -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, number: u32, body: &[u8; REQUEST], filter: &[u8]) -> Vec<u8> {
    let attribute = if filter.is_empty() { 0 } else { ATTRIBUTE + filter.len() };
    let mut message = Vec::with_capacity(HEADER + REQUEST + attribute);
    // Lengths of few conditions fit.
    message.extend(((HEADER + REQUEST + attribute) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    if attribute > 0 {
        message.extend((attribute as u16).to_ne_bytes());
        message.extend(FILTER.to_ne_bytes());
        message.extend(filter);
    }
    message
}

/// Reads what the kernel says to numbered requests, until it speaks of the last one.
fn read_errors(netlink: &OwnedFd, last: u32) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut result = Ok(());
    loop {
        let (length, _) = recv(netlink, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some(answer) = Answer::split(&mut rest)? {
            match error_of(answer.body) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
            if answer.number == last {
                return result;
            }
        }
    }
}

/// Reads the answers to a request until the last one.
fn read_answers(netlink: &OwnedFd, mut entry: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (length, _) = recv(netlink, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some(answer) = Answer::split(&mut rest)? {
            match answer.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return error_of(answer.body),
                _ => entry(answer.body),
            }
        }
    }
}

/// One message from the kernel.
struct Answer<'a> {
    kind: u16,
    number: u32,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Takes the first of several.
    fn split(rest: &mut &'a [u8]) -> io::Result<Option<Self>> {
        let all = *rest;
        if all.is_empty() {
            return Ok(None);
        }
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut");
        let head = all.first_chunk::<HEADER>().ok_or_else(cut)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let body = all.get(HEADER..word(0) as usize).ok_or_else(cut)?;
        // Messages begin at multiples of four.
        *rest = all.get((word(0) as usize).next_multiple_of(4)..).unwrap_or_default();
        Ok(Some(Self { kind: u16::from_ne_bytes([head[4], head[5]]), number: word(8), body }))
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
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn connections_are_found_by_their_peers() {
        let netlink = open().expect("a socket");
        let mut peers = BTreeSet::new();
        let mut streams = Vec::new();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("bind");
            let server = listener.local_addr().expect("address");
            let client = TcpStream::connect(server).expect("connect");
            // Another one, which nobody asks for.
            let other = TcpListener::bind(address).expect("bind");
            let stranger = TcpStream::connect(other.local_addr().expect("address")).expect("connect");
            peers.insert(server);
            peers.insert(client.local_addr().expect("address"));
            streams.push((listener, client, other, stranger));
        }
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        for more in [0, FILTER_PEERS_MAX] {
            let mut wanted = peers.clone();
            wanted.extend((1..=more).map(|port| SocketAddr::from((mapped, port as u16))));
            let found = connected(&netlink, Protocol::Tcp, &wanted, CONNECTED).expect("sockets");
            let seen: BTreeSet<SocketAddr> = found.iter().map(|each| each.peer).collect();
            assert_eq!((seen, found.len()), (peers.clone(), 4));
            assert!(found.iter().all(|each| each.cookie != [0, 0]));
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn connections_that_are_ended_are_gone_and_more_than_one_thread_is_for() {
        let netlink = open().expect("a socket");
        let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let peers = BTreeSet::from([server.local_addr().expect("address")]);
        let count = PART_MIN + REQUESTS + 1;
        let clients: Vec<UdpSocket> = (0..count)
            .map(|_| {
                let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
                client.connect(server.local_addr().expect("address")).expect("connect");
                client
            })
            .collect();
        let found = connected(&netlink, Protocol::Udp, &peers, CONNECTED).expect("sockets");
        assert_eq!(found.len(), count);
        destroy(&netlink, &found).expect("ended");
        assert!(clients.iter().all(|client| client.send(b"!").is_err()));
        // Again, while none is left.
        destroy(&netlink, &found).expect("ended");
        assert_eq!(connected(&netlink, Protocol::Udp, &peers, CONNECTED).expect("sockets"), []);
    }

    #[test]
    fn answers_that_are_cut_have_no_connection() {
        assert_eq!(connection(6, &[2; ENTRY - 1]), None);
        assert!(Answer::split(&mut &[0; HEADER - 1][..]).is_err());
        assert!(Answer::split(&mut &[0xff; HEADER][..]).is_err());
        assert!(Answer::split(&mut &[][..]).is_ok_and(|answer| answer.is_none()));
        assert_eq!(error_of(&[0; 4]).ok(), Some(()));
        assert_eq!(
            error_of(&(-2_i32).to_ne_bytes()).map_err(|error| error.kind()),
            Err(io::ErrorKind::NotFound)
        );
    }
}
