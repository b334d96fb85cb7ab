//! The zones as lists: for people, for transfers, and for programs that read everything.

use mesonet_model::{ClusterView, TaskKey};

use crate::follower::task_in;
use crate::origins::ServedZone;
use crate::{Data, Name, Record, Zone, reverse};

/// A framework with the tasks that have records, as `/v1/enumerate` of mesos-dns lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFramework {
    /// Its name.
    pub name: String,
    /// Its running tasks in the order of their ids.
    pub tasks: Vec<ListedTask>,
}

/// A task and the records of the mesos-dns zone that are there because of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTask {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its records, sorted. A record that an earlier task has, too, is listed there only.
    pub records: Vec<Record>,
}

impl Zone {
    /// Every zone's records in zone-file order: zones by name, each with SOA and NS first and the rest sorted by name;
    /// after them the names of addresses, which are in no zone of their own. Zones that show the names of another one
    /// are left out, and so is everything that waits for a view before the first one.
    pub fn zone_file(&self) -> impl Iterator<Item = Record> + '_ {
        let mut zones: Vec<&ServedZone> =
            self.origins.zones().iter().filter(|zone| zone.name == zone.stored).collect();
        zones.sort_by(|a, b| a.name.cmp(&b.name));
        let ready = zones.into_iter().filter(|zone| !zone.needs_view || self.revision.is_some());
        let in_zones = ready.flat_map(|zone| self.head_of(zone).into_iter().chain(self.body_of(zone)));
        let reverse = self.table.names().filter(|name| self.origins.zone_of(name).is_none());
        let pointers = reverse.filter(|name| self.revision.is_some() && reverse::is_reverse(name));
        in_zones.chain(pointers.flat_map(|name| self.records_of(name, name)))
    }

    /// A zone as it is transferred (RFC 5936 §2.2): its SOA record first and last, and all others between. Nothing if
    /// no zone has this name, or if it waits for a view and there is none yet.
    pub fn transfer(&self, apex: &Name) -> Option<impl Iterator<Item = Record> + '_> {
        let zone = self.origins.zones().iter().find(|zone| zone.name == *apex)?;
        if zone.needs_view && self.revision.is_none() {
            return None;
        }
        let records = self.head_of(zone).into_iter().chain(self.body_of(zone));
        Some(records.chain([self.soa(&zone.name)]))
    }

    /// The frameworks of a view with their tasks' records, sorted by id. `view` is the one that the zone follows from.
    pub fn frameworks<'zone>(
        &'zone self,
        view: &'zone ClusterView,
    ) -> impl Iterator<Item = ListedFramework> + 'zone {
        let mut listed = std::collections::BTreeSet::new();
        view.frameworks.iter().map(move |(id, framework)| {
            let first = TaskKey::new(id.clone(), mesonet_model::TaskId::new(""));
            let own = view.tasks.range(first..).take_while(|(key, _)| key.framework == *id);
            let tasks = own.filter_map(|(key, task)| {
                let records = task_in(&self.origins, view, key).records;
                if records.is_empty() {
                    return None;
                }
                let of_domain =
                    records.into_iter().filter(|(owner, ..)| owner.is_within(&self.origins.domain));
                let new = of_domain.map(|(owner, _, data)| (owner, data));
                let new: Vec<(Name, Data)> = new.filter(|record| listed.insert(record.clone())).collect();
                let ttl = self.origins.ttl;
                let records = new.into_iter().map(|(owner, data)| Record { owner, ttl, data }).collect();
                Some(ListedTask { name: task.name.clone(), id: task.given_id().to_string(), records })
            });
            ListedFramework { name: framework.name.clone(), tasks: tasks.collect() }
        })
    }

    fn head_of(&self, zone: &ServedZone) -> [Record; 2] {
        let nameserver = Data::Ns(self.origins.nameserver.clone());
        let ns = Record { owner: zone.name.clone(), ttl: self.origins.ttl, data: nameserver };
        [self.soa(&zone.name), ns]
    }

    /// The records of a zone without those of zones below it, under the names that they are shown under.
    fn body_of<'zone>(&'zone self, zone: &'zone ServedZone) -> impl Iterator<Item = Record> + 'zone {
        let within = self.table.names_within(&zone.stored);
        within.flat_map(move |stored| {
            let shown = zone.shown(stored);
            let own =
                shown.filter(|shown| self.origins.zone_of(shown).is_some_and(|of| of.name == zone.name));
            own.into_iter().flat_map(move |shown| {
                let records = self.records_of(stored, &shown).into_iter();
                records.filter_map(|record| Some(Record { data: zone.shown_data(&record.data)?, ..record }))
            })
        })
    }

    /// The records that clients are sent to, under the name that they are shown under. An address that several names
    /// lead to has none.
    fn records_of(&self, stored: &Name, shown: &Name) -> Vec<Record> {
        let set = self.table.served(stored);
        let is_ambiguous = set.pointers().len() > 1;
        let ttl = self.origins.ttl_of(stored);
        let values = set.rotated(0).filter(|data| !(is_ambiguous && matches!(data, Data::Ptr(_))));
        values.map(|data| Record { owner: shown.clone(), ttl, data: data.clone() }).collect()
    }
}
