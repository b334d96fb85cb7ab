//! An app as Marathon keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use mesonet_model::{AppDefinition, DeploymentId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::census::{Census, Generation};
use crate::constraints::Placement;
use crate::instance::Instance;
use crate::queue::Queue;
use crate::rolling::Goal;
use crate::{AppView, InstanceView, TaskFailure};

/// An instance that ran this long has proved itself: its failure is the first one again (Marathon's
/// `minimum_viable_task_execution_duration`).
const VIABLE_AFTER: Duration = Duration::from_secs(60);

/// An app, its versions and its instances.
#[derive(Debug)]
pub(crate) struct App {
    /// The newest first; never empty.
    versions: Vec<Arc<AppDefinition>>,
    /// What it is to become.
    pub(crate) goal: Goal,
    /// Launches wait because of failures.
    pub(crate) delay: Delay,
    /// The end of the instance that failed last.
    pub(crate) last_failure: Option<Arc<TaskFailure>>,
    /// Deployments that affect it.
    pub(crate) deployments: Vec<DeploymentId>,
    /// Instances that wait to be launched.
    pub(crate) queue: Option<Queue>,
    /// Its record in the store, if there is one.
    pub(crate) stored: Option<AppRecord>,
    instances: BTreeMap<TaskId, Instance>,
    views: OrdMap<TaskId, Arc<InstanceView>>,
    census: Census,
    /// Where the instances of the configuration in force are. Those that are to be replaced do not count, else a rolling
    /// restart could not place any beside them.
    placement: Placement,
}

/// How long launches of an app wait. It belongs to the configuration in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delay {
    /// Failures in a row.
    failures: u32,
    /// No launch before this time.
    pub(crate) until: Option<Timestamp>,
}

/// What the store keeps of an app; its versions and instances have records of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AppRecord {
    /// Timestamps of its versions, the newest first.
    pub(crate) versions: Vec<Timestamp>,
    /// What it is to become.
    pub(crate) goal: Goal,
    /// Launches wait because of failures.
    pub(crate) delay: Delay,
    /// The end of the instance that failed last.
    pub(crate) last_failure: Option<Arc<TaskFailure>>,
}

impl App {
    /// An app that has just been made known.
    pub(crate) fn new(definition: Arc<AppDefinition>, goal: Goal) -> Self {
        Self {
            placement: Placement::new(&definition),
            versions: vec![definition],
            goal,
            delay: Delay::default(),
            last_failure: None,
            deployments: Vec::new(),
            queue: None,
            stored: None,
            instances: BTreeMap::new(),
            views: OrdMap::new(),
            census: Census::default(),
        }
    }

    /// An app of the store, still without instances. `versions` must not be empty.
    pub(crate) fn from_record(record: AppRecord, versions: Vec<Arc<AppDefinition>>) -> Self {
        Self {
            placement: Placement::new(&versions[0]),
            versions,
            goal: record.goal,
            delay: record.delay,
            last_failure: record.last_failure.clone(),
            deployments: Vec::new(),
            queue: None,
            stored: Some(record),
            instances: BTreeMap::new(),
            views: OrdMap::new(),
            census: Census::default(),
        }
    }

    /// The version in force.
    pub(crate) fn definition(&self) -> &Arc<AppDefinition> {
        &self.versions[0]
    }

    /// Its versions, the newest first.
    pub(crate) fn versions(&self) -> &[Arc<AppDefinition>] {
        &self.versions
    }

    /// Whether it is forgotten as soon as its instances have ended. Readers do not see it any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.goal == Goal::Stop
    }

    /// Puts a new version in force; returns the old ones that are not kept.
    pub(crate) fn put_version(
        &mut self,
        definition: Arc<AppDefinition>,
        versions_max: usize,
    ) -> Vec<Timestamp> {
        let config = |definition: &AppDefinition| definition.version_info.last_config_change_at;
        if config(&definition) != config(self.definition()) {
            self.delay = Delay::default();
        }
        self.versions.insert(0, definition);
        let dropped = self.versions.split_off(versions_max.clamp(1, self.versions.len()));
        self.census = Census::default();
        self.placement = Placement::new(&self.versions[0]);
        let instances = std::mem::take(&mut self.instances);
        instances.values().for_each(|instance| self.count(instance));
        self.instances = instances;
        dropped.iter().map(|definition| definition.version).collect()
    }

    /// Its instances.
    pub(crate) fn instances(&self) -> &BTreeMap<TaskId, Instance> {
        &self.instances
    }

    /// Its instances, counted.
    pub(crate) fn census(&self) -> &Census {
        &self.census
    }

    /// Where they are, as far as constraints ask.
    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Adds an instance or replaces it by its new state.
    pub(crate) fn put_instance(&mut self, instance: Instance) {
        let task = instance.view.task.clone();
        self.take_instance(&task);
        self.count(&instance);
        self.views.insert(task.clone(), Arc::clone(&instance.view));
        self.instances.insert(task, instance);
    }

    /// Removes an instance.
    pub(crate) fn take_instance(&mut self, task: &TaskId) -> Option<Instance> {
        let instance = self.instances.remove(task)?;
        let entry = instance.entry(&self.versions[0]);
        if entry.generation == Generation::Current {
            self.placement.remove(instance.place());
        }
        self.census.remove(entry);
        self.views.remove(task);
        Some(instance)
    }

    fn count(&mut self, instance: &Instance) {
        let entry = instance.entry(&self.versions[0]);
        if entry.generation == Generation::Current {
            self.placement.add(instance.place());
        }
        self.census.insert(entry);
    }

    /// An instance that was wanted has failed: launches wait.
    pub(crate) fn count_failure(&mut self, instance: &Instance, now: Timestamp) {
        if instance.config != self.definition().version_info.last_config_change_at {
            return;
        }
        let ran = instance.view.started_at.map_or(Duration::ZERO, |started| now.since(started));
        let failures = if ran >= VIABLE_AFTER { 0 } else { self.delay.failures };
        let failures = failures.saturating_add(1);
        let until = now.plus(self.definition().backoff.delay(failures));
        self.delay = Delay { failures, until: (until > now).then_some(until) };
    }

    /// Sets how many instances wait to be launched; whether there are more than before.
    pub(crate) fn set_waiting(&mut self, count: u32, now: Timestamp) -> bool {
        match &mut self.queue {
            _ if count == 0 => {
                self.queue = None;
                false
            }
            Some(queue) => {
                let is_more = count > queue.count();
                queue.set_count(count);
                is_more
            }
            None => {
                self.queue = Some(Queue::new(count, now));
                true
            }
        }
    }

    /// Whether instances may be launched at this time.
    pub(crate) fn is_ready(&self, now: Timestamp) -> bool {
        self.queue.is_some() && self.delay.until.is_none_or(|until| until <= now)
    }

    /// What the store keeps of it.
    pub(crate) fn record(&self) -> AppRecord {
        AppRecord {
            versions: self.versions.iter().map(|definition| definition.version).collect(),
            goal: self.goal,
            delay: self.delay,
            last_failure: self.last_failure.clone(),
        }
    }

    /// What readers see.
    pub(crate) fn view(&mut self) -> AppView {
        AppView {
            definition: Arc::clone(self.definition()),
            versions: self.versions.clone(),
            instances: self.views.clone(),
            last_failure: self.last_failure.clone(),
            deployments: self.deployments.clone(),
            queue: self.queue.as_mut().map(|queue| queue.entry(self.delay.until)),
        }
    }
}
