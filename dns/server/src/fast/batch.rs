//! Batches of datagrams: many are received with one call of the system, and many sent.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull, addr_of, addr_of_mut};

use crate::datagram::{Arrival, DatagramSocket, Sender};

/// Most datagrams of a batch. More save little, and the last one's answer waits for all.
pub(crate) const BATCH_LENGTH: usize = 64;

/// Octets of the longest query that is read whole; the rest is lost, so that it counts as malformed. Queries have one
/// name of at most 255 octets and some options.
const QUERY_LENGTH_MAX: usize = 4096;

/// Octets from one query's place to the next one's. That it is no power of two spreads them over the cache.
const QUERY_STRIDE: usize = QUERY_LENGTH_MAX + 192;

/// Octets of an answer's place.
const ANSWER_STRIDE: usize = 1280 + 64;

/// The memory of a batch. The system has pointers from each part to others, so it is only used in place.
#[repr(C)]
struct Places {
    received: [libc::mmsghdr; BATCH_LENGTH],
    received_octets: [libc::iovec; BATCH_LENGTH],
    clients: [libc::sockaddr_in6; BATCH_LENGTH],
    arrivals: [Arrival; BATCH_LENGTH],
    sent: [libc::mmsghdr; BATCH_LENGTH],
    sent_octets: [libc::iovec; BATCH_LENGTH],
    queries: [[u8; QUERY_STRIDE]; BATCH_LENGTH],
    answers: [[u8; ANSWER_STRIDE]; BATCH_LENGTH],
}

/// A batch of queries and their answers. It is reused, and belongs to one thread.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Owned. All access goes through this pointer, so that those that the system has stay valid.
    places: NonNull<Places>,
    /// Queries that were received last.
    received: usize,
    /// Answers to send.
    answered: usize,
}

impl Batch {
    /// An empty batch. Its memory is taken from the system when it is used for the first time.
    pub(crate) fn new() -> Self {
        // SAFETY: all parts are integers, arrays of them and raw pointers, for which zeros are valid; the layout is that
        // of the type and not empty.
        let places = unsafe { std::alloc::alloc_zeroed(std::alloc::Layout::new::<Places>()) };
        let Some(places) = NonNull::new(places.cast::<Places>()) else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<Places>());
        };
        Self { places, received: 0, answered: 0 }
    }

    /// Waits for queries and receives those that are there. None if the socket is to be used no more.
    pub(crate) fn receive(&mut self, socket: &DatagramSocket) -> io::Result<usize> {
        self.received = 0;
        self.answered = 0;
        for at in 0..BATCH_LENGTH {
            self.prepare(at, socket.tells_arrivals());
        }
        // SAFETY: the headers are as many as said, and each points to a client's address, to octets and maybe to control
        // octets of the lengths that it says, all of which live as long as `self` and are used by nobody meanwhile.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                addr_of_mut!((*self.places.as_ptr()).received).cast(),
                BATCH_LENGTH as libc::c_uint,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        self.received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?.min(BATCH_LENGTH);
        Ok(self.received)
    }

    /// A query.
    pub(crate) fn query(&self, at: usize) -> &[u8] {
        let length = self.header(at).map_or(0, |header| header.msg_len as usize).min(QUERY_LENGTH_MAX);
        // SAFETY: `at` is below the number of places, checked by `header`; the octets are initialised, and nobody writes
        // them while `self` is borrowed.
        if length == 0 { &[] } else { unsafe { &(&(*self.places.as_ptr()).queries[at])[..length] } }
    }

    /// Who sent a query, and where it arrived. Nothing if the address is of no known family.
    pub(crate) fn sender(&self, at: usize, socket: &DatagramSocket) -> Option<Sender> {
        let header = self.header(at)?;
        // SAFETY: `at` is below the number of places, checked by `header`; both are initialised and only read here.
        let (client, arrival) = unsafe {
            let places = self.places.as_ptr();
            (addr_of!((*places).clients[at]).read(), addr_of!((*places).arrivals[at]).read())
        };
        let has_arrival = socket.tells_arrivals() && Arrival::is_given(header.msg_hdr.msg_controllen);
        Some(Sender { address: socket_address(&client)?, arrival: has_arrival.then_some(arrival) })
    }

    /// Makes an answer to a query: `fill` has a query, a place, and says how much of that it used.
    pub(crate) fn answer<T>(
        &mut self,
        at: usize,
        socket: &DatagramSocket,
        fill: impl FnOnce(&[u8], &mut [u8]) -> Option<(usize, T)>,
    ) -> Option<T> {
        let (query, slot, places) = (self.query(at), self.answered, self.places.as_ptr());
        if slot >= BATCH_LENGTH {
            return None;
        }
        // SAFETY: `slot` is below the number of places; answers are apart from queries, and `self` is borrowed
        // exclusively.
        let place = unsafe { &mut (*places).answers[slot] };
        let (length, value) = fill(query, place)?;
        let header = self.header(at)?;
        let control_length = header.msg_hdr.msg_controllen;
        let has_arrival = socket.tells_arrivals() && Arrival::is_given(control_length);
        // SAFETY: `at` and `slot` are below the number of places. The pointers are to parts of the same memory, which
        // lives as long as `self`; they are used by the system in `send`.
        unsafe {
            let octets = addr_of_mut!((*places).sent_octets[slot]);
            octets.write(libc::iovec {
                iov_base: addr_of_mut!((*places).answers[slot]).cast(),
                iov_len: length.min(ANSWER_STRIDE),
            });
            let message = addr_of_mut!((*places).sent[slot].msg_hdr);
            (*message).msg_name = addr_of_mut!((*places).clients[at]).cast();
            (*message).msg_namelen = header.msg_hdr.msg_namelen;
            (*message).msg_iov = octets;
            (*message).msg_iovlen = 1;
            (*message).msg_control =
                if has_arrival { addr_of_mut!((*places).arrivals[at]).cast() } else { ptr::null_mut() };
            (*message).msg_controllen = if has_arrival { control_length } else { 0 };
            (*message).msg_flags = 0;
            if has_arrival {
                (*places).arrivals[at].forget_interface(socket.is_ipv4());
            }
        }
        self.answered += 1;
        Some(value)
    }

    /// Sends all answers, and says how many the system refused to.
    pub(crate) fn send(&mut self, socket: &DatagramSocket) -> u64 {
        let mut refused = 0;
        let mut rest = 0..self.answered;
        while !rest.is_empty() {
            match self.send_some(socket, rest.clone()) {
                Ok(sent) => rest.start += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The first one cannot be sent, which is its client's matter.
                Err(_) => {
                    refused += 1;
                    rest.start += 1;
                }
            }
        }
        self.answered = 0;
        refused
    }

    fn send_some(&mut self, socket: &DatagramSocket, rest: Range<usize>) -> io::Result<usize> {
        // SAFETY: the range is within the answers that were made, whose headers point to memory that lives as long as
        // `self`; the system only reads it, but for the lengths that it writes into the headers.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                addr_of_mut!((*self.places.as_ptr()).sent[rest.start]),
                rest.len() as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The header of a query that was received.
    fn header(&self, at: usize) -> Option<libc::mmsghdr> {
        // SAFETY: `at` is below the number of places; the header is initialised and only read here.
        (at < self.received).then(|| unsafe { addr_of!((*self.places.as_ptr()).received[at]).read() })
    }

    fn prepare(&mut self, at: usize, tells_arrivals: bool) {
        let places = self.places.as_ptr();
        // SAFETY: `at` is below the number of places, as the index checks. The pointers are to parts of the same memory,
        // which lives as long as `self`; they are used by the system in `receive`.
        unsafe {
            let octets = addr_of_mut!((*places).received_octets[at]);
            octets.write(libc::iovec {
                iov_base: addr_of_mut!((*places).queries[at]).cast(),
                iov_len: QUERY_LENGTH_MAX,
            });
            let message = addr_of_mut!((*places).received[at].msg_hdr);
            (*message).msg_name = addr_of_mut!((*places).clients[at]).cast();
            (*message).msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            (*message).msg_iov = octets;
            (*message).msg_iovlen = 1;
            let arrival = addr_of_mut!((*places).arrivals[at]);
            (*message).msg_control = if tells_arrivals { arrival.cast() } else { ptr::null_mut() };
            (*message).msg_controllen = if tells_arrivals { size_of::<Arrival>() } else { 0 };
            (*message).msg_flags = 0;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout in `new` and is freed nowhere else; its parts need no drop.
        unsafe { std::alloc::dealloc(self.places.as_ptr().cast(), std::alloc::Layout::new::<Places>()) };
    }
}

fn socket_address(client: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match i32::from(client.sin6_family) {
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(client.sin6_addr.s6_addr);
            let port = u16::from_be(client.sin6_port);
            Some(SocketAddrV6::new(address, port, client.sin6_flowinfo, client.sin6_scope_id).into())
        }
        libc::AF_INET => {
            // SAFETY: the system wrote an address of this family here, which is shorter, and both have the same
            // alignment.
            let client = unsafe { &*ptr::from_ref(client).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(client.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(client.sin_port)).into())
        }
        _ => None,
    }
}

const _: () = assert!(
    size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>()
        && align_of::<libc::sockaddr_in>() == align_of::<libc::sockaddr_in6>()
);
