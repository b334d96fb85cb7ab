//! Which nodes are connected, and which agent runs on which of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mesonet_model::{AgentId, AgentInfo, AgentReport, ClusterView};
use quinn::Connection;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::pki::Holder;
use crate::reason::{Reason, Refusal};
use crate::wire::FromMaster;
use crate::{NodeName, Role};

/// Everything that is connected.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    lanes: BTreeMap<(NodeName, Role), Lane>,
    /// The node of each agent.
    nodes: BTreeMap<AgentId, NodeName>,
    /// Registrations whose answer names an agent that is not known yet, in their order.
    pending: VecDeque<Pending>,
}

/// One node in one role. Its connections take turns: the next one begins when all of the last one is said, so that its
/// end is never taken for that of the next.
#[derive(Debug, Default)]
struct Lane {
    turn: Arc<AsyncMutex<()>>,
    /// The latest connection, which may still wait for its turn.
    newest: Option<Connection>,
    current: Option<Link>,
}

/// A connection whose turn it is.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) commands: mpsc::Sender<FromMaster>,
    pub(crate) holder: Holder,
}

#[derive(Debug)]
struct Pending {
    node: NodeName,
    info: AgentInfo,
    /// Whether the agent has said something else of itself meanwhile.
    is_outdated: bool,
}

/// What becomes of a registration.
#[derive(Debug)]
pub(crate) enum Registration {
    /// To be passed on.
    Forward(AgentReport),
    /// An earlier one is under way; its answer will reach the agent.
    UnderWay,
}

/// A node whose agent is registered for the first time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Newcomer {
    pub(crate) node: NodeName,
    /// Whether the agent has said something else of itself than what it is registered with.
    pub(crate) is_outdated: bool,
}

impl Registry {
    /// A node connects: its earlier connection ends, and the new one must wait for its turn.
    pub(crate) fn arrive(
        &mut self,
        node: &NodeName,
        role: Role,
        connection: &Connection,
    ) -> (Arc<AsyncMutex<()>>, Option<Connection>) {
        let lane = self.lanes.entry((node.clone(), role)).or_default();
        (lane.turn.clone(), lane.newest.replace(connection.clone()))
    }

    /// A connection's turn begins.
    pub(crate) fn begin(&mut self, node: &NodeName, role: Role, link: Link) {
        self.lanes.entry((node.clone(), role)).or_default().current = Some(link);
    }

    /// The turn of the current connection ends.
    pub(crate) fn end(&mut self, node: &NodeName, role: Role, connection: &Connection) {
        if let Some(lane) = self.lanes.get_mut(&(node.clone(), role)) {
            lane.current = None;
            if lane.newest.as_ref().is_some_and(|it| it.stable_id() == connection.stable_id()) {
                lane.newest = None;
            }
        }
    }

    /// A certificate has taken the place of the one that a connection was made with.
    pub(crate) fn renewed(&mut self, node: &NodeName, role: Role, holder: Holder) {
        let lane = self.lanes.get_mut(&(node.clone(), role));
        if let Some(link) = lane.and_then(|lane| lane.current.as_mut()) {
            link.holder = holder;
        }
    }

    /// All connections whose turn it is.
    pub(crate) fn links(&self) -> Vec<(NodeName, Role, Link)> {
        let link = |((node, role), lane): (&(NodeName, Role), &Lane)| {
            Some((node.clone(), *role, lane.current.clone()?))
        };
        self.lanes.iter().filter_map(link).collect()
    }

    /// The connection of an agent.
    pub(crate) fn agent_link(&self, agent: &AgentId) -> Option<Link> {
        let node = self.nodes.get(agent)?;
        self.lanes.get(&(node.clone(), Role::Agent))?.current.clone()
    }

    /// Who takes turns with an agent's connections.
    pub(crate) fn agent_turn(&self, agent: &AgentId) -> Option<Arc<AsyncMutex<()>>> {
        let node = self.nodes.get(agent)?;
        Some(self.lanes.get(&(node.clone(), Role::Agent))?.turn.clone())
    }

    /// The agent of a node.
    pub(crate) fn agent_of(&self, node: &NodeName) -> Option<AgentId> {
        self.nodes.iter().find(|(_, owner)| *owner == node).map(|(agent, _)| agent.clone())
    }

    /// Whether an agent is known to run on another node.
    pub(crate) fn is_foreign(&self, agent: &AgentId, node: &NodeName) -> bool {
        self.nodes.get(agent).is_some_and(|owner| owner != node)
    }

    /// Remembers that an agent runs on a node, which has one agent only.
    pub(crate) fn bind(&mut self, agent: &AgentId, node: &NodeName) {
        self.nodes.retain(|_, owner| owner != node);
        self.nodes.insert(agent.clone(), node.clone());
    }

    /// An agent wants to be registered. It is the node's one agent, whatever it says of its id.
    pub(crate) fn register(
        &mut self,
        node: &NodeName,
        report: AgentReport,
        view: Option<&ClusterView>,
    ) -> Result<Registration, Refusal> {
        let AgentReport::Register { agent: given, info, tasks, containers } = report else {
            return Ok(Registration::Forward(report));
        };
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.node == *node) {
            pending.is_outdated = pending.info != info;
            return Ok(Registration::UnderWay);
        }
        let agent = self.agent_of(node).or(given);
        if let Some(agent) = &agent
            && self.is_foreign(agent, node)
        {
            return Err(Refusal::new(Reason::ForeignAgent, format!("agent {agent} belongs to another node")));
        }
        match agent.as_ref().filter(|agent| view.is_some_and(|view| view.agents.contains_key(*agent))) {
            Some(known) => self.bind(known, node),
            None => {
                let pending = Pending { node: node.clone(), info: info.clone(), is_outdated: false };
                self.pending.push_back(pending);
            }
        }
        Ok(Registration::Forward(AgentReport::Register { agent, info, tasks, containers }))
    }

    /// The master has registered an agent. Returns its node if that was not known.
    pub(crate) fn registered(&mut self, agent: &AgentId, view: Option<&ClusterView>) -> Option<Newcomer> {
        if self.nodes.contains_key(agent)
            && !self.pending.iter().any(|p| self.nodes.get(agent) == Some(&p.node))
        {
            return None;
        }
        let info = &view?.agents.get(agent)?.info;
        let index = self.pending.iter().position(|pending| pending.is(info))?;
        let Pending { node, is_outdated, .. } = self.pending.remove(index)?;
        self.bind(agent, &node);
        Some(Newcomer { node, is_outdated })
    }
}

impl Pending {
    fn is(&self, info: &AgentInfo) -> bool {
        self.info.hostname == info.hostname && self.info.address == info.address
    }
}
