//! Which master is tried next, and after which wait.
//!
//! A round tries every master once, each at once after the last. Only a round without success is followed by a wait,
//! which grows. A master that stands by names the leader, which is tried before anything else.

use std::time::Duration;

use super::{BACKOFF_FIRST, BACKOFF_LAST};

/// For how long a handshake is waited for in the first round where there are other masters: a master that is there
/// answers within a few round trips, or, when a thousand nodes come at once, a little later.
const HANDSHAKE_FIRST: Duration = Duration::from_secs(1);

/// The longest wait for a handshake, which is also the wait where there is no other master to try.
const HANDSHAKE_LAST: Duration = Duration::from_secs(8);

/// Masters that are followed from one to the next before the round goes on: two that name each other end nowhere.
const REDIRECTS_MAX: u32 = 3;

/// The next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leg {
    /// `HOST:PORT`.
    pub(super) master: String,
    /// How long to wait before; differs from node to node by what the caller makes of it.
    pub(super) wait: Duration,
    /// How long the handshake may take.
    pub(super) handshake: Duration,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The master stands by and names the leader.
    Redirected(String),
    /// There was no connection, or it did not hold.
    Failed {
        /// Whether trying again soon is of no use.
        is_permanent: bool,
    },
    /// There was a good connection, which has ended.
    Served,
}

/// Where a node has been and where it goes.
#[derive(Debug)]
pub(super) struct Itinerary {
    masters: Vec<String>,
    next: usize,
    tried: usize,
    leader: Option<String>,
    redirects: u32,
    handshake: Duration,
    backoff: Duration,
    wait: Duration,
}

impl Itinerary {
    /// Begins with the `first` master, counted over the list again and again.
    pub(super) fn new(masters: Vec<String>, first: usize) -> Self {
        Self {
            masters,
            next: first,
            tried: 0,
            leader: None,
            redirects: 0,
            handshake: HANDSHAKE_FIRST,
            backoff: BACKOFF_FIRST,
            wait: Duration::ZERO,
        }
    }

    /// The next attempt.
    pub(super) fn leg(&mut self) -> Leg {
        let wait = std::mem::take(&mut self.wait);
        let count = self.masters.len().max(1);
        let handshake = if count == 1 { HANDSHAKE_LAST } else { self.handshake };
        if let Some(master) = self.leader.take() {
            return Leg { master, wait, handshake };
        }
        let master = self.masters.get(self.next % count).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        self.tried += 1;
        Leg { master, wait, handshake }
    }

    /// Takes note of how it went.
    pub(super) fn ended(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Redirected(leader) if self.redirects < REDIRECTS_MAX => {
                self.redirects += 1;
                self.leader = Some(leader);
            }
            Outcome::Redirected(_) => self.failed(false),
            Outcome::Failed { is_permanent } => self.failed(is_permanent),
            Outcome::Served => {
                self.backoff = BACKOFF_FIRST;
                self.handshake = HANDSHAKE_FIRST;
                // The one that has just ended comes last.
                self.tried = 1;
                self.failed(false);
            }
        }
    }

    fn failed(&mut self, is_permanent: bool) {
        self.redirects = 0;
        if self.tried < self.masters.len() && !is_permanent {
            return;
        }
        self.tried = 0;
        self.wait = if is_permanent { BACKOFF_LAST } else { self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_LAST);
        self.handshake = (self.handshake * 2).min(HANDSHAKE_LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Outcome = Outcome::Failed { is_permanent: false };

    fn masters(names: &[&str]) -> Itinerary {
        Itinerary::new(names.iter().map(|name| (*name).to_owned()).collect(), 0)
    }

    /// The next masters with their waits in milliseconds, when every attempt fails.
    fn failing(itinerary: &mut Itinerary, attempts: usize) -> Vec<(String, u128)> {
        let attempt = |_| {
            let leg = itinerary.leg();
            itinerary.ended(FAILED);
            (leg.master, leg.wait.as_millis())
        };
        (0..attempts).map(attempt).collect()
    }

    fn expected(legs: &[(&str, u128)]) -> Vec<(String, u128)> {
        legs.iter().map(|(master, wait)| ((*master).to_owned(), *wait)).collect()
    }

    #[test]
    fn every_master_is_tried_at_once_and_only_rounds_are_waited_for() {
        let legs = failing(&mut masters(&["a", "b", "c"]), 7);
        let all = [("a", 0), ("b", 0), ("c", 0), ("a", 100), ("b", 0), ("c", 0), ("a", 200)];
        assert_eq!(legs, expected(&all));
    }

    #[test]
    fn a_lone_master_is_waited_for_longer_and_longer() {
        let legs = failing(&mut masters(&["a"]), 9);
        let waits: Vec<u128> = legs.into_iter().map(|(_, wait)| wait).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(masters(&["a"]).leg().handshake, HANDSHAKE_LAST);
    }

    #[test]
    fn the_leader_that_is_named_is_next_and_costs_no_wait() {
        let mut itinerary = masters(&["a", "b", "c"]);
        itinerary.leg();
        itinerary.ended(Outcome::Redirected("leader".to_owned()));
        let legs = failing(&mut itinerary, 4);
        assert_eq!(legs, expected(&[("leader", 0), ("b", 0), ("c", 0), ("a", 100)]));
    }

    #[test]
    fn masters_that_name_each_other_are_left_after_a_while() {
        let mut itinerary = masters(&["a", "b"]);
        let mut waits = 0;
        for _ in 0..20 {
            if itinerary.leg().wait > Duration::ZERO {
                waits += 1;
            }
            itinerary.ended(Outcome::Redirected("a".to_owned()));
        }
        assert!(waits >= 2, "{waits} waits in 20 attempts");
    }

    #[test]
    fn when_a_good_connection_ends_the_others_are_tried_at_once() {
        let mut itinerary = masters(&["a", "b", "c"]);
        failing(&mut itinerary, 10);
        let last = itinerary.leg().master;
        assert_eq!(last, "b");
        itinerary.ended(Outcome::Served);
        let legs = failing(&mut itinerary, 3);
        assert_eq!(legs, expected(&[("c", 0), ("a", 0), ("b", 100)]));
    }

    #[test]
    fn a_refusal_for_good_is_not_repeated_soon() {
        let mut itinerary = masters(&["a", "b"]);
        itinerary.leg();
        itinerary.ended(Outcome::Failed { is_permanent: true });
        assert_eq!(itinerary.leg().wait, BACKOFF_LAST);
    }
}
