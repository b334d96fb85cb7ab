//! Whether a kill leaves as many instances of an app as its upgrade strategy says.
//!
//! Only what is committed is seen. What has changed with the same commit may have been one way or the other when the kill
//! was decided, and gets the benefit of that doubt.

use std::collections::BTreeSet;

use mesonet::control_plane::State;
use mesonet_marathon::{ActionKind, AppView, InstanceView};
use mesonet_model::{AppDefinition, AppId, ClusterView, TaskId, TaskState};

/// What was committed before and binds what is committed later.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    before: Option<State>,
}

/// What else is known of tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// Those that users have killed, who are bound by nothing.
    pub(crate) by_users: &'a BTreeSet<TaskId>,
    /// Those that were ready at some time, whether or not anybody has asked.
    pub(crate) ready: &'a BTreeSet<TaskId>,
}

impl Kills {
    /// A state is committed. Returns how many kills had to leave enough instances.
    pub(crate) fn check(&mut self, state: &State, known: Known<'_>) -> u64 {
        let before = self.before.replace(state.clone());
        let Some(before) = before else { return 0 };
        let shared = before.marathon.apps.iter().filter_map(|(id, old)| {
            let new = state.marathon.apps.get(id)?;
            (!is_removed(state, id)).then_some((id, old, new))
        });
        shared.map(|(id, old, new)| check_app(id, (&before, old), (state, new), known)).sum()
    }
}

/// The kills of one app.
fn check_app(
    id: &AppId,
    (before, old): (&State, &AppView),
    (after, new): (&State, &AppView),
    known: Known<'_>,
) -> u64 {
    let draining_before = draining(&before.cluster);
    let draining = draining(&after.cluster);
    let serves = |app: &AppView, task: &TaskId| {
        let instance = app.instances.get(task);
        instance.is_some_and(|instance| is_serving(app, instance, known))
    };
    let is_lost =
        |task: &&&TaskId| serves(old, task) && serves(new, task) && !known.by_users.contains(**task);
    let killed = draining.difference(&draining_before).filter(is_lost).count();
    if killed == 0 {
        return 0;
    }
    let may_serve = |task: &&TaskId| {
        let has_ended = !new.instances.contains_key(*task);
        has_ended || serves(old, task) || serves(new, task)
    };
    let tasks: BTreeSet<&TaskId> = old.instances.keys().chain(new.instances.keys()).collect();
    let left = tasks.into_iter().filter(|task| !draining.contains(*task)).filter(may_serve).count();
    let needed = needed(&old.definition).min(needed(&new.definition));
    assert!(
        left >= needed,
        "{killed} instances of {id} are killed that serve, {left} are left of {needed}: {:?}, then {:?}",
        old.instances,
        new.instances
    );
    killed as u64
}

/// How many instances have to serve.
fn needed(definition: &AppDefinition) -> usize {
    (f64::from(definition.instances) * definition.upgrade_strategy.minimum_health_capacity).ceil() as usize
}

/// Whether an app is on its way out.
fn is_removed(state: &State, id: &AppId) -> bool {
    let steps = state.marathon.deployments.values().flat_map(|deployment| &deployment.steps);
    let mut actions = steps.flat_map(|step| &step.actions);
    actions.any(|action| action.app == *id && action.kind == ActionKind::StopApplication)
}

/// The tasks that are to be ended.
fn draining(view: &ClusterView) -> BTreeSet<&TaskId> {
    view.tasks.values().filter(|task| task.draining).map(|task| &task.key.task).collect()
}

/// Whether an instance does what it is there for: it runs, is well as far as it is checked, and is ready if that is
/// waited for, which is so whatever is said of it.
fn is_serving(app: &AppView, instance: &InstanceView, known: Known<'_>) -> bool {
    let definition = app.versions.iter().find(|definition| definition.version == instance.version);
    let is_checked = definition.is_some_and(|definition| !definition.health_checks.is_empty());
    let is_well = instance.healthy == Some(true) || (instance.healthy.is_none() && !is_checked);
    let is_ready = instance.readiness.is_none() || known.ready.contains(&instance.task);
    instance.state == TaskState::Running && is_well && is_ready
}
