//! The names of masters, agents, frameworks, services and the server itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesonet_model::{Agent, ClusterView, Framework, Protocol, Service, Serving};

use crate::config::Origins;
use crate::contribution::Contribution;
use crate::mesos_name;

/// The records of the server itself.
pub(crate) fn of_server(origins: &Origins) -> Contribution {
    let mut records = Contribution::default();
    let owner = Ok(origins.nameserver.clone());
    for address in &origins.nameserver_addresses {
        records.address(&owner, Serving::Ready, *address);
    }
    records
}

/// The records of all masters. Their numbers follow their ids, so that they stay when another master leads.
pub(crate) fn of_masters(origins: &Origins, view: &ClusterView) -> Contribution {
    let mut records = Contribution::default();
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for master in view.masters.values() {
        let address = master.address.ip();
        if seen.insert(address) {
            let numbered = format!("master{}", seen.len() - 1);
            for owner in [
                origins.domain.below("master"),
                origins.domain.below(&numbered),
                origins.dcos.below("master"),
            ] {
                records.address(&owner, Serving::Ready, address);
            }
        }
        if master.leading {
            let leader = origins.domain.below("leader");
            records.address(&leader, Serving::Ready, address);
            records.address(&origins.dcos.below("leader"), Serving::Ready, address);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let owner = origins.domain.below(&format!("_leader._{protocol}"));
                records.port(&owner, Serving::Ready, &leader, master.address.port());
            }
        }
    }
    records
}

/// The records of an agent.
pub(crate) fn of_agent(origins: &Origins, agent: &Agent) -> Contribution {
    let mut records = Contribution::default();
    let slave = Ok(origins.slave.clone());
    records.address(&slave, Serving::Ready, agent.info.address);
    if agent.info.port != 0 {
        let owner = origins.domain.below("_slave._tcp");
        records.port(&owner, Serving::Ready, &slave, agent.info.port);
    }
    records
}

/// The records of a framework's scheduler. One that is not subscribed is named only if no other has its name.
pub(crate) fn of_framework(origins: &Origins, framework: &Framework) -> Contribution {
    let mut records = Contribution::default();
    let serving = if framework.active { Serving::Ready } else { Serving::Draining };
    let address = framework.address.map(|address| address.ip()).or_else(|| framework.hostname.parse().ok());
    let Some(address) = address else {
        return records;
    };
    let fragment = mesos_name::domain_fragment(&framework.name);
    let owner = origins.domain.below(&fragment);
    records.address(&owner, serving, address);
    if let Some(port) = framework.address.map(|address| address.port()).filter(|port| *port != 0) {
        let service = origins.domain.below(&format!("_framework._tcp.{fragment}"));
        records.port(&service, serving, &owner, port);
    }
    records
}

/// The records of a service: those of a named VIP, whether or not it has endpoints.
pub(crate) fn of_service(origins: &Origins, service: &Service) -> Contribution {
    let mut records = Contribution::default();
    let Some(name) = service.key.vip.allocation_name() else {
        return records;
    };
    let owner = origins.l4lb.below(&name);
    for address in service.ipv4.map(IpAddr::from).into_iter().chain(service.ipv6.map(IpAddr::from)) {
        records.address(&owner, Serving::Ready, address);
    }
    records
}
