//! Follows the view: what changes there changes the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesonet_model::{AgentId, ClusterId, ClusterView, Delta, FrameworkId, TaskId, TaskKey};

use crate::cluster_names::{of_agent, of_framework, of_masters, of_server, of_service};
use crate::contribution::Contribution;
use crate::origins::Origins;
use crate::table::{Table, TableChanges};
use crate::task_names::of_task;
use crate::{Config, ConfigError, Name, NameError, Zone};

/// Keeps a zone in step with the cluster.
///
/// What a thing contributes follows from the view alone. So a change is the difference between what it contributes in
/// the view applied last and in the new one, and no record of past contributions is needed.
#[derive(Debug)]
pub struct ZoneFollower {
    origins: Arc<Origins>,
    /// The view applied last.
    view: ClusterView,
    /// Whether any view was applied.
    is_ready: bool,
    /// Which tasks are on which agent in `view`.
    placements: BTreeSet<(AgentId, TaskKey)>,
    table: Table,
    skipped: BTreeMap<NameError, usize>,
}

impl ZoneFollower {
    /// A zone that knows no view yet.
    ///
    /// `nameserver_addresses` are the addresses of the server itself, for its `ns1` name.
    pub fn new(config: &Config, nameserver_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        let origins = Arc::new(Origins::new(config, nameserver_addresses)?);
        let mut changes = TableChanges::default();
        changes.replace(&Contribution::default(), &of_server(&origins));
        let mut table = Table::default();
        table.apply(changes);
        Ok(Self {
            origins,
            view: ClusterView::empty(ClusterId::new("")),
            is_ready: false,
            placements: BTreeSet::new(),
            table,
            skipped: BTreeMap::new(),
        })
    }

    /// The zone as of the view applied last.
    pub fn zone(&self) -> Zone {
        Zone {
            origins: self.origins.clone(),
            table: self.table.clone(),
            revision: self.is_ready.then_some(self.view.revision),
        }
    }

    /// How many records are left out because their names would not be valid, by what is wrong with them.
    pub fn skipped(&self) -> &BTreeMap<NameError, usize> {
        &self.skipped
    }

    /// Follows to a view. `delta` says what differs from the view applied last; one that starts elsewhere is not used
    /// and the difference is found instead.
    ///
    /// Says which names have other records than before, as the zone keeps them ([`crate::Apex::stored`]), sorted.
    pub fn apply(&mut self, view: &ClusterView, delta: &Delta) -> Vec<Name> {
        let is_next = self.is_ready
            && self.view.cluster == view.cluster
            && self.view.revision == delta.from
            && view.revision == delta.to;
        let changed = if is_next {
            self.follow(view, delta)
        } else {
            self.follow(view, &Delta::between(&self.view, view))
        };
        let is_first = !std::mem::replace(&mut self.is_ready, true);
        if is_first { self.table.names().cloned().collect() } else { changed }
    }

    fn follow(&mut self, new: &ClusterView, delta: &Delta) -> Vec<Name> {
        let old = std::mem::replace(&mut self.view, new.clone());
        self.place(&old, delta);
        let mut change = Change { changes: TableChanges::default(), skipped: &mut self.skipped };
        let origins = &*self.origins;
        if !delta.masters.0.is_empty() {
            change.replace(&of_masters(origins, &old), &of_masters(origins, new));
        }
        for id in delta.agents.0.keys() {
            let of = |view: &ClusterView| view.agents.get(id).map(|agent| of_agent(origins, agent));
            change.replace(&of(&old).unwrap_or_default(), &of(new).unwrap_or_default());
        }
        for id in delta.frameworks.0.keys() {
            let of = |view: &ClusterView| view.frameworks.get(id).map(|each| of_framework(origins, each));
            change.replace(&of(&old).unwrap_or_default(), &of(new).unwrap_or_default());
        }
        for key in delta.services.0.keys() {
            let of = |view: &ClusterView| view.services.get(key).map(|each| of_service(origins, each));
            change.replace(&of(&old).unwrap_or_default(), &of(new).unwrap_or_default());
        }
        for key in affected_tasks(&old, new, delta, &self.placements) {
            change.replace(&task_in(origins, &old, &key), &task_in(origins, new, &key));
        }
        self.table.apply(change.changes)
    }

    /// Keeps the index of tasks by agent.
    fn place(&mut self, old: &ClusterView, delta: &Delta) {
        for (key, change) in &delta.tasks.0 {
            if let Some(task) = old.tasks.get(key) {
                self.placements.remove(&(task.agent.clone(), key.clone()));
            }
            if let Some(task) = change {
                self.placements.insert((task.agent.clone(), key.clone()));
            }
        }
    }
}

/// A change of the table in the making.
struct Change<'follower> {
    changes: TableChanges,
    skipped: &'follower mut BTreeMap<NameError, usize>,
}

impl Change<'_> {
    fn replace(&mut self, old: &Contribution, new: &Contribution) {
        self.changes.replace(old, new);
        for (error, count) in &new.skipped {
            *self.skipped.entry(*error).or_default() += count;
        }
        for (error, count) in &old.skipped {
            if let Some(total) = self.skipped.get_mut(error) {
                *total = total.saturating_sub(*count);
            }
        }
        self.skipped.retain(|_, total| *total > 0);
    }
}

/// The records of a task in a view; none while its agent or its framework is not known.
pub(crate) fn task_in(origins: &Origins, view: &ClusterView, key: &TaskKey) -> Contribution {
    let found = view.tasks.get(key).and_then(|task| {
        let agent = view.agents.get(&task.agent)?;
        let framework = view.frameworks.get(&key.framework)?;
        Some(of_task(origins, task, agent, framework))
    });
    found.unwrap_or_default()
}

/// The tasks whose records may differ: those that changed themselves, and those whose agent has another address or
/// whose framework has another name.
fn affected_tasks(
    old: &ClusterView,
    new: &ClusterView,
    delta: &Delta,
    placements: &BTreeSet<(AgentId, TaskKey)>,
) -> BTreeSet<TaskKey> {
    let mut tasks: BTreeSet<TaskKey> = delta.tasks.0.keys().cloned().collect();
    for id in delta.agents.0.keys() {
        let addresses = |view: &ClusterView| {
            let agent = view.agents.get(id)?;
            Some((agent.info.address, agent.other_addresses.clone()))
        };
        if addresses(old) != addresses(new) {
            let first = (id.clone(), first_task_of(&FrameworkId::new("")));
            let on_agent = placements.range(first..).take_while(|(agent, _)| agent == id);
            tasks.extend(on_agent.map(|(_, task)| task.clone()));
        }
    }
    for id in delta.frameworks.0.keys() {
        let name = |view: &ClusterView| view.frameworks.get(id).map(|framework| framework.name.clone());
        if name(old) != name(new) {
            let of_framework =
                new.tasks.range(first_task_of(id)..).take_while(|(key, _)| key.framework == *id);
            tasks.extend(of_framework.map(|(key, _)| key.clone()));
        }
    }
    tasks
}

/// A key that sorts before every task of a framework.
fn first_task_of(framework: &FrameworkId) -> TaskKey {
    TaskKey::new(framework.clone(), TaskId::new(""))
}
