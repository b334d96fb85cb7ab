//! Binds the sockets of one address.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::StartError;
use crate::datagram::DatagramSocket;

/// How many ports are tried for port 0 until one is free for UDP and TCP.
const PORT_ATTEMPTS_MAX: usize = 16;

/// Connections that the system keeps until they are accepted; further ones are refused by it.
const TCP_BACKLOG: i32 = 1024;

/// Receive buffer of each UDP socket in octets, that of dcos-dns: rides out bursts of some thousand queries.
const UDP_RECEIVE_BUFFER: usize = 1 << 20;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The address with the port that was chosen.
    pub(crate) address: SocketAddr,
    /// One for each worker. The system spreads clients over them.
    pub(crate) udp: Vec<DatagramSocket>,
    pub(crate) tcp: TcpListener,
}

impl Listener {
    /// Binds an address. For port 0 the system chooses one that is free for both protocols.
    pub(crate) fn bind(address: SocketAddr, workers: usize) -> Result<Self, StartError> {
        let mut attempts = if address.port() == 0 { PORT_ATTEMPTS_MAX } else { 1 };
        loop {
            attempts -= 1;
            match Self::bind_once(address, workers) {
                Err(StartError::Bind { source, .. })
                    if attempts > 0 && source.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
    }

    fn bind_once(address: SocketAddr, workers: usize) -> Result<Self, StartError> {
        let tcp =
            bind_tcp(address).map_err(|source| StartError::Bind { address, protocol: "TCP", source })?;
        let address =
            tcp.local_addr().map_err(|source| StartError::Bind { address, protocol: "TCP", source })?;
        let udp = bind_udp(address, workers).map_err(|source| StartError::Bind {
            address,
            protocol: "UDP",
            source,
        })?;
        Ok(Self { address, udp, tcp })
    }
}

/// Binds a socket for connections.
pub(crate) fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address, Type::STREAM, Protocol::TCP)?;
    // Connections of an earlier process that linger must not keep this one from starting.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn bind_udp(address: SocketAddr, workers: usize) -> io::Result<Vec<DatagramSocket>> {
    // Sockets that share a port do not notice those of another process that shares it too: it would get some of the
    // queries. One that does not share it fails if anybody else has the port.
    let probe = new_socket(address, Type::DGRAM, Protocol::UDP)?;
    probe.bind(&address.into())?;
    drop(probe);
    (0..workers.max(1))
        .map(|_| {
            let socket = new_socket(address, Type::DGRAM, Protocol::UDP)?;
            socket.set_reuse_port(true)?;
            socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)?;
            socket.bind(&address.into())?;
            DatagramSocket::new(socket, address)
        })
        .collect()
}

fn new_socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
