//! Ends of tunnels, as the nodes' network daemons say them.

use std::sync::Arc;

use mesonet_model::{AgentId, Plane, PlaneReport, Timestamp};

use crate::machine::Master;

impl Master {
    /// A plane reports. That of the overlay says where its node's tunnels end.
    pub(crate) fn plane_report(&mut self, report: PlaneReport, now: Timestamp) {
        let tunnel =
            report.tunnel.as_ref().filter(|end| end.is_plausible() && report.plane == Plane::Overlay);
        if let Some(end) = tunnel
            && self.view.tunnels.get(&report.node).map(Arc::as_ref) != Some(end)
        {
            self.out.view_changed = true;
            self.out.dirty.tunnels.insert(report.node.clone());
            self.view.tunnels.insert(report.node.clone(), Arc::new(end.clone()));
        }
        self.drains.report(report, now);
    }

    /// A node is gone for good: nobody sends to it, or takes anything from it, from this revision on.
    pub(crate) fn forget_tunnel(&mut self, node: &AgentId) {
        if self.view.tunnels.remove(node).is_some() {
            self.out.view_changed = true;
            self.out.dirty.tunnels.insert(node.clone());
        }
    }
}
