//! The environment of a task (spec/client-surface.md §7).

use std::collections::{BTreeMap, BTreeSet};

use mesonet_model::{AppDefinition, EnvironmentValue, TaskId};

/// Labels and their names longer than this stay out of the environment, as in Marathon.
const VARIABLE_LENGTH_MAX: usize = 512;

const LABEL_PREFIX: &str = "MARATHON_APP_LABEL_";

/// Everything that Marathon sets, and what the user set, which wins. Secrets are left out: there is nobody to give
/// their values.
pub(crate) fn environment(
    definition: &AppDefinition,
    task: &TaskId,
    host: &str,
    host_ports: &[Option<u16>],
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let mut set = |name: &str, value: String| environment.insert(name.to_owned(), value);
    set("MESOS_TASK_ID", task.to_string());
    set("MARATHON_APP_ID", definition.id.to_string());
    set("MARATHON_APP_VERSION", definition.version.to_string());
    if let Some(image) = definition.image() {
        set("MARATHON_APP_DOCKER_IMAGE", image.to_owned());
    }
    set("MARATHON_APP_RESOURCE_CPUS", format!("{:?}", definition.cpus.as_f64()));
    set("MARATHON_APP_RESOURCE_MEM", format!("{:?}", definition.mem.as_f64()));
    set("MARATHON_APP_RESOURCE_DISK", format!("{:?}", definition.disk.as_f64()));
    set("MARATHON_APP_RESOURCE_GPUS", definition.gpus.to_string());
    set("HOST", host.to_owned());
    add_labels(definition, &mut environment);
    add_ports(definition, host_ports, &mut environment);
    for (name, value) in &definition.env {
        match value {
            EnvironmentValue::Text(text) => environment.insert(name.clone(), text.clone()),
            EnvironmentValue::Secret { .. } => environment.remove(name),
        };
    }
    environment
}

fn add_labels(definition: &AppDefinition, environment: &mut BTreeMap<String, String>) {
    let mut names = Vec::new();
    for (name, value) in &definition.labels {
        if name.len() < VARIABLE_LENGTH_MAX - LABEL_PREFIX.len() && value.len() < VARIABLE_LENGTH_MAX {
            let name = variable_name(name);
            environment.insert(format!("{LABEL_PREFIX}{name}"), value.clone());
            names.push(name);
        }
    }
    environment.insert("MARATHON_APP_LABELS".to_owned(), names.join(" "));
}

/// Upper case, each run of other characters than letters, digits and `_` one `_`.
fn variable_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut is_in_run = false;
    for character in text.chars() {
        let is_plain = character.is_ascii_alphanumeric() || character == '_';
        if is_plain {
            name.push(character.to_ascii_uppercase());
        } else if !is_in_run {
            name.push('_');
        }
        is_in_run = !is_plain;
    }
    name
}

fn add_ports(
    definition: &AppDefinition,
    host_ports: &[Option<u16>],
    environment: &mut BTreeMap<String, String>,
) {
    let mut assigned = Vec::new();
    let mut effective_numbers = BTreeSet::new();
    for (index, (port, host_port)) in definition.ports().into_iter().zip(host_ports).enumerate() {
        // The number by which the app knows the port: the container's port, else the definition's own, which is the
        // service port even when Marathon has chosen it.
        let requested = Some(port.container_port.unwrap_or(port.service_port)).filter(|port| *port != 0);
        let Some(effective) = host_port.or(requested) else { continue };
        environment.insert(format!("PORT{index}"), effective.to_string());
        environment.insert(format!("PORT_{}", requested.unwrap_or(effective)), effective.to_string());
        if let (Some(name), Some(_)) = (port.name, host_port) {
            environment.insert(format!("PORT_{}", name.to_uppercase()), effective.to_string());
        }
        effective_numbers.extend(host_port.filter(|_| port.container_port.is_none()));
        assigned.extend(host_port.map(|port| port.to_string()));
    }
    for number in effective_numbers {
        // Another port may go by this number; that one was asked for.
        environment.entry(format!("PORT_{number}")).or_insert_with(|| number.to_string());
    }
    if let Some(first) = assigned.first() {
        environment.insert("PORT".to_owned(), first.clone());
    }
    if !host_ports.is_empty() {
        environment.insert("PORTS".to_owned(), assigned.join(","));
    }
}
