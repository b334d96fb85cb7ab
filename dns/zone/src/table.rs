//! Record sets by name, shared between snapshots.

use std::collections::BTreeMap;
use std::ops::Bound;

use imbl::OrdMap;

use crate::contribution::Contribution;
use crate::entry_set::{CountChanges, Entry, EntrySet};
use crate::{Data, Name};

/// Everything that things of the view have contributed, by name. A clone costs a pointer copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    sets: OrdMap<Name, EntrySet>,
    served: usize,
}

/// Records of one name that clients are sent to, sorted: a part of its set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordSet<'table> {
    set: Option<&'table EntrySet>,
    start: usize,
    end: usize,
}

/// Changes of a table, collected by name so that each name is rebuilt once.
#[derive(Debug, Default)]
pub(crate) struct TableChanges(BTreeMap<Name, CountChanges>);

// === impl Table ===

impl Table {
    /// Makes the changes, and says which names they are of, sorted. For each name, that costs about the square root of
    /// its number of records and the logarithm of the number of names.
    pub(crate) fn apply(&mut self, changes: TableChanges) -> Vec<Name> {
        let mut changed = Vec::with_capacity(changes.0.len());
        for (name, changes) in changes.0 {
            changed.push(name.clone());
            let (new, served_before) = match self.sets.get(&name) {
                Some(old) => (old.changed(changes), RecordSet::best_of(old).len()),
                None => (EntrySet::default().changed(changes), 0),
            };
            self.served += RecordSet::best_of(&new).len();
            self.served -= served_before;
            if new.is_empty() {
                self.sets.remove(&name);
            } else {
                self.sets.insert(name, new);
            }
        }
        changed
    }

    /// Every name that has records, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.sets.keys()
    }

    /// The names that have records and are this one or below it, sorted.
    pub(crate) fn names_within<'table>(
        &'table self,
        name: &'table Name,
    ) -> impl Iterator<Item = &'table Name> + 'table {
        let from = (Bound::Included(name), Bound::Unbounded);
        self.sets.range::<_, Name>(from).map(|(name, _)| name).take_while(move |each| each.is_within(name))
    }

    /// The records of a name; none if it has none of its own.
    pub(crate) fn served(&self, name: &Name) -> RecordSet<'_> {
        match self.sets.get(name) {
            Some(set) => RecordSet::best_of(set),
            None => RecordSet { set: None, start: 0, end: 0 },
        }
    }

    /// Whether a name below this one has records.
    pub(crate) fn has_below(&self, name: &Name) -> bool {
        let after = (Bound::Excluded(name), Bound::Unbounded);
        self.sets.range::<_, Name>(after).next().is_some_and(|(next, _)| next.is_within(name))
    }

    /// Every record that is served, sorted by name.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Name, &Data)> {
        self.sets
            .iter()
            .flat_map(|(name, set)| RecordSet::best_of(set).rotated(0).map(move |data| (name, data)))
    }

    /// How many records are served.
    pub(crate) fn record_count(&self) -> usize {
        self.served
    }
}

// === impl RecordSet ===

impl<'table> RecordSet<'table> {
    /// The entries that clients are sent to: those of the best kind that there is.
    fn best_of(set: &'table EntrySet) -> Self {
        let best = set.first().map(|first| first.serving);
        Self { set: Some(set), start: 0, end: set.partition_point(|entry| Some(entry.serving) == best) }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }

    /// The A records.
    pub(crate) fn ipv4(self) -> Self {
        self.of_rank(0)
    }

    /// The AAAA records.
    pub(crate) fn ipv6(self) -> Self {
        self.of_rank(1)
    }

    /// The SRV records.
    pub(crate) fn ports(self) -> Self {
        self.of_rank(2)
    }

    /// The CNAME records.
    pub(crate) fn aliases(self) -> Self {
        self.of_rank(3)
    }

    /// The PTR records.
    pub(crate) fn pointers(self) -> Self {
        self.of_rank(4)
    }

    /// The TXT records.
    pub(crate) fn texts(self) -> Self {
        self.of_rank(5)
    }

    fn of_rank(self, rank: u8) -> Self {
        Self {
            start: self.after(|data| rank_of(data) < rank),
            end: self.after(|data| rank_of(data) <= rank),
            ..self
        }
    }

    /// All records, beginning at a place that a number chooses, so that clients that take the first one spread.
    pub(crate) fn rotated(self, rotation: u16) -> impl Iterator<Item = &'table Data> {
        let turned = usize::from(rotation).checked_rem(self.len()).unwrap_or(0);
        let part = move |from: usize, count: usize| {
            self.set.into_iter().flat_map(move |set| set.entries_from(from).take(count))
        };
        let all = part(self.start + turned, self.len() - turned).chain(part(self.start, turned));
        all.map(|entry: &Entry| &entry.data)
    }

    /// The position after the best entries whose data is of the first types.
    fn after(self, is_first: impl Fn(&Data) -> bool) -> usize {
        let Some(set) = self.set else {
            return 0;
        };
        let best = set.first().map(|first| first.serving);
        set.partition_point(|entry| Some(entry.serving) == best && is_first(&entry.data))
    }
}

/// The place of a value's type in the order of [`Data`].
fn rank_of(data: &Data) -> u8 {
    match data {
        Data::A(_) => 0,
        Data::Aaaa(_) => 1,
        Data::Srv { .. } => 2,
        Data::Cname(_) => 3,
        Data::Ptr(_) => 4,
        Data::Txt(_) => 5,
        Data::Ns(_) | Data::Soa(_) | Data::AnyRefused => 6,
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
