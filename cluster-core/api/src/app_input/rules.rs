//! Rules between the fields of an app.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{
    APP_ID_LENGTH_MAX, AppDefinition, ContainerKind, EnvironmentValue, NetworkMode, PORT_LABELS_MAX,
    PortMapping, PortPolicy, Scalar, TASK_PORTS_MAX, VipLabel,
};
use serde_json::Value;

use super::SINGLE_INSTANCE_LABEL;
use super::ports::{is_vip_key, port_list};
use crate::json_reader::Findings;

/// Where the rules report.
struct Report<'check> {
    path: &'check str,
    findings: &'check Findings,
}

impl Report<'_> {
    fn invalid(&self, key: &str, text: impl Into<String>) {
        self.findings.invalid(format!("{}/{key}", self.path), text);
    }
}

/// Notes every rule that the app breaks; `path` is where it stands in the body.
pub(super) fn check(app: &AppDefinition, path: &str, findings: &Findings) {
    let report = Report { path, findings };
    check_size(app, &report);
    check_command(app, &report);
    check_single_instance(app, &report);
    check_secrets(app, &report);
    check_roles(app, &report);
    check_ports(app, &report);
    check_mappings(app, &report);
    check_port_labels(app, &report);
    check_health_checks(app, &report);
    check_readiness_checks(app, &report);
    check_container(app, &report);
    check_migration_labels(app, &report);
    if app.dependencies.contains(&app.id) {
        report.invalid("dependencies", "an app must not depend on itself");
    }
}

/// What no task could be launched with, so that the app's deployment would never end.
fn check_size(app: &AppDefinition, report: &Report<'_>) {
    let length = app.id.as_str().len();
    if length > APP_ID_LENGTH_MAX {
        let text = format!("must not be longer than {APP_ID_LENGTH_MAX} bytes, this one has {length}");
        report.invalid("id", text);
    }
    let list = port_list(app);
    let published = published_ports(app);
    if published > TASK_PORTS_MAX {
        let text = format!(
            "a task may publish {TASK_PORTS_MAX} ports, counted by protocol and network, not {published}"
        );
        report.invalid(list, text);
    }
    for (index, port) in app.ports().iter().enumerate() {
        // Marathon adds some where the network is not the host's: the scope, and the name of a network of the port's own.
        let added = match (app.is_on_host_network(), port.host_port) {
            (true, _) => 0,
            (false, Some(_)) => 1,
            (false, None) => 2,
        };
        let (count, labels_max) = (port.labels.len(), PORT_LABELS_MAX - added);
        if count > labels_max {
            let text = format!("a port may have {labels_max} labels, not {count}");
            report.invalid(&format!("{list}({index})/labels"), text);
        }
    }
}

/// How many ports a task of the app publishes: one per protocol, and one per network where the host has none for it.
fn published_ports(app: &AppDefinition) -> usize {
    if app.is_on_host_network() {
        return app.port_definitions.iter().map(|port| port.protocols.len()).sum();
    }
    let mut networks: BTreeMap<&str, usize> = BTreeMap::new();
    for name in app.networks.iter().filter_map(|network| network.name.as_deref()) {
        *networks.entry(name).or_default() += 1;
    }
    let joined: usize = networks.values().sum();
    let places = |mapping: &PortMapping| {
        let own: BTreeSet<&str> = mapping.network_names.iter().map(String::as_str).collect();
        match mapping.host_port {
            Some(_) => 1,
            None if own.is_empty() => joined.max(1),
            None => own.iter().filter_map(|name| networks.get(name)).sum::<usize>().max(1),
        }
    };
    let mappings = app.container.iter().flat_map(|container| &container.port_mappings);
    mappings.map(|mapping| mapping.protocols.len() * places(mapping)).sum()
}

fn check_command(app: &AppDefinition, report: &Report<'_>) {
    let has_args = !app.args.is_empty();
    if app.cmd.is_some() == has_args && (has_args || app.image().is_none()) {
        report.invalid("", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
    }
}

fn check_single_instance(app: &AppDefinition, report: &Report<'_>) {
    if app.labels.get(SINGLE_INSTANCE_LABEL).is_none_or(|value| value != "true") {
        return;
    }
    if app.instances > 1 {
        report.invalid("instances", "Single instance app may only have one instance");
    }
    let strategy = app.upgrade_strategy;
    for (key, share) in [
        ("minimumHealthCapacity", strategy.minimum_health_capacity),
        ("maximumOverCapacity", strategy.maximum_over_capacity),
    ] {
        if share > 0.0 {
            report.invalid(&format!("upgradeStrategy/{key}"), "must be 0 for a single instance app");
        }
    }
}

fn check_secrets(app: &AppDefinition, report: &Report<'_>) {
    let declared = app.passthrough.get("secrets");
    for (name, value) in &app.env {
        if let EnvironmentValue::Secret { secret } = value
            && declared.and_then(|declared| declared.get(secret)).is_none()
        {
            report.invalid(&format!("env({name})"), format!("references an undefined secret '{secret}'"));
        }
    }
    for (key, value) in declared.and_then(Value::as_object).into_iter().flatten() {
        if key.is_empty() || value.get("source").and_then(Value::as_str).is_none_or(str::is_empty) {
            report.invalid(&format!("secrets({key})"), "a secret needs a key and a source");
        }
    }
}

fn check_roles(app: &AppDefinition, report: &Report<'_>) {
    let role = app.role.as_deref().unwrap_or("*");
    let group = app.id.segments().next().filter(|_| app.id.segments().count() > 1);
    if role != "*" && Some(role) != group {
        let group = group.map_or_else(String::new, |group| format!(", {group}"));
        report.invalid("role", format!("got {role}, expected one of: [*{group}]"));
    }
    let Some(accepted) = &app.accepted_resource_roles else { return };
    if accepted.is_empty() {
        report.invalid("acceptedResourceRoles", "must not be empty");
    }
    if accepted.iter().any(|accepted| accepted != "*" && accepted != role) {
        report
            .invalid("acceptedResourceRoles", format!("acceptedResourceRoles can only contain * and {role}"));
    }
}

fn check_ports(app: &AppDefinition, report: &Report<'_>) {
    let names = app.port_definitions.iter().filter_map(|definition| definition.name.as_deref());
    if has_twice(names) {
        report.invalid("portDefinitions", "Port names must be unique.");
    }
    let ports = app.port_definitions.iter().filter(|definition| definition.port != 0);
    let each = ports
        .flat_map(|definition| definition.protocols.iter().map(move |protocol| (definition.port, *protocol)));
    if has_twice(each) {
        report.invalid("portDefinitions", "Ports must be unique.");
    }
}

fn check_mappings(app: &AppDefinition, report: &Report<'_>) {
    let Some(container) = &app.container else { return };
    let mappings = &container.port_mappings;
    if has_twice(mappings.iter().filter_map(|mapping| mapping.name.as_deref())) {
        report.invalid("container/portMappings", "Port names must be unique.");
    }
    let service_ports = mappings.iter().filter(|mapping| mapping.service_port != 0);
    if has_twice(service_ports.map(|mapping| mapping.service_port)) {
        report.invalid("container/portMappings", "Ports must be unique.");
    }
    let networks: BTreeSet<&str> =
        app.networks.iter().filter_map(|network| network.name.as_deref()).collect();
    for (index, mapping) in mappings.iter().enumerate() {
        let key = format!("container/portMappings({index})");
        if mapping.network_names.iter().any(|name| !networks.contains(name.as_str())) {
            report.invalid(&format!("{key}/networkNames"), "must be names of the app's networks");
        }
        if networks.len() > 1 && mapping.host_port.is_some() && mapping.network_names.len() != 1 {
            report.invalid(&key, "hostPort needs exactly one networkName when there are several networks");
        }
    }
    let is_overlay = |mode: NetworkMode| mode == NetworkMode::Container;
    let overlays = app.networks.iter().filter(|network| is_overlay(network.mode)).count();
    if container.kind == ContainerKind::Docker && overlays > 1 {
        report.invalid("networks", "Docker containers may only join one container network");
    }
}

/// A label `VIP_<n>` that declares no virtual address would silently do nothing, and so would a wrong `MESONET_LB_*`.
fn check_port_labels(app: &AppDefinition, report: &Report<'_>) {
    let list = port_list(app);
    for (index, port) in app.ports().iter().enumerate() {
        for (key, value) in port.labels.iter().filter(|(key, _)| is_vip_key(key)) {
            if let Err(error) = VipLabel::parse(value) {
                report.invalid(&format!("{list}({index})/labels/{key}"), error.to_string());
            }
        }
        for error in PortPolicy::parse(port.labels).1 {
            report.invalid(&format!("{list}({index})/labels/{}", error.label()), error.to_string());
        }
    }
}

fn check_health_checks(app: &AppDefinition, report: &Report<'_>) {
    let ports = app.ports().len() as u64;
    let mut from_mesos = 0;
    for (index, check) in app.health_checks.iter().enumerate() {
        let key = format!("healthChecks({index})");
        let protocol = check.get("protocol").and_then(Value::as_str).unwrap_or_default();
        from_mesos += usize::from(protocol.starts_with("MESOS_"));
        if check.get("portIndex").and_then(Value::as_u64).is_some_and(|index| index >= ports) {
            report.invalid(
                &key,
                "Health check port indices must address an element of the ports array or container port mappings.",
            );
        }
        let is_docker =
            app.container.as_ref().is_some_and(|container| container.kind == ContainerKind::Docker);
        let is_v6 = check.get("ipProtocol").and_then(Value::as_str) == Some("IPv6");
        if is_v6 && !(is_docker && protocol.starts_with("MESOS_")) {
            report.invalid(
                &format!("{key}/ipProtocol"),
                "IPv6 health checks need a DOCKER container and a MESOS_* protocol",
            );
        }
    }
    if from_mesos > 1 {
        report.invalid("healthChecks", "AppDefinition can contain at most one Mesos health check");
    }
}

fn check_readiness_checks(app: &AppDefinition, report: &Report<'_>) {
    for (index, check) in app.readiness_checks.iter().enumerate() {
        let name = check.get("portName").and_then(Value::as_str);
        if !app.ports().iter().any(|port| port.name == name) {
            let name = name.unwrap_or_default();
            report.invalid(
                &format!("readinessChecks({index})/portName"),
                format!("'{name}' is not the name of one of the app's ports"),
            );
        }
    }
}

fn check_container(app: &AppDefinition, report: &Report<'_>) {
    let Some(container) = &app.container else { return };
    if container.kind == ContainerKind::Docker {
        if app.gpus > Scalar::ZERO {
            report.invalid("gpus", "GPU resources only work with the Mesos containerizer");
        }
        if app.passthrough.contains_key("check") {
            report.invalid("check", "checks only work with the Mesos containerizer");
        }
    }
}

fn check_migration_labels(app: &AppDefinition, report: &Report<'_>) {
    let Some(version) = app.labels.get("DCOS_MIGRATION_API_VERSION") else { return };
    let has = |key: &str| app.labels.get(key).is_some_and(|value| !value.is_empty());
    if version != "v1" || !has("DCOS_PACKAGE_FRAMEWORK_NAME") || !has("DCOS_MIGRATION_API_PATH") {
        report.invalid(
            "labels",
            "DCOS_MIGRATION_API_VERSION must be v1 and comes with DCOS_PACKAGE_FRAMEWORK_NAME and DCOS_MIGRATION_API_PATH",
        );
    }
}

fn has_twice<T: Ord>(values: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    !values.into_iter().all(|value| seen.insert(value))
}
