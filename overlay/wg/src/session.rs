//! The keys of a finished handshake, and what is counted with them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::cipher::{Cipher, TOGETHER_MAX};
use crate::key::PublicKey;
use crate::message::{DATA_OVERHEAD, write_data_header};
use crate::noise::Agreed;
use crate::peer::Peer;
use crate::replay::ReplayWindow;
use crate::settings::Limits;

/// Messages after which a session encrypts nothing more (REJECT_AFTER_MESSAGES of the protocol).
const MESSAGES_MAX: u64 = u64::MAX - (1 << 13);

/// Keys that both ends have. Any number of cores may use it at once.
pub(crate) struct Session {
    /// Whom it is with.
    pub(crate) peer: Arc<Peer>,
    /// By which of the peer's keys and of this node's keys.
    pub(crate) keys: KeyPair,
    /// The number by which this end knows it.
    pub(crate) local_index: u32,
    remote_index: u32,
    pub(crate) established: Instant,
    /// Whether this end began the handshake. Only that end renews the session after a time.
    pub(crate) is_initiator: bool,
    sealing: Cipher,
    opening: Cipher,
    /// Whether something by it has arrived, so that the other end has the keys, and uses them.
    is_heard: AtomicBool,
    next_counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
}

/// The long-term keys of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyPair {
    pub(crate) own: PublicKey,
    pub(crate) peer: PublicKey,
}

impl Session {
    pub(crate) fn new(
        peer: Arc<Peer>,
        keys: KeyPair,
        local_index: u32,
        agreed: &Agreed,
        is_initiator: bool,
        now: Instant,
    ) -> Self {
        Self {
            peer,
            keys,
            local_index,
            remote_index: agreed.remote_index,
            established: now,
            is_initiator,
            sealing: Cipher::new(&agreed.sending),
            opening: Cipher::new(&agreed.receiving),
            is_heard: AtomicBool::new(false),
            next_counter: AtomicU64::new(0),
            replay: Mutex::default(),
        }
    }

    /// Numbers for so many messages, or nothing if the session is used up.
    pub(crate) fn take_counters(&self, messages: u64) -> Option<u64> {
        if self.messages_sent() >= MESSAGES_MAX {
            return None;
        }
        Some(self.next_counter.fetch_add(messages, Ordering::Relaxed))
    }

    /// Messages that were encrypted.
    pub(crate) fn messages_sent(&self) -> u64 {
        self.next_counter.load(Ordering::Relaxed)
    }

    /// Notes that the other end uses it. Whether that is news.
    #[inline]
    pub(crate) fn hear(&self) -> bool {
        !self.is_heard() && !self.is_heard.swap(true, Ordering::AcqRel)
    }

    /// Whether the other end is known to use it.
    #[inline]
    pub(crate) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Relaxed)
    }

    /// Whether another session should take its place.
    #[inline]
    pub(crate) fn is_due(&self, limits: &Limits, now: Instant) -> bool {
        self.messages_sent() >= limits.rekey_after_messages
            || (self.is_initiator && now.saturating_duration_since(self.established) >= limits.rekey_after)
    }

    /// Writes what stands before a packet.
    #[inline]
    pub(crate) fn write_header(&self, counter: u64, message: &mut [u8]) {
        debug_assert!(message.len() >= DATA_OVERHEAD);
        write_data_header(message, self.remote_index, counter);
    }

    /// Encrypts messages of one length in place, in which headers and packets are.
    pub(crate) fn seal(&self, messages: &mut [u8], length: usize) {
        self.sealing.seal(messages, length);
    }

    /// Decrypts messages of one length in place. Says of each whether it is what the peer encrypted.
    pub(crate) fn open(&self, messages: &mut [u8], length: usize) -> [bool; TOGETHER_MAX] {
        self.opening.open(messages, length)
    }

    /// Keeps those messages whose numbers are new. A batch at once, so that its cost is the batch's.
    pub(crate) fn keep_new(&self, mut is_kept: impl FnMut(&mut ReplayWindow)) {
        is_kept(&mut self.replay.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .finish_non_exhaustive()
    }
}
