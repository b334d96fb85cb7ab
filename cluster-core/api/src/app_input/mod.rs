//! Apps as users write them: JSON in Marathon's forms, old and new, to a checked [`AppDefinition`].
//!
//! Every fault is found, in two layers as in Marathon: wrong types, ranges and patterns first; if there are none,
//! broken rules.

mod checks;
mod container;
mod lifecycle;
mod networks;
mod placement;
mod ports;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesonet_model::{AppDefinition, AppId, EnvironmentValue, Scalar, Timestamp, VersionInfo};
use serde_json::{Map, Value};

use crate::json_reader::{Findings, Object, text_of};

/// Keys of an app that users may give.
pub(crate) const INPUT_KEYS: &[&str] = &[
    "acceptedResourceRoles",
    "args",
    "backoffFactor",
    "backoffSeconds",
    "check",
    "cmd",
    "constraints",
    "container",
    "cpus",
    "dependencies",
    "disk",
    "env",
    "executor",
    "executorResources",
    "fetch",
    "gpus",
    "healthChecks",
    "id",
    "instances",
    "ipAddress",
    "killSelection",
    "labels",
    "maxLaunchDelaySeconds",
    "mem",
    "networks",
    "portDefinitions",
    "ports",
    "readinessChecks",
    "requirePorts",
    "residency",
    "resourceLimits",
    "role",
    "secrets",
    "taskKillGracePeriodSeconds",
    "tty",
    "unreachableStrategy",
    "upgradeStrategy",
    "uris",
    "user",
];

/// Keys that answers have and that clients send back with the rest; they mean nothing in an input.
const OUTPUT_KEYS: &[&str] = &[
    "deployments",
    "lastTaskFailure",
    "readinessCheckResults",
    "storeUrls",
    "taskStats",
    "tasks",
    "tasksHealthy",
    "tasksRunning",
    "tasksStaged",
    "tasksUnhealthy",
    "version",
    "versionInfo",
];

/// Which old key says the same as which new one.
const OLD_FORMS: &[(&str, &str)] = &[("ipAddress", "networks"), ("container", "networks"), ("uris", "fetch")];

/// The field is `true` for apps that may never run twice.
pub(crate) const SINGLE_INSTANCE_LABEL: &str = "MARATHON_SINGLE_INSTANCE_APP";

const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// Reads an app. Faults go to `findings`; there is an app only if there are none.
///
/// `path` is where the app stands in the body; `id`, if given, counts instead of the body's own.
pub(crate) fn read_app(
    value: &Value,
    path: &str,
    id: Option<&AppId>,
    findings: &Findings,
) -> Option<AppDefinition> {
    let known: Vec<&str> = INPUT_KEYS.iter().chain(OUTPUT_KEYS).copied().collect();
    let object = Object::open(value, path, &known, findings)?;
    let id = match id {
        Some(id) => Some(id.clone()),
        None => read_id(&object),
    };
    let app = build(&object, id)?;
    rules::check(&app, path, findings);
    findings.is_clean().then_some(app)
}

/// The app's id, which must be there.
pub(crate) fn read_id(object: &Object<'_>) -> Option<AppId> {
    object.require("id");
    let text = object.text("id")?;
    let id = AppId::parse(&text);
    id.map_err(|error| object.invalid("id", error.to_string())).ok()
}

/// The fields of an app that are kept but have no effect, as far as the body gives them.
pub(crate) fn unacted_fields(app: &AppDefinition, body: &Map<String, Value>) -> BTreeSet<String> {
    let mut fields: Vec<&str> = app.passthrough.keys().map(String::as_str).collect();
    fields.extend(app.role.as_deref().is_some_and(|role| role != "*").then_some("role"));
    let is_secret = |value: &EnvironmentValue| matches!(value, EnvironmentValue::Secret { .. });
    fields.extend(app.env.values().any(is_secret).then_some("env (secret)"));
    if let Some(container) = &app.container {
        fields.extend(container.docker.is_some().then_some("container.docker"));
        fields.extend((!container.volumes.is_empty()).then_some("container.volumes"));
    }
    let fields = fields.into_iter().filter(|field| is_given(field, body)).map(str::to_owned);
    fields.chain(ports::unacted_labels(app, body)).collect()
}

fn is_given(field: &str, body: &Map<String, Value>) -> bool {
    let key = field.split(['.', ' ']).next().unwrap_or(field);
    let has = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
    has(key) || OLD_FORMS.iter().any(|(old, new)| *new == key && has(old))
}

fn build(object: &Object<'_>, id: Option<AppId>) -> Option<AppDefinition> {
    let labels = object.text_map("labels");
    let wiring = networks::read(object);
    let is_resident = object.has("residency") || wiring.container.iter().any(container::is_persistent);
    let is_single = labels.get(SINGLE_INSTANCE_LABEL).is_some_and(|value| value == "true");
    let amount = |key, min, default| Scalar::from_f64(object.number(key, min).unwrap_or(default));
    let app = AppDefinition {
        version: Timestamp::default(),
        version_info: VersionInfo {
            last_config_change_at: Timestamp::default(),
            last_scaling_at: Timestamp::default(),
        },
        cmd: object.filled_text("cmd"),
        args: object.texts("args").unwrap_or_default(),
        user: object.text("user"),
        env: read_env(object),
        labels,
        instances: object.whole("instances", INT_MAX).unwrap_or(1),
        cpus: amount("cpus", CPUS_MIN, 1.0),
        mem: amount("mem", 0.0, 128.0),
        disk: amount("disk", 0.0, 0.0),
        gpus: Scalar::from_units(i64::from(object.whole("gpus", INT_MAX).unwrap_or(0))),
        constraints: placement::read_constraints(object),
        accepted_resource_roles: object.texts("acceptedResourceRoles"),
        role: object.filled_text("role"),
        networks: wiring.networks,
        port_definitions: wiring.port_definitions,
        require_ports: object.flag("requirePorts").unwrap_or(false) && wiring.is_on_host,
        container: wiring.container,
        health_checks: checks::read_health_checks(object),
        readiness_checks: checks::read_readiness_checks(object),
        upgrade_strategy: lifecycle::read_upgrade_strategy(object, is_resident, is_single),
        kill_selection: lifecycle::read_kill_selection(object),
        unreachable_strategy: lifecycle::read_unreachable_strategy(object, is_resident),
        backoff: lifecycle::read_backoff(object),
        kill_grace: object
            .whole("taskKillGracePeriodSeconds", INT_MAX)
            .map(|seconds| Duration::from_secs(seconds.into())),
        dependencies: read_dependencies(object, id.as_ref()),
        passthrough: read_passthrough(object, is_resident),
        id: id?,
    };
    Some(app)
}

/// Marathon's RAML: a task needs at least this share of a core.
const CPUS_MIN: f64 = 0.001;

fn read_env(object: &Object<'_>) -> BTreeMap<String, EnvironmentValue> {
    let findings = object.findings();
    let mut env = BTreeMap::new();
    for (name, value, path) in object.entries("env").unwrap_or_default() {
        if name.is_empty() {
            object.invalid("env", "must not have an empty name");
        }
        let read = match value {
            Value::Null => None,
            Value::Object(_) => Object::open(value, &path, &["secret"], findings).and_then(|reference| {
                reference.require("secret");
                Some(EnvironmentValue::Secret { secret: reference.filled_text("secret")? })
            }),
            _ => text_of(value, &path, findings).map(|text| EnvironmentValue::Text(text.to_owned())),
        };
        env.extend(read.map(|read| (name.clone(), read)));
    }
    env
}

/// Dependencies; relative ones are meant from the app's group.
fn read_dependencies(object: &Object<'_>, id: Option<&AppId>) -> BTreeSet<AppId> {
    let group = id.and_then(|id| Some(id.as_str().rsplit_once('/')?.0)).unwrap_or_default();
    let mut dependencies = BTreeSet::new();
    for (index, text) in object.texts("dependencies").unwrap_or_default().into_iter().enumerate() {
        let absolute = if text.starts_with('/') { text } else { format!("{group}/{text}") };
        match AppId::parse(&absolute) {
            Ok(dependency) => {
                dependencies.insert(dependency);
            }
            Err(error) => object.invalid(&format!("dependencies({index})"), error.to_string()),
        }
    }
    dependencies
}

fn read_passthrough(object: &Object<'_>, is_resident: bool) -> BTreeMap<String, Value> {
    let mut kept = BTreeMap::new();
    for key in ["check", "executorResources", "resourceLimits", "secrets"] {
        if let Some(value) = object.get(key) {
            match value {
                Value::Object(map) if map.is_empty() => {}
                Value::Object(_) => {
                    kept.insert(key.to_owned(), value.clone());
                }
                _ => object.malformed(key, "error.expected.jsobject"),
            }
        }
    }
    if object.flag("tty") == Some(true) {
        kept.insert("tty".to_owned(), Value::Bool(true));
    }
    let executor = object.text_like("executor", is_executor).filter(|text| !text.is_empty());
    kept.extend(executor.map(|text| ("executor".to_owned(), Value::String(text))));
    kept.extend(is_resident.then(|| ("residency".to_owned(), lifecycle::read_residency(object))));
    let fetch = lifecycle::read_fetch(object);
    kept.extend((!fetch.is_empty()).then(|| ("fetch".to_owned(), Value::Array(fetch))));
    kept
}

/// `^(//cmd)|(/?[^/]+(/[^/]+)*)|$`
fn is_executor(text: &str) -> bool {
    let path = text.strip_prefix('/').unwrap_or(text);
    text.is_empty() || text == "//cmd" || path.split('/').all(|segment| !segment.is_empty())
}

#[cfg(test)]
mod readiness_tests;
#[cfg(test)]
mod size_tests;
#[cfg(test)]
pub(crate) mod tests;
