//! What one call of the master has to make durable and to say.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesonet_model::{
    AgentCommand, AgentId, FrameworkId, NetworkName, Offer, OfferId, SchedulerEvent, ServiceKey, TaskKey,
    TaskStatus,
};

use crate::Effect;

/// Collects the effects of one call. Records are only marked here: each is written once, as it is at the call's end.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Whether the view is another one than before the call.
    pub(crate) view_changed: bool,
    /// The records to be written or deleted.
    pub(crate) dirty: Dirty,
    effects: Vec<Effect>,
}

/// Keys of records that may differ from what the store holds.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) agents: BTreeSet<AgentId>,
    pub(crate) brake: bool,
    pub(crate) counters: bool,
    pub(crate) frameworks: BTreeSet<FrameworkId>,
    pub(crate) joined: BTreeSet<IpAddr>,
    pub(crate) networks: BTreeSet<NetworkName>,
    pub(crate) services: BTreeSet<ServiceKey>,
    pub(crate) subnets: BTreeSet<AgentId>,
    pub(crate) tasks: BTreeSet<TaskKey>,
    pub(crate) tunnels: BTreeSet<AgentId>,
    pub(crate) vips: BTreeSet<String>,
}

impl Outbox {
    pub(crate) fn command(&mut self, agent: &AgentId, command: AgentCommand) {
        self.effects.push(Effect::Agent { agent: agent.clone(), command });
    }

    pub(crate) fn subscribed(&mut self, framework: &FrameworkId) {
        self.event(framework, SchedulerEvent::Subscribed { framework: framework.clone() });
    }

    pub(crate) fn offers(&mut self, framework: &FrameworkId, offers: Vec<Offer>) {
        self.event(framework, SchedulerEvent::Offers(offers));
    }

    pub(crate) fn rescind(&mut self, framework: &FrameworkId, offer: OfferId) {
        self.event(framework, SchedulerEvent::Rescind(offer));
    }

    pub(crate) fn update(&mut self, status: TaskStatus) {
        let framework = status.task.framework.clone();
        self.event(&framework, SchedulerEvent::Update(Box::new(status)));
    }

    pub(crate) fn warn(&mut self, task: &TaskKey, message: String) {
        self.effects.push(Effect::Warn { task: task.clone(), message });
    }

    pub(crate) fn draining(&mut self, framework: &FrameworkId, agents: BTreeSet<AgentId>) {
        self.event(framework, SchedulerEvent::Draining(agents));
    }

    pub(crate) fn removal_held(&mut self, lost: usize, of: usize) {
        self.effects.push(Effect::RemovalHeld { lost, of });
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Everything said so far, in order; nothing is left.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn event(&mut self, framework: &FrameworkId, event: SchedulerEvent) {
        self.effects.push(Effect::Framework { framework: framework.clone(), event });
    }
}
