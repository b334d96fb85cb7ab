//! Handshakes and timers of one peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesonet_overlay_plan::{PathMtu, Probe, ProbeSizes, Reach};

use crate::control::Output;
use crate::cookies::Prover;
use crate::drops::Drop;
use crate::key::{PrivateKey, PublicKey};
use crate::message::{COOKIE_REPLY_LENGTH, DATA_OVERHEAD, RESPONSE_LENGTH};
use crate::noise::{Initiated, Stamp};
use crate::peer::Peer;
use crate::probe::Probing;
use crate::session::{KeyPair, Session};
use crate::settings::PeerSettings;
use crate::tables::Tables;

/// Handshakes that a peer may begin: one in this time. Each costs two multiplications on the curve.
const HANDSHAKE_INTERVAL: Duration = Duration::from_millis(20);

/// Handshakes that it may begin at once, if it has begun none for a while. When keys of both ends change there are
/// several, and a busy end gets them together, however long the other one waited in between.
const HANDSHAKE_BURST: u32 = 8;

/// Octets of the packets that every path is expected to carry: those of IPv6's smallest MTU, without what the tunnel
/// adds over IPv6.
const PACKET_FLOOR: u16 = 1280 - 40 - 8 - DATA_OVERHEAD as u16;

/// By how much less than the usual time the first answer to a handshake is waited for. Each time is twice the one
/// before, up to the usual one. A message that was lost costs little then, and a peer that is gone is asked four times
/// more than usual in all.
const FIRST_RETRY_DIVISOR: u32 = 20;

/// How often messages of unknown sessions begin a handshake.
const STRAY_INTERVAL: Duration = Duration::from_millis(250);

/// How long after the last packet a path counts as used.
const ACTIVE: Duration = Duration::from_secs(10);

/// How exactly timers are kept while there is a session.
const TICK: Duration = Duration::from_millis(250);

/// A peer, as far as handshakes are concerned.
pub(crate) struct PeerControl {
    pub(crate) peer: Arc<Peer>,
    pub(crate) settings: PeerSettings,
    prover: Prover,
    attempt: Option<Attempt>,
    /// The session before the one that is used: packets may still be on their way.
    previous: Option<Arc<Session>>,
    /// A session that the peer began, until it is known to have the keys.
    next: Option<Arc<Session>>,
    /// The time of the last handshake by each of the peer's keys.
    stamps: BTreeMap<PublicKey, Stamp>,
    /// Until when handshakes that were answered have used up what the peer may begin.
    admitted_until: Option<Instant>,
    /// Since when the peer has not answered.
    pub(crate) silent_since: Option<Instant>,
    /// Whether that is so long that the owner of the tunnel was told.
    is_silent: bool,
    /// Sessions that there were so far.
    pub(crate) session_count: u64,
    path: PathMtu,
    has_changed: bool,
}

/// A handshake that this end began.
struct Attempt {
    initiated: Initiated,
    keys: KeyPair,
    began: Instant,
    sent: Instant,
    /// Messages that were sent without an answer.
    tries: u32,
}

/// What came of looking at the time.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) wants_handshake: bool,
    /// Whether a session ended.
    pub(crate) has_ended: bool,
    /// When to look again, if there is anything to wait for.
    pub(crate) wait: Option<Duration>,
}

impl PeerControl {
    pub(crate) fn new(name: &str, settings: PeerSettings, mtu: u16) -> Self {
        let path = PathMtu::new(ProbeSizes { floor: PACKET_FLOOR, ceiling: mtu });
        let peer = Arc::new(Peer::new(name, path.length()));
        peer.endpoint.store(settings.endpoint.map(Arc::new));
        Self {
            peer,
            prover: Prover::new(&settings.key),
            settings,
            attempt: None,
            previous: None,
            next: None,
            stamps: BTreeMap::new(),
            admitted_until: None,
            silent_since: None,
            is_silent: false,
            session_count: 0,
            path,
            has_changed: false,
        }
    }

    /// Takes what is new about the peer. Where it really is counts more than what was known before, but not more than
    /// what has just changed.
    pub(crate) fn set(&mut self, settings: PeerSettings) {
        if settings.endpoint != self.settings.endpoint && settings.endpoint.is_some() {
            self.peer.endpoint.store(settings.endpoint.map(Arc::new));
        }
        if settings.key != self.settings.key {
            self.prover = Prover::new(&settings.key);
            self.attempt = None;
            self.peer.is_handshake_wanted.store(false, Ordering::Release);
        }
        self.stamps.retain(|key, _| settings.key == *key || settings.other_key.as_ref() == Some(key));
        self.settings = settings;
    }

    pub(crate) fn is(&self, peer: &Arc<Peer>) -> bool {
        Arc::ptr_eq(&self.peer, peer)
    }

    pub(crate) fn attempt_index(&self) -> Option<u32> {
        self.attempt.as_ref().map(|attempt| attempt.initiated.local_index())
    }

    /// All sessions with the peer.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = Arc<Session>> {
        let current = self.peer.session.load_full();
        current.into_iter().chain(self.previous.clone()).chain(self.next.clone())
    }

    /// Ends all sessions.
    pub(crate) fn end_sessions(&mut self) -> bool {
        self.keep_sessions(|_| false)
    }

    /// Ends the sessions of keys that this node or the peer has no more. What the peer still sends by the session before
    /// this one is taken although this node has given up its own key: the peer may not know that yet.
    pub(crate) fn keep_sessions_of(&mut self, own: &[PublicKey]) {
        let PeerSettings { key, other_key, .. } = self.settings.clone();
        let is_by_the_peer =
            |session: &Session| session.keys.peer == key || Some(session.keys.peer) == other_key;
        let previous = self.previous.take().filter(|session| is_by_the_peer(session));
        self.keep_sessions(|session| own.contains(&session.keys.own) && is_by_the_peer(session));
        self.previous = previous;
    }

    fn keep_sessions(&mut self, is_kept: impl Fn(&Session) -> bool) -> bool {
        let is_over = |session: &Option<Arc<Session>>| session.as_ref().is_some_and(|it| !is_kept(it));
        let mut has_ended = false;
        if is_over(&self.peer.session.load_full()) {
            self.peer.session.store(None);
            has_ended = true;
        }
        for session in [&mut self.previous, &mut self.next] {
            if is_over(session) {
                *session = None;
                has_ended = true;
            }
        }
        has_ended
    }

    /// Begins a handshake, unless one goes on.
    pub(crate) fn begin(
        &mut self,
        own: &PrivateKey,
        own_public: PublicKey,
        index: u32,
        stamp: Stamp,
        now: Instant,
    ) -> Option<Output> {
        let (began, tries) = self.attempt.as_ref().map_or((now, 0), |attempt| (attempt.began, attempt.tries));
        // Where the peer was last may be gone for ever.
        let said = self.settings.endpoint.filter(|_| tries % 2 == 1);
        let heard = self.peer.endpoint.load_full().map(|endpoint| *endpoint);
        let Some(to) = said.or(heard) else {
            self.peer.drops.count(Drop::NoEndpoint);
            self.give_up();
            return None;
        };
        let keys = KeyPair { own: own_public, peer: self.settings.key };
        let (initiated, mut message) = Initiated::new(own, &keys.peer, index, stamp)
            .inspect_err(|error| tracing::warn!(%error, "A handshake cannot begin"))
            .ok()?;
        self.prover.sign(&mut message, now);
        self.attempt = Some(Attempt { initiated, keys, began, sent: now, tries: tries + 1 });
        self.peer.is_handshake_wanted.store(true, Ordering::Release);
        Some(Output::message(&message, to))
    }

    /// Whether the peer sends by a session that this end does not know, because it restarted: then it begins another.
    /// Anybody can pretend to be at the peer's address, so that happens only once in a while.
    pub(crate) fn is_lost(&self, now: Instant) -> bool {
        let is_young =
            |session: &Session| now.saturating_duration_since(session.established) < STRAY_INTERVAL;
        self.attempt.is_none() && !self.peer.session.load().as_deref().is_some_and(is_young)
    }

    /// Whether a handshake goes on, so that another need not begin.
    pub(crate) fn is_trying(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether a handshake by these keys goes on. Its answer is of no use once there is another one.
    pub(crate) fn is_trying_with(&self, keys: KeyPair) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.keys == keys)
    }

    /// The session that this end began and the peer may not know to be there, because what says so was lost.
    pub(crate) fn unheard_session(&self) -> Option<Arc<Session>> {
        let session = self.peer.session.load_full()?;
        (session.is_initiator && !session.is_heard()).then_some(session)
    }

    /// Takes the answer to a handshake.
    pub(crate) fn finish(
        &mut self,
        message: &[u8; RESPONSE_LENGTH],
        index: u32,
        from: SocketAddr,
        now: Instant,
    ) -> Result<Arc<Session>, Drop> {
        let attempt = self
            .attempt
            .as_mut()
            .filter(|attempt| attempt.initiated.local_index() == index)
            .ok_or(Drop::UnknownSession)?;
        let agreed = attempt.initiated.finish(message).map_err(|_| Drop::WrongTag)?;
        let session = Session::new(self.peer.clone(), attempt.keys, index, &agreed, true, now);
        let session = Arc::new(session);
        self.peer.endpoint.store(Some(Arc::new(from)));
        let round_trip = now.saturating_duration_since(attempt.sent);
        self.use_session(session.clone(), round_trip, now);
        Ok(session)
    }

    /// Whether a handshake by the peer is one to answer.
    pub(crate) fn admit(&mut self, key: &PublicKey, stamp: Stamp, now: Instant) -> Result<(), Drop> {
        if self.stamps.get(key).is_some_and(|last| *last >= stamp) {
            return Err(Drop::Replayed);
        }
        let until = self.admitted_until.map_or(now, |until| until.max(now)) + HANDSHAKE_INTERVAL;
        if until - now > HANDSHAKE_INTERVAL * HANDSHAKE_BURST {
            return Err(Drop::HandshakeFlood);
        }
        self.stamps.insert(*key, stamp);
        self.admitted_until = Some(until);
        Ok(())
    }

    /// The peer began a session. It is used once the peer is known to have the keys.
    pub(crate) fn offered(
        &mut self,
        session: Session,
        response: &mut [u8; RESPONSE_LENGTH],
        from: SocketAddr,
        now: Instant,
    ) {
        self.sign_for(session.keys.peer, response, now);
        self.peer.endpoint.store(Some(Arc::new(from)));
        self.next = Some(Arc::new(session));
    }

    fn sign_for(&mut self, key: PublicKey, message: &mut [u8], now: Instant) {
        if key == self.settings.key {
            self.prover.sign(message, now);
        } else {
            Prover::new(&key).sign(message, now);
        }
    }

    /// The peer has the keys of the session that it began.
    pub(crate) fn confirmed(&mut self, session: &Arc<Session>, now: Instant) {
        if self.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session)) {
            self.next = None;
            let round_trip = now.saturating_duration_since(session.established);
            self.use_session(session.clone(), round_trip, now);
        }
    }

    fn use_session(&mut self, session: Arc<Session>, round_trip: Duration, now: Instant) {
        self.path.start(round_trip, now);
        self.session_count += 1;
        self.previous = self.peer.session.swap(Some(session));
        self.attempt = None;
        self.silent_since = None;
        self.peer.is_handshake_wanted.store(false, Ordering::Release);
    }

    pub(crate) fn take_cookie(&mut self, message: &[u8; COOKIE_REPLY_LENGTH], now: Instant) -> bool {
        self.prover.take_cookie(message, now)
    }

    fn give_up(&mut self) {
        self.attempt = None;
        self.peer.drop_waiting();
        self.peer.is_handshake_wanted.store(false, Ordering::Release);
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, tables: &Tables, now: Instant, outbox: &mut Vec<Output>) -> Due {
        let limits = &tables.limits;
        let age = |since: Instant| now.saturating_duration_since(since);
        let mut due = Due {
            has_ended: self.keep_sessions(|session| age(session.established) < limits.reject_after),
            ..Due::default()
        };
        if let Some(attempt) = &self.attempt {
            if age(attempt.began) >= limits.handshake_give_up {
                tracing::debug!(peer = self.peer.name, "A peer does not answer handshakes");
                self.give_up();
            } else if age(attempt.sent) >= attempt.patience(limits.handshake_retry) {
                due.wants_handshake = true;
            }
        }
        let at = |time: &std::sync::atomic::AtomicU64| tables.clock.instant(time.load(Ordering::Relaxed));
        let times = &self.peer.times;
        let (sent, data_sent) = (at(&times.sent), at(&times.data_sent));
        let (received, data_received) = (at(&times.received), at(&times.data_received));
        // Once nobody has asked for long, nothing is known: the peer may be back and have nothing to say.
        let asked = data_sent.filter(|at| age(*at) < limits.handshake_give_up);
        let asked = asked.or(self.attempt.as_ref().map(|attempt| attempt.began));
        self.silent_since = asked.filter(|_| data_sent > received).map(|at| self.silent_since.unwrap_or(at));
        let silence = limits.keepalive + limits.handshake_retry;
        let is_silent = self.silent_since.is_some_and(|since| age(since) >= silence);
        self.has_changed |= std::mem::replace(&mut self.is_silent, is_silent) != is_silent;
        if let Some(session) = self.peer.session.load_full() {
            let is_owed =
                data_received >= sent && data_received.is_some_and(|at| age(at) >= limits.keepalive);
            let is_asked_for =
                self.settings.keepalive.is_some_and(|interval| sent.is_none_or(|sent| age(sent) >= interval));
            if is_owed || is_asked_for {
                outbox.push(Output::Keepalive { session: session.clone() });
            }
            let is_worth_it = data_sent.is_some_and(|at| age(at) < limits.handshake_give_up);
            let is_old = session.is_initiator
                && age(session.established) + silence >= limits.reject_after
                && data_received.is_some_and(|at| at > session.established);
            due.wants_handshake |= (is_silent && is_worth_it || is_old) && !self.is_trying();
        } else if self.settings.keepalive.is_some() && !self.is_trying() {
            due.wants_handshake = true;
        }
        let is_active = data_sent.is_some_and(|at| age(at) < ACTIVE);
        self.path.handle_time(is_active, now);
        self.publish_mtu();
        self.ask(now, outbox);
        let probe =
            self.path.poll_timeout().filter(|_| is_active).map(|at| at.saturating_duration_since(now));
        let is_watched = self.attempt.is_some() || self.silent_since.is_some() || due.wants_handshake;
        let wait = if is_watched || self.sessions().next().is_some() {
            Some(TICK.min(limits.handshake_retry / FIRST_RETRY_DIVISOR))
        } else {
            None
        };
        due.wait = wait.into_iter().chain(probe.filter(|_| wait.is_some())).min();
        due
    }

    /// Handles a question about the path or an answer.
    pub(crate) fn probed(&mut self, probing: Probing, now: Instant, outbox: &mut Vec<Output>) {
        let Probing { is_answer, number, length } = probing;
        if !is_answer {
            if let Some(session) = self.peer.session.load_full() {
                outbox.push(Output::Probe { session, probing: Probing { is_answer: true, ..probing } });
            }
        } else {
            self.path.answered(Probe { number, length }, now);
            self.publish_mtu();
        }
        self.ask(now, outbox);
    }

    /// A packet of this length did not fit through this node's own link.
    pub(crate) fn too_big(&mut self, length: usize, now: Instant, outbox: &mut Vec<Output>) {
        self.path.too_big(u16::try_from(length).unwrap_or(u16::MAX));
        self.publish_mtu();
        self.ask(now, outbox);
    }

    /// Asks what is to be asked about the path.
    fn ask(&mut self, now: Instant, outbox: &mut Vec<Output>) {
        let Some(session) = self.peer.session.load_full() else {
            return;
        };
        while let Some(Probe { number, length }) = self.path.poll_probe(now) {
            let probing = Probing { is_answer: false, number, length };
            outbox.push(Output::Probe { session: session.clone(), probing });
        }
    }

    /// Tells workers what the path carries. Whether that changed.
    fn publish_mtu(&mut self) {
        let length = self.path.length();
        let is_known = matches!(self.path.reach(), Reach::Found | Reach::Mute);
        self.peer.is_mtu_known.store(is_known, Ordering::Relaxed);
        if self.peer.mtu.swap(length, Ordering::Relaxed) != length {
            tracing::info!(peer = self.peer.name, mtu = length, "The MTU of the path to a peer changed");
            self.has_changed = true;
        }
    }

    /// Whether something changed that the owner of the tunnel wants to know, since this was asked last.
    pub(crate) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }
}

impl Attempt {
    /// How long the answer to the last message is waited for.
    fn patience(&self, longest: Duration) -> Duration {
        let first = longest / FIRST_RETRY_DIVISOR;
        first.saturating_mul(1 << self.tries.saturating_sub(1).min(16)).min(longest)
    }
}
