//! What a balancer answers when it is asked about itself.

use std::net::SocketAddr;

use mesonet_lb_plan::{KnownBy, explain};
use mesonet_model::{ClusterView, Protocol, ServiceKey};

use tracing::warn;

use super::{Executor, LoadBalancer, error_text, now};
use crate::inspect::{Connection, Datapath, Explained, Question, Routes, ServiceRoutes};
use crate::{PacketAnswer, PacketQuestion};

impl LoadBalancer {
    /// Answers a question.
    pub fn answer(&mut self, question: Question) {
        // Whoever asked may have gone away.
        match question {
            Question::Routes(answer) => drop(answer.send(self.routes())),
            Question::Explain(connection, answer) => drop(answer.send(self.explain(connection))),
        }
    }

    fn datapath(&self) -> Datapath {
        let packets = self.packets.iter().flat_map(|packets| packets.attached());
        let text = |each: &crate::packet::Attached| {
            format!("{} at {}: {}", each.mode.as_str(), each.name, each.reason)
        };
        Datapath { name: self.executor.as_str(), why: self.why.clone(), packets: packets.map(text).collect() }
    }

    fn routes(&self) -> Routes {
        let view = self.view.as_ref();
        let keys = view.into_iter().flat_map(|view| view.services.keys().map(move |key| (view, key)));
        let services =
            keys.filter_map(|(view, key)| Some((key.clone(), self.service_routes(view, key)?))).collect();
        Routes { datapath: self.datapath(), services }
    }

    fn service_routes(&self, view: &ClusterView, key: &ServiceKey) -> Option<ServiceRoutes> {
        let service = view.services.get(key)?;
        let weighed = self.planner.weigh(view, key, now())?;
        let counts = weighed.endpoints.keys().map(|id| (id.clone(), self.executor.count(key, id))).collect();
        let in_effect = self.executor.read().service(key);
        let listeners = in_effect.map(|spec| spec.listeners.iter().copied().collect()).unwrap_or_default();
        let failure = self.failures.get(key).cloned();
        Some(ServiceRoutes { listeners, policy: service.policy, weighed, counts, failure })
    }

    /// Where a connection would go, by the table that is in effect.
    fn explain(&mut self, connection: Connection) -> Option<Explained> {
        let view = self.view.as_ref()?;
        let service = service_at(view, connection.protocol, connection.to)?;
        let routes = self.service_routes(view, &service)?;
        let spec = self.executor.read().service(&service).cloned().unwrap_or_default();
        let by = match &self.executor {
            Executor::Ebpf(_) => KnownBy::Namespace,
            Executor::Memory(_) | Executor::Proxy(_) => KnownBy::Address(connection.client.ip()),
        };
        let choice = explain(&spec, by, |id| self.executor.count(&service, id));
        let confirmed = self.try_out(connection);
        Some(Explained { service, routes, choice, datapath: self.datapath(), confirmed })
    }

    /// Has the program for packets from outside say what it would do, if there is one.
    fn try_out(&mut self, connection: Connection) -> Option<PacketAnswer> {
        let Connection { protocol, client: from, to } = connection;
        match self.packets.as_mut()?.trace(&PacketQuestion { protocol, from, to }) {
            Ok(answer) => Some(answer),
            Err(error) => {
                let error = error_text(&error);
                warn!(error, "The program for packets cannot be tried out");
                None
            }
        }
    }
}

/// The service that has a virtual address.
fn service_at(view: &ClusterView, protocol: Protocol, address: SocketAddr) -> Option<ServiceKey> {
    let mut services = view.services.values();
    let found = services.find(|service| {
        let is_its = match address {
            SocketAddr::V4(address) => service.ipv4 == Some(*address.ip()),
            SocketAddr::V6(address) => service.ipv6 == Some(*address.ip()),
        };
        is_its && service.key.port == address.port() && service.key.protocol == protocol
    });
    found.map(|service| service.key.clone())
}
