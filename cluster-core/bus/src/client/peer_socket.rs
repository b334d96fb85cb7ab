//! A UDP socket for one peer, which notices when nobody listens there.
//!
//! The system tells a socket that is connected to a peer when a datagram was refused, which a host does at once when
//! the process at a port has ended. quinn takes no notice of that, and would wait until the peer has been silent for
//! too long. Only the refusal of a port is told to a socket, no trouble on the way, which may be over in a moment.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use tokio::sync::watch;

/// The socket.
#[derive(Debug)]
pub(super) struct PeerSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The same socket, to be asked what has become of what was sent.
    socket: UdpSocket,
    refused: watch::Sender<bool>,
}

impl PeerSocket {
    /// A socket for this peer, and what becomes true when the peer refuses a datagram.
    pub(super) fn connect(
        peer: SocketAddr,
        runtime: &dyn Runtime,
    ) -> io::Result<(Self, watch::Receiver<bool>)> {
        let local: SocketAddr = if peer.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(local)?;
        socket.connect(peer)?;
        let inner = runtime.wrap_udp_socket(socket.try_clone()?)?;
        let (refused, is_refused) = watch::channel(false);
        Ok((Self { inner, socket, refused }, is_refused))
    }
}

impl AsyncUdpSocket for PeerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let error = self.socket.take_error().ok().flatten();
        if error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            self.refused.send_replace(true);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
