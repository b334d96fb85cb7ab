//! What a worker does for UDP: sessions between client addresses and endpoints.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesonet_model::Protocol;
use rustix::event::epoll::{self, EventFlags};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::affinity::Visit;
use super::introduction::introduction;
use super::listener::ListenerSocket;
use super::slots::{SlotKey, Slots};
use super::tcp::ATTEMPTS_MAX;
use super::token::Token;
use super::worker::Worker;
use crate::metrics::ServiceMetrics;

/// A session without a datagram for so long is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionIdle {
    pub(super) usually: Duration,
    /// While its endpoint drains, and a kill waits for it.
    pub(super) draining: Duration,
}

impl SessionIdle {
    /// Usually the same as what Linux's connection tracking gives a flow that has seen an answer, and longer than any
    /// resolver or logger waits. While a kill waits, an answer comes within a second or not at all.
    pub(super) const STANDARD: Self =
        Self { usually: Duration::from_secs(60), draining: Duration::from_secs(1) };
}

/// How often sessions are looked through; how much later than the idle time one may end.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Datagrams taken from one socket before others get their turn.
const DATAGRAMS_PER_ROUND: usize = 64;

#[derive(Debug)]
pub(super) struct UdpSessions {
    sessions: Slots<Session>,
    by_client: BTreeMap<(SlotKey, SocketAddr), SlotKey>,
    /// By age; may hold keys of sessions that are over.
    order: VecDeque<SlotKey>,
    next_sweep: Option<Instant>,
}

#[derive(Debug)]
struct Session {
    listener: SlotKey,
    client: SocketAddr,
    endpoint: SlotKey,
    backend: UdpSocket,
    metrics: Arc<ServiceMetrics>,
    used_at: Instant,
    /// What goes before each datagram to the endpoint.
    introduction: Option<Box<[u8]>>,
    /// Keeps the client with its endpoint.
    _visit: Option<Visit>,
}

impl UdpSessions {
    pub(super) fn new() -> Self {
        Self { sessions: Slots::new(), by_client: BTreeMap::new(), order: VecDeque::new(), next_sweep: None }
    }

    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }
}

impl Worker {
    pub(super) fn receive_from_clients(&mut self, listener: SlotKey) {
        for _ in 0..DATAGRAMS_PER_ROUND {
            let Some(socket) = self.listeners.get(listener).map(|listener| listener.listener.socket.clone())
            else {
                return;
            };
            let ListenerSocket::Udp(socket, _) = &*socket else { return };
            match socket.recv_from(&mut self.tools.scratch) {
                Ok((length, client)) => self.forward_datagram(listener, client, length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An error of an answer that could not be delivered; the next datagram is read all the same.
                Err(_) => {}
            }
        }
    }

    /// Sends the datagram in the scratch buffer to the client's endpoint, or to another one if that refuses.
    fn forward_datagram(&mut self, listener: SlotKey, client: SocketAddr, length: usize) {
        let mut tried = Vec::new();
        while tried.len() < ATTEMPTS_MAX {
            let known = self.sessions.by_client.get(&(listener, client)).copied();
            let Some(key) = known.or_else(|| self.begin_session(listener, client, &tried)) else { return };
            let session = self.sessions.sessions.get_mut(key).expect("BUG: a client's session is gone");
            session.used_at = self.now;
            match session.send(&self.tools.scratch[..length]) {
                Ok(()) => {
                    self.routes.note_bytes(session.endpoint, length as u64, 0);
                    self.routes.count_bytes();
                    return;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    tried.push(session.endpoint);
                    self.session_failed(key);
                }
                // The send buffer is full, or the datagram too long: UDP may lose it.
                Err(_) => return,
            }
        }
    }

    fn begin_session(
        &mut self,
        listener_key: SlotKey,
        client: SocketAddr,
        tried: &[SlotKey],
    ) -> Option<SlotKey> {
        let listener = self.listeners.get(listener_key)?;
        let (service, address_here) = (listener.service, listener.listener.address);
        let policy = self.routes.service(service)?;
        let metrics = policy.metrics.clone();
        let introduction =
            policy.introduces_clients().then(|| introduction(Protocol::Udp, client, address_here));
        let Some((endpoint, address)) = self.routes.choose(service, Some(client), tried, self.now) else {
            metrics.failed.inc();
            return None;
        };
        self.make_room();
        let backend = dial(address).inspect_err(|_| metrics.connect_failures.inc()).ok()?;
        let session = Session {
            listener: listener_key,
            client,
            endpoint,
            backend,
            metrics,
            used_at: self.now,
            introduction,
            _visit: self.routes.visit(service, Some(client), endpoint, self.now),
        };
        let key = self.sessions.sessions.insert(session);
        let session = self.sessions.sessions.get(key).expect("BUG: the session was just put there");
        session.metrics.connections.inc();
        session.metrics.active.inc();
        self.routes.begin(endpoint);
        // Most endpoints never say that they take datagrams. One that refuses is noted besides.
        self.routes.note_success(endpoint);
        self.sessions.by_client.insert((listener_key, client), key);
        self.sessions.order.push_back(key);
        self.sessions.next_sweep.get_or_insert(self.now + SWEEP_INTERVAL);
        if epoll::add(&self.epoll, &session.backend, Token::Session(key).pack(), EventFlags::IN).is_err() {
            self.end_session(key);
            return None;
        }
        Some(key)
    }

    /// Drops the oldest sessions until there is room for one more.
    fn make_room(&mut self) {
        while self.sessions.sessions.len() >= self.budget.sessions {
            let Some(oldest) = self.sessions.order.pop_front() else { return };
            self.end_session(oldest);
        }
    }

    pub(super) fn receive_from_endpoint(&mut self, key: SlotKey) {
        for _ in 0..DATAGRAMS_PER_ROUND {
            let Some(session) = self.sessions.sessions.get_mut(key) else { return };
            match session.backend.recv(&mut self.tools.scratch) {
                Ok(length) => {
                    session.used_at = self.now;
                    let Some(listener) = self.listeners.get(session.listener) else { return };
                    let ListenerSocket::Udp(socket, _) = &*listener.listener.socket else { return };
                    // A client that takes no answer, or a full send buffer: UDP may lose it.
                    if let Ok(sent) = socket.send_to(&self.tools.scratch[..length], session.client) {
                        self.routes.note_bytes(session.endpoint, 0, sent as u64);
                        self.routes.count_bytes();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.session_failed(key);
                    return;
                }
            }
        }
    }

    /// The endpoint refuses datagrams; the client's next one goes to another endpoint.
    fn session_failed(&mut self, key: SlotKey) {
        let Some(session) = self.sessions.sessions.get(key) else { return };
        session.metrics.connect_failures.inc();
        self.routes.note_failure(session.endpoint, self.now);
        self.end_session(key);
    }

    fn end_session(&mut self, key: SlotKey) {
        let Some(session) = self.sessions.sessions.remove(key) else { return };
        session.metrics.active.dec();
        self.sessions.by_client.remove(&(session.listener, session.client));
        self.routes.end(session.endpoint);
    }

    pub(super) fn expire_sessions(&mut self) {
        if self.sessions.next_sweep.is_none_or(|at| at > self.now) {
            return;
        }
        self.end_sessions(|worker, session| {
            let draining = worker.routes.is_draining(session.endpoint);
            let idle =
                if draining { worker.patience.session.draining } else { worker.patience.session.usually };
            worker.now.saturating_duration_since(session.used_at) >= idle
        });
        let UdpSessions { sessions, order, next_sweep, .. } = &mut self.sessions;
        order.retain(|key| sessions.get(*key).is_some());
        *next_sweep = (sessions.len() > 0).then(|| self.now + SWEEP_INTERVAL);
    }

    pub(super) fn drop_sessions_of(&mut self, endpoint: SlotKey) {
        self.end_sessions(|_, session| session.endpoint == endpoint);
    }

    pub(super) fn drop_sessions_at(&mut self, listener: SlotKey) {
        self.end_sessions(|_, session| session.listener == listener);
    }

    fn end_sessions(&mut self, which: impl Fn(&Self, &Session) -> bool) {
        let over: Vec<SlotKey> = self
            .sessions
            .sessions
            .iter()
            .filter(|(_, session)| which(self, session))
            .map(|(key, _)| key)
            .collect();
        over.into_iter().for_each(|key| self.end_session(key));
    }
}

impl Session {
    /// Sends a datagram of the client to its endpoint.
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match &self.introduction {
            None => self.backend.send(datagram)?,
            Some(introduction) => {
                let parts = [IoSlice::new(introduction), IoSlice::new(datagram)];
                sendmsg(&self.backend, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?
            }
        };
        Ok(())
    }
}

fn dial(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}
