//! Between machines: messages are late, and some machines do not reach others for a while.
//!
//! Everything goes over QUIC or TCP: what is lost is sent again, so that loss is delay, and the order of a connection
//! is kept. Different connections overtake each other.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use mesonet_model::Timestamp;

/// Between attempts to send what is not acknowledged, at most.
const RETRANSMISSION_MAX: u64 = 500;

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Store,
    Master(usize),
    Node(usize),
}

/// How bad the network is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Of thousand messages so many have to be sent again.
    pub(crate) lost: u32,
    /// A message takes at most so long, mostly much less.
    pub(crate) delay_max: Duration,
}

/// Who does not reach whom.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Pairs, the lesser one first, and since when.
    cuts: BTreeMap<(Party, Party), Timestamp>,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { lost: 0, delay_max: Duration::from_millis(5) };

    /// Mostly short, sometimes as long as it can be.
    pub(crate) fn delay(&self, rng: &mut Rng) -> Duration {
        let longest = u64::try_from(self.delay_max.as_millis()).unwrap_or(u64::MAX);
        let longest = if rng.u32(..10) == 0 { longest } else { longest / 20 };
        let mut delay = Duration::from_millis(rng.u64(..=longest));
        while rng.u32(..1000) < self.lost {
            delay += Self::retransmission(rng);
        }
        delay
    }

    /// When a message that did not arrive is tried again.
    pub(crate) fn retransmission(rng: &mut Rng) -> Duration {
        Duration::from_millis(rng.u64(50..=RETRANSMISSION_MAX))
    }
}

impl Network {
    /// Since when two do not reach each other, if so.
    pub(crate) fn cut_since(&self, a: Party, b: Party) -> Option<Timestamp> {
        self.cuts.get(&pair(a, b)).copied()
    }

    pub(crate) fn is_cut(&self, a: Party, b: Party) -> bool {
        self.cut_since(a, b).is_some()
    }

    pub(crate) fn cut(&mut self, a: Party, b: Party, now: Timestamp) {
        self.cuts.entry(pair(a, b)).or_insert(now);
    }

    pub(crate) fn heal(&mut self, a: Party, b: Party) {
        self.cuts.remove(&pair(a, b));
    }

    pub(crate) fn heal_all(&mut self) {
        self.cuts.clear();
    }
}

fn pair(a: Party, b: Party) -> (Party, Party) {
    (a.min(b), a.max(b))
}
