//! Moves apps towards their goals: kills what is too much, queues what is missing.

use mesonet_model::{AppId, DeploymentId, SchedulerCall, Table, TaskId, Timestamp};

use crate::EventKind;
use crate::census::Generation;
use crate::instance::Instance;
use crate::machine::{Marathon, Turn};
use crate::recover::version_key;
use crate::rolling::{Goal, decide, is_reached};
use crate::timers::Timer;

impl Marathon {
    /// Settles every app that is marked, and those that this marks in turn.
    pub(crate) fn settle_all(&mut self, turn: &mut Turn) {
        while let Some(app) = self.unsettled.pop_first() {
            self.settle(&app, turn);
        }
    }

    /// Marks an app as changed: it is settled, and its record and view are made anew.
    pub(crate) fn touch(&mut self, app: &AppId) {
        self.unsettled.insert(app.clone());
        self.changed.insert(app.clone());
    }

    fn settle(&mut self, id: &AppId, turn: &mut Turn) {
        let Some(app) = self.apps.get(id) else { return self.settle_forgotten(id, turn) };
        let decision = decide(app.goal, app.census(), app.definition());
        let (outgoing, _) = app.goal.generations();
        let mut victims = app.census().victims(outgoing, decision.kill_outgoing);
        victims.extend(app.census().victims(&Generation::ALL, decision.kill_any));
        if app.is_stopping() {
            // Nobody waits for them to come back any more.
            victims.extend(app.census().away().cloned());
        }
        for task in &victims {
            self.kill(task, turn);
        }
        let Some(app) = self.apps.get_mut(id) else { return };
        let launch = decide(app.goal, app.census(), app.definition()).launch;
        let is_more = app.set_waiting(launch, turn.now);
        self.changed.insert(id.clone());
        self.update_readiness(id, turn.now);
        self.is_revival_due |= is_more && self.ready.contains(id);
        if self.has_settled(id) {
            self.reached(id, turn);
        }
    }

    /// A forgotten app has nothing left to be done.
    fn settle_forgotten(&mut self, id: &AppId, turn: &mut Turn) {
        let waiting = self.plans.iter().filter(|(_, plan)| plan.pending.contains(id));
        let waiting: Vec<DeploymentId> = waiting.map(|(deployment, _)| deployment.clone()).collect();
        for deployment in &waiting {
            self.action_done(id, deployment, turn);
        }
    }

    /// Keeps the index of apps that offers are wanted for, and the timer of those that have to wait.
    pub(crate) fn update_readiness(&mut self, id: &AppId, now: Timestamp) {
        let Some(app) = self.apps.get(id) else {
            self.ready.remove(id);
            self.timers.set(Timer::Backoff(id.clone()), None);
            return;
        };
        let until = app.delay.until.filter(|until| *until > now && app.queue.is_some());
        self.timers.set(Timer::Backoff(id.clone()), until.map(|until| (until, "a launch delay ends")));
        if app.is_ready(now) {
            self.ready.insert(id.clone());
        } else {
            self.ready.remove(id);
        }
    }

    /// Asks for the end of an instance, which is not wanted from here on. One whose agent does not answer is forgotten
    /// at once; it is killed as an unknown task if the agent comes back.
    pub(crate) fn kill(&mut self, task: &TaskId, turn: &mut Turn) {
        let Some(mut instance) = self.instance(task).cloned() else { return };
        turn.call(SchedulerCall::Kill { task: task.clone() });
        if instance.unreachable_since.is_some() {
            self.remove_instance(task, turn);
        } else {
            instance.kill_asked_at = Some(turn.now);
            self.put_instance(instance, turn);
        }
    }

    /// The time of an instance's timer has come.
    pub(crate) fn instance_due(&mut self, task: &TaskId, turn: &mut Turn) {
        let Some(mut instance) = self.instance(task).cloned() else { return };
        match (instance.unreachable_since, instance.is_given_up) {
            (Some(_), true) => {
                self.remove_instance(task, turn);
            }
            (Some(_), false) => {
                instance.is_given_up = true;
                self.put_instance(instance, turn);
            }
            (None, _) => self.kill(task, turn),
        }
    }

    /// The instance of a task.
    pub(crate) fn instance(&self, task: &TaskId) -> Option<&Instance> {
        self.apps.get(self.owners.get(task)?)?.instances().get(task)
    }

    /// Adds an instance or replaces it by its new state.
    pub(crate) fn put_instance(&mut self, instance: Instance, turn: &mut Turn) {
        let task = instance.view.task.clone();
        let id = instance.view.app.clone();
        let Some(app) = self.apps.get_mut(&id) else { return };
        turn.store(Table::Instances, &task, &instance);
        self.timers.set(Timer::Instance(task.clone()), instance.due(app.definition()));
        app.put_instance(instance);
        self.owners.insert(task, id.clone());
        self.touch(&id);
    }

    /// Forgets an instance.
    pub(crate) fn remove_instance(&mut self, task: &TaskId, turn: &mut Turn) -> Option<Instance> {
        let id = self.owners.remove(task)?;
        turn.erase(Table::Instances, task);
        self.timers.set(Timer::Instance(task.clone()), None);
        self.touch(&id);
        let app = self.apps.get_mut(&id)?;
        // The resources that it leaves are offered anew in any case.
        self.is_constraint_lifted |= !app.placement().is_free() && self.ready.contains(&id);
        app.take_instance(task)
    }

    /// An app has reached its goal: a stopped one is forgotten, and its deployments go on.
    fn reached(&mut self, id: &AppId, turn: &mut Turn) {
        let Some(app) = self.apps.get_mut(id) else { return };
        let deployments = app.deployments.clone();
        match app.goal {
            Goal::Stop => self.forget(id, turn),
            Goal::Replace { instances } => app.goal = Goal::Scale { instances },
            Goal::Scale { .. } => {}
        }
        for deployment in &deployments {
            self.action_done(id, deployment, turn);
        }
    }

    fn forget(&mut self, id: &AppId, turn: &mut Turn) {
        let Some(app) = self.apps.remove(id) else { return };
        self.service_ports.release(app.definition());
        for definition in app.versions() {
            turn.erase(Table::AppVersions, version_key(id, definition.version));
        }
        turn.erase(Table::Apps, id);
        turn.publish(EventKind::AppTerminated { app: id.clone() });
        self.changed.insert(id.clone());
        self.update_readiness(id, turn.now);
    }

    fn has_settled(&self, id: &AppId) -> bool {
        self.apps.get(id).is_some_and(|app| {
            is_reached(app.goal, app.census()) && (!app.is_stopping() || app.instances().is_empty())
        })
    }
}
