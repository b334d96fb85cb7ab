//! Record sets by name, shared between snapshots.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use mesonet_model::Serving;

use crate::contribution::Contribution;
use crate::{Data, Name};

/// Everything that things of the view have contributed, by name. A clone costs a pointer copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    sets: OrdMap<Name, Arc<[Entry]>>,
    served: usize,
}

/// One value under a name. A set is sorted by `serving` first, so that the best ones are at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    serving: Serving,
    data: Data,
    /// How many things contribute it.
    count: u32,
}

/// The records of one name that clients are sent to, sorted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RecordSet<'table>(&'table [Entry]);

/// Changes of a table, collected by name so that each name is rebuilt once.
#[derive(Debug, Default)]
pub(crate) struct TableChanges(BTreeMap<Name, BTreeMap<(Serving, Data), i32>>);

// === impl Table ===

impl Table {
    /// Makes the changes. Costs as much as the sets that change hold, and the logarithm of the table's size for each.
    pub(crate) fn apply(&mut self, changes: TableChanges) {
        for (name, changes) in changes.0 {
            let old: &[Entry] = self.sets.get(&name).map_or(&[], |set| set);
            let new = merged(old, changes);
            self.served += best(&new).len();
            self.served -= best(old).len();
            if new.is_empty() {
                self.sets.remove(&name);
            } else {
                self.sets.insert(name, Arc::from(new));
            }
        }
    }

    /// The records of a name; none if it has none of its own.
    pub(crate) fn served(&self, name: &Name) -> RecordSet<'_> {
        RecordSet(self.sets.get(name).map_or(&[], |set| best(set)))
    }

    /// Whether a name below this one has records.
    pub(crate) fn has_below(&self, name: &Name) -> bool {
        let after = (Bound::Excluded(name), Bound::Unbounded);
        self.sets.range::<_, Name>(after).next().is_some_and(|(next, _)| next.is_within(name))
    }

    /// Every record that is served, sorted by name.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Name, &Data)> {
        self.sets.iter().flat_map(|(name, set)| best(set).iter().map(move |entry| (name, &entry.data)))
    }

    /// How many records are served.
    pub(crate) fn record_count(&self) -> usize {
        self.served
    }
}

// === impl RecordSet ===

impl<'table> RecordSet<'table> {
    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The A records.
    pub(crate) fn ipv4(self) -> Self {
        let end = self.0.partition_point(|entry| matches!(entry.data, Data::A(_)));
        Self(&self.0[..end])
    }

    /// The AAAA records.
    pub(crate) fn ipv6(self) -> Self {
        let start = self.0.partition_point(|entry| matches!(entry.data, Data::A(_)));
        let end = self.0.partition_point(|entry| matches!(entry.data, Data::A(_) | Data::Aaaa(_)));
        Self(&self.0[start..end])
    }

    /// The SRV records.
    pub(crate) fn ports(self) -> Self {
        let start = self.0.partition_point(|entry| matches!(entry.data, Data::A(_) | Data::Aaaa(_)));
        Self(&self.0[start..])
    }

    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// All records, beginning at a place that a number chooses, so that clients that take the first one spread.
    pub(crate) fn rotated(self, rotation: u16) -> impl Iterator<Item = &'table Data> {
        let start = usize::from(rotation).checked_rem(self.0.len()).unwrap_or(0);
        let (head, tail) = self.0.split_at(start);
        tail.iter().chain(head).map(|entry| &entry.data)
    }
}

// === impl TableChanges ===

impl TableChanges {
    /// Replaces what a thing contributes.
    pub(crate) fn replace(&mut self, old: &Contribution, new: &Contribution) {
        for (records, others, change) in [(&old.records, &new.records, -1), (&new.records, &old.records, 1)] {
            for (name, serving, data) in records.difference(others) {
                let set = self.0.entry(name.clone()).or_default();
                *set.entry((*serving, data.clone())).or_default() += change;
            }
        }
    }
}

/// The entries that clients are sent to: those of the best kind that there is.
fn best(set: &[Entry]) -> &[Entry] {
    match set.first() {
        Some(first) => &set[..set.partition_point(|entry| entry.serving == first.serving)],
        None => set,
    }
}

fn merged(old: &[Entry], changes: BTreeMap<(Serving, Data), i32>) -> Vec<Entry> {
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
