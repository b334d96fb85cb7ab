//! Marathon apps.
//!
//! Source: Marathon's RAML and validators as gathered in spec/client-surface.md §6. A value of these types has passed
//! the API's checks; defaults are filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AppId, Constraint, Protocol, Scalar, Timestamp};

/// One version of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppDefinition {
    /// Path.
    pub id: AppId,
    /// When this version was made. Assigned by Marathon, unique per app.
    pub version: Timestamp,
    /// When what last changed.
    pub version_info: VersionInfo,
    /// Shell line.
    pub cmd: Option<String>,
    /// Program and arguments, instead of `cmd`.
    pub args: Vec<String>,
    /// User to run as.
    pub user: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, EnvironmentValue>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How many instances to keep running.
    pub instances: u32,
    /// Cores of each instance.
    pub cpus: Scalar,
    /// Memory of each instance in MiB.
    pub mem: Scalar,
    /// Disk of each instance in MiB.
    pub disk: Scalar,
    /// Graphics processors of each instance.
    pub gpus: Scalar,
    /// Placement.
    pub constraints: Vec<Constraint>,
    /// Roles whose resources may be used; any if absent.
    pub accepted_resource_roles: Option<Vec<String>>,
    /// The resource role; the default one if absent.
    pub role: Option<String>,
    /// Container, needed for images and for port mappings.
    pub container: Option<Container>,
    /// Never empty.
    pub networks: Vec<Network>,
    /// Ports with host networking.
    pub port_definitions: Vec<PortDefinition>,
    /// Whether the service ports must be the host ports.
    pub require_ports: bool,
    /// Health checks in the API's form with all defaults.
    pub health_checks: Vec<Value>,
    /// Readiness checks in the API's form with all defaults; at most one.
    pub readiness_checks: Vec<Value>,
    /// Rolling restarts.
    pub upgrade_strategy: UpgradeStrategy,
    /// Which instance goes first when scaling down.
    pub kill_selection: KillSelection,
    /// When instances on lost agents are given up.
    pub unreachable_strategy: UnreachableStrategy,
    /// Delay between launches after failures.
    pub backoff: Backoff,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Option<Duration>,
    /// Apps and groups that must be up first.
    pub dependencies: BTreeSet<AppId>,
    /// Fields that Marathon knows and mesonet keeps without acting on them, in the API's names and form.
    pub passthrough: BTreeMap<String, Value>,
}

/// When an app last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// When anything but the number of instances last changed. Instances with the same value are alike.
    pub last_config_change_at: Timestamp,
    /// When the number of instances last changed.
    pub last_scaling_at: Timestamp,
}

/// A variable's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvironmentValue {
    /// As it is.
    Text(String),
    /// The value of a secret.
    Secret {
        /// Key of the app's `secrets`.
        secret: String,
    },
}

/// An app's container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Which containerizer.
    pub kind: ContainerKind,
    /// Docker image and its options in the API's form.
    pub docker: Option<Value>,
    /// Volumes in the API's form.
    pub volumes: Vec<Value>,
    /// Ports with container networking.
    pub port_mappings: Vec<PortMapping>,
}

/// Containerizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ContainerKind {
    /// The Mesos containerizer.
    Mesos,
    /// The Docker containerizer.
    Docker,
}

/// A port of an app in a container network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Port in the container; 0 for the same as the host port.
    pub container_port: u16,
    /// Port on the agent; 0 for any, absent for none.
    pub host_port: Option<u16>,
    /// Port of the service; never 0 once Marathon has accepted the app.
    pub service_port: u16,
    /// Protocols; never empty.
    pub protocols: Vec<Protocol>,
    /// Name, unique in the app.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The container networks that it is for.
    pub network_names: Vec<String>,
}

/// A port of an app with host networking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortDefinition {
    /// Port of the service; never 0 once Marathon has accepted the app.
    pub port: u16,
    /// Protocols; never empty.
    pub protocols: Vec<Protocol>,
    /// Name, unique in the app.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A network that an app joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Kind.
    pub mode: NetworkMode,
    /// Name, for container networks.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Kinds of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The agent's own.
    #[serde(rename = "host")]
    Host,
    /// A bridge on the agent, ports mapped.
    #[serde(rename = "container/bridge")]
    Bridge,
    /// A virtual network.
    #[serde(rename = "container")]
    Container,
}

/// Bounds during a rolling restart, as shares of the number of instances.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UpgradeStrategy {
    /// At least this share stays healthy.
    pub minimum_health_capacity: f64,
    /// At most this share runs beyond the number of instances.
    pub maximum_over_capacity: f64,
}

/// Which instance goes first when scaling down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KillSelection {
    /// The one that started last.
    #[default]
    YoungestFirst,
    /// The one that started first.
    OldestFirst,
}

/// When instances on lost agents are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnreachableStrategy {
    /// Never.
    Disabled,
    /// In two steps.
    Enabled {
        /// After this time another instance is started.
        inactive_after: Duration,
        /// After this time it is killed if it comes back.
        expunge_after: Duration,
    },
}

/// Delay between launches after failures: `initial` × `factor`^failures, at most `max`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first failure.
    pub initial: Duration,
    /// Growth.
    pub factor: f64,
    /// Bound.
    pub max: Duration,
}

/// One port of an app, whatever its networking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppPort<'app> {
    /// Name.
    pub name: Option<&'app str>,
    /// Protocols; never empty.
    pub protocols: &'app [Protocol],
    /// Port of the service.
    pub service_port: u16,
    /// Port in the container; absent with host networking.
    pub container_port: Option<u16>,
    /// Port wanted on the agent: 0 for any, absent for none.
    pub host_port: Option<u16>,
    /// Labels.
    pub labels: &'app BTreeMap<String, String>,
}

impl AppDefinition {
    /// Whether its tasks use the agent's network.
    pub fn is_on_host_network(&self) -> bool {
        self.networks.iter().all(|network| network.mode == NetworkMode::Host)
    }

    /// Its ports in order: the definitions with host networking, else the mappings.
    pub fn ports(&self) -> Vec<AppPort<'_>> {
        if self.is_on_host_network() {
            let require = self.require_ports;
            return self.port_definitions.iter().map(|port| port.as_app_port(require)).collect();
        }
        self.container
            .iter()
            .flat_map(|container| &container.port_mappings)
            .map(PortMapping::as_app_port)
            .collect()
    }

    /// The container image that it wants.
    pub fn image(&self) -> Option<&str> {
        self.container.as_ref()?.docker.as_ref()?.get("image")?.as_str()
    }
}

impl PortDefinition {
    fn as_app_port(&self, require: bool) -> AppPort<'_> {
        AppPort {
            name: self.name.as_deref(),
            protocols: &self.protocols,
            service_port: self.port,
            container_port: None,
            host_port: Some(if require { self.port } else { 0 }),
            labels: &self.labels,
        }
    }
}

impl PortMapping {
    fn as_app_port(&self) -> AppPort<'_> {
        AppPort {
            name: self.name.as_deref(),
            protocols: &self.protocols,
            service_port: self.service_port,
            container_port: Some(self.container_port),
            host_port: self.host_port,
            labels: &self.labels,
        }
    }
}

impl Backoff {
    /// The delay after so many failures in a row.
    pub fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            _ => {
                let exponent = i32::try_from(failures - 1).unwrap_or(i32::MAX);
                let seconds = self.initial.as_secs_f64() * self.factor.powi(exponent);
                Duration::try_from_secs_f64(seconds).unwrap_or(self.max).min(self.max)
            }
        }
    }
}

impl Default for UpgradeStrategy {
    fn default() -> Self {
        Self { minimum_health_capacity: 1.0, maximum_over_capacity: 1.0 }
    }
}

impl Default for UnreachableStrategy {
    fn default() -> Self {
        Self::Enabled { inactive_after: Duration::ZERO, expunge_after: Duration::ZERO }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), factor: 1.15, max: Duration::from_secs(300) }
    }
}
