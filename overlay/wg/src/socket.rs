//! The UDP socket between nodes, and batches of messages on it.

use std::io;
use std::mem::{self, size_of};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Octets of the kernel's buffer in each direction: some milliseconds of 10 Gb/s, while a worker does something else.
const BUFFER_LENGTH: usize = 8 << 20;

/// Octets of the longest message with all its datagrams.
pub(crate) const MESSAGE_LENGTH_MAX: usize = 65_535;

/// Messages that are received at once, each with many datagrams.
pub(crate) const RECEIVED_MAX: usize = 8;

/// Octets for one control message with a number.
const CONTROL_LENGTH: usize = 24;

/// `UDP_SEGMENT` and `UDP_GRO` of the kernel.
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

/// A control message with a number of 16 or 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control {
    header: libc::cmsghdr,
    number: [u8; CONTROL_LENGTH - size_of::<libc::cmsghdr>()],
}

/// The socket, bound to all addresses of both families.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    socket: Socket,
    /// Whether the kernel joins datagrams that arrive.
    pub(crate) joins: bool,
    /// Whether the kernel cuts messages into datagrams.
    pub(crate) cuts: bool,
}

impl UdpSocket {
    pub(crate) fn bind(port: u16, is_batched: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_only_v6(false)?;
        set_buffers(&socket);
        let raw = socket.as_raw_fd();
        // Datagrams are sent whole or not at all; how large they may be is found by probing.
        set_number(raw, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        set_number(raw, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        let joins = is_batched && set_number(raw, libc::IPPROTO_UDP, UDP_GRO, 1).is_ok();
        let cuts = is_batched && set_number(raw, libc::IPPROTO_UDP, UDP_SEGMENT, 0).is_ok();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        Ok(Self { socket, joins, cuts })
    }

    /// The port that it is bound to.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, &SocketAddr::V6(mapped(to)).into()).map(drop)
    }

    /// Sends parts of a memory, each as one message that the kernel cuts into datagrams. Gives how many were sent, if
    /// not all, with the reason.
    pub(crate) fn send_batch(&self, octets: &[u8], messages: &[Outgoing]) -> Result<(), (usize, io::Error)> {
        let mut sent = 0;
        while sent < messages.len() {
            let count = (messages.len() - sent).min(SENT_MAX);
            match self.send_some(octets, &messages[sent..sent + count]) {
                Ok(number) => sent += number.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((sent, error)),
            }
        }
        Ok(())
    }

    fn send_some(&self, octets: &[u8], messages: &[Outgoing]) -> io::Result<usize> {
        // SAFETY: all of these are numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; SENT_MAX] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut parts: [libc::iovec; SENT_MAX] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut controls: [Control; SENT_MAX] = unsafe { mem::zeroed() };
        let mut addresses: [libc::sockaddr_in6; SENT_MAX] =
            // SAFETY: as above.
            unsafe { mem::zeroed() };
        for (place, message) in messages.iter().enumerate() {
            addresses[place] = raw_address(message.to);
            let part = &octets[message.start..message.start + message.length];
            parts[place] = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
            let header = &mut headers[place].msg_hdr;
            header.msg_name = ptr::from_mut(&mut addresses[place]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut parts[place];
            header.msg_iovlen = 1;
            if message.length > message.segment {
                let control = &mut controls[place];
                control.header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<u16>();
                control.header.cmsg_level = libc::IPPROTO_UDP;
                control.header.cmsg_type = UDP_SEGMENT;
                control.number[..2].copy_from_slice(&(message.segment as u16).to_ne_bytes());
                header.msg_control = ptr::from_mut(control).cast();
                header.msg_controllen = CONTROL_LENGTH;
            }
        }
        // SAFETY: the first `messages.len()` headers point to addresses, parts and control messages above and to
        // octets that are borrowed for longer than the call, each with its true length. The system only reads them.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), messages.len() as u32, 0)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what is there, without waiting.
    pub(crate) fn receive(&self, batch: &mut ReceivedBatch) -> io::Result<()> {
        // SAFETY: all of these are numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; RECEIVED_MAX] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut parts: [libc::iovec; RECEIVED_MAX] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut controls: [Control; RECEIVED_MAX] = unsafe { mem::zeroed() };
        let mut addresses: [libc::sockaddr_in6; RECEIVED_MAX] =
            // SAFETY: as above.
            unsafe { mem::zeroed() };
        for (place, octets) in batch.octets.chunks_exact_mut(MESSAGE_ROOM).enumerate() {
            parts[place] = libc::iovec { iov_base: octets.as_mut_ptr().cast(), iov_len: MESSAGE_LENGTH_MAX };
            let header = &mut headers[place].msg_hdr;
            header.msg_name = ptr::from_mut(&mut addresses[place]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut parts[place];
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(&mut controls[place]).cast();
            header.msg_controllen = CONTROL_LENGTH;
        }
        batch.messages.clear();
        // SAFETY: each header points to an address, a part and a control message above, and to octets of the batch of
        // which each has its own MESSAGE_ROOM; all live and are not used otherwise until the call returns.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                RECEIVED_MAX as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for place in 0..received {
            let length = headers[place].msg_len as usize;
            let control = &controls[place];
            let is_joined = headers[place].msg_hdr.msg_controllen >= size_of::<libc::cmsghdr>() + 4
                && control.header.cmsg_level == libc::IPPROTO_UDP
                && control.header.cmsg_type == UDP_GRO;
            let number = i32::from_ne_bytes([
                control.number[0],
                control.number[1],
                control.number[2],
                control.number[3],
            ]);
            let segment = usize::try_from(number).ok().filter(|segment| is_joined && *segment > 0);
            batch.messages.push(Incoming {
                start: place * MESSAGE_ROOM,
                length,
                segment: segment.unwrap_or(length),
                from: plain(&addresses[place]),
            });
        }
        Ok(())
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Messages that one call of the system sends.
const SENT_MAX: usize = 16;

/// Octets from one received message's place to the next one's. That it is no power of two spreads them over the cache.
const MESSAGE_ROOM: usize = 65_536 + 192;

/// Datagrams of one size (the last one may be shorter) that stand one after the other in a memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) start: usize,
    pub(crate) length: usize,
    /// Octets of each datagram.
    pub(crate) segment: usize,
    pub(crate) to: SocketAddrV6,
}

/// Datagrams that came together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming {
    pub(crate) start: usize,
    pub(crate) length: usize,
    /// Octets of each datagram; the last one may be shorter.
    pub(crate) segment: usize,
    pub(crate) from: SocketAddr,
}

/// The memory of messages that are received. It is reused.
#[derive(Debug)]
pub(crate) struct ReceivedBatch {
    pub(crate) octets: Box<[u8]>,
    pub(crate) messages: Vec<Incoming>,
}

impl Default for ReceivedBatch {
    fn default() -> Self {
        Self {
            octets: vec![0; RECEIVED_MAX * MESSAGE_ROOM].into_boxed_slice(),
            messages: Vec::with_capacity(RECEIVED_MAX),
        }
    }
}

/// An address as the socket wants it: of the sixth family, with those of the fourth mapped into it.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddrV6 {
    match address {
        SocketAddr::V4(address) => SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0),
        SocketAddr::V6(address) => address,
    }
}

fn raw_address(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}

fn plain(address: &libc::sockaddr_in6) -> SocketAddr {
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    let port = u16::from_be(address.sin6_port);
    match ip.to_ipv4_mapped() {
        Some(ip) => (ip, port).into(),
        None => SocketAddrV6::new(ip, port, 0, address.sin6_scope_id).into(),
    }
}

/// Asks for large buffers: beyond the system's limit if that is permitted, else up to it.
fn set_buffers(socket: &Socket) {
    let length = BUFFER_LENGTH as libc::c_int;
    let raw = socket.as_raw_fd();
    if set_number(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, length).is_err() {
        let _ = SockRef::from(socket).set_recv_buffer_size(BUFFER_LENGTH);
    }
    if set_number(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, length).is_err() {
        let _ = SockRef::from(socket).set_send_buffer_size(BUFFER_LENGTH);
    }
}

/// Sets an option that is a number.
pub(crate) fn set_number(socket: i32, level: i32, name: i32, number: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is a number that lives during the call, given with its size.
    let done = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            (&raw const number).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
