//! The values under one name, as a sorted sequence that shares most of itself with its next version.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesonet_model::Serving;

use crate::Data;

/// A chunk that would hold more is split. A change copies one chunk and the list of chunks, so that it costs least
/// when both are about as long; that is at some ten thousand values.
const CHUNK_LENGTH_MAX: usize = 128;

/// How long the parts of a chunk that is split are: half of the most, so that it takes a while until the next split.
const CHUNK_LENGTH_SPLIT: usize = CHUNK_LENGTH_MAX / 2;

/// What changes the count of values.
pub(crate) type CountChanges = BTreeMap<(Serving, Data), i32>;

/// One value under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) serving: Serving,
    pub(crate) data: Data,
    /// How many things contribute it.
    count: u32,
}

/// The values under one name, sorted by `serving` first, so that the best ones come first. None of its chunks is empty.
#[derive(Debug, Clone)]
pub(crate) enum EntrySet {
    /// Of nearly every name.
    One(Arc<[Entry]>),
    /// Of names of large apps, and of names without values.
    Many(Arc<[Arc<[Entry]>]>),
}

impl Default for EntrySet {
    fn default() -> Self {
        Self::Many(Arc::from([]))
    }
}

impl EntrySet {
    /// The set after changes.
    pub(crate) fn changed(&self, mut changes: CountChanges) -> Self {
        let old = self.chunks();
        let mut chunks: Vec<Arc<[Entry]>> = Vec::with_capacity(old.len() + 1);
        for (at, chunk) in old.iter().enumerate() {
            let later = match old.get(at + 1) {
                Some(next) => changes.split_off(&(next[0].serving, next[0].data.clone())),
                None => CountChanges::new(),
            };
            let own = std::mem::replace(&mut changes, later);
            if own.is_empty() {
                chunks.push(chunk.clone());
            } else {
                push_merged(&mut chunks, merged(chunk, own));
            }
        }
        push_merged(&mut chunks, merged(&[], changes));
        match <[Arc<[Entry]>; 1]>::try_from(chunks) {
            Ok([chunk]) => Self::One(chunk),
            Err(chunks) => Self::Many(Arc::from(chunks)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks().is_empty()
    }

    pub(crate) fn first(&self) -> Option<&Entry> {
        self.chunks().first().map(|chunk| &chunk[0])
    }

    /// How many entries there are before the first one for which this does not hold. It must hold for no entry after
    /// that one.
    pub(crate) fn partition_point(&self, holds: impl Fn(&Entry) -> bool) -> usize {
        let chunks = self.chunks();
        let whole = chunks.partition_point(|chunk| chunk.last().is_some_and(&holds));
        let before: usize = chunks[..whole].iter().map(|chunk| chunk.len()).sum();
        before + chunks.get(whole).map_or(0, |chunk| chunk.partition_point(&holds))
    }

    /// The entries from a position on.
    pub(crate) fn entries_from(&self, position: usize) -> impl Iterator<Item = &Entry> {
        let chunks = self.chunks();
        let mut skipped = position;
        let mut at = 0;
        while let Some(chunk) = chunks.get(at)
            && skipped >= chunk.len()
        {
            skipped -= chunk.len();
            at += 1;
        }
        let head = chunks.get(at).map_or(&[][..], |chunk| &chunk[skipped..]);
        let tail = chunks.get(at + 1..).unwrap_or_default();
        head.iter().chain(tail.iter().flat_map(|chunk| chunk.iter()))
    }

    fn chunks(&self) -> &[Arc<[Entry]>] {
        match self {
            Self::One(chunk) => std::slice::from_ref(chunk),
            Self::Many(chunks) => chunks,
        }
    }
}

/// Appends entries: in parts if there are too many, to the last chunk if both together are short.
fn push_merged(chunks: &mut Vec<Arc<[Entry]>>, entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    if let Some(last) = chunks.last_mut()
        && last.len() + entries.len() <= CHUNK_LENGTH_SPLIT
    {
        *last = last.iter().chain(&entries).cloned().collect();
    } else if entries.len() <= CHUNK_LENGTH_MAX {
        chunks.push(Arc::from(entries));
    } else {
        chunks.extend(entries.chunks(CHUNK_LENGTH_SPLIT).map(Arc::from));
    }
}

fn merged(old: &[Entry], changes: CountChanges) -> Vec<Entry> {
    let mut merged = Vec::with_capacity(old.len() + changes.len());
    let mut rest = old;
    for ((serving, data), change) in changes {
        let at = rest.partition_point(|entry| (entry.serving, &entry.data) < (serving, &data));
        merged.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let mut count = 0_u32;
        if let Some((first, tail)) = rest.split_first()
            && (first.serving, &first.data) == (serving, &data)
        {
            count = first.count;
            rest = tail;
        }
        count = count.saturating_add_signed(change);
        if count > 0 {
            merged.push(Entry { serving, data, count });
        }
    }
    merged.extend_from_slice(rest);
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(number: u16) -> (Serving, Data) {
        let serving = if number.is_multiple_of(3) { Serving::Draining } else { Serving::Ready };
        (serving, Data::A(u32::from(number).into()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Sets of some hundred values, changed by ranges and by single ones, hold what a plain map holds.
        #[test]
        fn sets_hold_what_was_added_and_not_removed(
            steps in proptest::collection::vec((0..600_u16, 1..400_u16, 1..4_usize, any::<bool>()), 1..12),
        ) {
            let mut set = EntrySet::default();
            let mut model: BTreeMap<(Serving, Data), u32> = BTreeMap::new();
            for (first, count, step, add) in steps {
                let mut changes = CountChanges::new();
                for number in (first..first + count).step_by(step) {
                    let held = model.entry(value(number)).or_default();
                    if add || *held > 0 {
                        changes.insert(value(number), if add { 1 } else { -1 });
                        *held = held.saturating_add_signed(if add { 1 } else { -1 });
                    }
                }
                model.retain(|_, held| *held > 0);
                set = set.changed(changes);
                let found: Vec<(Serving, Data)> =
                    set.entries_from(0).map(|entry| (entry.serving, entry.data.clone())).collect();
                let expected: Vec<(Serving, Data)> = model.keys().cloned().collect();
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(set.is_empty(), expected.is_empty());
                prop_assert!(set.chunks().iter().all(|chunk| (1..=CHUNK_LENGTH_MAX).contains(&chunk.len())));
                let ready = set.partition_point(|entry| entry.serving == Serving::Ready);
                prop_assert_eq!(ready, expected.iter().filter(|(serving, _)| *serving == Serving::Ready).count());
                let rest: Vec<&Data> = set.entries_from(ready).map(|entry| &entry.data).collect();
                prop_assert_eq!(rest.len(), expected.len() - ready);
                prop_assert_eq!(set.entries_from(expected.len() + 1).count(), 0);
            }
        }
    }
}
