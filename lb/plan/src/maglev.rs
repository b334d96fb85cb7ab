//! Maglev's table: which endpoint a hash leads to, the same on every node, with as few changes as there can be when
//! endpoints change.
//!
//! As in Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4, every endpoint
//! has its own order of all positions, and a lookup is one access. Who gets a position is decided otherwise: not whoever
//! comes first when all take turns, which moves 1.3 % more than must move when one of ten leaves, but the endpoint in
//! whose order the position comes first. So a position only changes hands if the one that has it leaves, or one that
//! puts it further in front comes. The price is that shares are those of a random draw: with 65,537 positions, one of
//! ten endpoints has its share to within 1 % of it, one of a hundred to within 3 % (standard deviation).
//!
//! The distance of a position is the mean of the exponential variate of its rank, divided by the weight: the least of
//! several such variates is that of an endpoint as often as its weight says (Efraimidis and Spirakis, Information
//! Processing Letters 97(5), 2006). The means are partial harmonic sums, in integers, so that all machines agree.

use std::net::SocketAddr;

use mesonet_ebpf_abi::{Place, hash_slot, hash_words};

/// The positions of a table, a prime: with up to some hundred endpoints, each has its share within some percent.
pub const MAGLEV_SLOTS: u32 = 65_537;

/// A table of positions, each with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaglevTable {
    /// Positions of endpoints in the list that the table was built from.
    slots: Vec<u32>,
}

impl MaglevTable {
    /// The table of endpoints with weights. Their order in the list does not matter for who gets which position. Where no
    /// endpoint has a weight, all are equal; a table without endpoints is empty.
    pub fn new(endpoints: &[(SocketAddr, u32)]) -> Self {
        Self::with_slots(endpoints, MAGLEV_SLOTS)
    }

    /// A table of another size, which must be a prime.
    pub fn with_slots(endpoints: &[(SocketAddr, u32)], slots: u32) -> Self {
        let all_zero = endpoints.iter().all(|(_, weight)| *weight == 0);
        let mut takers: Vec<Taker> = (0_u32..)
            .zip(endpoints)
            .filter(|(_, (_, weight))| all_zero || *weight > 0)
            .map(|(position, (address, weight))| Taker::new(position, *address, (*weight).max(1), slots))
            .collect();
        // Decides between two that put a position equally far in front.
        takers.sort_by_key(|taker| taker.address);
        Self { slots: fill(&mut takers, slots) }
    }

    /// The endpoint that a hash leads to, as its position in the list that the table was built from.
    pub fn choose(&self, hash: u32) -> Option<usize> {
        // Below the number of positions, which fits.
        let slot = hash_slot(hash, self.slots.len() as u32);
        self.slots.get(slot as usize).map(|endpoint| *endpoint as usize)
    }

    /// For each position, the endpoint's position in the list that the table was built from.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }
}

/// An endpoint on its way through its order of positions.
#[derive(Debug)]
struct Taker {
    position: u32,
    address: SocketAddr,
    weight: u64,
    /// How many positions of its order are behind it.
    rank: u32,
    /// How far the last of them is away for a weight of one.
    way: u64,
    /// The next position of its order.
    next: u32,
    step: u32,
}

const OFFSET_SEED: u32 = 1;

const STEP_SEED: u32 = 2;

/// Binary digits of a distance below one.
const FRACTION: u32 = 40;

/// How often each position is looked at on average before those that nobody has come to are searched: somewhat above
/// the natural logarithm of their number.
const VISITS: u128 = 12;

/// How far behind a position is that nobody has come to.
const NEVER: u64 = u64::MAX;

/// Costs some `VISITS` times as much as there are positions, whatever the number of endpoints.
fn fill(takers: &mut [Taker], slots: u32) -> Vec<u32> {
    let total: u128 = takers.iter().map(|taker| u128::from(taker.weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let mut table = vec![(NEVER, 0); slots as usize];
    // Fits for any weight of at least one.
    let mut horizon = ((VISITS << FRACTION) / total) as u64 + 1;
    loop {
        for taker in &mut *takers {
            taker.go(horizon, slots, &mut table);
        }
        if table.iter().all(|(distance, _)| *distance != NEVER) {
            return table.into_iter().map(|(_, position)| position).collect();
        }
        horizon = horizon.saturating_add(horizon / 4 + 1);
    }
}

impl Taker {
    fn new(position: u32, address: SocketAddr, weight: u32, slots: u32) -> Self {
        let Place { address: [a, b, c, d], port } = Place::from(address);
        let words = [a, b, c, d, port];
        let next = hash_words(&words, OFFSET_SEED) % slots;
        let step = hash_words(&words, STEP_SEED) % (slots - 1) + 1;
        Self { position, address, weight: weight.into(), rank: 0, way: 0, next, step }
    }

    /// Takes every position up to a distance that nobody else puts further in front.
    fn go(&mut self, horizon: u64, slots: u32, table: &mut [(u64, u32)]) {
        while self.rank < slots {
            let way = self.way + (1 << FRACTION) / u64::from(slots - self.rank);
            let distance = way / self.weight;
            if distance > horizon {
                return;
            }
            self.way = way;
            let slot = &mut table[self.next as usize];
            if distance < slot.0 {
                *slot = (distance, self.position);
            }
            self.rank += 1;
            // Both are below the number of positions, which is below 2^31.
            self.next += self.step;
            if self.next >= slots {
                self.next -= slots;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 + number), 31_000))
    }

    fn endpoints(weights: &[(u32, u32)]) -> Vec<(SocketAddr, u32)> {
        weights.iter().map(|(number, weight)| (address(*number), *weight)).collect()
    }

    /// The address at each position.
    fn owners(endpoints: &[(SocketAddr, u32)]) -> Vec<SocketAddr> {
        let table = MaglevTable::new(endpoints);
        table.slots().iter().map(|at| endpoints[*at as usize].0).collect()
    }

    fn moved(before: &[SocketAddr], after: &[SocketAddr]) -> f64 {
        let moved = before.iter().zip(after).filter(|(before, after)| before != after).count();
        moved as f64 / before.len() as f64
    }

    #[test]
    fn shares_follow_weights() {
        let endpoints = endpoints(&[(1, 100), (2, 50), (3, 0), (4, 50), (5, 1)]);
        let mut counts: BTreeMap<SocketAddr, f64> = BTreeMap::new();
        for owner in owners(&endpoints) {
            *counts.entry(owner).or_default() += 1.0 / f64::from(MAGLEV_SLOTS);
        }
        for (address, weight) in endpoints {
            let share = counts.get(&address).copied().unwrap_or(0.0);
            assert!((share - f64::from(weight) / 201.0).abs() < 0.01, "{address}: {share}");
        }
    }

    #[test]
    fn nothing_is_chosen_from_nothing_and_all_alike_where_none_has_a_weight() {
        assert_eq!(MaglevTable::new(&[]).choose(7), None);
        let table = MaglevTable::new(&endpoints(&[(1, 0), (2, 0)]));
        let firsts = table.slots().iter().filter(|at| **at == 0).count();
        assert!(firsts.abs_diff(MAGLEV_SLOTS as usize / 2) < 700, "{firsts}");
        assert_eq!(table.choose(0), Some(table.slots()[0] as usize));
        assert_eq!(table.choose(u32::MAX), Some(table.slots()[65_536] as usize));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn few_flows_move_when_one_of_n_leaves(first in 0..1_000_000_u32, count in 2..120_u32, gone: prop::sample::Index) {
            let all = endpoints(&(first..first + count).map(|number| (number, 100)).collect::<Vec<_>>());
            let mut fewer = all.clone();
            fewer.remove(gone.index(all.len()));
            let (before, after) = (owners(&all), owners(&fewer));
            let moved = moved(&before, &after);
            prop_assert!(moved <= 1.0 / f64::from(count) + 0.01, "{moved} of {count}");
            let gone = all.iter().find(|each| !fewer.contains(each)).expect("one is gone").0;
            prop_assert!(before.iter().zip(&after).all(|(before, after)| before == after || *before == gone));
        }

        #[test]
        fn few_flows_move_when_weights_change(first in 0..1_000_000_u32, count in 2..60_u32, weight in 0..=100_u32) {
            let all: Vec<(u32, u32)> = (first..first + count).map(|number| (number, 100)).collect();
            let mut changed = all.clone();
            changed[0].1 = weight;
            let moved = moved(&owners(&endpoints(&all)), &owners(&endpoints(&changed)));
            prop_assert!(moved <= 1.0 / f64::from(count) + 0.01, "{moved} of {count}");
        }

        #[test]
        fn the_choice_is_equal_on_every_node(numbers in prop::collection::btree_set(0..1000_u32, 1..30), turn: prop::sample::Index) {
            let here: Vec<(u32, u32)> = numbers.iter().map(|number| (*number, number % 7)).collect();
            let mut there = here.clone();
            there.rotate_left(turn.index(here.len()));
            prop_assert_eq!(owners(&endpoints(&here)), owners(&endpoints(&there)));
        }
    }
}
