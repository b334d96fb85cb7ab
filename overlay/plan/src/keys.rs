//! When a node's key changes, and when the one before is dropped.
//!
//! ```text
//!         too old             everybody knows both         everybody begins with the new one,
//!    One ─────────► Next ─────────────────────────► Last     and nobody uses the old one
//!     ▲      key, and the next one       the new key, and the last one        │
//!     └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Handshakes with both keys are answered in all states, and a node begins them with `key` alone. So at every moment
//! what one node begins with is among what the others take, although they hear of each step at different times. A step
//! is taken when every live node has acknowledged the one before; who is live, the master decides. While one of them
//! does not acknowledge, both keys stay.

use std::time::Duration;

use mesonet_model::{AgentId, Timestamp};

/// Into how many parts the age of keys is divided, within the last of which each node has a moment of its own.
const AGE_PARTS: u32 = 8;

/// How finely that part is divided.
const MOMENTS: u32 = 1 << 16;

/// By how much a clock may be set back without more than that.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// The age at which this node changes its key, which is at most the one that is asked for. Nodes that began together
/// would change their keys together all the time, and every pair of them would agree anew at once.
pub fn age_max_of(node: &AgentId, age_max: Duration) -> Duration {
    // FNV-1a, the same on every machine and in every version, and a mixer: names that differ in their last octet alone
    // have hashes whose high octets are alike.
    let hash = node.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let moment = u32::try_from(mixed >> 48).unwrap_or(0);
    age_max - age_max / AGE_PARTS / MOMENTS * moment
}

/// A key, and when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dated<K> {
    /// The key.
    pub key: K,
    /// When it was made, by the node's clock.
    pub made: Timestamp,
}

/// A node's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKeys<K> {
    /// One, and nothing is under way.
    One(Dated<K>),
    /// A next one that the others are to know.
    Next {
        /// With which handshakes are begun.
        key: Dated<K>,
        /// Which is going to be in its place.
        next: Dated<K>,
    },
    /// A last one that is used until the others have gone over to its successor.
    Last {
        /// With which handshakes are begun.
        key: Dated<K>,
        /// Which was in its place.
        last: Dated<K>,
    },
}

/// What a node knows when it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySituation {
    /// The time.
    pub now: Timestamp,
    /// The age at which a key is changed.
    pub age_max: Duration,
    /// Whether every live node has what this one has said of its keys last.
    pub is_acknowledged: bool,
    /// Whether a session by the last key is in use.
    pub is_last_in_use: bool,
}

/// A step of a change of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStep {
    /// Make a key and let the others know it.
    Announce,
    /// Begin handshakes with the next key.
    Switch,
    /// Forget the last key.
    Drop,
}

impl<K: Clone> NodeKeys<K> {
    /// The key with which handshakes are begun.
    pub fn primary(&self) -> &Dated<K> {
        match self {
            Self::One(key) | Self::Next { key, .. } | Self::Last { key, .. } => key,
        }
    }

    /// The other key whose handshakes are answered.
    pub fn other(&self) -> Option<&Dated<K>> {
        match self {
            Self::One(_) => None,
            Self::Next { next: other, .. } | Self::Last { last: other, .. } => Some(other),
        }
    }

    /// When a step may be due by itself, rather than by what others do.
    pub fn due(&self, age_max: Duration) -> Option<Timestamp> {
        match self {
            Self::One(key) => Some(key.made.plus(age_max)),
            Self::Next { .. } | Self::Last { .. } => None,
        }
    }

    /// What is to be done now.
    pub fn step(&self, situation: &KeySituation) -> Option<KeyStep> {
        let KeySituation { now, age_max, is_acknowledged, is_last_in_use } = *situation;
        match self {
            // One that was made by a clock that has been set back since is as old as that was wrong, which nobody knows.
            Self::One(key) => {
                let is_of_future = now.plus(CLOCK_SLACK) < key.made;
                (is_of_future || key.made.plus(age_max) <= now).then_some(KeyStep::Announce)
            }
            Self::Next { .. } => is_acknowledged.then_some(KeyStep::Switch),
            Self::Last { .. } => (is_acknowledged && !is_last_in_use).then_some(KeyStep::Drop),
        }
    }

    /// The keys after a step, for which a fresh one may be needed. A step that is not due changes nothing.
    ///
    /// # Errors
    /// When there is no fresh key.
    pub fn after<E>(&self, step: KeyStep, fresh: impl FnOnce() -> Result<Dated<K>, E>) -> Result<Self, E> {
        Ok(match (step, self.clone()) {
            (KeyStep::Announce, Self::One(key)) => Self::Next { key, next: fresh()? },
            (KeyStep::Switch, Self::Next { key, next }) => Self::Last { key: next, last: key },
            (KeyStep::Drop, Self::Last { key, .. }) => Self::One(key),
            (_, same) => same,
        })
    }
}
