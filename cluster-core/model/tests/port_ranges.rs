//! Sets of ports beside the plain set of numbers that they stand for.

use std::collections::BTreeSet;

use mesonet_model::PortRanges;
use proptest::prelude::*;

/// Ports at both ends of the number range and close together, so that ranges touch and overlap.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0..24_u16, 65_520..=65_535_u16]
}

fn ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop::collection::vec((port(), 0..6_u16), 0..8).prop_map(|spans| {
        spans.into_iter().map(|(first, length)| (first, first.saturating_add(length))).collect()
    })
}

fn model(ranges: &[(u16, u16)]) -> BTreeSet<u16> {
    ranges.iter().flat_map(|(first, last)| *first..=*last).collect()
}

fn is_normal(ranges: &PortRanges) -> bool {
    let ranges = ranges.ranges();
    let apart = ranges.windows(2).all(|pair| u32::from(pair[0].1) + 1 < u32::from(pair[1].0));
    apart && ranges.iter().all(|(first, last)| first <= last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn operations_are_those_of_sets(left in ranges(), right in ranges(), probe in port()) {
        let (a, b) = (PortRanges::from_ranges(left.clone()), PortRanges::from_ranges(right.clone()));
        let (model_a, model_b) = (model(&left), model(&right));
        prop_assert_eq!(a.iter().collect::<BTreeSet<_>>(), model_a.clone());
        prop_assert_eq!(a.len(), model_a.len());
        prop_assert_eq!(a.is_empty(), model_a.is_empty());
        prop_assert_eq!(a.contains(probe), model_a.contains(&probe));
        prop_assert_eq!(a.contains_all(&b), model_a.is_superset(&model_b));

        let mut union = a.clone();
        union.insert_all(&b);
        prop_assert!(is_normal(&union));
        prop_assert_eq!(union.iter().collect::<BTreeSet<_>>(), &model_a | &model_b);

        let mut difference = a.clone();
        difference.remove_all(&b);
        prop_assert!(is_normal(&difference));
        prop_assert_eq!(difference.iter().collect::<BTreeSet<_>>(), &model_a - &model_b);
    }

    #[test]
    fn equal_sets_are_equal_values_and_texts(ports in prop::collection::vec(port(), 0..20)) {
        let ranges: PortRanges = ports.iter().copied().collect();
        let mut one_by_one = PortRanges::empty();
        for port in &ports {
            one_by_one.insert_all(&PortRanges::span(*port, *port));
        }
        prop_assert!(is_normal(&ranges));
        prop_assert_eq!(&ranges, &one_by_one);
        prop_assert_eq!(ranges.to_string().parse(), Ok(ranges));
    }
}
