//! Agents: registration, reconciliation of what they run, and loss of their connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesonet_model::{
    Agent, AgentCommand, AgentId, AgentInfo, AgentReport, AgentState, Resources, RunningTask, Scalar,
    StatusReason, TaskKey, TaskState, TaskStatus, Timestamp,
};

use crate::machine::Master;

impl Master {
    pub(crate) fn agent_report(&mut self, report: AgentReport, now: Timestamp) {
        match report {
            AgentReport::Register { agent, info, tasks, containers } => {
                let agent = self.register(agent, info, tasks, now);
                self.agent_containers(&agent, containers);
            }
            AgentReport::Containers { agent, containers } => self.agent_containers(&agent, containers),
            AgentReport::Status(status) => self.status_report(*status, now),
            AgentReport::Disconnected { agent } => {
                if self.liveness.is_silent(&agent, now) {
                    self.agent_is_lost(&agent, AgentState::Suspect, now);
                }
            }
        }
    }

    /// An agent is there, for the first time or again. An id that the master did not give is replaced.
    /// Its id.
    fn register(
        &mut self,
        given: Option<AgentId>,
        mut info: AgentInfo,
        running: Vec<RunningTask>,
        now: Timestamp,
    ) -> AgentId {
        clear_negative(&mut info.resources);
        let known = given.as_ref().and_then(|id| self.view.agents.get(id)).cloned();
        let (id, registered_at, draining) = match &known {
            Some(agent) => (agent.id.clone(), agent.registered_at, agent.draining),
            None => (self.next_agent_id(), now, false),
        };
        let has_moved = known.is_some_and(|agent| agent.info.address != info.address);
        self.liveness.answers(&id);
        let state = AgentState::Active;
        let other_addresses = Vec::new();
        self.set_agent(Agent { id: id.clone(), info, other_addresses, state, draining, registered_at });
        self.out.command(&id, AgentCommand::Registered { agent: id.clone() });
        self.give_parts(&id);
        self.reconcile_agent(&id, running, now);
        if has_moved {
            self.move_endpoints(&id, now);
        }
        id
    }

    /// A report of an agent that does not count as connected is left to be repeated after its registration, which says
    /// the same and more: what it knew before may be out of date.
    fn status_report(&mut self, status: TaskStatus, now: Timestamp) {
        let agent = status.agent.as_ref().and_then(|id| self.view.agents.get(id));
        if agent.is_none_or(|agent| agent.state == AgentState::Active) {
            self.status(status, now);
        }
    }

    /// An agent does not answer, and neither may its tasks. Costs as much as it has tasks.
    pub(crate) fn agent_is_lost(&mut self, id: &AgentId, state: AgentState, now: Timestamp) {
        let Some(agent) = self.view.agents.get(id) else { return };
        let agent = agent.as_ref().clone();
        let message = format!("agent {} does not answer", agent.info.hostname);
        self.set_agent(Agent { state, ..agent });
        if state == AgentState::Suspect {
            self.tunnels.suspect(id);
        }
        for key in self.agent_tasks.get(id).cloned().unwrap_or_default() {
            self.set_suspect(&key, true, now);
            if state == AgentState::Unreachable {
                self.lose_task(&key, &message, now);
            }
        }
    }

    fn next_agent_id(&mut self) -> AgentId {
        let id = AgentId::new(format!("{}-S{}", self.view.cluster, self.counters.agents));
        self.counters.agents += 1;
        self.out.dirty.counters = true;
        id
    }

    /// Whatever it is, the agent begins without offers.
    pub(crate) fn set_agent(&mut self, agent: Agent) {
        let is_active = agent.state == AgentState::Active && !agent.draining;
        for (framework, offer) in self.allocator.set_agent(&agent.id, &agent.info.resources, is_active) {
            self.out.rescind(&framework, offer);
        }
        if self.view.agents.get(&agent.id).map(Arc::as_ref) != Some(&agent) {
            self.out.view_changed = true;
            self.out.dirty.agents.insert(agent.id.clone());
            self.view.agents.insert(agent.id.clone(), Arc::new(agent));
        }
    }

    /// Makes the master's and the agent's picture of the agent's tasks the same.
    fn reconcile_agent(&mut self, agent: &AgentId, running: Vec<RunningTask>, now: Timestamp) {
        let running: BTreeMap<TaskKey, RunningTask> =
            running.into_iter().map(|task| (task.spec.key.clone(), task)).collect();
        let expected = self.agent_tasks.get(agent).cloned().unwrap_or_default();
        for key in expected.iter().filter(|key| !running.contains_key(key)) {
            self.reconcile_missing(key, now);
        }
        let mut strangers = BTreeMap::new();
        for (key, task) in running {
            // The id may be one that the agent had before it got this one.
            let status = TaskStatus { agent: Some(agent.clone()), ..task.status };
            let is_checked_in_vain = self.is_checked_in_vain(&status);
            if !status.state.is_terminal() && !expected.contains(&key) {
                // It is killed, but has what it has until it ends.
                strangers.insert(key.clone(), task.spec.resources);
            }
            self.status(status, now);
            if is_checked_in_vain {
                // The command has not arrived.
                self.end_readiness(&key);
            }
            if expected.contains(&key) && self.drains.is_killed(&key) {
                self.send_kill(&key);
            }
        }
        self.allocator.set_strangers(agent, strangers);
        for key in &expected {
            self.set_suspect(key, false, now);
        }
    }

    /// The agent does not have a task. One that it never reported on may not have reached it, so it is sent again.
    fn reconcile_missing(&mut self, key: &TaskKey, now: Timestamp) {
        let (Some(task), Some(entry)) = (self.view.tasks.get(key), self.tasks.get(key)) else { return };
        let state = match (task.state, task.draining) {
            (TaskState::Staging, false) => {
                self.out.command(&task.agent, AgentCommand::Launch(Box::new(entry.spec.clone())));
                return;
            }
            (TaskState::Staging, true) => TaskState::Killed,
            (_, _) => TaskState::Gone,
        };
        let message = "the agent came back without the task".to_owned();
        self.remove_task(key, now);
        self.tell(key.clone(), state, StatusReason::ReasonAgentReregistered, message, now);
    }

    /// Costs as much as the agent has tasks.
    fn move_endpoints(&mut self, agent: &AgentId, now: Timestamp) {
        for key in self.agent_tasks.get(agent).into_iter().flatten() {
            if let Some(task) = self.view.tasks.get(key).cloned() {
                self.services.update(&mut self.view, &mut self.out, &task, now);
            }
        }
    }
}

/// An agent cannot have less than nothing.
fn clear_negative(resources: &mut Resources) {
    let Resources { cpus, mem, disk, gpus, ports: _ } = resources;
    for amount in [cpus, mem, disk, gpus] {
        *amount = (*amount).max(Scalar::ZERO);
    }
}
