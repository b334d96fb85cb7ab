//! What users ask for.

use std::sync::Arc;

use fastrand::Rng;
use mesonet_marathon::{AppBase, AppPut, AppView, Command, MarathonView};
use mesonet_model::{AppDefinition, TaskId};

use crate::apps::{INSTANCES_MAX, app_id, definition};

/// Some command of somebody who sees this.
pub(crate) fn command(view: &MarathonView, rng: &mut Rng) -> Command {
    let force = rng.bool();
    let app = app_id(rng);
    match rng.u32(..20) {
        0..=7 => {
            let mut apps = vec![put(view, rng)];
            let other = put(view, rng);
            if rng.u32(..5) == 0 && other.definition.id != apps[0].definition.id {
                apps.push(other);
            }
            Command::Put { apps, force }
        }
        8..=9 => Command::Delete { app, force },
        10..=11 => Command::Restart { app, force },
        12..=15 => kill(view, rng, force),
        16..=18 => {
            let deployments: Vec<_> = view.deployments.keys().cloned().collect();
            match rng.choice(deployments) {
                Some(deployment) => Command::CancelDeployment { deployment, force },
                None => Command::Restart { app, force },
            }
        }
        _ => Command::ResetDelay { app },
    }
}

/// A new app, another configuration of one, or only another number of instances.
fn put(view: &MarathonView, rng: &mut Rng) -> AppPut {
    let id = app_id(rng);
    match view.apps.get(&id) {
        None => AppPut { definition: definition(&id, rng), base: AppBase::Absent },
        Some(app) => {
            let base = AppBase::Version(app.definition.version);
            let definition = if rng.bool() { definition(&id, rng) } else { scaled(app, rng) };
            AppPut { definition, base }
        }
    }
}

fn scaled(app: &Arc<AppView>, rng: &mut Rng) -> AppDefinition {
    let mut definition = AppDefinition::clone(&app.definition);
    definition.instances = rng.u32(..=INSTANCES_MAX);
    definition
}

fn kill(view: &MarathonView, rng: &mut Rng, force: bool) -> Command {
    let all: Vec<TaskId> = view.apps.values().flat_map(|app| app.instances.keys().cloned()).collect();
    let tasks = rng.choose_multiple(all, rng.clone().usize(1..3));
    Command::KillTasks { tasks, scale: rng.bool(), force }
}

/// A command in a few words.
pub(crate) fn brief(command: &Command) -> String {
    match command {
        Command::Put { apps, force } => {
            let apps: Vec<_> =
                apps.iter().map(|put| (&put.definition.id, put.definition.instances)).collect();
            format!("put {apps:?}, force {force}")
        }
        other => format!("{other:?}"),
    }
}
