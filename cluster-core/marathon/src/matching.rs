//! Whether an instance fits into an offer.

use mesonet_model::{AgentId, AgentInfo, AppDefinition, NetworkMode, NetworkRoom, PortRanges, Resources};

use crate::NoMatchReason;
use crate::constraints::Placement;
use crate::host_ports::HostPorts;
use crate::instance::Place;

/// The role of resources that are reserved for nobody; the only one there is.
const UNRESERVED_ROLE: &str = "*";

/// What one instance takes from an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Resources, with the host ports.
    pub(crate) resources: Resources,
    /// The host port of each port of the app that has one.
    pub(crate) host_ports: Vec<Option<u16>>,
}

/// Fits one instance into what is left of an offer, or says every reason against it, in the order of the tests.
pub(crate) fn fit(
    definition: &AppDefinition,
    placement: &Placement,
    (id, agent): (&AgentId, &AgentInfo),
    (left, rooms): (&Resources, &NetworkRoom),
    ports: &mut HostPorts,
) -> Result<Fit, Vec<NoMatchReason>> {
    let roles = definition.accepted_resource_roles.as_ref();
    let is_role_accepted = roles.is_none_or(|roles| roles.iter().any(|role| role == UNRESERVED_ROLE));
    let tests = [
        (is_role_accepted, NoMatchReason::UnfulfilledRole),
        (placement.allows(Place::of(agent)), NoMatchReason::UnfulfilledConstraint),
        (definition.cpus <= left.cpus, NoMatchReason::InsufficientCpus),
        (definition.mem <= left.mem, NoMatchReason::InsufficientMemory),
        (definition.disk <= left.disk, NoMatchReason::InsufficientDisk),
        (definition.gpus <= left.gpus, NoMatchReason::InsufficientGpus),
    ];
    let failed = tests.into_iter().filter(|(is_passed, _)| !is_passed).map(|(_, reason)| reason);
    let mut reasons: Vec<NoMatchReason> = failed.collect();
    let wanted: Vec<Option<u16>> = definition.ports().iter().map(|port| port.host_port).collect();
    // Ports are chosen last and only if all else fits, because the choice moves the round on.
    let chosen = if reasons.is_empty() {
        ports.choose(id, &wanted, &left.ports)
    } else {
        has_ports(&wanted, &left.ports).then(Vec::new)
    };
    if chosen.is_none() {
        reasons.push(NoMatchReason::InsufficientPorts);
    }
    reasons.extend(unfulfilled_network(definition, agent, rooms));
    match chosen {
        Some(host_ports) if reasons.is_empty() => {
            let resources = Resources {
                cpus: definition.cpus,
                mem: definition.mem,
                disk: definition.disk,
                gpus: definition.gpus,
                ports: host_ports.iter().flatten().copied().collect(),
            };
            Ok(Fit { resources, host_ports })
        }
        Some(_) | None => Err(reasons),
    }
}

/// Why the app's tasks cannot have the interfaces that it wants on an agent.
fn unfulfilled_network(
    definition: &AppDefinition,
    agent: &AgentInfo,
    rooms: &NetworkRoom,
) -> Option<NoMatchReason> {
    if definition.is_on_host_network() {
        return None;
    }
    if !agent.container_networks {
        return Some(NoMatchReason::UnfulfilledNetwork);
    }
    let joined = definition.networks.iter().filter(|network| network.mode == NetworkMode::Container);
    let room = |name: Option<&String>| rooms.get(&name?.parse().ok()?).copied();
    match joined.map(|network| room(network.name.as_ref())).min() {
        Some(None) => Some(NoMatchReason::UnfulfilledNetwork),
        Some(Some(0)) => Some(NoMatchReason::InsufficientAddresses),
        Some(Some(_)) | None => None,
    }
}

fn has_ports(wanted: &[Option<u16>], available: &PortRanges) -> bool {
    let wanted = || wanted.iter().flatten();
    wanted().count() <= available.len() && wanted().all(|port| *port == 0 || available.contains(*port))
}
