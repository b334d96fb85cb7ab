//! Ports of apps: definitions with host networking, mappings with the others.

use std::collections::BTreeMap;

use mesonet_model::{AppDefinition, NetworkMode, PortDefinition, PortMapping, Protocol, VipLabel};
use serde_json::{Map, Value};

use crate::json_reader::{Object, whole_of};

/// The greatest port number.
const PORT_MAX: u32 = u16::MAX as u32;

/// Ports with host networking: `portDefinitions`, else the old `ports`, else one port.
pub(super) fn read_definitions(object: &Object<'_>) -> Vec<PortDefinition> {
    let definitions = object.objects("portDefinitions", &["port", "protocol", "name", "labels"]);
    let ports = read_plain_ports(object);
    let definitions: Option<Vec<PortDefinition>> =
        definitions.map(|definitions| definitions.iter().map(read_definition).collect());
    match (definitions, ports) {
        (Some(definitions), ports) => {
            // marathon-python sends an empty `ports` beside whatever definitions there are.
            let ports = ports.unwrap_or_default();
            let given = definitions.iter().map(|definition| definition.port);
            if !ports.is_empty() && !given.eq(ports.iter().copied()) {
                object.invalid("ports", "cannot specify both ports and port definitions");
            }
            definitions
        }
        (None, Some(ports)) => ports.into_iter().map(|port| definition(port, None)).collect(),
        (None, None) => vec![definition(0, Some("default".to_owned()))],
    }
}

/// Mappings below `key` of an object. `mode` says what a missing host port means.
pub(super) fn read_mappings(object: &Object<'_>, key: &str, mode: NetworkMode) -> Option<Vec<PortMapping>> {
    let known = ["containerPort", "hostPort", "servicePort", "protocol", "name", "labels", "networkNames"];
    let mappings = object.objects(key, &known)?;
    Some(mappings.iter().map(|mapping| read_mapping(mapping, mode)).collect())
}

/// Ports of the old `ipAddress` form, as mappings.
pub(super) fn read_discovery_ports(object: &Object<'_>) -> Option<Vec<PortMapping>> {
    let ports = object.objects("ports", &["number", "name", "protocol", "labels"])?;
    let read = |port: &Object<'_>| {
        port.require("number");
        PortMapping {
            container_port: port_number(port, "number").unwrap_or(0),
            host_port: None,
            service_port: 0,
            protocols: read_protocols(port),
            name: port.text_like("name", is_name),
            labels: port.text_map("labels"),
            network_names: Vec::new(),
        }
    };
    Some(ports.iter().map(read).collect())
}

/// The one mapping of an app that says nothing about its ports.
pub(super) fn default_mappings(mode: NetworkMode) -> Vec<PortMapping> {
    vec![PortMapping {
        container_port: 0,
        host_port: (mode == NetworkMode::Bridge).then_some(0),
        service_port: 0,
        protocols: vec![Protocol::Tcp],
        name: Some("default".to_owned()),
        labels: BTreeMap::new(),
        network_names: Vec::new(),
    }]
}

/// Labels that have no effect or another one than they seem to: those of a port that the app itself has, and VIPs whose
/// names are not as they are written. Only what the body gives counts.
pub(super) fn unacted_labels(app: &AppDefinition, body: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    if body.contains_key("labels") {
        let of_ports = app.labels.keys().filter(|key| is_vip_key(key) || key.starts_with("MESONET_LB_"));
        found.extend(of_ports.map(|key| format!("labels/{key} (it belongs to a port)")));
    }
    let list = port_list(app);
    let is_given = body.contains_key(list.split('/').next().unwrap_or(list));
    for (index, port) in app.ports().iter().enumerate().filter(|_| is_given) {
        for (key, value) in port.labels.iter().filter(|(key, _)| is_vip_key(key)) {
            if let Some(name) = other_name(value) {
                found.push(format!("{list}({index})/labels/{key} as it is written (its name is {name})"));
            }
        }
    }
    found
}

/// `VIP_` and a number, in upper or lower case, or what was meant to be that.
pub(super) fn is_vip_key(key: &str) -> bool {
    let number = key.strip_prefix("VIP").or_else(|| key.strip_prefix("vip"));
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_'))
}

/// Where the app's ports are.
pub(super) fn port_list(app: &AppDefinition) -> &'static str {
    if app.is_on_host_network() { "portDefinitions" } else { "container/portMappings" }
}

/// The name of a VIP that has lost more than slashes on the way to it.
fn other_name(label: &str) -> Option<String> {
    let VipLabel::Named { name, .. } = VipLabel::parse(label).ok()? else { return None };
    let written = label.rsplit_once(':')?.0.chars().filter(|character| *character != '/').count();
    (written != name.len()).then_some(name)
}

/// `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
pub(super) fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn read_definition(object: &Object<'_>) -> PortDefinition {
    PortDefinition {
        port: port_number(object, "port").unwrap_or(0),
        protocols: read_protocols(object),
        name: object.text_like("name", is_name),
        labels: object.text_map("labels"),
    }
}

fn read_mapping(object: &Object<'_>, mode: NetworkMode) -> PortMapping {
    let host_port = port_number(object, "hostPort");
    PortMapping {
        container_port: port_number(object, "containerPort").unwrap_or(0),
        host_port: host_port.or((mode == NetworkMode::Bridge).then_some(0)),
        service_port: port_number(object, "servicePort").unwrap_or(0),
        protocols: read_protocols(object),
        name: object.text_like("name", is_name),
        labels: object.text_map("labels"),
        network_names: object.texts("networkNames").unwrap_or_default(),
    }
}

fn read_plain_ports(object: &Object<'_>) -> Option<Vec<u16>> {
    let elements = object.list("ports")?;
    let ports = elements
        .into_iter()
        .filter_map(|(value, path)| whole_of(value, PORT_MAX, &path, object.findings()))
        .filter_map(|port| u16::try_from(port).ok());
    Some(ports.collect())
}

fn port_number(object: &Object<'_>, key: &str) -> Option<u16> {
    u16::try_from(object.whole(key, PORT_MAX)?).ok()
}

fn read_protocols(object: &Object<'_>) -> Vec<Protocol> {
    match object.text("protocol").as_deref() {
        None | Some("tcp") => vec![Protocol::Tcp],
        Some("udp") => vec![Protocol::Udp],
        Some("udp,tcp" | "tcp,udp") => vec![Protocol::Udp, Protocol::Tcp],
        Some(_) => {
            object.malformed("protocol", "error.unknown.enum.literal");
            vec![Protocol::Tcp]
        }
    }
}

fn definition(port: u16, name: Option<String>) -> PortDefinition {
    PortDefinition { port, protocols: vec![Protocol::Tcp], name, labels: BTreeMap::new() }
}
