//! What a worker does for TCP: accept, find an endpoint that takes the connection, copy, close.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mesonet_model::Protocol;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, connect, getpeername, socket_with, sockopt,
};
use tracing::{debug, warn};

use super::connection::{Connection, Outcome, Turn};
use super::introduction::introduction;
use super::local_tcp::LocalTcp;
use super::slots::SlotKey;
use super::token::Token;
use super::worker::Worker;

/// How long a connection's first attempt may take. An endpoint on the same network answers within milliseconds; one
/// that does not has a full queue or is dead, and the system would only ask it again after a second.
const DIAL_TIMEOUT_FIRST: Duration = Duration::from_millis(250);

/// Each further attempt of a connection may take twice as long, so that an endpoint far away is reached as well, and at
/// most this long.
const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// For how long endpoints are tried for one connection, so that a client hears within seconds that all endpoints of a
/// service are out of reach. An endpoint whose queue was full takes the connection at one of the repeated attempts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(4);

/// For how long endpoints that all refuse are asked again while one of them may be about to listen: a client rather
/// waits for an app that is just being started than fails.
const STARTING_PATIENCE: Duration = Duration::from_secs(10);

/// For how long endpoints that all refuse are asked again otherwise: a server that is replaced in place by its own
/// supervisor refuses for a moment.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// The pause before they are asked again, which a client hardly feels.
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);

/// Endpoints that are tried for one connection or datagram. A refusal takes microseconds, and an app that is scaled up
/// has many endpoints that do not listen yet, so this is far more than a client would wait for if each took its time.
pub(super) const ATTEMPTS_MAX: usize = 64;

/// Clients accepted from one listener before other connections get their turn.
const ACCEPTS_PER_ROUND: usize = 16;

/// For how long no client is accepted after the bound on connections was reached or the system ran out of
/// descriptors; clients wait in the listeners' queues.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// While a worker has much to do, it waits so long for a client to speak, where clients do so first, before it looks for an
/// endpoint.
const SPEECH_PATIENCE: Duration = Duration::from_millis(2);

const NO_SOCKETS: &str = "The system gives no more sockets; clients wait";

const SOCKET_EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);

/// Of a socket that connects or has had no room.
const SOCKET_EVENTS_AND_ROOM: EventFlags = SOCKET_EVENTS.union(EventFlags::OUT);

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides have said their last.
    Graceful,
    /// The sides must see that something went wrong.
    Reset,
    /// Nothing moves any more. Whoever has not been told all that the other side said must see that.
    Stalled,
}

impl Worker {
    pub(super) fn accept(&mut self, listener: SlotKey) {
        let Some(batch) = self.listeners.get(listener).map(|watched| watched.batch) else { return };
        let mut accepted = 0;
        while accepted < batch {
            if self.connections.len() >= self.budget.connections {
                self.pause_accepting("The bound on open connections is reached; clients wait (raise the limit on open files, ulimit -n)");
                return;
            }
            let Some(watched) = self.listeners.get_mut(listener) else { return };
            let Some(socket) = watched.listener.socket.of_worker(self.number) else { return };
            match accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => {
                    let (service, address) = (watched.service, watched.listener.address);
                    self.serve(client, service, address);
                    accepted += 1;
                }
                Err(Errno::AGAIN) => {
                    watched.batch = accepted.max(1);
                    return;
                }
                Err(error) if is_shortage(error) => {
                    self.pause_accepting(NO_SOCKETS);
                    return;
                }
                // The client is gone already.
                Err(_) => accepted += 1,
            }
        }
        if let Some(watched) = self.listeners.get_mut(listener) {
            watched.batch = (batch * 2).min(ACCEPTS_PER_ROUND);
        }
    }

    fn pause_accepting(&mut self, reason: &'static str) {
        if self.shortage.is_new(self.now) {
            warn!(connections = self.connections.len(), reason, "No client is accepted for a moment");
        }
        for (_, watched) in self.listeners.iter().filter(|(_, watched)| watched.listener.is_tcp()) {
            if let Some(socket) = watched.listener.socket.of_worker(self.number) {
                // Fails only if it is paused already.
                let _already_paused = epoll::delete(&self.epoll, socket);
            }
        }
        self.accepts_again_at = Some(self.now + ACCEPT_PAUSE);
    }

    pub(super) fn resume_accepting(&mut self) {
        if self.accepts_again_at.is_some_and(|at| at <= self.now) {
            self.accepts_again_at = None;
            let keys: Vec<SlotKey> = self
                .listeners
                .iter()
                .filter(|(_, watched)| watched.listener.is_tcp())
                .map(|(key, _)| key)
                .collect();
            keys.into_iter().for_each(|key| self.watch_listener(key));
        }
    }

    /// An endpoint is looked for with the first event of the client, or without one in another round: there is less to do
    /// for a client that has said something already.
    fn serve(&mut self, client: OwnedFd, service_key: SlotKey, address: SocketAddr) {
        let Some(service) = self.routes.service(service_key) else { return };
        let metrics = service.metrics.clone();
        let mut connection = Connection::new(client, service_key, metrics.clone(), self.now);
        if service.asks_for_client() {
            // Fails if the client is gone already.
            let Some(peer) = peer_of(&connection.client) else { return };
            connection.peer = Some(peer);
            connection.introduction =
                service.introduces_clients().then(|| introduction(Protocol::Tcp, peer, address));
        }
        let is_waited_for =
            service.do_clients_begin && connection.introduction.is_none() && self.pace.is_fast();
        metrics.connections.inc();
        metrics.active.inc();
        self.accepted += 1;
        let key = self.connections.insert(connection);
        let connection = self.connections.get(key).expect("BUG: the connection was just put there");
        if epoll::add(&self.epoll, &connection.client, Token::Client(key).pack(), SOCKET_EVENTS).is_err() {
            self.close(key, Ending::Reset);
            return;
        }
        let until = if is_waited_for { self.now + SPEECH_PATIENCE } else { self.now };
        self.arrivals[usize::from(is_waited_for)].push_back((until, key));
    }

    /// Looks for endpoints for the clients that have said nothing, but not yet for those that came in this round.
    pub(super) fn begin_arrivals(&mut self) {
        for queue in 0..self.arrivals.len() {
            while let Some((until, key)) = self.arrivals[queue].front().copied() {
                let has_begun = self.connections.get(key).is_none_or(|connection| connection.is_begun);
                if !has_begun && until >= self.now {
                    break;
                }
                self.arrivals[queue].pop_front();
                self.begin(key);
            }
        }
    }

    /// Looks for the first endpoint.
    fn begin(&mut self, key: SlotKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && !std::mem::replace(&mut connection.is_begun, true)
        {
            self.connect_next(key);
        }
    }

    /// Connects to an endpoint that was not tried before, or resets the client if there is none.
    fn connect_next(&mut self, key: SlotKey) {
        while let Some(connection) = self.connections.get_mut(key) {
            let is_starting = self.routes.is_starting(connection.service, self.now);
            let patience = if is_starting { STARTING_PATIENCE } else { CONNECT_PATIENCE };
            let may_try = connection.tried.len() < ATTEMPTS_MAX
                && self.now.saturating_duration_since(connection.accepted_at) < patience;
            let next = if may_try {
                self.routes.choose(connection.service, connection.peer, &connection.tried, self.now)
            } else {
                None
            };
            let Some((endpoint, address)) = next else {
                self.pause_or_give_up(key);
                return;
            };
            let is_spoken_for = connection.has_client_spoken() || connection.introduction.is_some();
            let dialled = dial(address, is_spoken_for, self.local_tcp).and_then(|(socket, is_taken)| {
                let events = if is_taken { SOCKET_EVENTS } else { SOCKET_EVENTS_AND_ROOM };
                epoll::add(&self.epoll, &socket, Token::Backend(key).pack(), events)?;
                Ok((socket, is_taken))
            });
            match dialled {
                Ok((socket, is_taken)) => {
                    connection.backend = Some((endpoint, socket));
                    connection.visit =
                        self.routes.visit(connection.service, connection.peer, endpoint, self.now);
                    connection.keeps_busy = true;
                    connection.acknowledges_late = is_spoken_for;
                    connection.backend_tells_room = !is_taken;
                    connection.dials += 1;
                    self.routes.begin(endpoint);
                    if is_taken {
                        self.taken(key);
                    } else {
                        let deadline = self.now + dial_timeout(connection.expired);
                        self.dials.insert((deadline, key, connection.dials));
                    }
                    return;
                }
                Err(error) if Errno::from_io_error(&error).is_some_and(is_shortage) => {
                    // That is not the endpoint's fault, and another one would be no better.
                    connection.tried.push(endpoint);
                    self.pause_accepting(NO_SOCKETS);
                    self.pause_or_give_up(key);
                    return;
                }
                Err(error) => {
                    debug!(%address, %error, "An endpoint cannot be dialled");
                    connection.metrics.connect_failures.inc();
                    connection.tried.push(endpoint);
                    self.routes.note_failure(endpoint, self.now);
                }
            }
        }
    }

    /// The endpoint did not take the connection, so another one should.
    pub(super) fn connect_failed(&mut self, key: SlotKey) {
        let Some(endpoint) = self.abandon_dial(key) else { return };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.tried.push(endpoint);
        }
        self.connect_next(key);
    }

    /// Ends the attempt under way. Returns the endpoint that was to take the connection.
    fn abandon_dial(&mut self, key: SlotKey) -> Option<SlotKey> {
        let connection = self.connections.get_mut(key)?;
        let (endpoint, socket) = connection.backend.take()?;
        drop(socket);
        connection.visit = None;
        connection.keeps_busy = false;
        connection.metrics.connect_failures.inc();
        self.routes.end(endpoint);
        self.routes.note_failure(endpoint, self.now);
        Some(endpoint)
    }

    /// No endpoint took the connection. All are asked again after a pause, unless this has gone on for long enough or
    /// there is none.
    fn pause_or_give_up(&mut self, key: SlotKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let waited = self.now.saturating_duration_since(connection.accepted_at);
        let is_starting = self.routes.is_starting(connection.service, self.now);
        let patience = if is_starting { STARTING_PATIENCE } else { REFUSAL_PATIENCE };
        if connection.tried.is_empty() || waited >= patience {
            connection.metrics.failed.inc();
            self.close(key, Ending::Reset);
            return;
        }
        connection.tried.clear();
        self.pauses.push_back((self.now + REFUSAL_PAUSE, key));
    }

    pub(super) fn expire_dials(&mut self) {
        while let Some((deadline, key, dial)) = self.dials.first().copied() {
            let is_waiting = self.connections.get(key).is_some_and(|connection| {
                !connection.is_open && connection.backend.is_some() && connection.dials == dial
            });
            if is_waiting && deadline > self.now {
                break;
            }
            self.dials.pop_first();
            if is_waiting {
                self.dial_expired(key);
            }
        }
        while let Some((until, key)) = self.pauses.front().copied()
            && until <= self.now
        {
            self.pauses.pop_front();
            self.connect_next(key);
        }
    }

    /// An endpoint takes its time. Another one is tried; without another one, it is asked again.
    fn dial_expired(&mut self, key: SlotKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(endpoint) = connection.backend.as_ref().map(|(endpoint, _)| *endpoint) else { return };
        connection.expired += 1;
        let waited = self.now.saturating_duration_since(connection.accepted_at);
        let mut tried = connection.tried.clone();
        tried.push(endpoint);
        let has_other = self.routes.choose(connection.service, connection.peer, &tried, self.now).is_some();
        if has_other || waited >= CONNECT_PATIENCE {
            self.connect_failed(key);
        } else if self.abandon_dial(key).is_some() {
            self.connect_next(key);
        }
    }

    pub(super) fn next_dial_deadline(&self) -> Option<Instant> {
        let dial = self.dials.first().map(|(deadline, _, _)| *deadline);
        let pause = self.pauses.front().map(|(until, _)| *until);
        dial.into_iter().chain(pause).min()
    }

    pub(super) fn on_client_event(&mut self, key: SlotKey, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.is_open && flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            self.close(key, Ending::Reset);
            return;
        }
        connection.note_client_event(flags);
        if connection.is_begun {
            self.drive(key);
        } else {
            self.begin(key);
        }
    }

    pub(super) fn on_backend_event(&mut self, key: SlotKey, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.is_open {
            if connection.backend.is_none() {
                return;
            }
            if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                self.connect_failed(key);
                return;
            }
            connection.note_backend_event(flags);
            if flags.contains(EventFlags::OUT) {
                self.taken(key);
            }
            return;
        }
        connection.note_backend_event(flags);
        self.drive(key);
    }

    /// The endpoint has taken the connection.
    fn taken(&mut self, key: SlotKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.open() {
            self.connect_failed(key);
            return;
        }
        if let Some((endpoint, _)) = connection.backend.as_ref() {
            self.routes.note_success(*endpoint);
        }
        self.drive(key);
    }

    pub(super) fn drive(&mut self, key: SlotKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let endpoint = connection.backend.as_ref().map(|(endpoint, _)| *endpoint);
        let draining = endpoint.is_some_and(|endpoint| self.routes.is_draining(endpoint));
        let Turn { outcome, bytes_up, bytes_down } = connection.drive(draining, &mut self.tools);
        if let Some(endpoint) = endpoint.filter(|_| bytes_up + bytes_down > 0)
            && !self.routes.note_bytes(endpoint, bytes_up, bytes_down)
        {
            connection.metrics.carry(bytes_up, bytes_down);
        }
        if let Some(endpoint) = endpoint.filter(|_| connection.keeps_busy && connection.is_answered()) {
            connection.keeps_busy = false;
            self.routes.end(endpoint);
        }
        if !connection.is_manner_noted
            && let Some(client_spoke_first) = connection.client_spoke_first()
            && let Some(service) = self.routes.service_mut(connection.service)
        {
            connection.is_manner_noted = true;
            service.do_clients_begin = client_spoke_first;
        }
        if matches!(outcome, Outcome::Wait) && ask_for_room(&self.epoll, key, connection).is_err() {
            self.close(key, Ending::Reset);
            return;
        }
        match outcome {
            Outcome::Wait if connection.is_half_closed() => self.watch_stalls(),
            Outcome::Wait => {}
            Outcome::Continue => {
                if !std::mem::replace(&mut connection.is_queued, true) {
                    self.unfinished.push(key);
                }
            }
            Outcome::Close => self.close(key, Ending::Graceful),
            Outcome::Reset => {
                if let Some(endpoint) = endpoint.filter(|_| connection.is_spurned) {
                    self.routes.note_failure(endpoint, self.now);
                }
                self.close(key, Ending::Reset);
            }
        }
    }

    pub(super) fn close(&mut self, key: SlotKey, ending: Ending) {
        let Some(mut connection) = self.connections.remove(key) else { return };
        // Who sees that it is closed also sees what it has carried.
        self.routes.count_bytes();
        connection.metrics.active.dec();
        match ending {
            Ending::Graceful => {}
            Ending::Reset => connection.set_reset(),
            Ending::Stalled => connection.set_reset_where_cut(),
        }
        connection.release_pipes(&mut self.tools.pipes);
        if let Some((endpoint, _)) = connection.backend.as_ref().filter(|_| connection.keeps_busy) {
            self.routes.end(*endpoint);
        }
    }

    /// An endpoint is dead: connections to it are reset, those under way to it go to another one, and those that it
    /// has ended itself still deliver what it sent.
    pub(super) fn reset_connections_of(&mut self, endpoint: SlotKey) {
        let is_to =
            |connection: &Connection| connection.backend.as_ref().is_some_and(|(to, _)| *to == endpoint);
        let keys: Vec<SlotKey> =
            self.connections.iter().filter(|(_, connection)| is_to(connection)).map(|(key, _)| key).collect();
        for key in keys {
            match self.connections.get(key) {
                Some(connection) if !connection.is_open => self.connect_failed(key),
                Some(connection) if connection.has_backend_ended() => {}
                Some(_) | None => self.close(key, Ending::Reset),
            }
        }
    }
}

/// Has the sockets that take no more tell when they do.
fn ask_for_room(epoll: &OwnedFd, key: SlotKey, connection: &mut Connection) -> Result<(), Errno> {
    let (client, backend) = connection.is_blocked();
    if client && !std::mem::replace(&mut connection.client_tells_room, true) {
        epoll::modify(epoll, &connection.client, Token::Client(key).pack(), SOCKET_EVENTS_AND_ROOM)?;
    }
    if let Some((_, socket)) = connection.backend.as_ref().filter(|_| backend)
        && !std::mem::replace(&mut connection.backend_tells_room, true)
    {
        epoll::modify(epoll, socket, Token::Backend(key).pack(), SOCKET_EVENTS_AND_ROOM)?;
    }
    Ok(())
}

/// Whether it is this machine that gives no more.
fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

fn peer_of(client: &OwnedFd) -> Option<SocketAddr> {
    getpeername(client).ok().flatten().and_then(|peer| peer.try_into().ok())
}

/// How long an attempt may take after so many of its connection ran out of time.
fn dial_timeout(expired: u32) -> Duration {
    2_u32
        .checked_pow(expired)
        .map_or(DIAL_TIMEOUT_MAX, |factor| DIAL_TIMEOUT_FIRST.saturating_mul(factor).min(DIAL_TIMEOUT_MAX))
}

/// Begins to connect. `is_spoken_for`: something will be sent as soon as the endpoint has accepted. Returns the socket and
/// whether that has happened.
fn dial(address: SocketAddr, is_spoken_for: bool, local_tcp: LocalTcp) -> io::Result<(OwnedFd, bool)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if is_spoken_for {
        // What is sent completes the handshake: a packet less, and the endpoint wakes up
        // once. If nothing followed, the kernel would complete it after 200 ms.
        sockopt::set_tcp_quickack(&socket, false)?;
    }
    local_tcp.prepare(&socket, &address)?;
    let is_local = address.ip().is_loopback();
    if !is_local {
        // On this node the kernel tells when the other side is gone.
        sockopt::set_socket_keepalive(&socket, true)?;
    }
    match connect(&socket, &address) {
        Ok(()) => return Ok((socket, true)),
        Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    if !is_local {
        return Ok((socket, false));
    }
    // On loopback the answer has come before the call returns, which does not tell.
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::ISCONN) => Ok((socket, true)),
        Err(Errno::ALREADY) => Ok((socket, false)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_may_take_ever_longer_up_to_a_bound() {
        let timeouts: Vec<u128> = (0..5).map(|expired| dial_timeout(expired).as_millis()).collect();
        assert_eq!(timeouts, [250, 500, 1000, 2000, 2000]);
        assert_eq!(dial_timeout(u32::MAX), DIAL_TIMEOUT_MAX);
    }
}
