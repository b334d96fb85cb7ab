//! Which endpoint a new connection goes to.

/// Picks one of the candidates, given in a fixed order: each with its weight, or `None` if it must not be chosen
/// (it drains, or has been tried already). Returns its position.
///
/// The chance is proportional to the weight; where no candidate has one, all are equal. `random` is uniform over all
/// of `u64`.
pub fn choose(candidates: impl Iterator<Item = Option<u32>> + Clone, random: u64) -> Option<usize> {
    let total: u64 = candidates.clone().flatten().map(u64::from).sum();
    let share = |weight: u32| if total == 0 { 1 } else { u64::from(weight) };
    let shares = candidates.enumerate().filter_map(|(position, weight)| Some((position, share(weight?))));
    let sum: u64 = shares.clone().map(|(_, share)| share).sum();
    // The upper half of the product maps the random number to 0..sum without a division.
    let mut point = ((u128::from(random) * u128::from(sum)) >> 64) as u64;
    for (position, share) in shares {
        if point < share {
            return Some(position);
        }
        point -= share;
    }
    None
}

/// Picks the candidate with the fewest open connections for its weight; of several, the first after a random one, so that
/// idle ones take turns. A candidate is given as its weight and its open connections, or `None` if it must not be chosen.
/// One without weight is only chosen where no candidate has one.
pub fn choose_least(
    candidates: impl Iterator<Item = Option<(u32, u64)>> + Clone,
    random: u64,
) -> Option<usize> {
    let has_weight = candidates.clone().flatten().any(|(weight, _)| weight > 0);
    let count = candidates.clone().count().max(1);
    let start = ((u128::from(random) * count as u128) >> 64) as usize;
    let usable = candidates.enumerate().filter_map(|(position, candidate)| {
        let (weight, active) = candidate?;
        let weight = if has_weight { weight } else { 1 };
        // With one connection more it has the least; so that an idle one of little weight does not win from all.
        (weight > 0).then_some((position, u128::from(active) + 1, u128::from(weight)))
    });
    let after = |position: usize| (position + count - start) % count;
    usable
        .min_by(|(first, active, weight), (second, other_active, other_weight)| {
            // Compares the quotients without dividing.
            (active * other_weight).cmp(&(other_active * weight)).then(after(*first).cmp(&after(*second)))
        })
        .map(|(position, _, _)| position)
}

/// The chance of each candidate of [`choose`], from 0 to 1.
pub fn chances(weights: &[u32]) -> Vec<f64> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let chance =
        |weight: u32| if total == 0 { 1.0 / weights.len() as f64 } else { f64::from(weight) / total as f64 };
    weights.iter().map(|weight| chance(*weight)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn choices_follow_the_table() {
        for (weights, random, expected) in [
            (&[][..], 0, None),
            (&[None, None], 0, None),
            (&[Some(1)], 0, Some(0)),
            (&[Some(1)], u64::MAX, Some(0)),
            (&[Some(1), Some(1)], 0, Some(0)),
            (&[Some(1), Some(1)], u64::MAX, Some(1)),
            (&[Some(0), Some(1)], 0, Some(1)),
            (&[Some(1), Some(0)], u64::MAX, Some(0)),
            (&[Some(0), Some(0)], 0, Some(0)),
            (&[Some(0), Some(0)], u64::MAX, Some(1)),
            (&[None, Some(0), None], u64::MAX, Some(1)),
            (&[Some(1), Some(2), Some(1)], u64::MAX / 2, Some(1)),
        ] {
            assert_eq!(choose(weights.iter().copied(), random), expected, "{weights:?} at {random}");
        }
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_chosen() {
        for (candidates, random, expected) in [
            (&[][..], 0, None),
            (&[None], 0, None),
            (&[Some((1, 5)), Some((1, 4))], 0, Some(1)),
            (&[Some((1, 5)), None], u64::MAX, Some(0)),
            (&[Some((100, 7)), Some((50, 4)), Some((0, 0))], 0, Some(0)),
            (&[Some((100, 8)), Some((50, 3)), Some((0, 0))], 0, Some(1)),
            (&[Some((100, 0)), Some((1, 0))], u64::MAX, Some(0)),
            (&[Some((0, 3)), Some((0, 2))], 0, Some(1)),
            (&[Some((1, 0)), Some((1, 0))], 0, Some(0)),
            (&[Some((1, 0)), Some((1, 0))], u64::MAX, Some(1)),
        ] {
            assert_eq!(
                choose_least(candidates.iter().copied(), random),
                expected,
                "{candidates:?} at {random}"
            );
        }
    }

    #[test]
    fn choices_are_proportional_to_weights() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = [0_u32; 4];
        for _ in 0..60_000 {
            let chosen = choose([Some(1), Some(2), None, Some(3)].into_iter(), random.u64(..));
            counts[chosen.expect("there is a candidate")] += 1;
        }
        for (count, expected) in counts.into_iter().zip([10_000_u32, 20_000, 0, 30_000]) {
            assert!(count.abs_diff(expected) <= expected / 20, "{counts:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_candidate_is_chosen_whenever_there_is_one(
            weights in prop::collection::vec(prop::option::of(any::<u32>()), 0..12),
            random: u64,
        ) {
            match choose(weights.iter().copied(), random) {
                None => prop_assert!(weights.iter().all(Option::is_none)),
                Some(position) => {
                    let weight = weights[position].expect("a candidate");
                    prop_assert!(weight > 0 || weights.iter().flatten().all(|weight| *weight == 0));
                }
            }
        }
    }
}
