//! Users' commands: checked as a whole, answered, then carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AppDefinition, AppId, Backoff, DeploymentId, Table, TaskId, Timestamp, UpgradeStrategy, VersionInfo,
};

use crate::app::App;
use crate::machine::{Effect, Marathon, Turn};
use crate::plan::{Change, Prepared};
use crate::recover::version_key;
use crate::rolling::Goal;
use crate::timers::Timer;
use crate::{AppBase, AppPut, Command, EventKind, Rejection, Reply};

/// What a command that was found good does.
enum Work {
    /// Begins a deployment.
    Deploy(Box<Prepared>),
    /// Kills instances; others take their place.
    Kill(Vec<TaskId>),
    /// Ends a deployment where it is.
    Cancel(DeploymentId),
    /// Launches without further delay.
    Reset(AppId),
}

impl Marathon {
    /// Carries a command out, or refuses it without having changed anything.
    pub(crate) fn command(&mut self, number: u64, command: Command, turn: &mut Turn) {
        let (answer, work) = match self.check(command, turn.now) {
            Ok((reply, work)) => (Ok(reply), Some(work)),
            Err(rejection) => (Err(rejection), None),
        };
        turn.effects.push(Effect::Answer { number, answer });
        match work {
            None => {}
            Some(Work::Deploy(prepared)) => self.deploy(*prepared, turn),
            Some(Work::Kill(tasks)) => tasks.iter().for_each(|task| self.kill(task, turn)),
            Some(Work::Cancel(deployment)) => self.cancel(&deployment, turn),
            Some(Work::Reset(app)) => self.reset_delay(&app),
        }
    }

    fn check(&mut self, command: Command, now: Timestamp) -> Result<(Reply, Work), Rejection> {
        match command {
            Command::Put { apps, force } => self.check_put(apps, force, now),
            Command::Delete { app, force } => {
                let before = Some(Arc::clone(self.known(&app)?.definition()));
                self.check_change(Change { app, before, after: None }, force, now)
            }
            Command::Restart { app, force } => {
                let before = Arc::clone(self.known(&app)?.definition());
                let version = self.next_version(now);
                let mut after = AppDefinition::clone(&before);
                after.version = version;
                after.version_info = VersionInfo { last_config_change_at: version, last_scaling_at: version };
                let change = Change { app, before: Some(before), after: Some(Arc::new(after)) };
                self.check_change(change, force, now)
            }
            Command::KillTasks { tasks, scale, force } => self.check_kill(tasks, scale, force, now),
            Command::CancelDeployment { deployment, force } => self.check_cancel(deployment, force, now),
            Command::ResetDelay { app } => match self.known(&app)?.queue {
                Some(_) => Ok((Reply::Done, Work::Reset(app))),
                None => Err(Rejection::NotQueued(app)),
            },
        }
    }

    fn check_put(
        &mut self,
        puts: Vec<AppPut>,
        force: bool,
        now: Timestamp,
    ) -> Result<(Reply, Work), Rejection> {
        let version = self.next_version(now);
        let explicit =
            puts.iter().flat_map(|put| put.definition.ports().into_iter().map(|port| port.service_port));
        let mut taken: BTreeSet<u16> = explicit.collect();
        let mut changes = Vec::with_capacity(puts.len());
        let mut stored = Vec::with_capacity(puts.len());
        for AppPut { definition, base } in puts {
            let before = self.visible(&definition.id).map(|app| Arc::clone(app.definition()));
            match (base, &before) {
                (AppBase::Absent, None) => {}
                (AppBase::Absent, Some(_)) => return Err(Rejection::AppExists(definition.id)),
                (AppBase::Version(base), Some(before)) if before.version == base => {}
                (AppBase::Version(_), _) => return Err(Rejection::Stale(definition.id)),
            }
            let app = definition.id.clone();
            let mut definition = finite(definition);
            self.service_ports.assign(&mut definition, before.as_deref(), &mut taken)?;
            let after = versioned(definition, before.as_ref(), version);
            stored.push(Arc::clone(&after));
            changes.push(Change { app, before, after: Some(after) });
        }
        let prepared = self.prepare(changes, version, force, BTreeSet::new())?;
        Ok((Self::reply(&prepared, stored), Work::Deploy(Box::new(prepared))))
    }

    fn check_change(
        &mut self,
        change: Change,
        force: bool,
        now: Timestamp,
    ) -> Result<(Reply, Work), Rejection> {
        let version = self.next_version(now);
        let prepared = self.prepare(vec![change], version, force, BTreeSet::new())?;
        Ok((Self::reply(&prepared, Vec::new()), Work::Deploy(Box::new(prepared))))
    }

    fn check_kill(
        &mut self,
        tasks: Vec<TaskId>,
        scale: bool,
        force: bool,
        now: Timestamp,
    ) -> Result<(Reply, Work), Rejection> {
        let tasks: BTreeSet<TaskId> = tasks.into_iter().collect();
        let mut views = Vec::with_capacity(tasks.len());
        let mut wanted: BTreeMap<AppId, u32> = BTreeMap::new();
        for task in &tasks {
            let instance = self.instance(task).filter(|instance| self.visible(&instance.view.app).is_some());
            // One that has just ended does not save the others.
            let Some(instance) = instance else { continue };
            views.push(Arc::clone(&instance.view));
            *wanted.entry(instance.view.app.clone()).or_default() += u32::from(instance.is_wanted());
        }
        if let Some(task) = tasks.first().filter(|_| views.is_empty()) {
            return Err(Rejection::UnknownTask(task.clone()));
        }
        let kill: Vec<TaskId> = views.iter().map(|view| view.task.clone()).collect();
        if !scale {
            return Ok((Reply::Killed(views), Work::Kill(kill)));
        }
        let version = self.next_version(now);
        let mut changes = Vec::with_capacity(wanted.len());
        for (app, count) in wanted {
            let before = Arc::clone(self.known(&app)?.definition());
            let mut after = AppDefinition::clone(&before);
            after.instances = after.instances.saturating_sub(count);
            let after = versioned(after, Some(&before), version);
            changes.push(Change { app, before: Some(before), after: Some(after) });
        }
        let mut prepared = self.prepare(changes, version, force, BTreeSet::new())?;
        prepared.kill = kill;
        Ok((Self::reply(&prepared, Vec::new()), Work::Deploy(Box::new(prepared))))
    }

    /// Cancelling without force is a deployment back to what was before. The restored versions count as the
    /// configurations that they were, so that instances which still run from them need no restart.
    fn check_cancel(
        &mut self,
        id: DeploymentId,
        force: bool,
        now: Timestamp,
    ) -> Result<(Reply, Work), Rejection> {
        let plan = self.plans.get(&id).ok_or_else(|| Rejection::UnknownDeployment(id.clone()))?;
        if force {
            return Ok((Reply::Done, Work::Cancel(id)));
        }
        let deployment = Arc::clone(&plan.deployment);
        let version = self.next_version(now);
        let mut changes = Vec::with_capacity(deployment.affected_apps.len());
        for app in &deployment.affected_apps {
            let before = self.visible(app).map(|app| Arc::clone(app.definition()));
            let original = deployment.original.iter().find(|definition| definition.id == *app);
            let after = original.map(|original| {
                let mut definition = AppDefinition::clone(original);
                definition.version = version;
                definition.version_info.last_scaling_at = version;
                Arc::new(definition)
            });
            changes.push(Change { app: app.clone(), before, after });
        }
        let prepared = self.prepare(changes, version, true, BTreeSet::from([id]))?;
        Ok((Self::reply(&prepared, Vec::new()), Work::Deploy(Box::new(prepared))))
    }

    fn deploy(&mut self, prepared: Prepared, turn: &mut Turn) {
        let Prepared { deployment, changes, cancel, kill } = prepared;
        for id in &cancel {
            self.cancel(id, turn);
        }
        self.version_last = self.version_last.max(deployment.version);
        for change in changes {
            if let Some(after) = change.after {
                self.put_version(&change.app, after, turn);
            }
        }
        for task in &kill {
            self.kill(task, turn);
        }
        turn.publish(EventKind::GroupChanged { version: deployment.version });
        let deployment = Arc::new(deployment);
        if deployment.steps.is_empty() {
            turn.publish(EventKind::DeploymentSuccess { plan: deployment });
        } else {
            self.begin(deployment, turn);
        }
    }

    fn put_version(&mut self, id: &AppId, definition: Arc<AppDefinition>, turn: &mut Turn) {
        turn.store(Table::AppVersions, version_key(id, definition.version), &*definition);
        self.service_ports.claim(&definition);
        self.is_revival_due = true;
        self.touch(id);
        let Some(app) = self.apps.get_mut(id) else {
            self.apps.insert(id.clone(), App::new(definition, Goal::Scale { instances: 0 }));
            return;
        };
        self.service_ports.release(app.definition());
        for version in app.put_version(definition, self.config.versions_max) {
            turn.erase(Table::AppVersions, version_key(id, version));
        }
        let unreachable = app.instances().values().filter(|instance| instance.unreachable_since.is_some());
        for instance in unreachable {
            let timer = Timer::Instance(instance.view.task.clone());
            self.timers.set(timer, instance.due(app.definition()));
        }
    }

    fn reset_delay(&mut self, id: &AppId) {
        if let Some(app) = self.apps.get_mut(id) {
            app.delay = crate::app::Delay::default();
            self.is_revival_due = true;
            self.touch(id);
        }
    }

    /// The time of a change: now, but later than every change before.
    fn next_version(&self, now: Timestamp) -> Timestamp {
        now.max(self.version_last.plus(Duration::from_millis(1)))
    }

    /// An app that readers see.
    pub(crate) fn visible(&self, id: &AppId) -> Option<&App> {
        self.apps.get(id).filter(|app| !app.is_stopping())
    }

    fn known(&self, id: &AppId) -> Result<&App, Rejection> {
        self.visible(id).ok_or_else(|| Rejection::UnknownApp(id.clone()))
    }
}

/// The definition with defaults for numbers that are none: they equal nothing, not even themselves, and JSON cannot hold
/// them.
fn finite(mut definition: AppDefinition) -> AppDefinition {
    let strategy = UpgradeStrategy::default();
    let replace = |number: &mut f64, default: f64| {
        if !number.is_finite() {
            *number = default;
        }
    };
    let own = &mut definition.upgrade_strategy;
    replace(&mut own.minimum_health_capacity, strategy.minimum_health_capacity);
    replace(&mut own.maximum_over_capacity, strategy.maximum_over_capacity);
    replace(&mut definition.backoff.factor, Backoff::default().factor);
    definition
}

/// The definition as a new version, or the version in force if nothing differs.
fn versioned(
    mut definition: AppDefinition,
    before: Option<&Arc<AppDefinition>>,
    version: Timestamp,
) -> Arc<AppDefinition> {
    let new = VersionInfo { last_config_change_at: version, last_scaling_at: version };
    let Some(before) = before else {
        (definition.version, definition.version_info) = (version, new);
        return Arc::new(definition);
    };
    let instances = definition.instances;
    definition.version = before.version;
    definition.version_info = before.version_info;
    if definition == **before {
        return Arc::clone(before);
    }
    definition.instances = before.instances;
    let is_config_change = definition != **before;
    definition.instances = instances;
    definition.version = version;
    definition.version_info.last_scaling_at = version;
    if is_config_change {
        definition.version_info = new;
    }
    Arc::new(definition)
}
