//! What a data plane holds: services, where they listen, and the endpoints behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use mesonet_model::{ServiceKey, ServicePolicy, TaskKey};

use crate::{Op, SortedMap};

/// Services by key. A service with neither a listener nor an endpoint nor a policy of its own is not in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTable {
    services: BTreeMap<ServiceKey, ServiceSpec>,
}

/// One service: where clients reach it and where they are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Virtual addresses with the service's port.
    pub listeners: BTreeSet<SocketAddr>,
    /// Where clients are sent.
    pub endpoints: SortedMap<EndpointId, EndpointSpec>,
    /// How connections are spread.
    pub policy: ServicePolicy,
}

/// Identity of an endpoint within its service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// The task.
    pub task: TaskKey,
    /// Where the task is reached.
    pub address: SocketAddr,
}

/// How an endpoint takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Whether it gets new connections.
    pub state: RouteState,
    /// Its share of new connections with all things considered; 0 gets none unless every ready endpoint has 0.
    pub weight: u32,
}

/// Whether an endpoint of a table gets new connections. A dead endpoint is not in the table at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteState {
    /// By weight.
    Ready,
    /// None; what is connected stays.
    Draining,
}

impl RouteState {
    /// Every state.
    pub const ALL: [Self; 2] = [Self::Ready, Self::Draining];

    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl ServiceSpec {
    fn apply(&mut self, op: &Op) -> Option<EndpointSpec> {
        match op {
            Op::AddEndpoint { endpoint, spec, .. } | Op::SetEndpoint { endpoint, spec, .. } => {
                return self.endpoints.insert(endpoint.clone(), *spec);
            }
            Op::RemoveEndpoint { endpoint, .. } => return self.endpoints.remove(endpoint),
            Op::SetPolicy { policy, .. } => self.policy = *policy,
            Op::OpenListener { address, .. } => drop(self.listeners.insert(*address)),
            Op::CloseListener { address, .. } => drop(self.listeners.remove(address)),
        }
        None
    }

    /// Whether there is nothing to route from, nothing to route to and nothing to know.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.endpoints.is_empty() && self.policy == ServicePolicy::default()
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}", self.task, self.address)
    }
}

impl RouteTable {
    /// The service with a key, if it is in the table.
    pub fn service(&self, key: &ServiceKey) -> Option<&ServiceSpec> {
        self.services.get(key)
    }

    /// Every service, in the order of the keys.
    pub fn services(&self) -> impl ExactSizeIterator<Item = (&ServiceKey, &ServiceSpec)> {
        self.services.iter()
    }

    /// Makes services what is given; empty ones are removed.
    pub fn set_all(&mut self, services: Vec<(ServiceKey, ServiceSpec)>) {
        if self.services.is_empty() {
            // In one go, which takes a fraction of the time for many.
            self.services = services.into_iter().filter(|(_, spec)| !spec.is_empty()).collect();
        } else {
            services.into_iter().for_each(|(key, spec)| self.set(key, spec));
        }
    }

    /// Makes a service what is given; an empty one is removed.
    pub fn set(&mut self, key: ServiceKey, spec: ServiceSpec) {
        if spec.is_empty() {
            self.services.remove(&key);
        } else {
            self.services.insert(key, spec);
        }
    }

    /// An endpoint of a service.
    pub fn endpoint(&self, service: &ServiceKey, id: &EndpointId) -> Option<EndpointSpec> {
        self.services.get(service)?.endpoints.get(id).copied()
    }

    /// Makes the change that an operation describes. Repeating an operation changes nothing. Returns what the
    /// operation's endpoint was before.
    pub fn apply(&mut self, op: &Op) -> Option<EndpointSpec> {
        let mut old = None;
        self.apply_all(op.service(), std::slice::from_ref(op), |_, before| old = before, |_| ());
        old
    }

    /// Makes the changes that operations for one service describe. `each` is told what the operation's endpoint was
    /// before, and `after` what the service is then.
    pub fn apply_all(
        &mut self,
        service: &ServiceKey,
        ops: &[Op],
        mut each: impl FnMut(&Op, Option<EndpointSpec>),
        after: impl FnOnce(&ServiceSpec),
    ) {
        let spec = self.services.entry(service.clone()).or_default();
        for op in ops {
            each(op, spec.apply(op));
        }
        after(spec);
        if spec.is_empty() {
            self.services.remove(service);
        }
    }
}
