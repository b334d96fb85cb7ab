//! Ends of tunnels, as the nodes' network daemons say them, and who knows of them.
//!
//! While a node changes its keys, it goes on only when every live node has what it has said last. A node is live in
//! this sense while its overlay is connected, and for a time after that: it may well go on to send packets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{Agent, AgentId, AgentState, Plane, PlaneReport, Revision, Timestamp, TunnelEnd};

use crate::machine::Master;

/// How long a node's overlay that is not connected is waited for. Tunnels need no master, so this is longer than what
/// usually keeps nodes from their master; and a key that stays in force for some minutes more does no harm.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is known of the nodes' overlays.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    overlays: BTreeMap<AgentId, Overlay>,
    /// Nodes that change their keys, and the revision of what they have said last.
    unacknowledged: BTreeMap<AgentId, Revision>,
}

#[derive(Debug)]
struct Overlay {
    applied: Revision,
    /// Since when it is not connected.
    lost_at: Option<Timestamp>,
    /// Nodes that do not answer it.
    silent: BTreeSet<AgentId>,
}

impl Tunnels {
    /// Takes over what the store has. Nobody is connected yet.
    pub(crate) fn restarted<'ends>(
        &mut self,
        ends: impl Iterator<Item = (&'ends AgentId, &'ends Arc<TunnelEnd>)>,
        revision: Revision,
        now: Timestamp,
    ) {
        for (node, end) in ends {
            let silent = BTreeSet::new();
            self.overlays
                .insert(node.clone(), Overlay { applied: Revision::ZERO, lost_at: Some(now), silent });
            if end.other_key.is_some() && !end.is_acknowledged {
                self.unacknowledged.insert(node.clone(), revision);
            }
        }
    }

    /// A node's overlay is not connected any more.
    pub(crate) fn overlay_gone(&mut self, node: &AgentId, now: Timestamp) {
        if let Some(overlay) = self.overlays.get_mut(node) {
            overlay.lost_at.get_or_insert(now);
        }
    }

    /// The nodes that do not answer through tunnels, as those say that are connected.
    fn silent(&self) -> BTreeSet<AgentId> {
        let connected = self.overlays.values().filter(|overlay| overlay.lost_at.is_none());
        connected.flat_map(|overlay| overlay.silent.iter().cloned()).collect()
    }

    /// When an overlay is not waited for any more, if somebody waits.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let lost = self.overlays.values().filter_map(|overlay| overlay.lost_at);
        lost.map(|at| at.plus(PATIENCE)).min().filter(|_| !self.unacknowledged.is_empty())
    }

    /// The nodes of which everybody has what they have said last; each is given once.
    fn take_acknowledged(&mut self, now: Timestamp) -> Vec<AgentId> {
        self.overlays.retain(|_, overlay| overlay.lost_at.is_none_or(|at| now < at.plus(PATIENCE)));
        if self.unacknowledged.is_empty() {
            return Vec::new();
        }
        let applied = self.overlays.values().map(|overlay| overlay.applied).min();
        let is_known = |revision: &Revision| applied.is_none_or(|applied| *revision <= applied);
        let known: Vec<AgentId> =
            self.unacknowledged.iter().filter(|(_, at)| is_known(at)).map(|(node, _)| node.clone()).collect();
        self.unacknowledged.retain(|_, revision| !is_known(revision));
        known
    }
}

impl Master {
    /// A plane reports. That of the overlay says where its node's tunnels end.
    pub(crate) fn plane_report(&mut self, report: PlaneReport, now: Timestamp) {
        if report.plane == Plane::Overlay {
            self.overlay_report(&report);
        }
        self.drains.report(report, now);
    }

    /// The connection to a plane is lost.
    pub(crate) fn plane_gone(&mut self, node: AgentId, plane: Plane, now: Timestamp) {
        if plane == Plane::Overlay {
            self.tunnels.overlay_gone(&node, now);
        }
        self.drains.plane_gone(node, plane, now);
    }

    fn overlay_report(&mut self, report: &PlaneReport) {
        let node = &report.node;
        let silent = report.tunnel.iter().flat_map(|tunnel| tunnel.silent.iter().cloned()).collect();
        let overlay = Overlay { applied: report.applied, lost_at: None, silent };
        self.tunnels.overlays.insert(node.clone(), overlay);
        let end = report.tunnel.as_ref().map(|tunnel| &tunnel.end).filter(|end| end.is_plausible());
        let Some(end) = end else { return };
        if self.view.tunnels.get(node).is_some_and(|known| known.says_the_same(end)) {
            return;
        }
        self.set_tunnel(node, TunnelEnd { is_acknowledged: false, ..end.clone() });
        self.tunnels.unacknowledged.remove(node);
        if end.other_key.is_some() {
            self.tunnels.unacknowledged.insert(node.clone(), self.view.revision.next());
        }
    }

    /// An agent whose connection is lost and whose node does not answer other nodes either is not waited for any longer.
    /// What other nodes say is nothing but a hint: while its connection is there, it does no harm to an agent.
    pub(crate) fn take_hints(&mut self, now: Timestamp) {
        let silent = self.tunnels.silent();
        if silent.is_empty() {
            return;
        }
        let is_hinted = |agent: &Agent| {
            agent.state == AgentState::Suspect && silent.contains(&AgentId::new(agent.node_name()))
        };
        let agents = self.view.agents.values().filter(|agent| is_hinted(agent)).map(|agent| agent.id.clone());
        for agent in agents.collect::<Vec<_>>() {
            self.liveness.hurry(&agent, now);
        }
    }

    /// Lets nodes that change their keys go on.
    pub(crate) fn acknowledge_tunnels(&mut self, now: Timestamp) {
        for node in self.tunnels.take_acknowledged(now) {
            if let Some(end) = self.view.tunnels.get(&node).cloned() {
                self.set_tunnel(&node, TunnelEnd { is_acknowledged: true, ..end.as_ref().clone() });
            }
        }
    }

    fn set_tunnel(&mut self, node: &AgentId, end: TunnelEnd) {
        self.out.view_changed = true;
        self.out.dirty.tunnels.insert(node.clone());
        self.view.tunnels.insert(node.clone(), Arc::new(end));
    }

    /// A node is gone for good, or not trusted any more: nobody sends to it, or takes anything from it, from this
    /// revision on.
    pub(crate) fn forget_tunnel(&mut self, node: &AgentId) {
        self.tunnels.overlays.remove(node);
        self.tunnels.unacknowledged.remove(node);
        if self.view.tunnels.remove(node).is_some() {
            self.out.view_changed = true;
            self.out.dirty.tunnels.insert(node.clone());
        }
    }
}
