//! What a connection of TCP was, as the kernel knows it when its client closes it.

use crate::Count;

/// States of a TCP connection (net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const FIN_WAIT1: u32 = 4;
const CLOSE: u32 = 7;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// With so many, an endpoint takes a connection.
const CONSENT_SEGMENTS: u32 = 1;

/// A connection, or an attempt to make one, just before it is closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpEnd {
    /// Its state.
    pub state: u32,
    /// The endpoint has ended its half.
    pub is_done: bool,
    /// Closing does not wait, and resets what is open.
    pub is_abortive: bool,
    /// Segments sent.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments received with octets in them, if there is no connection any more.
    pub data_segments_in: u32,
    /// Octets sent, as often as they were.
    pub bytes_sent: u64,
    /// Octets of them that were sent again.
    pub bytes_resent: u64,
    /// Octets received, and one for the end.
    pub bytes_received: u64,
    /// The number of the next octet that the client writes.
    pub next_written: u32,
    /// The number of the next octet that is sent.
    pub next_sent: u32,
    /// The number of the next octet that is received, 0 if there is no connection yet.
    pub next_received: u32,
    /// The number of the next octet that the client reads.
    pub next_read: u32,
}

impl TcpEnd {
    /// Whether there has been a connection. It may have ended, and its counts may be gone with it.
    #[inline(always)]
    pub const fn is_established(&self) -> bool {
        self.state != SYN_SENT && (self.bytes_received > 0 || self.next_received != 0)
    }

    /// Whether one side has reset the connection while it was open, or the client does so now, by closing it before it
    /// has read everything.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        match self.state {
            CLOSE => self.is_established() && !self.is_done,
            ESTABLISHED => self.is_abortive || self.next_received != self.next_read,
            _ => false,
        }
    }

    /// Whether the endpoint has reset the connection before it said anything. A client that closes its socket, however it
    /// does, is in another state. What it was told after it would hear no more makes its kernel reset the connection,
    /// but has come; and if it took the connection back, or somebody on its side ended it before it was used, nothing came
    /// after the endpoint's consent.
    #[inline(always)]
    pub const fn is_spurned(&self) -> bool {
        self.state == CLOSE
            && self.is_reset()
            && self.data_segments_in == 0
            && self.segments_in > CONSENT_SEGMENTS
    }

    /// What is counted of it.
    #[inline(always)]
    pub const fn count(&self) -> Count {
        let (is_established, is_reset) = (self.is_established(), self.is_reset());
        // What is still to be sent goes out after the end, unless that is a reset. The end counts as an octet, which
        // goes last.
        let unsent = if is_established && !is_reset && self.state != CLOSE {
            let end = matches!(self.state, FIN_WAIT1 | LAST_ACK | CLOSING) as u32;
            self.next_written.wrapping_sub(self.next_sent).saturating_sub(end)
        } else {
            0
        };
        Count {
            connections: 0,
            ended: 1,
            failures: (!is_established || self.is_spurned()) as u64,
            resets: is_reset as u64,
            bytes_out: self.bytes_sent.saturating_sub(self.bytes_resent) + unsent as u64,
            bytes_in: self.bytes_received.saturating_sub(self.is_done as u64),
            packets_out: self.segments_out as u64,
            packets_in: self.segments_in as u64,
        }
    }
}
