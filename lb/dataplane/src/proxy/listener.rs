//! Sockets at virtual addresses.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::ServiceKey;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use thiserror::Error;

use super::local_tcp::LocalTcp;
use crate::local_route::leads_here;

/// Clients that wait to be accepted; the kernel caps it at net.core.somaxconn (4096 by default). When the queue is
/// full, the kernel drops connection attempts, and clients repeat them.
const BACKLOG: i32 = 4096;

/// A peer that says nothing for this long is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A peer that does not answer is asked again this often; after four times the connection is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Why there is no socket at an address.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// No packet to it would get here.
    #[error(
        "cannot listen on {address}: {source}: packets to it do not end on this node; as root, \
         `ip route add local {ip} dev lo` changes that", ip = address.ip()
    )]
    Elsewhere {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot listen on {address}: {source}{}", advice(source))]
    Refused {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
}

/// The sockets at a virtual address of a service. All workers hold them.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) service: ServiceKey,
    pub(super) address: SocketAddr,
    pub(super) socket: Arc<ListenerSocket>,
}

impl ListenError {
    pub(super) fn new(address: SocketAddr, source: io::Error) -> Self {
        if is_unknown(&source) {
            Self::Elsewhere { address, source }
        } else {
            Self::Refused { address, source }
        }
    }

    /// Whether nobody could reach the address here.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Elsewhere { .. })
    }
}

/// What to do about the system's words.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => ": another socket has the port; as root, `ss -ltunp` says whose",
        io::ErrorKind::PermissionDenied => {
            ": ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

impl Listener {
    pub(super) fn is_tcp(&self) -> bool {
        matches!(&*self.socket, ListenerSocket::Tcp(_))
    }
}

#[derive(Debug)]
pub(super) enum ListenerSocket {
    /// One for each worker, so that none waits for another; the kernel spreads clients over them.
    Tcp(Vec<OwnedFd>),
    /// The number of the worker that serves it.
    Udp(UdpSocket, usize),
}

impl ListenerSocket {
    /// Listens for a number of workers.
    pub(super) fn tcp(address: SocketAddr, workers: usize, local_tcp: LocalTcp) -> Result<Self, ListenError> {
        Self::tcp_sockets(address, workers, local_tcp).map_err(|error| ListenError::new(address, error))
    }

    fn tcp_sockets(address: SocketAddr, workers: usize, local_tcp: LocalTcp) -> io::Result<Self> {
        let mut sockets: Vec<Socket> = Vec::new();
        for _ in 0..workers {
            let socket = tcp_socket(address, local_tcp, !sockets.is_empty())?;
            sockets.push(socket);
        }
        for socket in &sockets {
            socket.set_reuse_port(workers > 1)?;
        }
        // All are bound before one listens, so that no client is lost to one that fails.
        sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
        Ok(Self::Tcp(sockets.into_iter().map(OwnedFd::from).collect()))
    }

    /// The one that a worker serves.
    pub(super) fn of_worker(&self, number: usize) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(sockets) => sockets.get(number).map(OwnedFd::as_fd),
            Self::Udp(socket, worker) => (*worker == number).then(|| socket.as_fd()),
        }
    }

    /// For one worker.
    pub(super) fn udp(address: SocketAddr, worker: usize) -> Result<Self, ListenError> {
        let socket = udp_socket(address).map_err(|error| ListenError::new(address, error))?;
        Ok(Self::Udp(socket, worker))
    }
}

/// A socket at an address, of which accepted sockets inherit that they send at once and ask silent peers.
///
/// The first one is not for sharing when it is bound, so that an address that somebody else has, be it for sharing, is
/// an error.
fn tcp_socket(address: SocketAddr, local_tcp: LocalTcp, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_cloexec(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a listener that was closed do not keep the address from being opened again.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    local_tcp.prepare(&socket, &address)?;
    bind(&socket, address)?;
    Ok(socket)
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_cloexec(true)?;
    bind(&socket, address)?;
    Ok(socket.into())
}

/// Binds to an address at which packets arrive. For IPv4 that is all that the kernel asks for. For IPv6 an interface must
/// have the address besides, unless the socket renounces it; it would be bound to anything then.
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let to = SockAddr::from(address);
    match socket.bind(&to) {
        Err(error) if address.is_ipv6() && is_unknown(&error) && leads_here(address.ip())? => {
            socket.set_freebind_v6(true)?;
            socket.bind(&to)
        }
        bound => bound,
    }
}

fn is_unknown(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}
