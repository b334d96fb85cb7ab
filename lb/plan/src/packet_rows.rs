//! Which rows of the table of choices are free.

use std::collections::BTreeMap;

/// Free rows, as ranges: from the first to how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FreeRows(BTreeMap<u32, u32>);

impl FreeRows {
    /// All of a table.
    pub(crate) fn new(rows: u32) -> Self {
        Self(BTreeMap::from([(0, rows)]))
    }

    /// Takes so many rows in a row, the first that there are. Returns the first of them.
    pub(crate) fn take(&mut self, count: u32) -> Option<u32> {
        let (first, length) =
            self.0.iter().find(|(_, length)| **length >= count).map(|(first, length)| (*first, *length))?;
        self.cut(first, length, first, count);
        Some(first)
    }

    /// Takes certain rows. Those that are not free stay as they are.
    pub(crate) fn reserve(&mut self, from: u32, count: u32) {
        let until = from.saturating_add(count);
        while let Some((first, length)) = self.overlapping(from, until) {
            let start = first.max(from);
            self.cut(first, length, start, (first + length).min(until) - start);
        }
    }

    /// Gives rows back.
    pub(crate) fn free(&mut self, from: u32, count: u32) {
        if count == 0 {
            return;
        }
        let (mut first, mut length) = (from, count);
        if let Some((&before, &until)) = self.0.range(..from).next_back()
            && before + until == from
        {
            self.0.remove(&before);
            (first, length) = (before, length + until);
        }
        if let Some(after) = self.0.remove(&(from + count)) {
            length += after;
        }
        self.0.insert(first, length);
    }

    fn overlapping(&self, from: u32, until: u32) -> Option<(u32, u32)> {
        let (&first, &length) = self.0.range(..until).next_back()?;
        (first + length > from).then_some((first, length))
    }

    /// Takes a part of a range.
    fn cut(&mut self, first: u32, length: u32, from: u32, count: u32) {
        self.0.remove(&first);
        if from > first {
            self.0.insert(first, from - first);
        }
        let rest = first + length - (from + count);
        if rest > 0 {
            self.0.insert(from + count, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn rows(free: &FreeRows) -> BTreeSet<u32> {
        free.0.iter().flat_map(|(first, count)| *first..first + count).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        /// Compared with a plain set of rows.
        #[test]
        fn rows_are_taken_once_and_come_back(steps in prop::collection::vec((any::<bool>(), 0..40_u32, 1..12_u32), 1..40)) {
            let mut free = FreeRows::new(64);
            let mut model: BTreeSet<u32> = (0..64).collect();
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (is_taking, place, count) in steps {
                if is_taking {
                    match free.take(count) {
                        Some(first) => {
                            for row in first..first + count {
                                prop_assert!(model.remove(&row));
                            }
                            taken.push((first, count));
                        }
                        None => {
                            let fits = model.iter().any(|row| (*row..row + count).all(|each| model.contains(&each)));
                            prop_assert!(!fits);
                        }
                    }
                } else if taken.is_empty() {
                    free.reserve(place, count);
                    model.retain(|row| !(place..place + count).contains(row));
                } else {
                    let (first, count) = taken.swap_remove(place as usize % taken.len());
                    free.free(first, count);
                    model.extend(first..first + count);
                }
                prop_assert_eq!(rows(&free), model.clone());
                // Neighbours are joined.
                let mut last = None;
                for (first, count) in &free.0 {
                    prop_assert!(last != Some(*first) && *count > 0);
                    last = Some(first + count);
                }
            }
        }
    }
}
