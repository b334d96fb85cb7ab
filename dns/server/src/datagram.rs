//! A UDP socket whose answers come from the address that was asked.
//!
//! A socket bound to all addresses would answer from the one that the route back prefers, and clients drop an answer
//! from an address that they did not ask. So such a socket has the system say where each datagram arrived (`IP_PKTINFO`)
//! and gives that back with the answer.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, SockRef, Socket};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Octets of the header of a control message.
const CONTROL_HEADER_LENGTH: usize = size_of::<libc::cmsghdr>();

/// Octets of a control message with `in6_pktinfo`, the longer one of the two, rounded up to the system's alignment.
const CONTROL_LENGTH_MAX: usize = CONTROL_HEADER_LENGTH + 24;

const _: () = assert!(size_of::<libc::in6_pktinfo>() <= 24 && size_of::<libc::in_pktinfo>() <= 24);

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    /// The address it is bound to, if that stands for all addresses.
    wildcard: Option<SocketAddr>,
}

/// Who sent a datagram, and where it arrived.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) address: SocketAddr,
    arrival: Option<Arrival>,
}

/// The control message that says where a datagram arrived, in the form that sends one from there.
#[derive(Debug, Clone)]
#[repr(align(8))]
struct Arrival([u8; CONTROL_LENGTH_MAX]);

impl DatagramSocket {
    /// Takes a bound, non-blocking socket.
    pub(crate) fn new(socket: Socket, address: SocketAddr) -> io::Result<Self> {
        let wildcard = address.ip().is_unspecified().then_some(address);
        if wildcard.is_some() {
            enable_arrivals(&socket, address)?;
        }
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, wildcard })
    }

    /// Receives a datagram: its length and its sender. Loses nothing if it is cancelled.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Sender)> {
        match self.wildcard {
            None => {
                let (length, address) = self.socket.recv_from(buffer).await?;
                Ok((length, Sender { address, arrival: None }))
            }
            Some(own) => {
                let receive = || receive_with_arrival(&SockRef::from(&self.socket), own, buffer);
                self.socket.async_io(Interest::READABLE, receive).await
            }
        }
    }

    /// Sends a datagram back.
    pub(crate) async fn send(&self, message: &[u8], to: &Sender) -> io::Result<()> {
        let Some(arrival) = &to.arrival else {
            return self.socket.send_to(message, to.address).await.map(|_| ());
        };
        let address = SockAddr::from(to.address);
        let send = || {
            let message = [IoSlice::new(message)];
            let header = MsgHdr::new().with_addr(&address).with_buffers(&message).with_control(&arrival.0);
            SockRef::from(&self.socket).sendmsg(&header, 0)
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map(|_| ())
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

fn receive_with_arrival(socket: &Socket, own: SocketAddr, buffer: &mut [u8]) -> io::Result<(usize, Sender)> {
    // An address of the socket's own family has room for the sender's.
    let mut address = SockAddr::from(own);
    let mut arrival = Arrival([0; CONTROL_LENGTH_MAX]);
    // SAFETY: initialised octets are valid as possibly uninitialised ones of the same layout, and the system only
    // writes initialised octets into them, so that they are still initialised when the borrow ends.
    let (octets, control) = unsafe {
        (
            &mut *(&raw mut *buffer as *mut [MaybeUninit<u8>]),
            &mut *(&raw mut arrival.0[..] as *mut [MaybeUninit<u8>]),
        )
    };
    let mut buffers = [MaybeUninitSlice::new(octets)];
    let mut header =
        MsgHdrMut::new().with_addr(&mut address).with_buffers(&mut buffers).with_control(control);
    let length = socket.recvmsg(&mut header, 0)?;
    let is_given = header.control_len() > CONTROL_HEADER_LENGTH;
    let address = address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    arrival.forget_interface(own);
    Ok((length, Sender { address, arrival: is_given.then_some(arrival) }))
}

impl Arrival {
    /// Leaves the way back to the routes. Only a link-local address means nothing without its interface.
    fn forget_interface(&mut self, own: SocketAddr) {
        let data = &mut self.0[CONTROL_HEADER_LENGTH..];
        let interface = match own {
            SocketAddr::V4(_) => &mut data[..4],
            SocketAddr::V6(_) if data[0] == 0xfe && data[1] & 0xc0 == 0x80 => return,
            SocketAddr::V6(_) => &mut data[16..20],
        };
        interface.fill(0);
    }
}
