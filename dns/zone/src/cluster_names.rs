//! The names of masters, agents, frameworks, services and the server itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesonet_model::{Agent, ClusterView, Framework, Protocol, Service, Serving};

use crate::TaskChoice;
use crate::contribution::Contribution;
use crate::origins::Origins;

/// How many names the `zk` zone has, whatever the number of masters (spec/dcos-networking.md §2.1.4).
const ZK_NAMES: usize = 5;

/// The records of the server itself, and those that do not follow from the cluster.
pub(crate) fn of_server(origins: &Origins) -> Contribution {
    let mut records = Contribution::default();
    let owner = Ok(origins.nameserver.clone());
    for address in &origins.nameserver_addresses {
        records.address(&owner, Serving::Ready, *address);
    }
    for (name, data) in origins.fixed.iter() {
        records.record(&Ok(name.clone()), Serving::Ready, data.clone());
    }
    records
}

/// The records of all masters. Their numbers follow their ids, so that they stay when another master leads.
pub(crate) fn of_masters(origins: &Origins, view: &ClusterView) -> Contribution {
    let mut records = Contribution::default();
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    let mut order: Vec<IpAddr> = Vec::new();
    for master in view.masters.values() {
        let address = master.address.ip();
        if seen.insert(address) {
            let numbered = origins.domain.below(&format!("master{}", seen.len() - 1));
            for owner in [&origins.domain.below("master"), &numbered, &origins.dcos.below("master")] {
                records.address(owner, Serving::Ready, address);
            }
            if origins.reverse_names {
                records.reverse(address, Serving::Ready, &numbered);
            }
            order.push(address);
        }
        if master.leading {
            let leader = origins.domain.below("leader");
            records.address(&leader, Serving::Ready, address);
            records.address(&origins.dcos.below("leader"), Serving::Ready, address);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let owner = origins.domain.below(&format!("_leader._{protocol}"));
                let place = (&leader, master.address.port());
                records.port(&owner, Serving::Ready, place, origins.srv_weight);
            }
        }
    }
    for (at, address) in order.iter().cycle().take(ZK_NAMES).enumerate() {
        records.address(&origins.zk.below(&format!("zk-{}", at + 1)), Serving::Ready, *address);
    }
    records
}

/// The records of an agent.
pub(crate) fn of_agent(origins: &Origins, agent: &Agent) -> Contribution {
    let mut records = Contribution::default();
    let slave = Ok(origins.slave.clone());
    let mut has_address = false;
    for address in agent.endpoint_addresses() {
        records.address(&slave, Serving::Ready, address);
        has_address = true;
    }
    if has_address && agent.info.port != 0 {
        let owner = origins.domain.below("_slave._tcp");
        records.port(&owner, Serving::Ready, (&slave, agent.info.port), origins.srv_weight);
    }
    records
}

/// The records of a framework's scheduler. One that is not subscribed is named only if no other has its name.
pub(crate) fn of_framework(origins: &Origins, framework: &Framework) -> Contribution {
    let mut records = Contribution::default();
    let is_best = framework.active || origins.task_choice == TaskChoice::Running;
    let serving = if is_best { Serving::Ready } else { Serving::Draining };
    let named = || framework.hostname.parse().ok();
    let own = framework.address.map(|address| address.ip()).or_else(named);
    let addresses = match framework.other_addresses.as_slice() {
        [] => own.as_slice(),
        others => others,
    };
    if addresses.is_empty() {
        return records;
    }
    let fragment = origins.label_rule.domain_fragment(&framework.name);
    let owner = origins.domain.below(&fragment);
    for address in addresses {
        records.address(&owner, serving, *address);
    }
    if let Some(port) = framework.address.map(|address| address.port()).filter(|port| *port != 0) {
        let service = origins.domain.below(&format!("_framework._tcp.{fragment}"));
        records.port(&service, serving, (&owner, port), origins.srv_weight);
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
        if origins.reverse_names {
            records.reverse(address, Serving::Ready, &owner);
        }
    }
    records
}
