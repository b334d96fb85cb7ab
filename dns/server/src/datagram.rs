//! A UDP socket whose answers come from the address that was asked.
//!
//! A socket bound to all addresses would answer from the one that the route back prefers, and clients drop an answer
//! from an address that they did not ask. So such a socket has the system say where each datagram arrived (`IP_PKTINFO`)
//! and gives that back with the answer.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{MsgHdr, SockAddr, Socket};

/// Octets of the header of a control message.
const CONTROL_HEADER_LENGTH: usize = size_of::<libc::cmsghdr>();

/// Octets of a control message with `in6_pktinfo`, the longer one of the two, rounded up to the system's alignment.
const CONTROL_LENGTH_MAX: usize = CONTROL_HEADER_LENGTH + 24;

const _: () = assert!(size_of::<libc::in6_pktinfo>() <= 24 && size_of::<libc::in_pktinfo>() <= 24);

/// How often sending is tried again while the system's send buffer is full, before the answer is lost.
const SEND_ATTEMPTS_MAX: usize = 5;

/// How long to wait before sending is tried again.
const SEND_PAUSE: Duration = Duration::from_millis(1);

/// A UDP socket. Receiving blocks.
#[derive(Debug)]
pub(crate) struct DatagramSocket {
    socket: Socket,
    /// The address it is bound to.
    own: SocketAddr,
}

/// Who sent a datagram, and where it arrived.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) address: SocketAddr,
    pub(crate) arrival: Option<Arrival>,
}

/// The control message that says where a datagram arrived, in the form that sends one from there.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Arrival([u8; CONTROL_LENGTH_MAX]);

impl DatagramSocket {
    /// Takes a bound, blocking socket.
    pub(crate) fn new(socket: Socket, own: SocketAddr) -> io::Result<Self> {
        if own.ip().is_unspecified() {
            enable_arrivals(&socket, own)?;
        }
        Ok(Self { socket, own })
    }

    /// Whether the system says where datagrams arrive: the socket has more addresses than one.
    pub(crate) fn tells_arrivals(&self) -> bool {
        self.own.ip().is_unspecified()
    }

    /// Whether it is one of IPv4.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.own.is_ipv4()
    }

    /// Ends the wait of who receives. The socket receives nothing any more.
    pub(crate) fn stop(&self) {
        // The system says that it is not connected, but does it.
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    /// Sends a datagram back.
    pub(crate) async fn send(&self, message: &[u8], to: &Sender) -> io::Result<()> {
        let address = SockAddr::from(to.address);
        let message = [IoSlice::new(message)];
        let mut attempts = SEND_ATTEMPTS_MAX;
        loop {
            let sent = {
                let arrival = to.arrival.map(|mut arrival| {
                    arrival.forget_interface(self.is_ipv4());
                    arrival
                });
                let header = MsgHdr::new().with_addr(&address).with_buffers(&message);
                match &arrival {
                    Some(arrival) => {
                        self.socket.sendmsg(&header.with_control(&arrival.0), libc::MSG_DONTWAIT)
                    }
                    None => self.socket.sendmsg(&header, libc::MSG_DONTWAIT),
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempts > 1 => attempts -= 1,
                sent => return sent.map(|_| ()),
            }
            tokio::time::sleep(SEND_PAUSE).await;
        }
    }
}

impl AsRawFd for DatagramSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn enable_arrivals(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the pointer and length are those of `on`,
    // which outlives the call; the system only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Arrival {
    /// Whether the system wrote one, by the length of control octets that it gives.
    pub(crate) fn is_given(control_length: usize) -> bool {
        control_length > CONTROL_HEADER_LENGTH
    }

    /// Leaves the way back to the routes. Only a link-local address means nothing without its interface.
    pub(crate) fn forget_interface(&mut self, is_ipv4: bool) {
        let data = &mut self.0[CONTROL_HEADER_LENGTH..];
        let interface = match is_ipv4 {
            true => &mut data[..4],
            false if data[0] == 0xfe && data[1] & 0xc0 == 0x80 => return,
            false => &mut data[16..20],
        };
        interface.fill(0);
    }
}
