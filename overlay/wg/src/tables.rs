//! What all threads of a tunnel look up, and what workers tell the control thread.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use mesonet_overlay_plan::PrefixTable;
use rustix::event::{EventfdFlags, eventfd};

use crate::cookies::KeyCheck;
use crate::drops::DropCounters;
use crate::key::PublicKey;
use crate::message::INITIATION_LENGTH;
use crate::peer::{Clock, Peer};
use crate::probe::Probing;
use crate::session::Session;
use crate::settings::Limits;

/// Handshake messages that wait for the control thread. A handshake costs it about 0.2 ms, so that the last one of a
/// full queue is answered in time. When it is full, more are dropped and counted.
pub(crate) const HANDSHAKES_MAX: usize = 512;

/// Other events that wait. They come at most once in a while per peer, or are repeated when they are lost.
const EVENTS_MAX: usize = 16_384;

/// Milliseconds between two stray messages that the control thread is told of: it looks for their sender among all
/// peers.
const STRAY_INTERVAL_MS: u64 = 10;

/// Whom packets belong to, without sockets and devices.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) peers: ArcSwap<BTreeMap<String, Arc<Peer>>>,
    pub(crate) addresses: ArcSwap<PrefixTable<Arc<Peer>>>,
    /// Sessions by the number that the other end names.
    pub(crate) sessions: ArcSwap<HashMap<u32, Arc<Session>>>,
    /// This node's keys, to tell whether a handshake is for one of them.
    pub(crate) key_checks: ArcSwap<Vec<(PublicKey, KeyCheck)>>,
    pub(crate) events: EventQueue,
    /// Drops that are no peer's.
    pub(crate) drops: DropCounters,
    /// When the control thread was told of a stray message last, in milliseconds of the clock.
    last_stray: AtomicU64,
}

/// What the control thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A handshake message to one of this node's keys, or a cookie.
    Handshake {
        message: Box<[u8; INITIATION_LENGTH]>,
        length: usize,
        from: SocketAddr,
        key: Option<PublicKey>,
    },
    /// There is something to send and no session, or its session should be renewed.
    HandshakeWanted { peer: Arc<Peer> },
    /// The peer uses a session that it began, so it has the keys.
    Confirmed { session: Arc<Session> },
    /// A message about the path.
    Probe { peer: Arc<Peer>, probing: Probing },
    /// Somebody at this address sends by a session that there is not.
    Stray { from: SocketAddr },
    /// A packet of this length did not fit through this node's own link.
    LinkTooSmall { peer: Arc<Peer>, length: usize },
}

/// A bounded queue that wakes the control thread.
#[derive(Debug)]
pub(crate) struct EventQueue {
    queues: Mutex<Queues>,
    /// Readable while there is something.
    pub(crate) signal: OwnedFd,
}

#[derive(Debug, Default)]
struct Queues {
    events: VecDeque<Event>,
    handshakes: usize,
}

impl EventQueue {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { queues: Mutex::default(), signal: new_signal()? })
    }

    /// Adds an event. Whether there was room.
    pub(crate) fn push(&self, event: Event) -> bool {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let is_handshake = matches!(event, Event::Handshake { .. });
        if queues.events.len() >= EVENTS_MAX || (is_handshake && queues.handshakes >= HANDSHAKES_MAX) {
            return false;
        }
        queues.handshakes += usize::from(is_handshake);
        queues.events.push_back(event);
        drop(queues);
        wake(&self.signal);
        true
    }

    /// The next event, and how many handshake messages wait behind it.
    pub(crate) fn pop(&self) -> Option<(Event, usize)> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let event = queues.events.pop_front()?;
        queues.handshakes -= usize::from(matches!(event, Event::Handshake { .. }));
        Some((event, queues.handshakes))
    }
}

impl Tables {
    pub(crate) fn new(limits: Limits, now: Instant) -> std::io::Result<Self> {
        Ok(Self {
            limits,
            clock: Clock::new(now),
            peers: ArcSwap::default(),
            addresses: ArcSwap::default(),
            sessions: ArcSwap::default(),
            key_checks: ArcSwap::default(),
            events: EventQueue::new()?,
            drops: DropCounters::default(),
            last_stray: AtomicU64::new(0),
        })
    }

    /// Tells the control thread of a message of an unknown session, but not of all of a flood.
    pub(crate) fn stray(&self, from: SocketAddr, now: Instant) {
        let time = self.clock.milliseconds(now);
        let last = self.last_stray.load(Ordering::Relaxed);
        if (last == 0 || time >= last + STRAY_INTERVAL_MS)
            && self.last_stray.compare_exchange(last, time, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            self.events.push(Event::Stray { from });
        }
    }

    /// Tells the control thread that a peer needs a session, unless it knows.
    pub(crate) fn want_handshake(&self, peer: &Arc<Peer>) {
        if !peer.is_handshake_wanted.swap(true, Ordering::AcqRel)
            && !self.events.push(Event::HandshakeWanted { peer: peer.clone() })
        {
            peer.is_handshake_wanted.store(false, Ordering::Release);
        }
    }
}

pub(crate) fn new_signal() -> std::io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Makes a signal readable. It cannot fail but by being readable to the utmost.
pub(crate) fn wake(signal: &OwnedFd) {
    let _ = rustix::io::write(signal, &1_u64.to_ne_bytes());
}

/// Makes a signal unreadable.
pub(crate) fn calm(signal: &OwnedFd) {
    let _ = rustix::io::read(signal, &mut [0; 8]);
}
