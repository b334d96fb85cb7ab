//! The difference between two tables as ordered operations.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mesonet_model::{ServiceKey, ServicePolicy};

use crate::{EndpointId, EndpointSpec, RouteState, RouteTable, ServiceSpec};

/// One change to a data plane. Every operation can be repeated without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// New connections may go to an endpoint that was not there.
    AddEndpoint {
        /// The service.
        service: ServiceKey,
        /// The endpoint.
        endpoint: EndpointId,
        /// How it takes part.
        spec: EndpointSpec,
    },
    /// An endpoint takes part differently; its connections stay.
    SetEndpoint {
        /// The service.
        service: ServiceKey,
        /// The endpoint.
        endpoint: EndpointId,
        /// How it takes part from here on.
        spec: EndpointSpec,
    },
    /// An endpoint is dead: its connections are reset at once, so that clients notice.
    RemoveEndpoint {
        /// The service.
        service: ServiceKey,
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// New connections are spread in another way.
    SetPolicy {
        /// The service.
        service: ServiceKey,
        /// Which way.
        policy: ServicePolicy,
    },
    /// Clients are accepted at an address.
    OpenListener {
        /// The service.
        service: ServiceKey,
        /// The virtual address and port.
        address: SocketAddr,
    },
    /// Clients are no more accepted at an address; connections stay.
    CloseListener {
        /// The service.
        service: ServiceKey,
        /// The virtual address and port.
        address: SocketAddr,
    },
}

impl Op {
    /// The service that it changes.
    pub fn service(&self) -> &ServiceKey {
        match self {
            Self::AddEndpoint { service, .. }
            | Self::SetEndpoint { service, .. }
            | Self::RemoveEndpoint { service, .. }
            | Self::SetPolicy { service, .. }
            | Self::OpenListener { service, .. }
            | Self::CloseListener { service, .. } => service,
        }
    }
}

/// The operations that make the actual table equal to the desired one in the given services, and no others.
///
/// Their order keeps every moment in between right:
/// 1. endpoints appear, so that those who leave have a successor;
/// 2. endpoints change, those that become ready before those that drain;
/// 3. policies change, so that whoever comes by a new listener is treated by the new one;
/// 4. listeners close, so that nothing new arrives for a service that goes, and its address is free for another one;
/// 5. listeners open, when all endpoints behind them are there;
/// 6. dead endpoints go;
/// 7. policies of services that are gone are forgotten.
pub fn plan(services: &BTreeSet<ServiceKey>, desired: &RouteTable, actual: &RouteTable) -> Vec<Op> {
    let mut phases = Phases::default();
    let nothing = ServiceSpec::default();
    for key in services {
        let desired = desired.service(key).unwrap_or(&nothing);
        let actual = actual.service(key).unwrap_or(&nothing);
        phases.plan_endpoints(key, desired, actual);
        phases.plan_listeners(key, desired, actual);
        phases.plan_policy(key, desired, actual);
    }
    phases.in_order()
}

#[derive(Default)]
struct Phases {
    adds: Vec<Op>,
    readied: Vec<Op>,
    drained: Vec<Op>,
    policies: Vec<Op>,
    closes: Vec<Op>,
    opens: Vec<Op>,
    removes: Vec<Op>,
    forgotten: Vec<Op>,
}

impl Phases {
    fn plan_endpoints(&mut self, service: &ServiceKey, desired: &ServiceSpec, actual: &ServiceSpec) {
        for (endpoint, &spec) in desired.endpoints.iter() {
            let old = actual.endpoints.get(endpoint);
            if old == Some(&spec) {
                continue;
            }
            let (service, endpoint) = (service.clone(), endpoint.clone());
            match (old, spec.state) {
                (None, _) => self.adds.push(Op::AddEndpoint { service, endpoint, spec }),
                (Some(_), RouteState::Ready) => {
                    self.readied.push(Op::SetEndpoint { service, endpoint, spec });
                }
                (Some(_), RouteState::Draining) => {
                    self.drained.push(Op::SetEndpoint { service, endpoint, spec });
                }
            }
        }
        for endpoint in actual.endpoints.keys().filter(|id| !desired.endpoints.contains_key(id)) {
            self.removes.push(Op::RemoveEndpoint { service: service.clone(), endpoint: endpoint.clone() });
        }
    }

    fn plan_listeners(&mut self, service: &ServiceKey, desired: &ServiceSpec, actual: &ServiceSpec) {
        for &address in desired.listeners.difference(&actual.listeners) {
            self.opens.push(Op::OpenListener { service: service.clone(), address });
        }
        for &address in actual.listeners.difference(&desired.listeners) {
            self.closes.push(Op::CloseListener { service: service.clone(), address });
        }
    }

    fn plan_policy(&mut self, service: &ServiceKey, desired: &ServiceSpec, actual: &ServiceSpec) {
        if desired.policy == actual.policy {
            return;
        }
        let op = Op::SetPolicy { service: service.clone(), policy: desired.policy };
        if desired.is_empty() { self.forgotten.push(op) } else { self.policies.push(op) }
    }

    fn in_order(self) -> Vec<Op> {
        let mut ops = self.adds;
        for phase in
            [self.readied, self.drained, self.policies, self.closes, self.opens, self.removes, self.forgotten]
        {
            ops.extend(phase);
        }
        ops
    }
}

#[cfg(test)]
mod tests;
