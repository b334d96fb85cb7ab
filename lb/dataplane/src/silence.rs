//! Which endpoints of datagrams are in use. Datagrams have no end: who has had none for a while is not used any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Datagrams to an endpoint are over when it has had none for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// What has been heard of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    packets: u64,
    at: Instant,
}

impl Heard {
    /// Whether it has been silent for long.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= SILENCE
    }
}

/// When each endpoint was heard of last, going by how many packets it has had.
pub(crate) fn listen<K: Copy + Ord>(
    before: &BTreeMap<K, Heard>,
    packets: &BTreeMap<K, u64>,
    now: Instant,
) -> BTreeMap<K, Heard> {
    let heard = |key: &K, packets: u64| {
        let same = before.get(key).filter(|heard| heard.packets == packets);
        same.copied().unwrap_or(Heard { packets, at: now })
    };
    packets.iter().map(|(key, packets)| (*key, heard(key, *packets))).collect()
}
