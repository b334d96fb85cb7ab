//! What a zone is made of, for those who encode answers ahead of time.
//!
//! [`Zone::answer`] follows from these parts alone for the types A, AAAA and SRV and for types that no name has, for
//! every name without a label that begins with an asterisk below the apexes listed here.

use crate::origins::ServedZone;
use crate::{Data, Name, Record, Zone};

/// Where a zone is served and under which names its records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apex {
    /// The zone's name.
    pub name: Name,
    /// Its names are kept below this one. It differs from `name` if the zone shows names of another one; then hosts of
    /// SRV records that are below this name are shown below `name`, too.
    pub stored: Name,
}

impl Zone {
    /// The zones that are served, the mesos-dns zone first and those that show the names of others last. None before the
    /// first view.
    pub fn apexes(&self) -> Vec<Apex> {
        if self.revision.is_none() {
            return Vec::new();
        }
        let mut zones: Vec<&ServedZone> = self.origins.zones().iter().collect();
        zones.sort_by_key(|zone| (zone.name != self.origins.domain, zone.name != zone.stored));
        zones.iter().map(|zone| Apex { name: zone.name.clone(), stored: zone.stored.clone() }).collect()
    }

    /// The SOA record of a zone. None before the first view.
    pub fn start_of(&self, apex: &Apex) -> Option<Record> {
        self.revision?;
        Some(self.soa(&apex.name))
    }

    /// The time to live of every record, in seconds, but for those of names that have their own.
    pub fn ttl(&self) -> u32 {
        self.origins.ttl
    }

    /// The time to live of the records of a name, as it is kept, in seconds.
    pub fn ttl_of(&self, name: &Name) -> u32 {
        self.origins.ttl_of(name)
    }

    /// Every name that has records, as it is kept, sorted.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.table.names()
    }

    /// How many records a name has, and their values, sorted: those that clients are sent to.
    pub fn values(&self, name: &Name) -> (usize, impl Iterator<Item = &Data>) {
        let set = self.table.served(name);
        (set.len(), set.rotated(0))
    }

    /// Whether a name below this one has records.
    pub fn has_below(&self, name: &Name) -> bool {
        self.table.has_below(name)
    }
}
