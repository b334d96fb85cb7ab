//! Messages on their way out, written where they are sent from.

use std::io;
use std::net::SocketAddrV6;
use std::sync::Arc;

use crate::cipher::TOGETHER_MAX;
use crate::message::{DATA_HEADER_LENGTH, DATA_OVERHEAD, TAG_LENGTH};
use crate::session::Session;
use crate::socket::{Outgoing, UdpSocket};

/// Octets that are collected before they are sent: the largest packet that the kernel hands over, cut. More would not stay
/// in a core's own cache.
const OCTETS_MAX: usize = 290_000;

/// Datagrams that the kernel cuts one message into (`UDP_MAX_SEGMENTS` of older kernels).
const DATAGRAMS_MAX: usize = 64;

/// Octets of a message that is cut: below what fits into one IP packet of either family.
const MESSAGE_MAX: usize = 65_000;

/// Different messages that are collected.
const MESSAGES_MAX: usize = 64;

/// Datagrams of one size for one address that follow each other become one message, which the kernel cuts apart.
#[derive(Debug)]
pub(crate) struct SendBatch {
    octets: Box<[u8]>,
    used: usize,
    messages: Vec<Outgoing>,
    /// Datagrams of the last message.
    datagrams: usize,
    /// Whether nothing may follow in the last message: its last datagram is shorter.
    is_closed: bool,
    /// Whether the kernel cuts messages.
    cuts: bool,
    open: Option<Open>,
}

/// The last messages, which wait for neighbours of their length to be encrypted with.
#[derive(Debug)]
struct Open {
    session: Arc<Session>,
    start: usize,
    /// Octets of each.
    length: usize,
    count: usize,
}

/// Datagrams of a message. The other end decrypts as many together as this end encrypts together.
#[inline]
fn datagrams_max(segment: usize) -> usize {
    let fitting = (MESSAGE_MAX / segment).min(DATAGRAMS_MAX);
    if fitting < TOGETHER_MAX { fitting } else { fitting - fitting % TOGETHER_MAX }
}

impl SendBatch {
    pub(crate) fn new(cuts: bool) -> Self {
        Self {
            octets: vec![0; OCTETS_MAX].into_boxed_slice(),
            used: 0,
            messages: Vec::with_capacity(MESSAGES_MAX),
            datagrams: 0,
            is_closed: false,
            cuts,
            open: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether there is room for so many more packets of this length; for one, whatever it is.
    #[inline]
    pub(crate) fn has_room(&self, packets: usize, length: usize) -> bool {
        self.used + packets * (length + DATA_OVERHEAD) <= self.octets.len()
            && self.messages.len() < MESSAGES_MAX
    }

    /// A place for a packet, which becomes a message of a session with that number. There must be room.
    ///
    /// The address is borrowed: reading a copy of it that was just written in other parts than it is read in waits until
    /// all that was written before it is in the cache, which is the packet before.
    #[inline]
    pub(crate) fn place(
        &mut self,
        session: &Arc<Session>,
        number: u64,
        to: &SocketAddrV6,
        length: usize,
    ) -> &mut [u8] {
        let length = length + DATA_OVERHEAD;
        let start = self.used;
        self.open_for(session, start, length);
        self.used += length;
        self.append(to, start, length);
        let message = &mut self.octets[start..self.used];
        session.write_header(number, message);
        &mut message[DATA_HEADER_LENGTH..length - TAG_LENGTH]
    }

    /// Encrypts the last messages, unless one more of that session and length can be encrypted with them.
    #[inline]
    fn open_for(&mut self, session: &Arc<Session>, start: usize, length: usize) {
        let continued = self.open.as_mut().filter(|open| {
            open.length == length && open.count < TOGETHER_MAX && Arc::ptr_eq(&open.session, session)
        });
        if let Some(open) = continued {
            open.count += 1;
            return;
        }
        self.seal();
        self.open = Some(Open { session: session.clone(), start, length, count: 1 });
    }

    fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            let messages = &mut self.octets[open.start..open.start + open.count * open.length];
            open.session.seal(messages, open.length);
        }
    }

    /// Makes a datagram part of the last message of the system, or another one.
    #[inline]
    fn append(&mut self, to: &SocketAddrV6, start: usize, length: usize) {
        let continued = self.messages.last_mut().filter(|last| {
            self.cuts
                && !self.is_closed
                && last.to == *to
                && length <= last.segment
                && self.datagrams < datagrams_max(last.segment)
        });
        match continued {
            Some(last) => {
                last.length += length;
                self.datagrams += 1;
                self.is_closed = length < last.segment;
            }
            None => {
                self.messages.push(Outgoing { start, length, segment: length, to: *to });
                self.datagrams = 1;
                self.is_closed = false;
            }
        }
    }

    /// Encrypts and sends everything. What cannot be sent is given to `lost`, with the reason.
    pub(crate) fn flush(&mut self, socket: &UdpSocket, mut lost: impl FnMut(&Outgoing, &io::Error)) {
        self.seal();
        let mut from = 0;
        while let Err((sent, error)) = socket.send_batch(&self.octets, &self.messages[from..]) {
            from += sent;
            let message = self.messages[from];
            let is_cut = message.length > message.segment;
            if is_cut && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) {
                // The first says that the device of the route cannot; the second may only be about this message.
                if error.raw_os_error() == Some(libc::EIO) {
                    self.cuts = false;
                    tracing::warn!(%error, "The kernel does not cut messages; each is sent alone");
                }
                self.send_alone(socket, message, &mut lost);
            } else {
                lost(&message, &error);
            }
            from += 1;
        }
        self.messages.clear();
        self.used = 0;
    }

    fn send_alone(
        &self,
        socket: &UdpSocket,
        message: Outgoing,
        lost: &mut impl FnMut(&Outgoing, &io::Error),
    ) {
        let end = message.start + message.length;
        for start in (message.start..end).step_by(message.segment) {
            let length = message.segment.min(end - start);
            let alone = Outgoing { start, length, segment: length, to: message.to };
            if let Err((_, error)) = socket.send_batch(&self.octets, &[alone]) {
                lost(&alone, &error);
            }
        }
    }
}
