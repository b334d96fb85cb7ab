//! The names of a task.

use std::net::IpAddr;

use mesonet_model::{Agent, DiscoveryPort, Framework, Protocol, Serving, Task, name};

use crate::config::Origins;
use crate::contribution::{Candidate, Contribution};
use crate::mesos_name;

/// Both protocols, for ports that name none.
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The records of a task on an agent. None if it does not run.
pub(crate) fn of_task(origins: &Origins, task: &Task, agent: &Agent, framework: &Framework) -> Contribution {
    let mut records = Contribution::default();
    let serving = task.serving();
    if serving == Serving::Down {
        return records;
    }
    let agent_address = agent.info.address;
    let place = Place {
        serving,
        agent_address,
        addresses: if task.addresses.is_empty() { vec![agent_address] } else { task.addresses.clone() },
    };
    mesos_records(origins, task, framework, &place, &mut records);
    dcos_records(origins, task, framework, &place, &mut records);
    records
}

/// Where a task is reached.
struct Place {
    serving: Serving,
    agent_address: IpAddr,
    /// Its own addresses, or the agent's if it has none.
    addresses: Vec<IpAddr>,
}

/// The names of mesos-dns. A name published by discovery information is served as it is, where its dots make levels,
/// and as one clean label.
fn mesos_records(
    origins: &Origins,
    task: &Task,
    framework: &Framework,
    place: &Place,
    records: &mut Contribution,
) {
    let fragment = mesos_name::domain_fragment(&framework.name);
    let zone = origins.domain.below(&fragment);
    let slave = origins.slave.below(&fragment);
    let published = task.discovery.as_ref().filter(|discovery| {
        let name = discovery.name.as_deref();
        name.is_some_and(|name| !name.is_empty())
    });
    let clean = mesos_name::label(task.discovery_name());
    let raw = published.map(|_| task.discovery_name().to_ascii_lowercase()).filter(|raw| *raw != clean);
    let suffix = mesos_name::canonical_suffix(task.key.task.as_str(), task.agent.as_str());
    for form in raw.into_iter().chain([clean]) {
        let names = Form { zone: &zone, slave: &slave, name: &form, suffix: &suffix };
        names.addresses(place, records);
        names.resource_ports(task, place, published.is_none(), records);
        for port in published.iter().flat_map(|discovery| &discovery.ports) {
            names.discovery_port(port, place, records);
        }
    }
}

/// One form of a task's name below its framework's names.
struct Form<'task> {
    /// `<framework>.<domain>`.
    zone: &'task Candidate,
    /// `<framework>.slave.<domain>`.
    slave: &'task Candidate,
    name: &'task str,
    /// What makes the name that of this one task.
    suffix: &'task str,
}

impl Form<'_> {
    fn addresses(&self, place: &Place, records: &mut Contribution) {
        let canonical = mesos_name::canonical(self.name, self.suffix);
        for relative in [self.name, &canonical] {
            let owner = below(self.zone, relative);
            for address in &place.addresses {
                records.address(&owner, place.serving, *address);
            }
            records.address(&below(self.slave, relative), place.serving, place.agent_address);
        }
    }

    /// The host ports that the task holds: `.slave.` names, and the plain ones if it publishes no ports of its own.
    fn resource_ports(&self, task: &Task, place: &Place, also_plain: bool, records: &mut Contribution) {
        let target = self.canonical_below(self.slave);
        for protocol in PROTOCOLS {
            let relative = format!("_{}._{protocol}", self.name);
            let owners =
                [Some(below(self.slave, &relative)), also_plain.then(|| below(self.zone, &relative))];
            for owner in owners.iter().flatten() {
                for port in task.resources.ports.iter() {
                    records.port(owner, place.serving, &target, port);
                }
            }
        }
    }

    fn discovery_port(&self, port: &DiscoveryPort, place: &Place, records: &mut Contribution) {
        if port.number == 0 {
            return;
        }
        let target = self.canonical_below(self.zone);
        let port_label = port.name.as_deref().map(mesos_name::label).filter(|label| !label.is_empty());
        for protocol in protocols(port) {
            let plain = format!("_{}._{protocol}", self.name);
            records.port(&below(self.zone, &plain), place.serving, &target, port.number);
            if let Some(label) = &port_label {
                let named = below(self.zone, &format!("_{label}.{plain}"));
                records.port(&named, place.serving, &target, port.number);
            }
        }
    }

    fn canonical_below(&self, origin: &Candidate) -> Candidate {
        below(origin, &mesos_name::canonical(self.name, self.suffix))
    }
}

/// The names of dcos-dns: which address to use is the client's choice.
fn dcos_records(
    origins: &Origins,
    task: &Task,
    framework: &Framework,
    place: &Place,
    records: &mut Contribution,
) {
    let task_name = format!("{}.{}", name::label(task.discovery_name()), name::label(&framework.name));
    let owner = |kind: &str| origins.dcos.below(&format!("{task_name}.{kind}"));
    let agent = std::slice::from_ref(&place.agent_address);
    let is_mapped = task.service_ports().iter().any(|port| port.host_port.is_some());
    for (kind, addresses) in [
        ("agentip", agent),
        ("containerip", &place.addresses),
        ("autoip", if is_mapped { agent } else { &place.addresses }),
    ] {
        let owner = owner(kind);
        for address in addresses {
            records.address(&owner, place.serving, *address);
        }
    }
}

/// The protocols of a port: both if it names none, none if it names an unknown one.
fn protocols(port: &DiscoveryPort) -> impl Iterator<Item = Protocol> {
    let named = port.protocol.parse().ok();
    PROTOCOLS
        .into_iter()
        .filter(move |protocol| named == Some(*protocol) || (named.is_none() && port.protocol.is_empty()))
}

fn below(origin: &Candidate, relative: &str) -> Candidate {
    origin.as_ref().map_err(|error| *error)?.below(relative)
}
