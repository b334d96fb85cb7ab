//! Apps in Marathon's form.

use std::time::Duration;

use mesonet_marathon::{AppView, InstanceCounts, InstanceView, TaskFailure};
use mesonet_model::{
    AppDefinition, Constraint, Container, Network, PortDefinition, PortMapping, Protocol, UnreachableStrategy,
};
use serde_json::{Map, Value, json};

use crate::embed::AppEmbed;
use crate::output::task;

/// A version of an app. Reading it again gives the same definition.
pub(crate) fn definition(app: &AppDefinition) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("id", json!(app.id));
    put("cmd", json!(app.cmd));
    put("args", if app.args.is_empty() { Value::Null } else { json!(app.args) });
    put("container", app.container.as_ref().map_or(Value::Null, |each| container(app, each)));
    put("instances", json!(app.instances));
    put("cpus", number(app.cpus.as_f64()));
    put("mem", number(app.mem.as_f64()));
    put("disk", number(app.disk.as_f64()));
    put("gpus", number(app.gpus.as_f64()));
    put("executor", json!(""));
    put("env", json!(app.env));
    put("labels", json!(app.labels));
    put("constraints", app.constraints.iter().map(constraint).collect());
    put("networks", app.networks.iter().map(network).collect());
    if app.is_on_host_network() {
        put("portDefinitions", app.port_definitions.iter().map(port_definition).collect());
    }
    put("requirePorts", json!(app.require_ports));
    put("healthChecks", json!(app.health_checks));
    put("readinessChecks", json!(app.readiness_checks));
    put(
        "upgradeStrategy",
        json!({
            "minimumHealthCapacity": number(app.upgrade_strategy.minimum_health_capacity),
            "maximumOverCapacity": number(app.upgrade_strategy.maximum_over_capacity),
        }),
    );
    put("killSelection", json!(app.kill_selection));
    put("unreachableStrategy", unreachable_strategy(app.unreachable_strategy));
    put("backoffSeconds", seconds(app.backoff.initial));
    put("backoffFactor", number(app.backoff.factor));
    put("maxLaunchDelaySeconds", seconds(app.backoff.max));
    put("dependencies", json!(app.dependencies));
    put("fetch", json!([]));
    put("version", json!(app.version));
    put(
        "versionInfo",
        json!({
            "lastScalingAt": app.version_info.last_scaling_at,
            "lastConfigChangeAt": app.version_info.last_config_change_at,
        }),
    );
    if let Some(user) = &app.user {
        put("user", json!(user));
    }
    if let Some(role) = &app.role {
        put("role", json!(role));
    }
    if let Some(roles) = &app.accepted_resource_roles {
        put("acceptedResourceRoles", json!(roles));
    }
    if let Some(grace) = app.kill_grace {
        put("taskKillGracePeriodSeconds", seconds(grace));
    }
    object.extend(app.passthrough.iter().map(|(key, value)| (key.clone(), value.clone())));
    object
}

/// An app with what is happening to it, as far as it is wanted.
pub(crate) fn info(app: &AppView, embed: AppEmbed) -> Value {
    let mut object = definition(&app.definition);
    if embed.counts {
        object.extend(counts(app.counts()));
    }
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    if embed.deployments {
        put("deployments", app.deployments.iter().map(|id| json!({"id": id})).collect());
    }
    if embed.tasks {
        put("tasks", app.instances.values().map(|instance| task::info(instance)).collect());
    }
    if embed.readiness {
        put("readinessCheckResults", Value::Array(task::readiness_results(app)));
    }
    if embed.last_task_failure
        && let Some(failure) = &app.last_failure
    {
        put("lastTaskFailure", task_failure(failure));
    }
    if embed.task_stats {
        put("taskStats", task_stats(app));
    }
    Value::Object(object)
}

/// An app of which nothing runs yet, as it is answered to its creator.
pub(crate) fn created(app: &AppDefinition, deployment: &str) -> Value {
    let mut object = definition(app);
    object.extend(counts(InstanceCounts::default()));
    object.insert("tasks".to_owned(), json!([]));
    object.insert("deployments".to_owned(), json!([{"id": deployment}]));
    Value::Object(object)
}

/// How an instance failed.
fn task_failure(failure: &TaskFailure) -> Value {
    json!({
        "appId": failure.app,
        "host": failure.host,
        "message": failure.message,
        "slaveId": failure.agent,
        "state": failure.state.as_str(),
        "taskId": failure.task,
        "timestamp": failure.timestamp,
        "version": failure.version,
    })
}

fn counts(counts: InstanceCounts) -> [(String, Value); 4] {
    [
        ("tasksStaged".to_owned(), json!(counts.staged)),
        ("tasksRunning".to_owned(), json!(counts.running)),
        ("tasksHealthy".to_owned(), json!(counts.healthy)),
        ("tasksUnhealthy".to_owned(), json!(counts.unhealthy)),
    ]
}

fn task_stats(app: &AppView) -> Value {
    let latest = app.definition.version_info;
    let config_of = |instance: &InstanceView| {
        let version = app.versions.iter().find(|version| version.version == instance.version);
        version.map(|version| version.version_info.last_config_change_at)
    };
    let is_latest = |instance: &InstanceView| config_of(instance) == Some(latest.last_config_change_at);
    let stats = |wanted: &dyn Fn(&InstanceView) -> bool| {
        let mut part = app.clone();
        part.instances = app
            .instances
            .iter()
            .filter(|(_, instance)| wanted(instance))
            .map(|(task, instance)| (task.clone(), instance.clone()))
            .collect();
        let counts = part.counts();
        json!({"stats": {"counts": {
            "staged": counts.staged,
            "running": counts.running,
            "healthy": counts.healthy,
            "unhealthy": counts.unhealthy,
        }}})
    };
    json!({
        "startedAfterLastScaling": stats(&|instance| instance.version >= latest.last_scaling_at),
        "withLatestConfig": stats(&is_latest),
        "withOutdatedConfig": stats(&|instance| !is_latest(instance)),
        "totalSummary": stats(&|_| true),
    })
}

fn container(app: &AppDefinition, container: &Container) -> Value {
    let mut object = Map::new();
    object.insert("type".to_owned(), json!(container.kind));
    if let Some(docker) = &container.docker {
        object.insert("docker".to_owned(), docker.clone());
    }
    object.insert("volumes".to_owned(), json!(container.volumes));
    if !app.is_on_host_network() {
        let mappings = container.port_mappings.iter().map(port_mapping).collect();
        object.insert("portMappings".to_owned(), mappings);
    }
    Value::Object(object)
}

fn port_mapping(mapping: &PortMapping) -> Value {
    let mut object = Map::new();
    object.insert("containerPort".to_owned(), json!(mapping.container_port));
    if let Some(port) = mapping.host_port {
        object.insert("hostPort".to_owned(), json!(port));
    }
    object.insert("servicePort".to_owned(), json!(mapping.service_port));
    object.insert("protocol".to_owned(), protocols(&mapping.protocols));
    if let Some(name) = &mapping.name {
        object.insert("name".to_owned(), json!(name));
    }
    object.insert("labels".to_owned(), json!(mapping.labels));
    if !mapping.network_names.is_empty() {
        object.insert("networkNames".to_owned(), json!(mapping.network_names));
    }
    Value::Object(object)
}

fn port_definition(definition: &PortDefinition) -> Value {
    let mut object = Map::new();
    object.insert("port".to_owned(), json!(definition.port));
    object.insert("protocol".to_owned(), protocols(&definition.protocols));
    if let Some(name) = &definition.name {
        object.insert("name".to_owned(), json!(name));
    }
    object.insert("labels".to_owned(), json!(definition.labels));
    Value::Object(object)
}

fn protocols(protocols: &[Protocol]) -> Value {
    protocols.iter().map(|protocol| protocol.as_str()).collect::<Vec<_>>().join(",").into()
}

fn network(network: &Network) -> Value {
    let mut object = Map::new();
    object.insert("mode".to_owned(), json!(network.mode));
    if let Some(name) = &network.name {
        object.insert("name".to_owned(), json!(name));
    }
    if !network.labels.is_empty() {
        object.insert("labels".to_owned(), json!(network.labels));
    }
    Value::Object(object)
}

fn constraint(constraint: &Constraint) -> Value {
    let mut parts = vec![constraint.field.as_str(), constraint.operator.as_str()];
    parts.extend(constraint.value.as_deref());
    json!(parts)
}

fn unreachable_strategy(strategy: UnreachableStrategy) -> Value {
    match strategy {
        UnreachableStrategy::Disabled => json!("disabled"),
        UnreachableStrategy::Enabled { inactive_after, expunge_after } => json!({
            "inactiveAfterSeconds": inactive_after.as_secs(),
            "expungeAfterSeconds": expunge_after.as_secs(),
        }),
    }
}

fn seconds(duration: Duration) -> Value {
    json!(duration.as_secs())
}

/// A number without a fraction if it has none: `128`, not `128.0`, as Marathon prints it.
fn number(value: f64) -> Value {
    /// Beyond this a double no longer holds every whole number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT_MAX { json!(value as i64) } else { json!(value) }
}
