//! The proxy beside hooks in the kernel.
//!
//! The hooks see the processes of a cgroup and nobody else. Where no packets are balanced either, this proxy serves
//! everybody else who reaches the node: it listens at the virtual addresses that are local ones, and a connection of
//! the cgroup never gets there, because it goes to an endpoint's own address from the start.

use std::collections::BTreeSet;

use mesonet_lb_plan::{EndpointCount, EndpointId, RouteTable};
use mesonet_model::{ServiceKey, TaskKey};
use tokio::sync::watch;

use crate::proxy::Refusals;
use crate::tracked_table::TrackedTable;
use crate::{Dataplane, Metrics, Proxy};

/// A proxy whose table follows what the hooks have.
#[derive(Debug)]
pub(crate) struct ProxyBeside(Proxy);

impl ProxyBeside {
    /// As [`Proxy::start`].
    pub(crate) fn start(metrics: &Metrics) -> Self {
        Self(Proxy::start(metrics).with_table(TrackedTable::uncounted()))
    }

    /// Makes services what the hooks have in effect. Where it cannot listen, for most virtual addresses are not local,
    /// the hooks serve whom they see.
    pub(crate) async fn settle(&mut self, keys: &BTreeSet<ServiceKey>, in_effect: &RouteTable) {
        self.0.settle(keys, in_effect).await;
    }

    /// Where it cannot listen.
    pub(crate) fn refusals(&self) -> &Refusals {
        self.0.refusals()
    }

    /// What it has in effect.
    pub(crate) fn read(&self) -> &RouteTable {
        self.0.read()
    }

    /// What its connections to an endpoint have come to.
    pub(crate) fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        self.0.count(service, endpoint)
    }

    /// The endpoints that its connections failed to reach since the last call.
    pub(crate) fn take_failed(&mut self) -> BTreeSet<(ServiceKey, EndpointId)> {
        self.0.take_failed()
    }

    /// The tasks that drain and still have connections of the proxy.
    pub(crate) fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.0.busy()
    }
}
