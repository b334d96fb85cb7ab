//! What is done with datagrams before anything of them is believed.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::cipher::TOGETHER_MAX;
use crate::drops::Drop;
use crate::ip::Outline;
use crate::join::Joiner;
use crate::message::{DATA_HEADER_LENGTH, INITIATION_LENGTH, Kind, TAG_LENGTH, u32_at, u64_at};
use crate::probe::Probing;
use crate::session::Session;
use crate::socket::{Incoming, ReceivedBatch};
use crate::tables::{Event, Tables};

/// Sorts datagrams: packets by peers are decrypted where they are and joined, the rest is for the control thread.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The last messages of one session.
    sealed: Sealed,
    /// Packets that were decrypted and not looked at yet. It is empty in between, and its memory reused.
    opened: Vec<Opened>,
    /// The last source address and the session it was good for, so that it need not be looked up again.
    last_source: Option<(Source, u32)>,
}

/// An address as numbers that stay in registers. Reading an [`IpAddr`] that was just written in parts waits until all that
/// was written before it is in the cache, which is the packet.
type Source = (bool, u128);

/// Messages of one length, one after the other, that are not decrypted yet.
#[derive(Debug, Default)]
struct Sealed {
    places: Range<usize>,
    length: usize,
}

impl Sealed {
    /// Whether a message can be decrypted with these.
    #[inline]
    fn is_continued_by(&self, place: &Range<usize>) -> bool {
        self.places.end == place.start
            && self.length == place.len()
            && self.places.len() < TOGETHER_MAX * self.length
    }

    /// Adds a message that continues these, or the first one.
    #[inline]
    fn push(&mut self, place: Range<usize>) {
        if self.places.is_empty() {
            *self = Self { length: place.len(), places: place };
        } else {
            self.places.end = place.end;
        }
    }
}

#[derive(Debug)]
struct Opened {
    place: Range<usize>,
    counter: u64,
}

impl Entry {
    /// Takes a batch in.
    pub(crate) fn admit(
        &mut self,
        tables: &Tables,
        received: &mut ReceivedBatch,
        joiner: &mut Joiner,
        now: Instant,
    ) {
        self.last_source = None;
        for message in &received.messages {
            self.message(tables, &mut received.octets, message, joiner, now);
        }
    }

    fn message(
        &mut self,
        tables: &Tables,
        octets: &mut [u8],
        message: &Incoming,
        joiner: &mut Joiner,
        now: Instant,
    ) {
        let mut session: Option<Arc<Session>> = None;
        let end = message.start + message.length;
        for start in (message.start..end).step_by(message.segment.max(1)) {
            let place = start..end.min(start + message.segment);
            let datagram = &octets[place.clone()];
            match Kind::of(datagram) {
                Ok(Kind::Data) => {
                    let index = u32_at(datagram, 4);
                    if session.as_ref().is_none_or(|session| session.local_index != index) {
                        if let Some(session) = session.take() {
                            self.accept(tables, octets, &session, message.from, joiner, now);
                        }
                        session = find(tables, index, now);
                    }
                    if let Some(session) = &session {
                        if !self.sealed.is_continued_by(&place) {
                            self.accept(tables, octets, session, message.from, joiner, now);
                        }
                        self.sealed.push(place);
                    } else {
                        tables.drops.count(Drop::UnknownSession);
                        tables.stray(message.from, now);
                    }
                }
                Ok(kind) => pass_on(tables, kind, datagram, message.from),
                Err(reason) => tables.drops.count(reason),
            }
        }
        if let Some(session) = session {
            self.accept(tables, octets, &session, message.from, joiner, now);
        }
    }

    /// Decrypts the last messages.
    fn open(&mut self, octets: &mut [u8], session: &Session) {
        let Sealed { places, length } = std::mem::take(&mut self.sealed);
        let messages = &mut octets[places.clone()];
        let are_right = session.open(messages, length);
        for ((start, message), is_right) in
            places.step_by(length).zip(messages.chunks_exact(length)).zip(are_right)
        {
            if is_right {
                let place = start + DATA_HEADER_LENGTH..start + length - TAG_LENGTH;
                self.opened.push(Opened { place, counter: u64_at(message, 8) });
            } else {
                session.peer.drops.count(Drop::WrongTag);
            }
        }
    }

    /// Decrypts the last messages of a session, and takes the packets that are new and come from where the peer may send
    /// from. They are so few that they are still in the core's first cache when their checksums are looked at.
    fn accept(
        &mut self,
        tables: &Tables,
        octets: &mut [u8],
        session: &Arc<Session>,
        from: SocketAddr,
        joiner: &mut Joiner,
        now: Instant,
    ) {
        if self.sealed.places.is_empty() {
            return;
        }
        self.open(octets, session);
        let peer = &session.peer;
        let mut opened = std::mem::take(&mut self.opened);
        let decrypted = opened.len();
        session.keep_new(|window| opened.retain(|packet| window.admit(packet.counter)));
        if opened.len() < decrypted {
            peer.drops.add(Drop::Replayed, (decrypted - opened.len()) as u64);
        }
        if !opened.is_empty() {
            self.note_arrival(tables, session, from, now);
        }
        let (mut packets, mut total) = (0, 0);
        for packet in &opened {
            let octets_of = &octets[packet.place.clone()];
            match self.judge(tables, session, octets_of) {
                Ok(Some(length)) => {
                    packets += 1;
                    total += length as u64;
                    joiner.push(octets, packet.place.start..packet.place.start + length);
                }
                Ok(None) => {}
                Err(reason) => peer.drops.count(reason),
            }
        }
        if packets > 0 {
            peer.received.add(packets, total);
            let time = tables.clock.milliseconds(now);
            peer.times.data_received.store(time, Ordering::Relaxed);
        }
        opened.clear();
        self.opened = opened;
    }

    /// Something came that only the peer can have sent.
    fn note_arrival(&self, tables: &Tables, session: &Arc<Session>, from: SocketAddr, now: Instant) {
        let peer = &session.peer;
        peer.times.received.store(tables.clock.milliseconds(now), Ordering::Relaxed);
        if peer.endpoint.load().as_ref().is_none_or(|endpoint| **endpoint != from) {
            tracing::debug!(peer = peer.name, %from, "A peer sends from another address");
            peer.endpoint.store(Some(Arc::new(from)));
        }
        if session.hear() && !session.is_initiator {
            tables.events.push(Event::Confirmed { session: session.clone() });
        }
    }

    /// How long a packet is without what pads it, if it may go on. Nothing, if it was for this end of the tunnel.
    #[inline]
    fn judge(&mut self, tables: &Tables, session: &Session, packet: &[u8]) -> Result<Option<usize>, Drop> {
        if packet.is_empty() {
            return Ok(None);
        }
        let Some(Outline { source, length, .. }) = Outline::of(packet) else {
            let probing = Probing::read(packet).ok_or(Drop::Malformed)?;
            tables.events.push(Event::Probe { peer: session.peer.clone(), probing });
            return Ok(None);
        };
        let source: Source = match source {
            IpAddr::V4(address) => (true, address.to_bits().into()),
            IpAddr::V6(address) => (false, address.to_bits()),
        };
        let source = (source, session.local_index);
        if self.last_source != Some(source) {
            if !is_from_peer(tables, session, packet) {
                return Err(Drop::WrongSource);
            }
            self.last_source = Some(source);
        }
        Ok(Some(length))
    }
}

/// Whether a packet comes from where the peer of a session may send from.
#[cold]
#[inline(never)]
fn is_from_peer(tables: &Tables, session: &Session, packet: &[u8]) -> bool {
    let addresses = tables.addresses.load();
    Outline::of(packet)
        .and_then(|outline| addresses.lookup(outline.source))
        .is_some_and(|owner| Arc::ptr_eq(owner, &session.peer))
}

fn find(tables: &Tables, index: u32, now: Instant) -> Option<Arc<Session>> {
    let sessions = tables.sessions.load();
    let session = sessions.get(&index)?;
    let age = now.saturating_duration_since(session.established);
    (age < tables.limits.reject_after).then(|| session.clone())
}

/// Gives a handshake message to the control thread, if its sender knows a key of this node.
fn pass_on(tables: &Tables, kind: Kind, datagram: &[u8], from: SocketAddr) {
    let key = if kind == Kind::CookieReply {
        None
    } else {
        let checks = tables.key_checks.load();
        match checks.iter().find(|(_, check)| check.knows_key(datagram)) {
            Some((key, _)) => Some(*key),
            None => {
                tables.drops.count(Drop::WrongMac);
                return;
            }
        }
    };
    let mut message = Box::new([0; INITIATION_LENGTH]);
    message[..datagram.len()].copy_from_slice(datagram);
    if !tables.events.push(Event::Handshake { message, length: datagram.len(), from, key }) {
        tables.drops.count(Drop::HandshakeFlood);
    }
}
