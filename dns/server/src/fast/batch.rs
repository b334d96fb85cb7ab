//! Batches of datagrams: many are received with one call of the system, and many sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
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

/// Most octets of answers that are sent as one message: less than the longest datagram.
const JOINED_LENGTH_MAX: usize = 60_000;

/// The control message that has the system cut a message into datagrams of one size (`UDP_SEGMENT`).
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Segmentation {
    header: libc::cmsghdr,
    size: u16,
    padding: [u8; 6],
}

/// The memory of a batch. The system has pointers from each part to others, so it is only used in place.
#[repr(C)]
struct Places {
    received: [libc::mmsghdr; BATCH_LENGTH],
    received_octets: [libc::iovec; BATCH_LENGTH],
    clients: [libc::sockaddr_in6; BATCH_LENGTH],
    arrivals: [Arrival; BATCH_LENGTH],
    sent: [libc::mmsghdr; BATCH_LENGTH],
    sent_octets: [libc::iovec; BATCH_LENGTH],
    segmentations: [Segmentation; BATCH_LENGTH],
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
    /// Answers to send, in the order of their places.
    made: Vec<Made>,
    /// How many of them each message has.
    message_lengths: Vec<usize>,
    /// Whether the system cuts messages into datagrams.
    joins: bool,
}

/// An answer that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    /// Equal for equal clients.
    client: u64,
    length: usize,
    /// Its place.
    place: usize,
    /// Its query.
    query: usize,
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
        Self {
            places,
            received: 0,
            made: Vec::with_capacity(BATCH_LENGTH),
            message_lengths: Vec::with_capacity(BATCH_LENGTH),
            joins: true,
        }
    }

    /// Waits for queries and receives those that are there. None if the socket is to be used no more.
    pub(crate) fn receive(&mut self, socket: &DatagramSocket) -> io::Result<usize> {
        self.received = 0;
        self.made.clear();
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

    /// The address that a query comes from.
    pub(crate) fn client_address(&self, at: usize) -> Option<IpAddr> {
        Some(socket_address(&self.client(at)?)?.ip())
    }

    /// Makes an answer to a query: `fill` has a query, a place, and says how much of that it used.
    pub(crate) fn answer<T>(
        &mut self,
        at: usize,
        socket: &DatagramSocket,
        fill: impl FnOnce(&[u8], &mut [u8]) -> Option<(usize, T)>,
    ) -> Option<T> {
        let place = self.made.len();
        if place >= BATCH_LENGTH {
            return None;
        }
        // SAFETY: `place` is below the number of places; answers are apart from queries, and `self` is borrowed
        // exclusively.
        let octets = unsafe { &mut (*self.places.as_ptr()).answers[place] };
        let (length, value) = fill(self.query(at), octets)?;
        let client = if socket.tells_arrivals() { 0 } else { client_hash(&self.client(at)?) };
        self.made.push(Made { client, length: length.min(ANSWER_STRIDE), place, query: at });
        Some(value)
    }

    /// Sends all answers, and says how many the system refused to.
    ///
    /// Answers of one length to one client are one message that the system cuts: most of what a datagram costs is its
    /// way through the system, which they then go together.
    pub(crate) fn send(&mut self, socket: &DatagramSocket) -> u64 {
        let mut refused = 0;
        let mut made = std::mem::take(&mut self.made);
        if !socket.tells_arrivals() {
            made.sort_unstable();
        }
        let mut rest = &made[..];
        while !rest.is_empty() {
            self.arrange(rest, socket);
            let mut next = 0;
            while next < self.message_lengths.len() {
                match self.send_from(next, socket) {
                    Ok(sent) => {
                        let sent = sent.clamp(1, self.message_lengths.len() - next);
                        rest = &rest[self.message_lengths[next..next + sent].iter().sum()..];
                        next += sent;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The system does not cut messages on the way to this client. Everything goes one by one from now on.
                    Err(_) if self.message_lengths[next] > 1 => {
                        self.joins = false;
                        break;
                    }
                    // It cannot be sent, which is its client's matter.
                    Err(_) => {
                        refused += 1;
                        rest = &rest[1..];
                        next += 1;
                    }
                }
            }
        }
        made.clear();
        self.made = made;
        refused
    }

    /// Makes messages of answers.
    fn arrange(&mut self, made: &[Made], socket: &DatagramSocket) {
        self.message_lengths.clear();
        let mut start = 0;
        while let Some(first) = made.get(start) {
            let is_alike = |other: &&Made| {
                (other.client, other.length) == (first.client, first.length)
                    && self.client(other.query).map(identity) == self.client(first.query).map(identity)
            };
            let most = if self.joins && !socket.tells_arrivals() {
                JOINED_LENGTH_MAX / first.length.max(1)
            } else {
                1
            };
            let count = made[start..].iter().take(most.max(1)).take_while(is_alike).count();
            self.prepare_message(self.message_lengths.len(), start, &made[start..start + count], socket);
            self.message_lengths.push(count);
            start += count;
        }
    }

    /// Makes one message of answers, with octets from a place on.
    fn prepare_message(&mut self, message: usize, octets_at: usize, made: &[Made], socket: &DatagramSocket) {
        let Some((first, header)) = made.first().and_then(|first| Some((first, self.header(first.query)?)))
        else {
            return;
        };
        let control_length = header.msg_hdr.msg_controllen;
        let has_arrival = socket.tells_arrivals() && Arrival::is_given(control_length);
        let places = self.places.as_ptr();
        // SAFETY: all indices are below the numbers of places, as the index checks. The pointers are to parts of the same
        // memory, which lives as long as `self`; they are used by the system in `send_from`.
        unsafe {
            for (at, answer) in made.iter().enumerate() {
                (*places).sent_octets[octets_at + at] = libc::iovec {
                    iov_base: addr_of_mut!((*places).answers[answer.place]).cast(),
                    iov_len: answer.length,
                };
            }
            let header = addr_of_mut!((*places).sent[message].msg_hdr);
            let client = self.header(first.query).map_or(0, |header| header.msg_hdr.msg_namelen);
            (*header).msg_name = addr_of_mut!((*places).clients[first.query]).cast();
            (*header).msg_namelen = client;
            (*header).msg_iov = addr_of_mut!((*places).sent_octets[octets_at]);
            (*header).msg_iovlen = made.len();
            (*header).msg_control = ptr::null_mut();
            (*header).msg_controllen = 0;
            (*header).msg_flags = 0;
            if has_arrival {
                (*places).arrivals[first.query].forget_interface(socket.is_ipv4());
                (*header).msg_control = addr_of_mut!((*places).arrivals[first.query]).cast();
                (*header).msg_controllen = control_length;
            } else if made.len() > 1 {
                let segmentation = addr_of_mut!((*places).segmentations[message]);
                segmentation.write(Segmentation::of(first.length));
                (*header).msg_control = segmentation.cast();
                (*header).msg_controllen = size_of::<Segmentation>();
            }
        }
    }

    fn send_from(&mut self, message: usize, socket: &DatagramSocket) -> io::Result<usize> {
        // SAFETY: the messages from this one on were prepared; their headers point to memory that lives as long as
        // `self`; the system only reads it, but for the lengths that it writes into the headers.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                addr_of_mut!((*self.places.as_ptr()).sent[message]),
                (self.message_lengths.len() - message) as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The address of a client.
    fn client(&self, at: usize) -> Option<libc::sockaddr_in6> {
        // SAFETY: `at` is below the number of places; the address is initialised and only read here.
        (at < self.received).then(|| unsafe { addr_of!((*self.places.as_ptr()).clients[at]).read() })
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

impl Segmentation {
    fn of(length: usize) -> Self {
        let header = libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<u16>(),
            cmsg_level: libc::SOL_UDP,
            cmsg_type: libc::UDP_SEGMENT,
        };
        Self { header, size: u16::try_from(length).unwrap_or(u16::MAX), padding: [0; 6] }
    }
}

/// What tells clients apart.
fn identity(client: libc::sockaddr_in6) -> (u16, u16, u32, [u8; 16], u32) {
    // An IPv4 address is where the flow of an IPv6 address is, and the rest of it is unused.
    let (address, scope) = if i32::from(client.sin6_family) == libc::AF_INET {
        ([0; 16], 0)
    } else {
        (client.sin6_addr.s6_addr, client.sin6_scope_id)
    };
    (client.sin6_family, client.sin6_port, client.sin6_flowinfo, address, scope)
}

/// Equal for equal clients, and mostly not for others.
fn client_hash(client: &libc::sockaddr_in6) -> u64 {
    let (_, port, flow, address, _) = identity(*client);
    let (high, low) = address.split_at(8);
    let fold = |octets: &[u8]| octets.iter().fold(0, |sum: u64, octet| sum << 8 | u64::from(*octet));
    u64::from(port) << 32 ^ u64::from(flow) ^ fold(high).rotate_left(17) ^ fold(low)
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
