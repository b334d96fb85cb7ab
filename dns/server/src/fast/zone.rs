//! The zone in the form of the fast path.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesonet_dns_zone::{Name, Zone};

use super::apex::FastApex;
use super::entry::Entry;
use super::key::Key;
use super::table::Table;
use crate::query_metrics::ZoneLabel;
use crate::wire::HEADER_LENGTH;

/// How often is looked whether a table that was replaced is still used, before it is copied.
const RELEASE_ATTEMPTS_MAX: usize = 200;

/// How long to wait before the next look. A batch is answered in some ten microseconds.
const RELEASE_PAUSE: Duration = Duration::from_micros(50);

/// All that the fast path answers from.
#[derive(Debug, Clone)]
pub(crate) struct FastZone {
    table: Table,
    /// Those further down first.
    apexes: Vec<FastApex>,
}

/// A change of one name.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Entry),
    Remove(Name),
}

/// Keeps two tables in step with the zone: one is served while the other is changed, and then they change places. So
/// what a change costs depends on nothing but the change, and neither table is ever copied.
#[derive(Debug)]
pub(crate) struct FastZones {
    served: Arc<FastZone>,
    other: Arc<FastZone>,
    /// What `other` lacks.
    missing: Vec<Change>,
    /// Whether there was a zone to follow.
    has_followed: bool,
}

// === impl FastZones ===

impl FastZones {
    /// Two tables that know nothing.
    pub(crate) fn new() -> Self {
        let empty = FastZone::new();
        Self {
            served: Arc::new(empty.clone()),
            other: Arc::new(empty),
            missing: Vec::new(),
            has_followed: false,
        }
    }

    /// The table that is served.
    pub(crate) fn served(&self) -> &Arc<FastZone> {
        &self.served
    }

    /// Follows the zone and has that served. `changed` are the names whose records differ; the first time all names
    /// are new. Costs as much as what these names have.
    pub(crate) fn follow(
        &mut self,
        zone: &Zone,
        changed: &[Name],
        label_of: impl Fn(&Name) -> ZoneLabel,
        serving: &ArcSwap<FastZone>,
    ) {
        let missing = std::mem::take(&mut self.missing);
        let other = released(&mut self.other);
        other.make(missing);
        let changes = other.follow(zone, self.has_followed.then_some(changed), label_of);
        self.has_followed = true;
        serving.store(self.other.clone());
        std::mem::swap(&mut self.served, &mut self.other);
        self.missing = changes;
        // The next change finds its table ready, unless somebody still answers from it.
        if let Some(other) = Arc::get_mut(&mut self.other) {
            other.make(std::mem::take(&mut self.missing));
        }
    }

    /// About how much memory both take, in octets.
    pub(crate) fn octet_count(&self) -> usize {
        2 * self.served.table.own_octet_count() + self.served.table.entry_octet_count()
    }
}

/// The table, once nobody answers from it any more.
fn released(zone: &mut Arc<FastZone>) -> &mut FastZone {
    for _ in 0..RELEASE_ATTEMPTS_MAX {
        if Arc::get_mut(zone).is_some() {
            break;
        }
        std::thread::sleep(RELEASE_PAUSE);
    }
    Arc::make_mut(zone)
}

// === impl FastZone ===

impl FastZone {
    /// A zone that knows nothing: everything is for the full path.
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), apexes: Vec::new() }
    }

    /// Follows the zone, from nothing if it is not said which names changed, and says what that changed.
    pub(crate) fn follow(
        &mut self,
        zone: &Zone,
        changed: Option<&[Name]>,
        label_of: impl Fn(&Name) -> ZoneLabel,
    ) -> Vec<Change> {
        self.apexes = FastApex::all(zone, label_of);
        let mut changes = Vec::new();
        match changed {
            Some(changed) => changed.iter().for_each(|name| self.renew(zone, name, &mut changes)),
            None => zone.names().for_each(|name| self.renew(zone, name, &mut changes)),
        }
        changes
    }

    /// The names and their records.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The zone that a name is in, and its number.
    pub(crate) fn apex_of(&self, key: &[u8]) -> Option<(usize, &FastApex)> {
        self.apexes.iter().enumerate().find(|(_, apex)| apex.holds(key))
    }

    /// A zone by its number.
    pub(crate) fn apex(&self, number: usize) -> Option<&FastApex> {
        self.apexes.get(number)
    }

    /// The metric label of the zone that a query's name is in.
    pub(crate) fn label_of(&self, packet: &[u8]) -> ZoneLabel {
        let mut key = Key::new();
        let read = packet.get(HEADER_LENGTH..).and_then(|name| key.read(name));
        let apex = read.and_then(|_| self.apex_of(key.octets()));
        apex.map_or(ZoneLabel::NONE, |(_, apex)| apex.label())
    }

    /// How many names it knows.
    pub(crate) fn name_count(&self) -> usize {
        self.table.len()
    }

    fn make(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(entry) => self.table.insert(entry),
                Change::Remove(name) => self.table.remove(name.octets()),
            }
        }
    }

    fn get(&self, name: &Name) -> Option<&Entry> {
        let key = name.octets();
        self.table.get(self.table.hash(key), key)
    }

    fn put(&mut self, entry: Entry, changes: &mut Vec<Change>) {
        changes.push(Change::Put(entry.clone()));
        self.table.insert(entry);
    }

    fn remove(&mut self, name: &Name, changes: &mut Vec<Change>) {
        changes.push(Change::Remove(name.clone()));
        self.table.remove(name.octets());
    }

    /// A name in no zone, such as that of an address, is left to the full path.
    fn renew(&mut self, zone: &Zone, name: &Name, changes: &mut Vec<Change>) {
        if self.apex_of(name.octets()).is_none() {
            return;
        }
        match Entry::of(zone, name) {
            Some(entry) => {
                self.put(entry, changes);
                self.add_ancestors(name, changes);
            }
            None => {
                self.remove(name, changes);
                self.remove_ancestors(zone, name, changes);
            }
        }
    }

    /// The names above a name exist, too.
    fn add_ancestors(&mut self, name: &Name, changes: &mut Vec<Change>) {
        let mut next = name.parent();
        while let Some(above) = next {
            if self.get(&above).is_some() {
                return;
            }
            self.put(Entry::bare(above.octets(), false), changes);
            next = above.parent();
        }
    }

    /// Names that only existed because of one below them are gone with it.
    fn remove_ancestors(&mut self, zone: &Zone, name: &Name, changes: &mut Vec<Change>) {
        let mut next = name.parent();
        while let Some(above) = next {
            let is_bare = self.get(&above).is_some_and(Entry::is_bare);
            if !is_bare || zone.has_below(&above) || zone.values(&above).0 > 0 {
                return;
            }
            self.remove(&above, changes);
            next = above.parent();
        }
    }
}
