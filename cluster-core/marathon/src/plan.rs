//! From what changes to the steps of a deployment.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use mesonet_model::{AppDefinition, AppId, DeploymentId};

use crate::app::App;
use crate::census::Generation;
use crate::dependencies::longest_paths;
use crate::machine::Marathon;
use crate::{ActionKind, Deployment, DeploymentAction, DeploymentStep, Rejection, Reply};

/// The most deployments that run at the same time (Marathon's `max_running_deployments`). Further ones are refused.
const RUNNING_DEPLOYMENTS_MAX: usize = 100;

/// One app before and after.
#[derive(Debug)]
pub(crate) struct Change {
    /// The app.
    pub(crate) app: AppId,
    /// Absent for a new app.
    pub(crate) before: Option<Arc<AppDefinition>>,
    /// Absent for one that is removed.
    pub(crate) after: Option<Arc<AppDefinition>>,
}

/// A deployment that nothing speaks against.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The deployment.
    pub(crate) deployment: Deployment,
    /// What it changes.
    pub(crate) changes: Vec<Change>,
    /// Deployments that it cancels.
    pub(crate) cancel: BTreeSet<DeploymentId>,
    /// Instances that it kills whatever the kill selection says.
    pub(crate) kill: Vec<mesonet_model::TaskId>,
}

impl Change {
    /// What has to be done with the instances, if anything. `has_old` says whether there are instances of older
    /// configurations, left over from a deployment that was cancelled.
    fn action(&self, has_old: bool) -> Option<ActionKind> {
        match (&self.before, &self.after) {
            (None, None) => None,
            (None, Some(_)) => Some(ActionKind::StartApplication),
            (Some(_), None) => Some(ActionKind::StopApplication),
            (Some(before), Some(after)) => {
                let config = |definition: &AppDefinition| definition.version_info.last_config_change_at;
                if config(before) != config(after) {
                    Some(ActionKind::RestartApplication)
                } else if before.instances == after.instances {
                    None
                } else if has_old {
                    Some(ActionKind::RestartApplication)
                } else {
                    Some(ActionKind::ScaleApplication)
                }
            }
        }
    }
}

impl Marathon {
    /// Makes a deployment of changes, unless something speaks against it. `cancel` are deployments whose locks do not
    /// count because they end before this one begins.
    pub(crate) fn prepare(
        &mut self,
        mut changes: Vec<Change>,
        version: mesonet_model::Timestamp,
        force: bool,
        cancel: BTreeSet<DeploymentId>,
    ) -> Result<Prepared, Rejection> {
        changes.retain(|change| self.action(change).is_some());
        self.check_places(&changes)?;
        let steps = self.steps(&changes)?;
        let touched: BTreeSet<&AppId> = changes.iter().map(|change| &change.app).collect();
        // Also of an app that the deployment has removed already: to cancel it would bring that app back.
        let locks = self.plans.iter().filter(|(id, plan)| {
            let affected = &plan.deployment.affected_apps;
            !cancel.contains(*id) && affected.iter().any(|app| touched.contains(app))
        });
        let locks: BTreeSet<DeploymentId> = locks.map(|(id, _)| id.clone()).collect();
        if !locks.is_empty() && !force {
            return Err(Rejection::Locked(locks.into_iter().collect()));
        }
        let cancel: BTreeSet<DeploymentId> = cancel.into_iter().chain(locks).collect();
        if !steps.is_empty() && self.plans.len() >= RUNNING_DEPLOYMENTS_MAX + cancel.len() {
            return Err(Rejection::TooManyDeployments(RUNNING_DEPLOYMENTS_MAX));
        }
        let deployment = Deployment {
            id: DeploymentId::new(self.uuids.next_uuid().to_string()),
            version,
            affected_apps: changes.iter().map(|change| change.app.clone()).collect(),
            steps,
            current: 0,
            original: changes.iter().filter_map(|change| change.before.clone()).collect(),
            target: changes.iter().filter_map(|change| change.after.clone()).collect(),
        };
        Ok(Prepared { deployment, changes, cancel, kill: Vec::new() })
    }

    /// A path names an app or a group of apps, not both: checks that the places of new apps are free.
    fn check_places(&self, changes: &[Change]) -> Result<(), Rejection> {
        let planned: BTreeMap<&AppId, bool> =
            changes.iter().map(|change| (&change.app, change.after.is_some())).collect();
        let will_be = |id: &AppId| planned.get(id).copied().unwrap_or_else(|| self.visible(id).is_some());
        for Change { app, .. } in changes.iter().filter(|each| each.before.is_none() && each.after.is_some())
        {
            let below = format!("{app}/");
            // No segment sorts before `0`, so that what is in a group of this path begins there.
            let first = AppId::parse(&format!("{below}0")).ok();
            let next = first.into_iter().flat_map(|first| self.apps.range(first..).map(|(id, _)| id));
            let mut inside = next.take_while(|id| id.as_str().starts_with(&below));
            if app.groups().any(|group| will_be(&group)) || inside.any(will_be) {
                return Err(Rejection::PlaceTaken(app.clone()));
            }
        }
        Ok(())
    }

    fn action(&self, change: &Change) -> Option<ActionKind> {
        let app = self.apps.get(&change.app);
        change.action(app.is_some_and(|app| app.census().wanted(&[Generation::Old]) > 0))
    }

    /// The steps, as Marathon orders them: what is removed; what is new, without instances; then instances, those of
    /// apps that others depend on first.
    fn steps(&self, changes: &[Change]) -> Result<Vec<DeploymentStep>, Rejection> {
        let after = changes.iter().filter_map(|change| change.after.as_ref());
        let target = Target {
            puts: after.map(|definition| (definition.id.clone(), definition)).collect(),
            apps: &self.apps,
        };
        let ranks = longest_paths(target.puts.keys().cloned(), |app| target.dependencies(app))
            .map_err(Rejection::DependencyCycle)?;
        let mut stop = Vec::new();
        let mut start = Vec::new();
        let mut ranked: BTreeMap<usize, Vec<DeploymentAction>> = BTreeMap::new();
        for change in changes {
            let Some(kind) = self.action(change) else { continue };
            let action = |kind| DeploymentAction { kind, app: change.app.clone() };
            let rank = ranks.get(&change.app).copied().unwrap_or(0);
            match kind {
                ActionKind::StopApplication => stop.push(action(kind)),
                ActionKind::StartApplication => {
                    start.push(action(kind));
                    ranked.entry(rank).or_default().push(action(ActionKind::ScaleApplication));
                }
                ActionKind::ScaleApplication | ActionKind::RestartApplication => {
                    ranked.entry(rank).or_default().push(action(kind));
                }
            }
        }
        let steps = [stop, start].into_iter().chain(ranked.into_values());
        Ok(steps.filter(|actions| !actions.is_empty()).map(|actions| DeploymentStep { actions }).collect())
    }

    /// The answer to a command that makes this deployment.
    pub(crate) fn reply(prepared: &Prepared, apps: Vec<Arc<AppDefinition>>) -> Reply {
        Reply::Deployment { id: prepared.deployment.id.clone(), version: prepared.deployment.version, apps }
    }
}

/// The apps as they will be.
struct Target<'a> {
    puts: BTreeMap<AppId, &'a Arc<AppDefinition>>,
    apps: &'a BTreeMap<AppId, App>,
}

impl Target<'_> {
    /// The apps that an app depends on, groups resolved to the apps in them.
    fn dependencies(&self, id: &AppId) -> Vec<AppId> {
        let definition = self.puts.get(id).copied().or_else(|| self.apps.get(id).map(App::definition));
        let named = definition.iter().flat_map(|definition| &definition.dependencies);
        let found: BTreeSet<AppId> = named.flat_map(|name| self.named(name)).collect();
        found.into_iter().collect()
    }

    fn named(&self, name: &AppId) -> Vec<AppId> {
        let below = format!("{name}/");
        let range = (Bound::Included(name.clone()), Bound::Unbounded);
        let puts = self.puts.range(range.clone()).map(|(id, _)| id);
        let apps = self.apps.range(range).map(|(id, _)| id);
        let is_prefix = |id: &&AppId| id.as_str().starts_with(name.as_str());
        let is_meant = |id: &&AppId| *id == name || id.as_str().starts_with(&below);
        let puts = puts.take_while(is_prefix).filter(is_meant);
        puts.chain(apps.take_while(is_prefix).filter(is_meant)).cloned().collect()
    }
}
