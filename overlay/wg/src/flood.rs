//! When handshakes need a cookie, and how many an address gets then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::tables::HANDSHAKES_MAX;

/// Handshake messages that wait when a node is under load.
const WAITING_UNDER_LOAD: usize = HANDSHAKES_MAX / 8;

/// How long a node counts as under load after it was.
const LOAD_LASTS: Duration = Duration::from_secs(1);

/// Handshakes of one address at once.
const BURST: u32 = 5;

/// What it takes for one more.
const INTERVAL: Duration = Duration::from_millis(50);

/// Addresses that are remembered. Beyond that, none is allowed until those that wait long enough are forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Load by handshakes.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    last_load: Option<Instant>,
    /// When each address will have its whole burst again.
    full_at: HashMap<IpAddr, Instant>,
}

impl Flood {
    /// Whether senders must show that they receive at their address.
    pub(crate) fn is_under_load(&mut self, waiting: usize, now: Instant) -> bool {
        if waiting >= WAITING_UNDER_LOAD {
            self.last_load = Some(now);
        }
        self.last_load.is_some_and(|last| now.saturating_duration_since(last) < LOAD_LASTS)
    }

    /// Whether an address may have one more handshake.
    pub(crate) fn allows(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.full_at.len() >= ADDRESSES_MAX && !self.full_at.contains_key(&address) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let full_at = self.full_at.entry(address).or_insert(now);
        let next = (*full_at).max(now) + INTERVAL;
        let is_allowed = next <= now + INTERVAL * BURST;
        if is_allowed {
            *full_at = next;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_burst_and_then_a_rate() {
        let (mut flood, now) = (Flood::default(), Instant::now());
        let address = [192, 0, 2, 1].into();
        let allowed = (0..20).filter(|_| flood.allows(address, now)).count();
        assert_eq!(allowed, BURST as usize);
        assert!(flood.allows([192, 0, 2, 2].into(), now));
        assert!(flood.allows(address, now + INTERVAL));
        assert!(!flood.allows(address, now + INTERVAL));
    }

    #[test]
    fn the_memory_of_addresses_is_bounded() {
        let (mut flood, now) = (Flood::default(), Instant::now());
        for number in 0..2 * ADDRESSES_MAX as u32 {
            flood.allows(IpAddr::V4(number.into()), now);
        }
        assert_eq!(flood.full_at.len(), ADDRESSES_MAX);
        assert!(flood.allows([192, 0, 2, 2].into(), now + INTERVAL));
    }

    #[test]
    fn load_lasts_a_while() {
        let (mut flood, now) = (Flood::default(), Instant::now());
        assert!(!flood.is_under_load(WAITING_UNDER_LOAD - 1, now));
        assert!(flood.is_under_load(WAITING_UNDER_LOAD, now));
        assert!(flood.is_under_load(0, now));
        assert!(!flood.is_under_load(0, now + LOAD_LASTS));
    }
}
