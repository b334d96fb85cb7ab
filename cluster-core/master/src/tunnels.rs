//! Ends of tunnels, as the nodes' network daemons say them, and who knows of them.
//!
//! While a node changes its keys, it goes on only when every live node has what it has said last. A node is live in
//! this sense while its overlay is connected, and for a time after that: it may well go on to send packets.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{AgentId, Plane, PlaneReport, Revision, Timestamp, TunnelEnd};

use crate::machine::Master;

/// How long a node's overlay that is not connected is waited for. Tunnels need no master, so this is longer than what
/// usually keeps nodes from their master; and a key that stays in force for some minutes more does no harm.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is known of the nodes' overlays. All of it is looked at with every input, so each answer is kept at hand.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    overlays: BTreeMap<AgentId, Overlay>,
    /// How many overlays are at each revision; the first key is what all have applied.
    applied: BTreeMap<Revision, usize>,
    /// The nodes that do not answer through tunnels, and how many connected overlays say so.
    silent: BTreeMap<AgentId, usize>,
    /// Overlays that are not connected, by when they are not waited for any more.
    lost: BTreeSet<(Timestamp, AgentId)>,
    /// Nodes that change their keys, and the revision of what they have said last.
    unacknowledged: BTreeMap<AgentId, Revision>,
    /// The same by revision.
    by_revision: BTreeSet<(Revision, AgentId)>,
    /// Whether a node is silent that was not when hints were last taken.
    is_silence_new: bool,
    /// Agents that have become suspect since then.
    suspected: BTreeSet<AgentId>,
}

#[derive(Debug)]
struct Overlay {
    applied: Revision,
    /// Until when it is waited for, if it is not connected.
    lost_until: Option<Timestamp>,
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
            self.set(node, Overlay::lost(Revision::ZERO, now));
            if end.other_key.is_some() && !end.is_acknowledged {
                self.wait_for_all(node, revision);
            }
        }
    }

    /// A node's overlay is not connected any more.
    pub(crate) fn overlay_gone(&mut self, node: &AgentId, now: Timestamp) {
        if let Some(overlay) = self.overlays.get(node).filter(|overlay| overlay.lost_until.is_none()) {
            self.set(node, Overlay::lost(overlay.applied, now));
        }
    }

    /// An agent does not answer its master: what nodes say of its node is of interest.
    pub(crate) fn suspect(&mut self, agent: &AgentId) {
        self.suspected.insert(agent.clone());
    }

    /// When an overlay is not waited for any more, if somebody waits.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.lost.first().map(|(until, _)| *until).filter(|_| !self.unacknowledged.is_empty())
    }

    /// The nodes of which everybody has what they have said last; each is given once.
    fn take_acknowledged(&mut self, now: Timestamp) -> Vec<AgentId> {
        while let Some((_, node)) = self.lost.first().filter(|(until, _)| *until <= now).cloned() {
            self.forget(&node);
        }
        let applied = self.applied.first_key_value().map(|(revision, _)| *revision);
        let is_known = |(revision, _): &&(Revision, AgentId)| applied.is_none_or(|all| *revision <= all);
        let mut known = Vec::new();
        while let Some((_, node)) = self.by_revision.first().filter(is_known).cloned() {
            self.stop_waiting(&node);
            known.push(node);
        }
        known
    }

    /// The node's end is acknowledged once every overlay has applied the revision.
    fn wait_for_all(&mut self, node: &AgentId, revision: Revision) {
        self.stop_waiting(node);
        self.unacknowledged.insert(node.clone(), revision);
        self.by_revision.insert((revision, node.clone()));
    }

    fn stop_waiting(&mut self, node: &AgentId) {
        if let Some(revision) = self.unacknowledged.remove(node) {
            self.by_revision.remove(&(revision, node.clone()));
        }
    }

    fn set(&mut self, node: &AgentId, overlay: Overlay) {
        *self.applied.entry(overlay.applied).or_default() += 1;
        for silent in &overlay.silent {
            let witnesses = self.silent.entry(silent.clone()).or_default();
            self.is_silence_new |= *witnesses == 0;
            *witnesses += 1;
        }
        let until = overlay.lost_until;
        if let Some(old) = self.overlays.insert(node.clone(), overlay) {
            self.uncount(node, &old);
        }
        self.lost.extend(until.map(|until| (until, node.clone())));
    }

    fn forget(&mut self, node: &AgentId) {
        if let Some(old) = self.overlays.remove(node) {
            self.uncount(node, &old);
        }
    }

    fn uncount(&mut self, node: &AgentId, old: &Overlay) {
        decrement(&mut self.applied, &old.applied);
        for silent in &old.silent {
            decrement(&mut self.silent, silent);
        }
        if let Some(until) = old.lost_until {
            self.lost.remove(&(until, node.clone()));
        }
    }
}

impl Overlay {
    /// One that is not connected: what it said of other nodes does not count.
    fn lost(applied: Revision, now: Timestamp) -> Self {
        Self { applied, lost_until: Some(now.plus(PATIENCE)), silent: BTreeSet::new() }
    }
}

fn decrement<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Entry::Occupied(mut count) = counts.entry(key.clone()) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
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
        self.tunnels.set(node, Overlay { applied: report.applied, lost_until: None, silent });
        let end = report.tunnel.as_ref().map(|tunnel| &tunnel.end).filter(|end| end.is_plausible());
        let Some(end) = end else { return };
        if self.view.tunnels.get(node).is_some_and(|known| known.says_the_same(end)) {
            return;
        }
        self.set_tunnel(node, TunnelEnd { is_acknowledged: false, ..end.clone() });
        match end.other_key {
            Some(_) => self.tunnels.wait_for_all(node, self.view.revision.next()),
            None => self.tunnels.stop_waiting(node),
        }
    }

    /// An agent whose connection is lost and whose node does not answer other nodes either is not waited for any longer.
    /// What other nodes say is nothing but a hint: while its connection is there, it does no harm to an agent.
    pub(crate) fn take_hints(&mut self, now: Timestamp) {
        let mut suspected = std::mem::take(&mut self.tunnels.suspected);
        if std::mem::take(&mut self.tunnels.is_silence_new) {
            suspected.clone_from(self.liveness.suspects());
        }
        for agent in suspected {
            let node = self.view.agents.get(&agent).map(|agent| AgentId::new(agent.node_name()));
            if node.is_some_and(|node| self.tunnels.silent.contains_key(&node)) {
                self.liveness.hurry(&agent, now);
            }
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
        self.tunnels.forget(node);
        self.tunnels.stop_waiting(node);
        if self.view.tunnels.remove(node).is_some() {
            self.out.view_changed = true;
            self.out.dirty.tunnels.insert(node.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, kept as what was said last and looked through for every answer.
    #[derive(Default)]
    struct Simple {
        /// Revision, since when it is lost, silent nodes.
        overlays: BTreeMap<AgentId, (Revision, Option<Timestamp>, BTreeSet<AgentId>)>,
        unacknowledged: BTreeMap<AgentId, Revision>,
    }

    impl Simple {
        fn silent(&self) -> BTreeSet<AgentId> {
            let connected = self.overlays.values().filter(|(_, lost, _)| lost.is_none());
            connected.flat_map(|(_, _, silent)| silent.clone()).collect()
        }

        fn deadline(&self) -> Option<Timestamp> {
            let lost = self.overlays.values().filter_map(|(_, lost, _)| *lost).min();
            lost.filter(|_| !self.unacknowledged.is_empty()).map(|lost| lost.plus(PATIENCE))
        }

        fn take_acknowledged(&mut self, now: Timestamp) -> BTreeSet<AgentId> {
            self.overlays.retain(|_, (_, lost, _)| lost.is_none_or(|lost| now < lost.plus(PATIENCE)));
            let applied: Vec<Revision> = self.overlays.values().map(|(applied, ..)| *applied).collect();
            let is_known = |wanted: Revision| applied.iter().all(|applied| *applied >= wanted);
            let (known, rest) =
                self.unacknowledged.iter().partition::<Vec<_>, _>(|(_, wanted)| is_known(**wanted));
            let known = known.into_iter().map(|(node, _)| node.clone()).collect();
            self.unacknowledged = rest.into_iter().map(|(node, at)| (node.clone(), *at)).collect();
            known
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Report { node: usize, applied: u64, silent: BTreeSet<usize> },
        Gone { node: usize },
        Forget { node: usize },
        Wait { node: usize, revision: u64 },
        StopWaiting { node: usize },
        Pass { seconds: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let node = 0..5_usize;
        let step = prop_oneof![
            4 => (node.clone(), 0..6_u64, prop::collection::btree_set(0..5_usize, 0..3))
                .prop_map(|(node, applied, silent)| Step::Report { node, applied, silent }),
            2 => node.clone().prop_map(|node| Step::Gone { node }),
            1 => node.clone().prop_map(|node| Step::Forget { node }),
            2 => (node.clone(), 0..6_u64).prop_map(|(node, revision)| Step::Wait { node, revision }),
            1 => node.prop_map(|node| Step::StopWaiting { node }),
            2 => (0..900_u64).prop_map(|seconds| Step::Pass { seconds }),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn id(index: usize) -> AgentId {
        AgentId::new(format!("n{index}"))
    }

    proptest! {
        #[test]
        fn it_is_what_looking_through_all_overlays_finds(steps in steps()) {
            let (mut tunnels, mut simple) = (Tunnels::default(), Simple::default());
            let mut now = Timestamp::default();
            for step in steps {
                let before = simple.silent();
                match step {
                    Step::Report { node, applied, silent } => {
                        let silent: BTreeSet<AgentId> = silent.into_iter().map(id).collect();
                        let applied = Revision(applied);
                        simple.overlays.insert(id(node), (applied, None, silent.clone()));
                        tunnels.set(&id(node), Overlay { applied, lost_until: None, silent });
                    }
                    Step::Gone { node } => {
                        if let Some((_, lost, _)) = simple.overlays.get_mut(&id(node)) {
                            lost.get_or_insert(now);
                        }
                        tunnels.overlay_gone(&id(node), now);
                    }
                    Step::Forget { node } => {
                        simple.overlays.remove(&id(node));
                        tunnels.forget(&id(node));
                    }
                    Step::Wait { node, revision } => {
                        simple.unacknowledged.insert(id(node), Revision(revision));
                        tunnels.wait_for_all(&id(node), Revision(revision));
                    }
                    Step::StopWaiting { node } => {
                        simple.unacknowledged.remove(&id(node));
                        tunnels.stop_waiting(&id(node));
                    }
                    Step::Pass { seconds } => now = now.plus(Duration::from_secs(seconds)),
                }
                prop_assert_eq!(tunnels.deadline(), simple.deadline());
                let known: BTreeSet<AgentId> = tunnels.take_acknowledged(now).into_iter().collect();
                prop_assert_eq!(known, simple.take_acknowledged(now));
                let silent = simple.silent();
                prop_assert!(tunnels.silent.keys().eq(&silent));
                let is_new = std::mem::take(&mut tunnels.is_silence_new);
                prop_assert_eq!(is_new, !silent.is_subset(&before));
            }
        }
    }
}
