//! Handshakes, timers and keys of all peers: decisions only. What is to be sent is given back.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use mesonet_overlay_plan::PrefixTable;

use crate::cookies::{Guard, KeyCheck, random_octets};
use crate::drops::Drop;
use crate::flood::Flood;
use crate::key::{PrivateKey, PublicKey};
use crate::message::{COOKIE_REPLY_LENGTH, INITIATION_LENGTH, Kind, RESPONSE_LENGTH, u32_at};
use crate::noise::{Received, Stamp};
use crate::peer::Peer;
use crate::peer_control::PeerControl;
use crate::probe::Probing;
use crate::session::{KeyPair, Session};
use crate::settings::{OwnKeys, PeerSettings, Peers};
use crate::tables::{Event, Tables};

/// Peers that a node begins handshakes with when it starts. Each costs it 0.2 ms. With more, those that have something
/// to send find out by themselves, at the cost of what they sent first.
const GREETED_MAX: usize = 256;

/// What the control thread does for the peers.
pub(crate) struct Control {
    tables: Arc<Tables>,
    /// Octets of the longest packet that the device takes.
    mtu: u16,
    identities: Vec<Identity>,
    pub(crate) peers: BTreeMap<String, PeerControl>,
    owners: HashMap<PublicKey, String>,
    /// Whose handshake a number belongs to that this end gave out.
    attempts: HashMap<u32, String>,
    flood: Flood,
    /// The time of the last handshake: peers only want that it grows.
    last_stamp: Stamp,
    pub(crate) outbox: Vec<Output>,
    /// Whether something changed that the owner of the tunnel wants to know.
    pub(crate) has_changed: bool,
}

/// A key of this node.
struct Identity {
    private: PrivateKey,
    public: PublicKey,
    guard: Guard,
}

/// Something to send.
#[derive(Debug)]
pub(crate) enum Output {
    /// A message of a handshake.
    Message { octets: [u8; INITIATION_LENGTH], length: usize, to: SocketAddr },
    /// The packets that waited for this session, or an empty one if there are none and the peer waits for one.
    Waiting { session: Arc<Session> },
    /// An empty packet.
    Keepalive { session: Arc<Session> },
    /// A question about the path or the answer to one.
    Probe { session: Arc<Session>, probing: Probing },
}

impl Output {
    pub(crate) fn message(octets: &[u8], to: SocketAddr) -> Self {
        let mut message = [0; INITIATION_LENGTH];
        message[..octets.len()].copy_from_slice(octets);
        Self::Message { octets: message, length: octets.len(), to }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Control").field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}

impl Control {
    pub(crate) fn new(tables: Arc<Tables>, mtu: u16, keys: &OwnKeys, now: Instant) -> Self {
        let mut control = Self {
            tables,
            mtu,
            identities: Vec::new(),
            peers: BTreeMap::new(),
            owners: HashMap::new(),
            attempts: HashMap::new(),
            flood: Flood::default(),
            last_stamp: Stamp::default(),
            outbox: Vec::new(),
            has_changed: false,
        };
        control.set_keys(keys, now);
        control
    }

    /// Takes this node's keys. Sessions of keys that are gone end; those of the other one are replaced.
    pub(crate) fn set_keys(&mut self, keys: &OwnKeys, now: Instant) {
        let mut former = std::mem::take(&mut self.identities);
        for private in std::iter::once(&keys.primary).chain(&keys.other) {
            let public = private.public();
            let known = former.iter().position(|identity| identity.public == public);
            self.identities.push(match known {
                Some(place) => former.swap_remove(place),
                None => Identity { private: private.clone(), public, guard: Guard::new(&public, now) },
            });
        }
        let checks =
            self.identities.iter().map(|identity| (identity.public, KeyCheck::new(&identity.public)));
        self.tables.key_checks.store(Arc::new(checks.collect()));
        self.apply_keys(now);
    }

    /// Takes the peers. Sessions with those that are gone, or by keys that are, end at once.
    pub(crate) fn set_peers(&mut self, peers: Peers, now: Instant) {
        let gone: Vec<_> = self.peers.keys().filter(|name| !peers.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(mut peer) = self.peers.remove(&name) {
                peer.end_sessions();
                peer.peer.drop_waiting();
                tracing::info!(peer = name, "A peer is gone");
            }
        }
        for (name, settings) in peers {
            match self.peers.get_mut(&name) {
                Some(peer) => peer.set(settings),
                None => {
                    self.peers.insert(name.clone(), PeerControl::new(&name, settings, self.mtu));
                }
            }
        }
        self.owners.clear();
        let mut addresses = PrefixTable::default();
        for (name, peer) in &self.peers {
            let PeerSettings { key, other_key, addresses: ranges, .. } = &peer.settings;
            for key in std::iter::once(key).chain(other_key) {
                self.owners.insert(*key, name.clone());
            }
            for range in ranges {
                addresses.insert(*range, peer.peer.clone());
            }
        }
        let all = self.peers.iter().map(|(name, peer)| (name.clone(), peer.peer.clone())).collect();
        self.tables.peers.store(Arc::new(all));
        self.tables.addresses.store(Arc::new(addresses));
        self.apply_keys(now);
    }

    /// Ends the sessions of keys that are no more, and begins others where a key is not the primary one any more.
    fn apply_keys(&mut self, now: Instant) {
        let own: Vec<_> = self.identities.iter().map(|identity| identity.public).collect();
        let mut due = Vec::new();
        for (name, peer) in &mut self.peers {
            peer.keep_sessions_of(&own);
            let keys = KeyPair { own: own[0], peer: peer.settings.key };
            let is_of_others = |session: &Arc<Session>| session.keys != keys;
            let is_due = peer.peer.session.load().as_ref().is_some_and(is_of_others);
            if is_due && !peer.is_trying_with(keys) {
                due.push(name.clone());
            }
        }
        self.publish_sessions();
        for name in due {
            self.begin(&name, now);
        }
    }

    /// Handles what a worker reports; so many handshake messages wait behind it.
    pub(crate) fn handle(&mut self, event: Event, waiting: usize, now: Instant) {
        match event {
            Event::Handshake { message, length, from, key } => {
                self.handshake(&message[..length], from, key, waiting, now);
            }
            Event::HandshakeWanted { peer } => {
                if self.control_of(&peer).is_some_and(|control| !control.is_trying()) {
                    self.begin(&peer.name, now);
                }
            }
            Event::Confirmed { session } => {
                if let Some(peer) = self.control_of(&session.peer) {
                    peer.confirmed(&session, now);
                    self.outbox.push(Output::Waiting { session });
                    self.publish_sessions();
                }
            }
            Event::Probe { peer, probing } => {
                if let Some(control) = self.peers.get_mut(&peer.name).filter(|it| it.is(&peer)) {
                    control.probed(probing, now, &mut self.outbox);
                }
            }
            Event::Stray { from } => self.stray(from, now),
            Event::LinkTooSmall { peer, length } => {
                if let Some(control) = self.peers.get_mut(&peer.name).filter(|it| it.is(&peer)) {
                    control.too_big(length, now, &mut self.outbox);
                }
            }
        }
    }

    /// Begins handshakes with all peers, if they are not too many. A node that restarts has sessions with nobody, and
    /// what peers still send by the former ones is lost, until they know.
    pub(crate) fn greet(&mut self, now: Instant) {
        if self.peers.len() > GREETED_MAX {
            return;
        }
        let is_strange = |peer: &&PeerControl| {
            let is_known = peer.is_trying() || peer.sessions().next().is_some();
            !is_known && peer.peer.endpoint.load().is_some()
        };
        let names: Vec<_> =
            self.peers.values().filter(is_strange).map(|peer| peer.peer.name.clone()).collect();
        for name in names {
            self.begin(&name, now);
        }
    }

    /// Somebody at this address sends by a session that there is not: it has forgotten, or this end has, or it does not
    /// know yet that there is another.
    fn stray(&mut self, from: SocketAddr, now: Instant) {
        let is_there = |peer: &&PeerControl| {
            peer.peer.endpoint.load().as_ref().is_some_and(|endpoint| **endpoint == from)
        };
        let Some(peer) = self.peers.values().find(is_there) else {
            return;
        };
        if peer.is_lost(now) {
            let name = peer.peer.name.clone();
            self.begin(&name, now);
        } else if let Some(session) = peer.unheard_session() {
            self.outbox.push(Output::Keepalive { session });
        }
    }

    /// Does what is due. When to come back, if there is anything to wait for.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Duration> {
        let mut wanted = Vec::new();
        let mut has_ended = false;
        let mut wait: Option<Duration> = None;
        for (name, peer) in &mut self.peers {
            let due = peer.tick(&self.tables, now, &mut self.outbox);
            has_ended |= due.has_ended;
            self.has_changed |= peer.take_change();
            if due.wants_handshake {
                wanted.push(name.clone());
            }
            wait = wait.into_iter().chain(due.wait).min();
        }
        for name in wanted {
            self.begin(&name, now);
        }
        if has_ended {
            self.publish_sessions();
        }
        let is_waited_for = |index: &u32, name: &String| {
            self.peers.get(name).is_some_and(|peer| peer.attempt_index() == Some(*index))
        };
        self.attempts.retain(|index, name| is_waited_for(index, name));
        wait
    }

    fn handshake(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        key: Option<PublicKey>,
        waiting: usize,
        now: Instant,
    ) {
        let done = match Kind::of(message) {
            Ok(Kind::Initiation) => self.initiation(message, from, key, waiting, now),
            Ok(Kind::Response) => self.response(message, from, now),
            Ok(Kind::CookieReply) => self.cookie(message, now),
            Ok(Kind::Data) => Err(Drop::Malformed),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = done {
            tracing::debug!(%from, reason = reason.name(), "A handshake message was dropped");
            self.tables.drops.count(reason);
        }
    }

    fn initiation(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        key: Option<PublicKey>,
        waiting: usize,
        now: Instant,
    ) -> Result<(), Drop> {
        let identity =
            self.identities.iter_mut().find(|identity| Some(identity.public) == key).ok_or(Drop::WrongMac)?;
        if self.flood.is_under_load(waiting, now) {
            if !identity.guard.knows_cookie(message, from, now) {
                self.outbox.push(Output::message(&identity.guard.reply(message, from, now), from));
                return Err(Drop::HandshakeFlood);
            }
            if !self.flood.allows(from.ip(), now) {
                return Err(Drop::HandshakeFlood);
            }
        }
        let message: &[u8; INITIATION_LENGTH] = message.try_into().map_err(|_| Drop::Malformed)?;
        let received = Received::read(&identity.private, message).map_err(|_| Drop::WrongTag)?;
        let own = identity.public;
        let name = self.owners.get(&received.peer).ok_or(Drop::UnknownKey)?;
        let peer = self.peers.get_mut(name).ok_or(Drop::UnknownKey)?;
        peer.admit(&received.peer, received.stamp, now)?;
        let local_index = new_index(&self.tables, &self.attempts);
        let keys = KeyPair { own, peer: received.peer };
        let (agreed, mut response) = received.respond(local_index).map_err(|_| Drop::WrongTag)?;
        let session = Session::new(peer.peer.clone(), keys, local_index, &agreed, false, now);
        peer.offered(session, &mut response, from, now);
        self.outbox.push(Output::message(&response, from));
        self.publish_sessions();
        Ok(())
    }

    fn response(&mut self, message: &[u8], from: SocketAddr, now: Instant) -> Result<(), Drop> {
        let message: &[u8; RESPONSE_LENGTH] = message.try_into().map_err(|_| Drop::Malformed)?;
        let index = u32_at(message, 8);
        let name = self.attempts.get(&index).ok_or(Drop::UnknownSession)?;
        let peer = self.peers.get_mut(name).ok_or(Drop::UnknownSession)?;
        let session = peer.finish(message, index, from, now)?;
        // The peer has answered, though by no packet yet.
        let time = self.tables.clock.milliseconds(now);
        peer.peer.times.received.store(time, Ordering::Relaxed);
        tracing::debug!(peer = name, "A session was established");
        self.attempts.remove(&index);
        self.outbox.push(Output::Waiting { session });
        self.publish_sessions();
        Ok(())
    }

    fn cookie(&mut self, message: &[u8], now: Instant) -> Result<(), Drop> {
        let message: &[u8; COOKIE_REPLY_LENGTH] = message.try_into().map_err(|_| Drop::Malformed)?;
        let name = self.attempts.get(&u32_at(message, 4)).ok_or(Drop::UnknownSession)?;
        let peer = self.peers.get_mut(name).ok_or(Drop::UnknownSession)?;
        if peer.take_cookie(message, now) { Ok(()) } else { Err(Drop::WrongTag) }
    }

    /// Begins a handshake with a peer, or again.
    fn begin(&mut self, name: &str, now: Instant) {
        let Some(identity) = self.identities.first() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let index = new_index(&self.tables, &self.attempts);
        self.last_stamp = Stamp::of(SystemTime::now()).after(self.last_stamp);
        if let Some(output) = peer.begin(&identity.private, identity.public, index, self.last_stamp, now) {
            self.attempts.insert(index, name.to_owned());
            self.outbox.push(output);
        }
    }

    /// Tells workers which sessions there are.
    fn publish_sessions(&self) {
        let sessions = self.peers.values().flat_map(PeerControl::sessions);
        let by_index = sessions.map(|session| (session.local_index, session)).collect();
        self.tables.sessions.store(Arc::new(by_index));
    }

    fn control_of(&mut self, peer: &Arc<Peer>) -> Option<&mut PeerControl> {
        self.peers.get_mut(&peer.name).filter(|control| control.is(peer))
    }
}

/// A number for a session that nobody can guess and no other session has.
fn new_index(tables: &Tables, attempts: &HashMap<u32, String>) -> u32 {
    let sessions = tables.sessions.load();
    loop {
        let index = u32::from_le_bytes(random_octets());
        if !sessions.contains_key(&index) && !attempts.contains_key(&index) {
            return index;
        }
    }
}
