//! Containers: image and volumes, checked and kept in the API's form.

use mesonet_model::{Container, ContainerKind};
use serde_json::{Map, Value};

use crate::json_reader::Object;

pub(super) const CONTAINER_KEYS: &[&str] = &["type", "docker", "volumes", "portMappings"];
const DOCKER_KEYS: &[&str] = &[
    "image",
    "forcePullImage",
    "privileged",
    "parameters",
    "pullConfig",
    "network",
    "portMappings",
    "credential",
];
const VOLUME_KEYS: &[&str] = &["containerPath", "hostPath", "mode", "persistent", "external", "secret"];
const PERSISTENT_KEYS: &[&str] = &["size", "type", "maxSize", "profileName", "constraints"];

/// A container as written, without its port mappings, which depend on the networks.
pub(super) struct ContainerInput<'input> {
    /// The container object.
    pub(super) object: Object<'input>,
    /// Its `docker` object.
    pub(super) docker: Option<Object<'input>>,
    /// Which containerizer.
    pub(super) kind: ContainerKind,
}

/// Reads `container`; `type` is DOCKER if absent.
pub(super) fn open<'input>(app: &Object<'input>) -> Option<ContainerInput<'input>> {
    let object = app.object("container", CONTAINER_KEYS)?;
    let kinds = [("MESOS", ContainerKind::Mesos), ("DOCKER", ContainerKind::Docker)];
    let kind = object.choice("type", &kinds).unwrap_or(ContainerKind::Docker);
    let docker = object.object("docker", DOCKER_KEYS);
    Some(ContainerInput { object, docker, kind })
}

/// Checks the container and brings it into the new form.
pub(super) fn read(input: &ContainerInput<'_>) -> Container {
    let volumes = input.object.objects("volumes", VOLUME_KEYS).unwrap_or_default();
    for volume in &volumes {
        check_volume(volume);
    }
    if input.docker.is_none() && input.kind == ContainerKind::Docker {
        input.object.invalid("docker", "must not be empty");
    }
    Container {
        kind: input.kind,
        docker: input.docker.as_ref().map(|docker| read_docker(docker, input.kind)),
        volumes: volumes_of(&input.object),
        port_mappings: Vec::new(),
    }
}

/// Whether a container has volumes that outlive its instances.
pub(super) fn is_persistent(container: &Container) -> bool {
    container.volumes.iter().any(|volume| volume.get("persistent").is_some())
}

fn volumes_of(object: &Object<'_>) -> Vec<Value> {
    let volumes = object.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    volumes.into_iter().map(without_nulls).collect()
}

fn read_docker(docker: &Object<'_>, kind: ContainerKind) -> Value {
    docker.require("image");
    let image = docker.text("image").unwrap_or_default();
    if docker.has("image") && image.is_empty() {
        docker.invalid("image", "must not be empty");
    }
    let mut kept = Map::new();
    kept.insert("image".to_owned(), image.into());
    kept.insert("forcePullImage".to_owned(), docker.flag("forcePullImage").unwrap_or(false).into());
    let privileged = docker.flag("privileged").unwrap_or(false);
    let parameters = docker.objects("parameters", &["key", "value"]);
    for parameter in parameters.iter().flatten() {
        for key in ["key", "value"] {
            parameter.require(key);
        }
        parameter.filled_text("key");
        parameter.text("value");
    }
    let pull = docker.object("pullConfig", &["secret"]);
    if let Some(pull) = &pull {
        pull.require("secret");
        pull.filled_text("secret");
    }
    match kind {
        ContainerKind::Docker => {
            kept.insert("privileged".to_owned(), privileged.into());
            let parameters = docker.get("parameters").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
            kept.insert("parameters".to_owned(), without_nulls(parameters));
            if pull.is_some() {
                docker.invalid("pullConfig", "pullConfig is not supported with Docker containerizer");
            }
        }
        ContainerKind::Mesos => {
            for key in ["network", "portMappings", "credential"] {
                if docker.has(key) {
                    docker.invalid(key, "must not be given with a MESOS container");
                }
            }
            if parameters.is_some_and(|parameters| !parameters.is_empty()) {
                docker.invalid("parameters", "must not be given with a MESOS container");
            }
            if let Some(pull) = docker.get("pullConfig") {
                kept.insert("pullConfig".to_owned(), without_nulls(pull.clone()));
            }
        }
    }
    Value::Object(kept)
}

fn check_volume(volume: &Object<'_>) {
    volume.require("containerPath");
    let path = volume.text("containerPath").unwrap_or_default();
    if volume.has("containerPath") && path.is_empty() {
        volume.invalid("containerPath", "must not be empty");
    }
    let kinds = ["hostPath", "persistent", "external", "secret"];
    if kinds.iter().filter(|kind| volume.has(kind)).count() != 1 {
        volume
            .findings()
            .invalid(volume.path(), "must be one of: host, persistent, external or secret volume");
    }
    if !volume.has("secret") {
        volume.require("mode");
    }
    let mode = volume.choice("mode", &[("RO", "RO"), ("RW", "RW")]);
    volume.text("hostPath");
    volume.text("secret");
    volume.entries("external");
    if let Some(persistent) = volume.object("persistent", PERSISTENT_KEYS) {
        check_persistent(&persistent);
        if path.contains('/') {
            volume.invalid("containerPath", "value must not contain \"/\"");
        }
        if mode == Some("RO") {
            volume.invalid("mode", "must be RW for a persistent volume");
        }
    }
}

fn check_persistent(persistent: &Object<'_>) {
    persistent.require("size");
    let size = persistent.number("size", 0.0);
    if size == Some(0.0) {
        persistent.invalid("size", "got 0, expected more than 0");
    }
    let kinds = [("root", "root"), ("path", "path"), ("mount", "mount")];
    let kind = persistent.choice("type", &kinds).unwrap_or("root");
    if let Some(max) = persistent.number("maxSize", 0.0) {
        if kind != "mount" {
            persistent.invalid("maxSize", "only mount volumes can have maxSize");
        } else if size.is_some_and(|size| max <= size) {
            persistent.invalid("maxSize", "got a maxSize that is not more than size");
        }
    }
    persistent.text("profileName");
    if persistent.list("constraints").is_some_and(|constraints| !constraints.is_empty()) && kind == "root" {
        persistent.invalid("constraints", "Constraints on root volumes are not supported");
    }
}

/// The value without nulls, which count as not given.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(elements) => Value::Array(elements.into_iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}
