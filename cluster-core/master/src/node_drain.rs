//! Agents that are to be empty, and agents that are gone: declared so by operators, or away for too long.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesonet_model::{
    Agent, AgentCommand, AgentId, FrameworkId, Resources, StatusReason, TaskState, Timestamp,
};

use crate::machine::Master;

impl Master {
    /// Empties an agent, or lets it be used again. Frameworks move its tasks; an unknown agent is ignored.
    pub(crate) fn set_draining(&mut self, id: &AgentId, draining: bool, now: Timestamp) {
        let Some(agent) = self.view.agents.get(id).filter(|agent| agent.draining != draining) else { return };
        let agent = agent.as_ref().clone();
        if draining {
            self.draining.insert(id.clone());
        } else {
            self.draining.remove(id);
            self.liveness.wait_again(id, now);
        }
        self.set_agent(Agent { draining, ..agent });
        self.tell_draining();
    }

    /// An operator declares an agent gone for good, with all that ran on it. If it comes back, it is another one.
    pub(crate) fn remove_node(&mut self, id: &AgentId, now: Timestamp) {
        let Some(agent) = self.view.agents.get(id).cloned() else { return };
        for key in self.agent_tasks.get(id).into_iter().flatten() {
            self.out.command(id, AgentCommand::Kill { task: key.clone(), grace: None });
        }
        let message = format!("agent {} was declared gone by an operator", agent.info.hostname);
        self.forget_agent(id, TaskState::GoneByOperator, &message, now);
    }

    /// An agent has been unreachable for too long. One that is to be empty is kept: its operator knows of it, and it
    /// must not be used when it comes back.
    pub(crate) fn agent_is_gone(&mut self, id: &AgentId, now: Timestamp) {
        let Some(agent) = self.view.agents.get(id).filter(|agent| !agent.draining).cloned() else { return };
        let message = format!("agent {} has not answered for too long", agent.info.hostname);
        self.forget_agent(id, TaskState::Gone, &message, now);
    }

    /// Removes an agent with all that ran on it, of which the frameworks are told.
    fn forget_agent(&mut self, id: &AgentId, state: TaskState, message: &str, now: Timestamp) {
        for key in self.agent_tasks.remove(id).unwrap_or_default() {
            self.remove_task(&key, now);
            self.tell(key, state, StatusReason::ReasonAgentRemoved, message.to_owned(), now);
        }
        for (framework, offer) in self.allocator.set_agent(id, &Resources::default(), false) {
            self.out.rescind(&framework, offer);
        }
        self.allocator.forget_agent(id);
        let node =
            self.view.agents.get(id).map_or_else(|| id.clone(), |agent| AgentId::new(agent.node_name()));
        self.liveness.forget(id);
        self.view.agents.remove(id);
        self.take_parts_back(id);
        self.forget_tunnel(&node);
        self.out.view_changed = true;
        self.out.dirty.agents.insert(id.clone());
        if self.draining.remove(id) {
            self.tell_draining();
        }
    }

    /// Tells a framework which agents are to be empty.
    pub(crate) fn tell_draining_to(&mut self, framework: &FrameworkId) {
        let draining: BTreeSet<AgentId> = self.draining.clone();
        self.out.draining(framework, draining);
    }

    fn tell_draining(&mut self) {
        for framework in self.allocator.subscribed() {
            self.tell_draining_to(&framework);
        }
    }

    /// Shows in the view whether lost agents are held, and says so when it begins.
    pub(crate) fn show_removal_held(&mut self) {
        let is_held = self.liveness.is_held();
        let Some(this) = self.view.masters.get(&self.config.master) else { return };
        if this.removal_held == is_held {
            return;
        }
        let this = mesonet_model::Master { removal_held: is_held, ..this.as_ref().clone() };
        self.view.masters.insert(this.id.clone(), Arc::new(this));
        self.out.view_changed = true;
        if is_held {
            let (lost, of) = self.liveness.lost();
            self.out.removal_held(lost, of);
        }
    }
}
