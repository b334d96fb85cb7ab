//! What a balancer answers when it is asked about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesonet_lb_plan::{
    Choice, Deviation, EndpointCount, EndpointId, EndpointSpec, KnownBy, RouteState, RouteTable,
    ServicePolicy, ServiceSpec, Weighed, explain,
};
use mesonet_model::{ClusterView, EndpointState, Protocol, ServiceKey};

use tracing::warn;

use super::{Executor, LoadBalancer, counted, error_text, now};
use crate::inspect::{Carrier, Connection, Datapath, Explained, Question, Routes, ServiceRoutes};
use crate::local_route::leads_here;
use crate::{Dataplane as _, PacketAnswer, PacketQuestion};

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
            let what = if each.is_present() { each.mode.as_str() } else { "nothing" };
            format!("{what} at {}: {}", each.name, each.why())
        };
        let refused = self.packets_refused.iter().map(|why| format!("nothing: {why}"));
        let beside = self.beside.as_ref().map(|beside| {
            let what = "the proxy: the hooks see only processes of the cgroup, and no packets are balanced";
            // What else is refused is a failure of its service.
            let mut elsewhere = beside.refusals().all().filter(|(_, error)| error.is_elsewhere());
            match elsewhere.next() {
                None => what.to_owned(),
                Some((service, error)) => {
                    let count = 1 + elsewhere.count();
                    format!("{what}; services that it cannot serve: {count}, such as {service}: {error}")
                }
            }
        });
        Datapath {
            name: self.executor.as_str(),
            why: self.why.clone(),
            packets: packets.map(text).chain(refused).collect(),
            beside,
            trouble: self.upkeep.trouble(),
        }
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
        let of_packets =
            |id: &EndpointId| self.packets.as_ref().map(|packets| packets.count(key, id.address));
        let count = |id| {
            counted(&self.executor, self.beside.as_deref(), key, id) + of_packets(id).unwrap_or_default()
        };
        let counts = weighed.endpoints.keys().map(|id| (id.clone(), count(id))).collect();
        let in_effect = self.executor.read().service(key);
        let listeners = in_effect.into_iter().flat_map(|spec| spec.listeners.iter().copied());
        let of_packets = self.packets.iter().flat_map(|packets| packets.addresses_of(key));
        let listeners: BTreeSet<SocketAddr> = listeners.chain(of_packets).collect();
        let of = |carrier| {
            let at_each = listeners.iter().map(|to| self.deviations(carrier, key.protocol, *to));
            at_each.flat_map(|found| deviating(&weighed, &found)).collect()
        };
        let (deviations, packet_deviations) = (of(Carrier::Hooks), of(Carrier::Packets));
        let (listeners, policy) = (listeners.into_iter().collect(), service.policy);
        let failure = self.failures.get(key).cloned();
        Some(ServiceRoutes { listeners, policy, weighed, counts, deviations, packet_deviations, failure })
    }

    /// Where endpoints are that take part otherwise than their weights say.
    fn deviations(
        &self,
        carrier: Carrier,
        protocol: Protocol,
        to: SocketAddr,
    ) -> BTreeMap<SocketAddr, Deviation> {
        match (carrier, &self.executor, &self.packets) {
            (Carrier::Hooks, Executor::Ebpf(ebpf), _) => ebpf.deviations(protocol, to),
            (Carrier::Packets, _, Some(packets)) => packets.deviations(protocol, to),
            _ => BTreeMap::new(),
        }
    }

    /// Where a connection would go, by the table that is in effect.
    fn explain(&mut self, connection: Connection) -> Option<Explained> {
        let service = service_at(self.view.as_ref()?, connection.protocol, connection.to)?;
        let confirmed = self.try_out(connection);
        let view = self.view.as_ref()?;
        let routes = self.service_routes(view, &service)?;
        let mut spec = self.executor.read().service(&service).cloned().unwrap_or_default();
        let (carrier, carrier_why) = self.carrier(view, &service, connection);
        let mut excluded = out_of_reach(&spec, carrier, connection.to.ip());
        let found = self.deviations(carrier, connection.protocol, connection.to);
        for (id, deviation) in deviating(&routes.weighed, &found) {
            if deviation == Deviation::StandsIn {
                spec.endpoints.insert(id, EndpointSpec { state: RouteState::Ready, weight: 1 });
            } else {
                excluded.entry(id).or_insert(deviation.as_str());
            }
        }
        spec.endpoints = spec.endpoints.into_iter().filter(|(id, _)| !excluded.contains_key(id)).collect();
        let client = connection.client.ip();
        let count = |id: &EndpointId| match (&self.beside, carrier) {
            (Some(beside), Carrier::Proxy) => beside.count(&service, id),
            _ => self.executor.count(&service, id),
        };
        let choice = match carrier {
            Carrier::Hooks => explain(&spec, KnownBy::Namespace, count),
            Carrier::Packets => tried_out(&spec, confirmed).unwrap_or_else(|| by_hash(&spec, client)),
            Carrier::Proxy | Carrier::Nothing => explain(&spec, KnownBy::Address(client), count),
        };
        let datapath = self.datapath();
        Some(Explained { service, routes, excluded, choice, carrier, carrier_why, datapath, confirmed })
    }

    /// What carries a connection, and why that.
    fn carrier(&self, view: &ClusterView, service: &ServiceKey, connection: Connection) -> (Carrier, String) {
        let Connection { client, to, .. } = connection;
        let client = client.ip();
        let is_here = self.is_here(view, client);
        if let Some(packets) = self.packets.as_ref().filter(|_| !is_here) {
            let there = packets.attached().iter().filter(|each| each.is_present());
            let interfaces: Vec<&str> = there.map(|each| each.name.as_str()).collect();
            if interfaces.is_empty() {
                let why = format!("{client} is not on this node, and the interfaces for packets are gone");
                return (Carrier::Nothing, why);
            }
            let why =
                format!("{client} is not on this node; packets are balanced at {}", interfaces.join(", "));
            return (Carrier::Packets, why);
        }
        let listens =
            |table: &RouteTable| table.service(service).is_some_and(|spec| spec.listeners.contains(&to));
        match (&self.executor, &self.beside) {
            (Executor::Proxy(proxy), _) if !listens(proxy.read()) => {
                let refused = proxy.refusals().reason(service, to);
                let why = refused.or_else(|| self.failures.get(service).cloned());
                (Carrier::Nothing, why.unwrap_or_else(|| format!("the proxy does not listen at {to} yet")))
            }
            (Executor::Proxy(_), _) if to.ip().is_loopback() && self.is_apart(view, client) => {
                let why = format!(
                    "{client} is a task with addresses of its own, where {} is its own loopback address (--vip-range \
                     gives VIPs that others reach)",
                    to.ip()
                );
                (Carrier::Nothing, why)
            }
            (Executor::Proxy(_), _) if to.ip().is_loopback() && !is_here => {
                let why = format!("only for clients on this node, as {} is a loopback address", to.ip());
                (Carrier::Proxy, why)
            }
            (Executor::Proxy(_), _) => (Carrier::Proxy, "it serves whoever reaches the address".to_owned()),
            (Executor::Memory(_), _) => (Carrier::Nothing, "the table is only kept".to_owned()),
            (Executor::Ebpf(_), beside) => {
                let is_beside = beside.as_ref().is_some_and(|beside| listens(beside.read()));
                self.hooks_or(is_beside, is_here, service, connection)
            }
        }
    }

    /// What carries a connection where there are hooks, and maybe a proxy beside them that listens at the address.
    fn hooks_or(
        &self,
        is_beside: bool,
        is_here: bool,
        service: &ServiceKey,
        connection: Connection,
    ) -> (Carrier, String) {
        let (client, to) = (connection.client.ip(), connection.to);
        let beside = if is_beside { Carrier::Proxy } else { Carrier::Nothing };
        if is_here && self.upkeep.lacks_hooks() {
            return (beside, self.upkeep.trouble().unwrap_or_default());
        }
        if is_here {
            let why = format!("{client} is on this node; a process must be in the cgroup of the hooks");
            return (Carrier::Hooks, why);
        }
        let why = match (is_beside, &self.beside) {
            (true, _) => String::new(),
            (false, Some(beside)) => match beside.refusals().reason(service, to) {
                Some(reason) => format!(", and the proxy does not serve it: {reason}"),
                None => format!(", and the proxy does not listen at {to} yet"),
            },
            (false, None) => ", and packets are not balanced".to_owned(),
        };
        (beside, format!("{client} is not on this node, so the hooks do not see it{why}"))
    }

    /// Whether an address is the node's own, or that of one of its tasks.
    fn is_here(&self, view: &ClusterView, address: IpAddr) -> bool {
        is_of_host(address) || self.is_of_task(view, address)
    }

    /// Whether an address is that of one of the node's tasks, and not the node's own.
    fn is_apart(&self, view: &ClusterView, address: IpAddr) -> bool {
        !is_of_host(address) && self.is_of_task(view, address)
    }

    fn is_of_task(&self, view: &ClusterView, address: IpAddr) -> bool {
        let tasks = view.tasks.values().filter(|task| task.addresses.contains(&address));
        tasks.into_iter().any(|task| self.planner.is_here(view, &task.agent))
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

/// Whether packets to an address end on this host.
fn is_of_host(address: IpAddr) -> bool {
    address.is_loopback() || leads_here(address).unwrap_or(false)
}

/// The endpoints at places that take part otherwise than their weights say.
fn deviating(weighed: &Weighed, found: &BTreeMap<SocketAddr, Deviation>) -> Vec<(EndpointId, Deviation)> {
    let places = weighed.endpoints.iter().filter_map(|(id, each)| {
        let deviation = *found.get(&id.address)?;
        let state = match deviation {
            Deviation::StandsIn => EndpointState::Draining,
            Deviation::NotListening | Deviation::NoWay => EndpointState::Ready,
        };
        (each.standing.state() == state).then(|| (id.clone(), deviation))
    });
    places.collect()
}

/// The endpoints that what carries a connection to an address cannot reach, and why.
fn out_of_reach(spec: &ServiceSpec, carrier: Carrier, to: IpAddr) -> BTreeMap<EndpointId, &'static str> {
    let reason = |at: IpAddr| match carrier {
        Carrier::Hooks if to.is_ipv4() && at.is_ipv6() => Some("no IPv4 address leads to it in the kernel"),
        Carrier::Packets if to.is_ipv4() != at.is_ipv4() => Some("packets of this family cannot reach it"),
        Carrier::Packets if at.is_loopback() => Some("packets from outside cannot reach a loopback address"),
        Carrier::Hooks | Carrier::Packets | Carrier::Proxy | Carrier::Nothing => None,
    };
    spec.endpoints.keys().filter_map(|id| Some((id.clone(), reason(id.address.ip())?))).collect()
}

/// What the loaded program did with a first packet, if it sent it to an endpoint.
fn tried_out(spec: &ServiceSpec, answer: Option<PacketAnswer>) -> Option<Choice> {
    let Some(PacketAnswer::Goes { to, .. }) = answer else { return None };
    let endpoint = spec.endpoints.keys().find(|id| id.address == to)?.clone();
    let why = "A trial run of the loaded program sends it there: by an open flow, or by a hash of the addresses \
               and ports.";
    Some(Choice { chances: vec![(endpoint.clone(), 100.0)], endpoint: Some(endpoint), why: why.to_owned() })
}

/// Where a client's packets may be sent, whatever the algorithm: its table has positions by weight.
fn by_hash(spec: &ServiceSpec, client: IpAddr) -> Choice {
    let policy = ServicePolicy::default();
    let by_weight = ServiceSpec { policy, ..spec.clone() };
    let choice = explain(&by_weight, KnownBy::Address(client), |_| EndpointCount::default());
    if choice.chances.len() < 2 {
        return choice;
    }
    let why = "A hash of the client's address, and of both ports unless clients stay together, decides.";
    Choice { why: why.to_owned(), ..choice }
}

/// The service that has a virtual address.
fn service_at(view: &ClusterView, protocol: Protocol, address: SocketAddr) -> Option<ServiceKey> {
    let mut services = view.services.values();
    let found = services.find(|service| {
        service.key.port == address.port()
            && service.key.protocol == protocol
            && service.has_address(address.ip())
    });
    found.map(|service| service.key.clone())
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;

    #[test]
    fn each_carrier_reaches_what_it_can() {
        let places = ["10.0.0.1:80", "127.0.0.1:80", "[fd00::1]:80", "[::1]:80"];
        let mut spec = ServiceSpec::default();
        for place in places {
            let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(place));
            let id = EndpointId { task, address: place.parse().expect("an address") };
            spec.endpoints.insert(id, EndpointSpec { state: RouteState::Ready, weight: 1 });
        }
        let (v4, v6) = ("11.0.0.1", "fd01:c::1");
        for (carrier, to, expected) in [
            (Carrier::Hooks, v4, &places[2..]),
            (Carrier::Hooks, v6, &[]),
            (Carrier::Packets, v4, &places[1..]),
            (Carrier::Packets, v6, &[places[0], places[1], places[3]]),
            (Carrier::Proxy, v4, &[]),
            (Carrier::Proxy, v6, &[]),
        ] {
            let found = out_of_reach(&spec, carrier, to.parse().expect("an address"));
            let found: BTreeSet<&str> = found.keys().map(|id| id.task.task.as_str()).collect();
            assert_eq!(found, expected.iter().copied().collect(), "{carrier:?} {to}");
        }
    }
}
