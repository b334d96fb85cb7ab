//! What users may rely on: every answered command, whatever fails afterwards.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_marathon::{Command, MarathonView, Rejection, Reply};
use mesonet_model::{AppDefinition, AppId, DeploymentId, TaskId, Timestamp};

use crate::apps::APPS;

/// The reference model of the apps.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    apps: BTreeMap<AppId, Expected>,
    /// Commands without an answer.
    open: BTreeMap<u64, Asked>,
    /// Commands whose answers are committed.
    done: BTreeSet<u64>,
    /// Apps of which only the next look can tell what they are.
    unsure: BTreeSet<AppId>,
    /// Apps that may keep instances of older configurations, since a deployment of theirs was cancelled.
    pub(crate) mixed: BTreeSet<AppId>,
    /// Instances whose kill was answered.
    pub(crate) killed: BTreeSet<TaskId>,
    /// Every deployment that was seen, with its apps.
    deployments: BTreeMap<DeploymentId, Vec<AppId>>,
    /// Deployments that were seen to be over.
    over: BTreeSet<DeploymentId>,
    /// Deployments that a command has ended, and such that were over when it might have.
    pub(crate) cancelled: BTreeSet<DeploymentId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    version: Timestamp,
    instances: u32,
    cmd: Option<String>,
}

#[derive(Debug)]
struct Asked {
    command: Command,
    apps: BTreeSet<AppId>,
    /// What a cancelled deployment began from.
    original: Vec<AppDefinition>,
}

impl Ledger {
    /// A command is given, by somebody who sees this.
    pub(crate) fn ask(&mut self, number: u64, command: Command, view: &MarathonView) {
        let mut original = Vec::new();
        let apps = match &command {
            Command::Put { apps, .. } => apps.iter().map(|put| put.definition.id.clone()).collect(),
            Command::Delete { app, .. } | Command::Restart { app, .. } | Command::ResetDelay { app } => {
                BTreeSet::from([app.clone()])
            }
            Command::KillTasks { tasks, .. } => {
                let is_of = |id: &AppId| view.apps[id].instances.keys().any(|task| tasks.contains(task));
                view.apps.keys().filter(|id| is_of(id)).cloned().collect()
            }
            Command::CancelDeployment { deployment, .. } => {
                let found = view.deployments.get(deployment);
                let definitions = found.iter().flat_map(|deployment| &deployment.original);
                original = definitions.map(|definition| AppDefinition::clone(definition)).collect();
                found.iter().flat_map(|deployment| &deployment.affected_apps).cloned().collect()
            }
        };
        self.open.insert(number, Asked { command, apps, original });
    }

    /// What a command does is committed: it holds from here on, whether or not anybody gets the answer.
    pub(crate) fn commit(&mut self, number: u64, answer: &Result<Reply, Rejection>) {
        let asked = self.open.remove(&number).expect("one answer for each command");
        self.done.insert(number);
        let Ok(reply) = answer else { return };
        self.mix(&asked);
        if let Reply::Deployment { id, .. } = reply {
            // It may be cancelled before anybody sees it.
            self.deployments.insert(id.clone(), asked.apps.iter().cloned().collect());
        }
        match (asked.command, reply) {
            (Command::Put { apps, .. }, Reply::Deployment { apps: stored, version, .. }) => {
                for (put, stored) in apps.iter().zip(stored) {
                    assert_eq!(put.definition.instances, stored.instances);
                    assert_eq!(put.definition.cmd, stored.cmd);
                    self.apps.insert(stored.id.clone(), Expected::of(stored));
                    if stored.version == *version {
                        self.mixed.remove(&stored.id);
                    }
                }
            }
            (Command::Delete { app, .. }, Reply::Deployment { .. }) => {
                self.apps.remove(&app);
            }
            (Command::Restart { app, .. }, Reply::Deployment { version, .. }) => {
                self.mixed.remove(&app);
                match self.apps.get_mut(&app) {
                    Some(expected) => expected.version = *version,
                    None => panic!("{app} is restarted but was never there"),
                }
            }
            (Command::KillTasks { tasks, .. }, Reply::Deployment { .. }) => {
                self.killed.extend(tasks);
                self.unsure.extend(asked.apps);
            }
            (Command::KillTasks { tasks, .. }, Reply::Killed(_)) => self.killed.extend(tasks),
            (Command::CancelDeployment { deployment, .. }, Reply::Deployment { version, .. }) => {
                self.cancelled.insert(deployment.clone());
                self.over.insert(deployment);
                for app in asked.apps {
                    self.apps.remove(&app);
                }
                for definition in asked.original {
                    // One that nothing had to be done for keeps its version.
                    let expected = Expected { version: *version, ..Expected::of(&definition) };
                    self.apps.insert(definition.id, expected);
                }
            }
            (Command::CancelDeployment { deployment, .. }, Reply::Done) => {
                self.cancelled.insert(deployment.clone());
                self.over.insert(deployment);
            }
            (Command::ResetDelay { .. }, Reply::Done) => {}
            (command, reply) => panic!("{command:?} is answered with {reply:?}"),
        }
    }

    /// A command is answered. What the answer says must be committed, unless it is that there is nothing to do. That may
    /// be out of date, like anything that is read, if it comes from somebody who does not lead any more.
    pub(crate) fn answer(&mut self, number: u64, answer: &Result<Reply, Rejection>, leads: bool) {
        if self.done.contains(&number) {
            return;
        }
        let asked = self.open.remove(&number).expect("one answer for each command");
        match (asked.command, answer) {
            (Command::KillTasks { tasks, .. }, Ok(Reply::Killed(_))) => self.killed.extend(tasks),
            (Command::ResetDelay { .. }, Ok(Reply::Done)) | (_, Err(_)) => {}
            (Command::Put { .. } | Command::KillTasks { .. }, Ok(Reply::Deployment { apps, .. })) => {
                for stored in apps.iter().filter(|_| leads) {
                    let known = self.apps.get(&stored.id);
                    assert_eq!(known, Some(&Expected::of(stored)), "{} is said to be so already", stored.id);
                }
            }
            (command, Ok(reply)) => panic!("{command:?} is answered with {reply:?}, which is not committed"),
        }
    }

    /// What is committed is what was answered.
    pub(crate) fn check(&mut self, view: &MarathonView) {
        for id in APPS.map(|id| AppId::parse(id).expect("valid")) {
            let seen = view.apps.get(&id).map(|app| Expected::of(&app.definition));
            let expected = self.apps.get(&id);
            if !self.unsure.remove(&id) {
                assert_eq!(seen.as_ref(), expected, "app {id} is not what was answered");
            }
            match seen {
                Some(seen) => self.apps.insert(id, seen),
                None => self.apps.remove(&id),
            };
        }
        for id in view.deployments.keys() {
            assert!(!self.over.contains(id), "deployment {id} was over");
        }
        for id in self.deployments.keys().filter(|id| !view.deployments.contains_key(*id)) {
            self.over.insert(id.clone());
        }
        for (id, deployment) in &view.deployments {
            self.deployments.entry(id.clone()).or_insert_with(|| deployment.affected_apps.clone());
        }
    }

    /// Notes which apps may stay as they are because a command cancels their deployments.
    fn mix(&mut self, asked: &Asked) {
        match &asked.command {
            Command::CancelDeployment { .. } => self.mixed.extend(asked.apps.iter().cloned()),
            Command::Put { force: true, .. }
            | Command::Delete { force: true, .. }
            | Command::Restart { force: true, .. }
            | Command::KillTasks { force: true, .. } => {
                let touched = |(_, apps): &(&DeploymentId, &Vec<AppId>)| {
                    apps.iter().any(|app| asked.apps.contains(app))
                };
                let cancelled: Vec<_> = self.deployments.iter().filter(touched).collect();
                self.cancelled.extend(cancelled.iter().map(|(id, _)| (*id).clone()));
                // Killing what is to end anyway changes nothing of its app, so no new deployment goes on with it.
                let goes_on = |app: &AppId| {
                    asked.apps.contains(app) && !matches!(asked.command, Command::KillTasks { .. })
                };
                let apps = cancelled.into_iter().flat_map(|(_, apps)| apps);
                self.mixed.extend(apps.filter(|app| !goes_on(app)).cloned());
            }
            Command::Put { .. }
            | Command::Delete { .. }
            | Command::Restart { .. }
            | Command::KillTasks { .. }
            | Command::ResetDelay { .. } => {}
        }
    }
}

impl Expected {
    fn of(definition: &AppDefinition) -> Self {
        Self { version: definition.version, instances: definition.instances, cmd: definition.cmd.clone() }
    }
}
