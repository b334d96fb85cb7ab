//! The names of a task.

use std::net::IpAddr;

use mesonet_model::{Agent, DiscoveryPort, Framework, Serving, Task, TaskState, name};

use crate::contribution::{Candidate, Contribution};
use crate::origins::Origins;
use crate::{IP_SOURCES_LABEL, IpSource, TaskChoice, mesos_name};

/// Both protocols, for ports that name none.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// The records of a task on an agent. None if it does not run.
pub(crate) fn of_task(origins: &Origins, task: &Task, agent: &Agent, framework: &Framework) -> Contribution {
    let mut records = Contribution::default();
    let serving = match origins.task_choice {
        TaskChoice::Best => task.serving(),
        TaskChoice::Running if task.state == TaskState::Running => Serving::Ready,
        TaskChoice::Running => Serving::Down,
    };
    if serving == Serving::Down {
        return records;
    }
    let place = Place::of(origins, serving, task, agent);
    mesos_records(origins, task, framework, &place, &mut records);
    dcos_records(origins, task, framework, &place, &mut records);
    records
}

/// Where a task is reached.
struct Place {
    serving: Serving,
    /// The agent's address for its tasks' host ports, if it is known.
    agent: Vec<IpAddr>,
    /// The addresses of the agent's own endpoint.
    slave: Vec<IpAddr>,
    /// The task's addresses by the IP sources.
    addresses: Vec<IpAddr>,
    /// The addresses of the task's network interfaces, which are the agent's on the host's network.
    container: Vec<IpAddr>,
}

impl Place {
    fn of(origins: &Origins, serving: Serving, task: &Task, agent: &Agent) -> Self {
        let address = Some(agent.info.address).filter(|address| !address.is_unspecified());
        let agent_address: Vec<IpAddr> = address.into_iter().collect();
        let slave: Vec<IpAddr> = agent.endpoint_addresses().collect();
        let own = || if task.addresses.is_empty() { agent_address.clone() } else { task.addresses.clone() };
        let (netinfo, container) = match &task.network {
            Some(network) => (network.netinfo.clone(), network.container.clone()),
            None => (own(), own()),
        };
        let from = |source: &IpSource| {
            let found = match (source, &task.network) {
                (IpSource::Host, _) => slave.clone(),
                (IpSource::Netinfo, _) => netinfo.clone(),
                (IpSource::Mesos, Some(network)) => network.mesos.clone(),
                (IpSource::Docker, Some(network)) => network.docker.clone(),
                (IpSource::Mesos | IpSource::Docker, None) => Vec::new(),
            };
            Some(found).filter(|found| !found.is_empty())
        };
        let chosen = task.labels.get(IP_SOURCES_LABEL).map(|label| {
            let names = label.split(',').map(str::trim);
            names.filter_map(IpSource::named).collect::<Vec<_>>()
        });
        let chosen = chosen.filter(|sources| !sources.is_empty());
        let addresses = chosen.as_ref().unwrap_or(&origins.ip_sources).iter().find_map(from);
        Self { serving, agent: agent_address, addresses: addresses.unwrap_or_default(), slave, container }
    }
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
    let fragment = origins.label_rule.domain_fragment(&framework.name);
    let zone = origins.domain.below(&fragment);
    let slave = origins.slave.below(&fragment);
    let published = task.discovery.as_ref().filter(|discovery| {
        let name = discovery.name.as_deref();
        name.is_some_and(|name| !name.is_empty())
    });
    let clean = origins.label_rule.label(task.discovery_name());
    let raw = published.map(|_| task.discovery_name().to_ascii_lowercase()).filter(|raw| *raw != clean);
    let suffix = mesos_name::canonical_suffix(task.given_id().as_str(), task.agent.as_str());
    for form in raw.as_ref().into_iter().chain([&clean]) {
        let names = Form { origins, zone: &zone, slave: &slave, name: form, suffix: &suffix };
        names.addresses(place, records);
        names.resource_ports(task, place, published.is_none(), records);
        for port in published.iter().flat_map(|discovery| &discovery.ports) {
            names.discovery_port(port, place, records);
        }
    }
    if origins.reverse_names {
        let form = Form { origins, zone: &zone, slave: &slave, name: &clean, suffix: &suffix };
        let name = form.canonical_below(&zone);
        // An address of the host is shared by all that runs there.
        let is_own = |address: &&IpAddr| !place.agent.contains(address) && !place.slave.contains(address);
        for address in place.addresses.iter().filter(is_own) {
            records.reverse(*address, place.serving, &name);
        }
    }
}

/// One form of a task's name below its framework's names.
struct Form<'task> {
    origins: &'task Origins,
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
            let owner = below(self.slave, relative);
            for address in &place.slave {
                records.address(&owner, place.serving, *address);
            }
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
                    records.port(owner, place.serving, (&target, port), self.origins.srv_weight);
                }
            }
        }
    }

    fn discovery_port(&self, port: &DiscoveryPort, place: &Place, records: &mut Contribution) {
        let rule = self.origins.label_rule;
        let target = self.canonical_below(self.zone);
        let port_label = port.name.as_deref().map(|name| rule.label(name)).filter(|label| !label.is_empty());
        let protocol = rule.label(&port.protocol);
        let protocols = if protocol.is_empty() { &PROTOCOLS[..] } else { &[protocol.as_str()] };
        for protocol in protocols {
            let plain = format!("_{}._{protocol}", self.name);
            let named = port_label.as_ref().map(|label| format!("_{label}.{plain}"));
            for relative in named.iter().chain([&plain]) {
                let owner = below(self.zone, relative);
                records.port(&owner, place.serving, (&target, port.number), self.origins.srv_weight);
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
    let is_mapped = task.service_ports().iter().any(|port| port.host_port.is_some());
    let auto = if is_mapped || place.container.is_empty() { &place.agent } else { &place.container };
    for (kind, addresses) in [("agentip", &place.agent), ("containerip", &place.container), ("autoip", auto)]
    {
        let owner = origins.dcos.below(&format!("{task_name}.{kind}"));
        for address in addresses {
            records.address(&owner, place.serving, *address);
        }
    }
}

fn below(origin: &Candidate, relative: &str) -> Candidate {
    origin.as_ref().map_err(|error| *error)?.below_text(relative)
}
