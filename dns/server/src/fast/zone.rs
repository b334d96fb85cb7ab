//! The zone in the form of the fast path.

use std::sync::Arc;

use mesonet_dns_zone::{Name, Zone};

use super::apex::FastApex;
use super::entry::Entry;
use super::key::Key;
use super::trie::Trie;
use crate::query_metrics::ZoneLabel;
use crate::wire::HEADER_LENGTH;

/// All that the fast path answers from. A clone costs a few pointer copies.
#[derive(Debug, Clone)]
pub(crate) struct FastZone {
    trie: Trie,
    /// Those further down first.
    apexes: Arc<[FastApex]>,
}

impl FastZone {
    /// A zone that knows nothing: everything is for the full path.
    pub(crate) fn new() -> Self {
        Self { trie: Trie::new(), apexes: Arc::from([]) }
    }

    /// Follows the zone. `changed` are the names whose records differ; the first time all names are new.
    ///
    /// Costs as much as what these names have.
    pub(crate) fn follow(&mut self, zone: &Zone, changed: &[Name], label_of: impl Fn(&Name) -> ZoneLabel) {
        let is_first = self.apexes.is_empty();
        self.apexes = FastApex::all(zone, label_of).into();
        if is_first {
            self.trie = Trie::new();
            for name in zone.names() {
                self.renew(zone, name);
            }
        } else {
            for name in changed {
                self.renew(zone, name);
            }
        }
    }

    /// What a name has; nothing if it does not exist.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.trie.get(key)
    }

    /// The zone that a name is in.
    pub(crate) fn apex_of(&self, key: &[u8]) -> Option<&FastApex> {
        self.apexes.iter().find(|apex| apex.holds(key))
    }

    /// The metric label of the zone that a query's name is in.
    pub(crate) fn label_of(&self, packet: &[u8]) -> ZoneLabel {
        let mut key = Key::new();
        let read = packet.get(HEADER_LENGTH..).and_then(|name| key.read(name));
        let apex = read.and_then(|_| self.apex_of(key.octets()));
        apex.map_or(ZoneLabel::NONE, FastApex::label)
    }

    /// How many names it knows.
    pub(crate) fn name_count(&self) -> usize {
        self.trie.len()
    }

    /// About how much memory it takes, in octets.
    pub(crate) fn octet_count(&self) -> usize {
        self.trie.octet_count()
    }

    /// A name in no zone, such as that of an address, is left to the full path.
    fn renew(&mut self, zone: &Zone, name: &Name) {
        if self.apex_of(name.octets()).is_none() {
            return;
        }
        match Entry::of(zone, name) {
            Some(entry) => {
                self.trie.insert(entry);
                self.add_ancestors(name);
            }
            None => {
                self.trie.remove(name.octets());
                self.remove_ancestors(zone, name);
            }
        }
    }

    /// The names above a name exist, too.
    fn add_ancestors(&mut self, name: &Name) {
        let mut below = name.octets().len();
        let mut next = name.parent();
        while let Some(above) = next {
            if self.trie.get(above.octets()).is_some() || above.octets().len() >= below {
                return;
            }
            self.trie.insert(Entry::bare(above.octets(), false));
            below = above.octets().len();
            next = above.parent();
        }
    }

    /// Names that only existed because of one below them are gone with it.
    fn remove_ancestors(&mut self, zone: &Zone, name: &Name) {
        let mut next = name.parent();
        while let Some(above) = next {
            let is_bare = self.trie.get(above.octets()).is_some_and(Entry::is_bare);
            if !is_bare || zone.has_below(&above) || zone.values(&above).0 > 0 {
                return;
            }
            self.trie.remove(above.octets());
            next = above.parent();
        }
    }
}
