//! Messages on their way out, written where they are sent from.

use std::io;
use std::net::SocketAddrV6;

use crate::socket::{Outgoing, UdpSocket};

/// Octets that are collected before they are sent. More would not stay in a core's own cache.
const OCTETS_MAX: usize = 4 * 65_536;

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
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether there is room for one more datagram of this length, whatever it is.
    #[inline]
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.used + length <= self.octets.len() && self.messages.len() < MESSAGES_MAX
    }

    /// A place for a datagram. There must be room.
    #[inline]
    pub(crate) fn place(&mut self, to: SocketAddrV6, length: usize) -> &mut [u8] {
        let start = self.used;
        self.used += length;
        let continued = self.messages.last_mut().filter(|last| {
            self.cuts
                && !self.is_closed
                && last.to == to
                && length <= last.segment
                && self.datagrams < DATAGRAMS_MAX
                && last.length + length <= MESSAGE_MAX
        });
        match continued {
            Some(last) => {
                last.length += length;
                self.datagrams += 1;
                self.is_closed = length < last.segment;
            }
            None => {
                self.messages.push(Outgoing { start, length, segment: length, to });
                self.datagrams = 1;
                self.is_closed = false;
            }
        }
        &mut self.octets[start..self.used]
    }

    /// Sends everything. What cannot be sent is given to `lost`, with the reason.
    pub(crate) fn flush(&mut self, socket: &UdpSocket, mut lost: impl FnMut(&Outgoing, &io::Error)) {
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
