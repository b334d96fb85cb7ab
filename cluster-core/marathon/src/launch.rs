//! From an app and an offer to a task (spec/client-surface.md §7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{
    AppDefinition, AppPort, Attachment, Command, Discovery, DiscoveryPort, FrameworkId, NetworkMode, Offer,
    PortForward, TaskId, TaskKey, TaskNetworking, TaskSpec, TaskState, Timestamp, Visibility,
};

use crate::InstanceView;
use crate::instance::Instance;
use crate::matching::Fit;

/// From SIGTERM to SIGKILL if the app does not say (Mesos' default).
const KILL_GRACE: Duration = Duration::from_secs(3);

/// The task of a new instance.
pub(crate) fn task_spec(
    definition: &AppDefinition,
    framework: &FrameworkId,
    task: &TaskId,
    offer: &Offer,
    fit: &Fit,
) -> TaskSpec {
    let host = &offer.agent_info.hostname;
    let name = definition.id.task_name();
    TaskSpec {
        key: TaskKey::new(framework.clone(), task.clone()),
        name: name.clone(),
        agent: offer.agent.clone(),
        resources: fit.resources.clone(),
        command: Command {
            shell: definition.cmd.clone(),
            arguments: definition.args.clone(),
            environment: crate::environment::environment(definition, task, host, &fit.host_ports),
            user: definition.user.clone(),
        },
        image: definition.image().map(str::to_owned),
        discovery: Some(Discovery {
            visibility: Visibility::Framework,
            name: Some(name),
            ports: discovery_ports(definition, &fit.host_ports),
            labels: BTreeMap::new(),
        }),
        labels: definition.labels.clone(),
        health_checked: !definition.health_checks.is_empty(),
        health_checks: crate::health_checks::health_checks(definition, &fit.host_ports),
        readiness_check: None,
        kill_grace: definition.kill_grace.unwrap_or(KILL_GRACE),
        networking: networking(definition, &fit.host_ports),
    }
}

/// A new instance, given to the master at this time.
pub(crate) fn instance(
    definition: &AppDefinition,
    task: TaskId,
    offer: &Offer,
    fit: &Fit,
    now: Timestamp,
) -> Instance {
    let health_checks = crate::health_checks::health_checks(definition, &fit.host_ports);
    let view = InstanceView {
        task,
        app: definition.id.clone(),
        version: definition.version,
        agent: offer.agent.clone(),
        host: offer.agent_info.hostname.clone(),
        host_address: offer.agent_info.address,
        state: TaskState::Staging,
        ports: fit.host_ports.iter().map(|port| port.unwrap_or(0)).collect(),
        service_ports: definition.ports().iter().map(|port| port.service_port).collect(),
        addresses: vec![offer.agent_info.address],
        healthy: None,
        health_results: Vec::new(),
        readiness: None,
        staged_at: now,
        started_at: None,
    };
    Instance {
        view: Arc::new(view),
        config: definition.version_info.last_config_change_at,
        attributes: offer.agent_info.attributes.clone(),
        kill_asked_at: None,
        unreachable_since: None,
        is_given_up: false,
        is_leaving: false,
        is_opening: false,
        failures_max: health_checks.iter().map(|check| check.failures_max).collect(),
    }
}

/// The task's own interfaces, unless it is on the host's network. Names of networks that cannot be any are left out;
/// an app that has one never fits.
fn networking(definition: &AppDefinition, host_ports: &[Option<u16>]) -> Option<TaskNetworking> {
    if definition.is_on_host_network() {
        return None;
    }
    let attachments = definition.networks.iter().filter_map(|network| match network.mode {
        NetworkMode::Host => None,
        NetworkMode::Bridge => Some(Attachment::default()),
        NetworkMode::Container => {
            let name = network.name.as_ref()?.parse().ok()?;
            Some(Attachment { network: Some(name), subnets: Vec::new() })
        }
    });
    let forwards = |(port, host_port): (AppPort<'_>, &Option<u16>)| {
        let host_port = (*host_port)?;
        let container_port = port.container_port.filter(|number| *number != 0).unwrap_or(host_port);
        let forward = |protocol| PortForward { host_port, container_port, protocol };
        Some(port.protocols.iter().copied().map(forward).collect::<Vec<_>>())
    };
    let mappings = definition.ports().into_iter().zip(host_ports).filter_map(forwards).flatten().collect();
    Some(TaskNetworking { attachments: attachments.collect(), mappings })
}

/// One port per port of the app and protocol; a port without host port one per container network.
fn discovery_ports(definition: &AppDefinition, host_ports: &[Option<u16>]) -> Vec<DiscoveryPort> {
    let is_on_host = definition.is_on_host_network();
    let mut published = Vec::new();
    for (port, host_port) in definition.ports().into_iter().zip(host_ports) {
        match host_port {
            Some(number) if is_on_host => publish(&port, *number, &[], &mut published),
            Some(number) => publish(&port, *number, &[("network-scope", "host")], &mut published),
            None => {
                let number = port.container_port.unwrap_or(0);
                let networks =
                    definition.networks.iter().filter(|network| network.mode == NetworkMode::Container);
                let names = networks.filter_map(|network| network.name.as_deref());
                let mut is_published = false;
                for name in names.filter(|name| is_for(definition, &port, name)) {
                    let scope = [("network-scope", "container"), ("network-name", name)];
                    publish(&port, number, &scope, &mut published);
                    is_published = true;
                }
                if !is_published {
                    publish(&port, number, &[("network-scope", "container")], &mut published);
                }
            }
        }
    }
    published
}

/// Whether a mapping without host port is for a network: those that it names, all if it names none.
fn is_for(definition: &AppDefinition, port: &AppPort<'_>, network: &str) -> bool {
    let mappings = definition.container.iter().flat_map(|container| &container.port_mappings);
    let mut mapping = mappings.filter(|mapping| std::ptr::eq(&mapping.labels, port.labels));
    mapping.next().is_none_or(|mapping| {
        mapping.network_names.is_empty() || mapping.network_names.iter().any(|name| name == network)
    })
}

fn publish(port: &AppPort<'_>, number: u16, scope: &[(&str, &str)], published: &mut Vec<DiscoveryPort>) {
    for protocol in port.protocols {
        let mut labels = port.labels.clone();
        labels.extend(scope.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        published.push(DiscoveryPort {
            number,
            name: port.name.map(str::to_owned),
            protocol: protocol.as_str().to_owned(),
            labels,
        });
    }
}
