//! Data planes that balance VIPs: userspace proxy and memory.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{ClusterView, Delta, ServiceKey, TaskKey};
use tokio::sync::watch;

/// Balances what a view describes, by one of the data planes.
#[derive(Debug)]
pub struct LoadBalancer {}

impl LoadBalancer {
    /// A balancer whose data plane is the userspace proxy.
    pub fn proxy(_metrics: &prometheus::Registry) -> Self {
        Self {}
    }

    /// A balancer whose data plane only keeps the table.
    pub fn memory(_metrics: &prometheus::Registry) -> Self {
        Self {}
    }

    /// Puts a view into effect. `delta` leads to it from the view applied before (from an empty one the first time).
    /// Returns the services that could not be put into effect, and why.
    pub async fn apply(&mut self, _view: &ClusterView, _delta: &Delta) -> BTreeMap<ServiceKey, String> {
        BTreeMap::new()
    }

    /// The tasks whose endpoints drain and still have open connections; changes as connections end.
    pub fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        watch::channel(BTreeSet::new()).1
    }
}
