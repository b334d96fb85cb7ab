//! One proxied TCP connection: two sockets, a direction each way.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_linger, set_tcp_quickack};
use rustix::net::{SendFlags, send};

use super::affinity::Visit;
use super::direction::{Direction, Promptness, Standing, Tools};
use super::http_close::Exchange;
use super::pipe_pool::PipePool;
use super::slots::SlotKey;
use super::stalls::{Stall, queued};
use crate::metrics::ServiceMetrics;

/// ```text
///   accepted ──► Connecting ──► Open ──► closed when both directions have ended, or reset
///                 ▲      │
///                 └──────┘ the endpoint did not take it: another one
/// ```
/// Nothing is read from the client before an endpoint has accepted, so that an attempt that fails costs the client
/// nothing but time.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: OwnedFd,
    pub(super) service: SlotKey,
    pub(super) metrics: Arc<ServiceMetrics>,
    pub(super) accepted_at: Instant,
    /// The client's address, if the service's policy asks for it.
    pub(super) peer: Option<SocketAddr>,
    /// What an endpoint is told before anything else.
    pub(super) introduction: Option<Box<[u8]>>,
    /// Keeps the client with its endpoint.
    pub(super) visit: Option<Visit>,
    /// The endpoint and the socket to it.
    pub(super) backend: Option<(SlotKey, OwnedFd)>,
    pub(super) is_open: bool,
    /// An endpoint has been looked for.
    pub(super) is_begun: bool,
    /// How often an endpoint was dialled for it.
    pub(super) dials: u64,
    /// How many of them ran out of time.
    pub(super) expired: u32,
    /// Endpoints that did not take it, since all were last asked again.
    pub(super) tried: Vec<SlotKey>,
    /// It keeps the endpoint's task busy: until it is closed, or the endpoint has ended its side and all that it sent is
    /// written. A client may keep such a half-closed connection for long without a use.
    pub(super) keeps_busy: bool,
    /// Which of its sockets tell when they have room again. Few ever have none, so each does only from then on.
    pub(super) client_tells_room: bool,
    pub(super) backend_tells_room: bool,
    /// Who spoke first is known to the service.
    pub(super) is_manner_noted: bool,
    /// What the endpoint sends first would be acknowledged late, because the end of the handshake was.
    pub(super) acknowledges_late: bool,
    /// It is in the list of connections that have more to do.
    pub(super) is_queued: bool,
    up: Direction,
    down: Direction,
    exchange: Exchange,
    /// Bytes that were passed on, both ways.
    moved: u64,
    stall: Stall,
    /// The kernel has said that the client, or the endpoint, takes no more and says no more.
    has_client_failed: bool,
    has_backend_failed: bool,
    /// The client has sent something.
    is_spoken_for: bool,
    /// The endpoint has sent something.
    is_spoken_to: bool,
    /// The endpoint has reset it before it sent anything.
    pub(super) is_spurned: bool,
}

/// What to do with a connection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It waits for events.
    Wait,
    /// It wants another turn.
    Continue,
    /// Both sides have ended.
    Close,
    /// One side was reset, so the other is.
    Reset,
}

/// What has come of a connection's turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) outcome: Outcome,
    /// Bytes written to the endpoint.
    pub(super) bytes_up: u64,
    /// Bytes written to the client.
    pub(super) bytes_down: u64,
}

impl Connection {
    pub(super) fn new(client: OwnedFd, service: SlotKey, metrics: Arc<ServiceMetrics>, now: Instant) -> Self {
        Self {
            client,
            service,
            metrics,
            accepted_at: now,
            peer: None,
            introduction: None,
            visit: None,
            backend: None,
            is_open: false,
            is_begun: false,
            dials: 0,
            expired: 0,
            tried: Vec::new(),
            keeps_busy: false,
            client_tells_room: false,
            backend_tells_room: false,
            is_manner_noted: false,
            acknowledges_late: false,
            is_queued: false,
            up: Direction::new(Promptness::Unset),
            down: Direction::new(Promptness::Set),
            exchange: Exchange::new(),
            moved: 0,
            stall: Stall::default(),
            has_client_failed: false,
            has_backend_failed: false,
            is_spoken_for: false,
            is_spoken_to: false,
            is_spurned: false,
        }
    }

    pub(super) fn note_client_event(&mut self, flags: EventFlags) {
        self.has_client_failed |= flags.contains(EventFlags::ERR);
        note_event(flags, &mut self.up, &mut self.down);
    }

    pub(super) fn note_backend_event(&mut self, flags: EventFlags) {
        self.has_backend_failed |= flags.contains(EventFlags::ERR);
        note_event(flags, &mut self.down, &mut self.up);
    }

    /// Copies what can be copied. `draining`: the endpoint drains, so the client should come back on a new connection.
    pub(super) fn drive(&mut self, draining: bool, tools: &mut Tools) -> Turn {
        let Some((_, backend)) = self.backend.as_ref().filter(|_| self.is_open) else {
            return Turn { outcome: Outcome::Wait, bytes_up: 0, bytes_down: 0 };
        };
        let (client, backend, exchange) = (self.client.as_fd(), backend.as_fd(), &mut self.exchange);
        // The answer goes first: only after it may the client begin another request.
        let seen = exchange.watches_endpoint();
        let (bytes_down, down) =
            self.down.pump(backend, client, tools, seen, |bytes| exchange.endpoint_speaks(bytes));
        if bytes_down > 0 && std::mem::take(&mut self.acknowledges_late) && !self.down.has_source_ended() {
            // An endpoint that writes an answer in pieces may hold back the next one (Nagle) until this is acknowledged.
            // Fails only if the socket is reset, which its own event says.
            let _was_reset = set_tcp_quickack(backend, true);
        }
        self.is_spoken_to |= bytes_down > 0;
        self.is_spurned = down == Standing::SourceFailed && !self.is_spoken_to;
        let (bytes_up, up) =
            self.up.pump(client, backend, tools, draining, |bytes| exchange.client_speaks(bytes, draining));
        self.is_spoken_for |= bytes_up > 0 && !self.is_spoken_to;
        self.moved += bytes_down + bytes_up;
        if up != Standing::Ended || down != Standing::Ended {
            self.down.pass_on_end(client);
            self.up.pass_on_end(backend);
        }
        // What waits for its source does not notice that its sink is gone.
        let up = if up == Standing::Waiting && self.has_backend_failed { Standing::SinkFailed } else { up };
        let down =
            if down == Standing::Waiting && self.has_client_failed { Standing::SinkFailed } else { down };
        let outcome = match (up, down) {
            (Standing::SourceFailed, _) | (_, Standing::SourceFailed | Standing::SinkFailed) => {
                Outcome::Reset
            }
            (Standing::SinkFailed, _) => {
                // The endpoint reads no more, but what it has sent is still owed to the client.
                self.up.abandon(&mut tools.pipes);
                match down {
                    Standing::Ended => Outcome::Close,
                    Standing::Unfinished => Outcome::Continue,
                    Standing::Waiting | Standing::SourceFailed | Standing::SinkFailed => Outcome::Wait,
                }
            }
            (Standing::Ended, Standing::Ended) => Outcome::Close,
            (Standing::Unfinished, _) | (_, Standing::Unfinished) => Outcome::Continue,
            (Standing::Waiting | Standing::Ended, Standing::Waiting)
            | (Standing::Waiting, Standing::Ended) => Outcome::Wait,
        };
        Turn { outcome, bytes_up, bytes_down }
    }

    /// The endpoint has accepted: it is told who the client is, if it wants to know. Returns whether it is open.
    pub(super) fn open(&mut self) -> bool {
        if let (Some(introduction), Some((_, backend))) = (&self.introduction, &self.backend) {
            // What is sent first always fits into the buffer.
            self.is_open = send(backend, introduction, SendFlags::NOSIGNAL) == Ok(introduction.len());
            self.up.note_sent();
        } else {
            self.is_open = true;
        }
        self.is_open
    }

    /// Whether the client was the first to speak; `None` before anybody has.
    pub(super) fn client_spoke_first(&self) -> Option<bool> {
        (self.is_spoken_for || self.is_spoken_to).then_some(self.is_spoken_for)
    }

    /// Whether the client, and the endpoint, take no more for now.
    pub(super) fn is_blocked(&self) -> (bool, bool) {
        (!self.down.writable, !self.up.writable)
    }

    /// Whether the client waits for an endpoint with something to say, be it only that it has ended its side.
    pub(super) fn has_client_spoken(&self) -> bool {
        self.up.readable || self.up.ending
    }

    /// Whether all that the endpoint had to say has been written.
    pub(super) fn is_answered(&self) -> bool {
        self.down.has_ended()
    }

    /// Whether the endpoint has ended its side by itself, so that what it sent last is still owed to the client.
    pub(super) fn has_backend_ended(&self) -> bool {
        let Some((_, backend)) = &self.backend else { return false };
        let mut fds = [PollFd::new(backend, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.down.has_source_ended() || poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }

    /// Whether the endpoint has ended its side, as far as that has been noticed, and the client has not.
    pub(super) fn is_half_closed(&self) -> bool {
        self.is_open && self.down.has_source_ended()
    }

    /// Whether nothing has moved for so long.
    pub(super) fn has_stalled(&mut self, idle: Duration, now: Instant) -> bool {
        let Some((_, backend)) = &self.backend else { return false };
        let queued = || [queued(&self.client), queued(backend)];
        self.stall.is_over(self.moved, queued, idle, now)
    }

    /// Makes a side that has not been told all see a reset rather than an end when the sockets close.
    pub(super) fn set_reset_where_cut(&self) {
        let client = Some(&self.client).filter(|_| !self.down.has_ended());
        let backend = self.backend.as_ref().map(|(_, socket)| socket).filter(|_| !self.up.has_ended());
        reset(client.into_iter().chain(backend));
    }

    /// Makes both sides see a reset rather than an end when the sockets close.
    pub(super) fn set_reset(&self) {
        reset([&self.client].into_iter().chain(self.backend.as_ref().map(|(_, socket)| socket)));
    }

    pub(super) fn release_pipes(&mut self, pipes: &mut PipePool) {
        self.up.release_pipe(pipes);
        self.down.release_pipe(pipes);
    }
}

fn reset<'a>(sockets: impl IntoIterator<Item = &'a OwnedFd>) {
    for socket in sockets {
        // Fails only if the socket is reset already.
        let _already_reset = set_socket_linger(socket, Some(Duration::ZERO));
    }
}

/// An event of a socket that is the source of one direction and the sink of the other.
fn note_event(flags: EventFlags, from: &mut Direction, to: &mut Direction) {
    let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    from.readable |= failed || flags.contains(EventFlags::IN);
    from.ending |= flags.contains(EventFlags::RDHUP);
    from.has_urgent_data |= flags.contains(EventFlags::PRI);
    to.writable |= failed || flags.contains(EventFlags::OUT);
}
