//! The state machine: what it holds, and one turn of it.
//!
//! ```text
//!  input ──► due timers ──► settle ──► command, offers or status ──► settle ──► call for offers ──► records and views
//! ```
//!
//! Whatever changes an app marks it unsettled. Settling compares its goal with its instances, kills what is too much,
//! queues what is missing, and moves its deployment on when the goal is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AgentId, AppId, DeploymentId, FrameworkId, Offer, SchedulerCall, SchedulerEvent, Table, TaskId,
    Timestamp, UuidSource, Write,
};
use serde::Serialize;

use crate::app::App;
use crate::host_ports::HostPorts;
use crate::progress::Plan;
use crate::service_ports::ServicePorts;
use crate::timers::{Timer, Timers};
use crate::{Command, Event, EventKind, MarathonView, Rejection, Reply};

/// How long offers are not wanted while nothing waits (Marathon's `decline_offer_duration`). A revival ends it.
pub(crate) const REFUSE_IDLE: Duration = Duration::from_secs(120);

/// How long an offer is not wanted that fits nothing of what waits (Mesos' default filter).
pub(crate) const REFUSE_UNFIT: Duration = Duration::from_secs(5);

/// The least time between two revivals for constraints that fewer instances have lifted. Instances may end often, and a
/// revival brings every agent's offer; without one, what has become free comes back after [`REFUSE_UNFIT`] at the latest.
const REVIVE_INTERVAL: Duration = Duration::from_secs(1);

/// Marathon's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// First and last service port.
    pub service_ports: (u16, u16),
    /// Seed of the ids that it makes; another one at every start.
    pub seed: u64,
    /// The most versions kept of an app.
    pub versions_max: usize,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A user's command; its answer is an [`Effect::Answer`] with the same number.
    Command {
        /// Chosen by the caller.
        number: u64,
        /// The command.
        command: Command,
    },
    /// Something from the master.
    Event(SchedulerEvent),
    /// Time has passed.
    Tick,
}

/// One thing to be done. Writes are to be committed before any other effect of the same call is released.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keep a record.
    Store(Write),
    /// Call the master.
    Call(SchedulerCall),
    /// Answer a command.
    Answer {
        /// The command's number.
        number: u64,
        /// The answer.
        answer: Result<Reply, Rejection>,
    },
    /// Tell listeners.
    Publish(Event),
}

/// Marathon.
#[derive(Debug)]
pub struct Marathon {
    pub(crate) config: Config,
    pub(crate) uuids: UuidSource,
    pub(crate) framework: Option<FrameworkId>,
    pub(crate) apps: BTreeMap<AppId, App>,
    /// The app of each instance.
    pub(crate) owners: BTreeMap<TaskId, AppId>,
    pub(crate) plans: BTreeMap<DeploymentId, Plan>,
    pub(crate) service_ports: ServicePorts,
    pub(crate) host_ports: HostPorts,
    pub(crate) timers: Timers,
    /// The newest version ever given to an app.
    pub(crate) version_last: Timestamp,
    /// Apps with instances to be launched that wait for nothing but offers.
    pub(crate) ready: BTreeSet<AppId>,
    pub(crate) offers: OfferFlow,
    /// Whether offers refused before may fit, because something waits that did not.
    pub(crate) is_revival_due: bool,
    /// Whether offers refused before may fit, because constraints of what waits are lifted.
    pub(crate) is_constraint_lifted: bool,
    pub(crate) revived_at: Timestamp,
    /// Apps whose goal has to be compared with their instances.
    pub(crate) unsettled: BTreeSet<AppId>,
    /// Apps whose record and view have to be made anew.
    pub(crate) changed: BTreeSet<AppId>,
    pub(crate) view: MarathonView,
}

/// What the master was last told about offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OfferFlow {
    /// Nothing: it sends them.
    Flowing,
    /// To send none.
    Suppressed,
}

/// The time and the effects of one input.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The time.
    pub(crate) now: Timestamp,
    /// What is to be done.
    pub(crate) effects: Vec<Effect>,
}

// === impl Marathon ===

impl Marathon {
    /// Reacts to one input.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let mut turn = Turn { now, effects: Vec::new() };
        self.fire_timers(&mut turn);
        self.settle_all(&mut turn);
        match input {
            Input::Command { number, command } => self.command(number, command, &mut turn),
            Input::Event(event) => self.scheduler_event(event, &mut turn),
            Input::Tick => {}
        }
        self.settle_all(&mut turn);
        self.ask_for_offers(&mut turn);
        self.refresh(&mut turn);
        turn.effects
    }

    /// The state for readers. Cheap: it shares structure with the state itself. Its revision is the caller's to set.
    pub fn view(&self) -> MarathonView {
        self.view.clone()
    }

    /// When to call `handle` with [`Input::Tick`] at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        self.timers.next()
    }

    fn scheduler_event(&mut self, event: SchedulerEvent, turn: &mut Turn) {
        match event {
            SchedulerEvent::Subscribed { framework } => self.subscribed(framework, turn),
            SchedulerEvent::Offers(offers) => self.use_offers(&offers, turn),
            // Every offer is answered in the turn in which it comes, so there is none to forget.
            SchedulerEvent::Rescind(_) => {}
            SchedulerEvent::Update(status) => self.status_update(*status, turn),
            SchedulerEvent::Draining(agents) => self.agents_drain(&agents, turn),
        }
    }

    /// Instances on these agents, and no others, are to be replaced elsewhere.
    fn agents_drain(&mut self, agents: &BTreeSet<AgentId>, turn: &mut Turn) {
        let instances = self.apps.values().flat_map(|app| app.instances().values());
        let changed =
            instances.filter(|instance| instance.is_leaving != agents.contains(&instance.view.agent));
        for mut instance in changed.cloned().collect::<Vec<_>>() {
            instance.is_leaving = !instance.is_leaving;
            self.put_instance(instance, turn);
        }
    }

    /// The master knows us: asks what became of our tasks while we did not listen.
    fn subscribed(&mut self, framework: FrameworkId, turn: &mut Turn) {
        self.framework = Some(framework.clone());
        self.view.framework = Some(framework);
        self.offers = OfferFlow::Flowing;
        self.is_revival_due = true;
        if !self.owners.is_empty() {
            turn.call(SchedulerCall::Reconcile { tasks: self.owners.keys().cloned().collect() });
        }
        turn.call(SchedulerCall::Reconcile { tasks: Vec::new() });
    }

    fn use_offers(&mut self, offers: &[Offer], turn: &mut Turn) {
        if self.ready.is_empty() {
            for offer in offers {
                turn.call(SchedulerCall::Decline { offer: offer.id.clone(), refuse: REFUSE_IDLE });
            }
        } else {
            self.launch_on(offers, turn);
        }
    }

    /// Deals with every timer whose time has come.
    pub(crate) fn fire_timers(&mut self, turn: &mut Turn) {
        while let Some(timer) = self.timers.pop_due(turn.now) {
            match timer {
                Timer::Backoff(app) => {
                    self.is_revival_due = true;
                    self.unsettled.insert(app);
                }
                Timer::Revival => self.is_revival_due = true,
                Timer::Instance(task) => self.instance_due(&task, turn),
            }
        }
    }

    /// Tells the master whether offers are wanted.
    fn ask_for_offers(&mut self, turn: &mut Turn) {
        let is_revival_due = std::mem::take(&mut self.is_revival_due);
        let is_constraint_lifted = std::mem::take(&mut self.is_constraint_lifted);
        if self.framework.is_none() {
            return;
        }
        if self.ready.is_empty() {
            if self.offers != OfferFlow::Suppressed {
                self.offers = OfferFlow::Suppressed;
                self.timers.set(Timer::Revival, None);
                turn.call(SchedulerCall::Suppress);
            }
            return;
        }
        let next = self.revived_at.plus(REVIVE_INTERVAL);
        let is_lifted_now = is_constraint_lifted && next <= turn.now;
        if is_revival_due || is_lifted_now || self.offers == OfferFlow::Suppressed {
            self.offers = OfferFlow::Flowing;
            self.revived_at = turn.now;
            self.timers.set(Timer::Revival, None);
            turn.call(SchedulerCall::Revive);
        } else if is_constraint_lifted {
            self.timers.set(Timer::Revival, Some((next, "constraints are lifted")));
        }
    }

    /// Makes records and views of what changed anew.
    pub(crate) fn refresh(&mut self, turn: &mut Turn) {
        for id in std::mem::take(&mut self.changed) {
            let Some(app) = self.apps.get_mut(&id) else {
                self.view.apps.remove(&id);
                continue;
            };
            let record = app.record();
            if app.stored.as_ref() != Some(&record) {
                turn.store(Table::Apps, &id, &record);
                app.stored = Some(record);
            }
            if app.is_stopping() {
                self.view.apps.remove(&id);
            } else {
                self.view.apps.insert(id, Arc::new(app.view()));
            }
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Puts a record.
    pub(crate) fn store<T: Serialize>(&mut self, table: Table, key: impl std::fmt::Display, value: &T) {
        self.effects.push(Effect::Store(Write::put(table, key, value)));
    }

    /// Deletes a record.
    pub(crate) fn erase(&mut self, table: Table, key: impl std::fmt::Display) {
        self.effects.push(Effect::Store(Write::delete(table, key)));
    }

    /// Calls the master.
    pub(crate) fn call(&mut self, call: SchedulerCall) {
        self.effects.push(Effect::Call(call));
    }

    /// Tells listeners.
    pub(crate) fn publish(&mut self, kind: EventKind) {
        self.effects.push(Effect::Publish(Event { timestamp: self.now, kind }));
    }
}
