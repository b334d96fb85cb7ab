//! The apps that users have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use mesonet_model::{
    AppDefinition, AppId, Backoff, KillSelection, Network, NetworkMode, PortDefinition, Protocol, Scalar,
    Timestamp, UnreachableStrategy, UpgradeStrategy, VersionInfo,
};
use serde_json::{Value, json};

/// The apps' ids. Their number and [`INSTANCES_MAX`] keep all of them, twice as many during upgrades, within what the
/// agents have.
pub(crate) const APPS: [&str; 4] = ["/a", "/b", "/g/c", "/g/d"];

/// The most instances of an app.
pub(crate) const INSTANCES_MAX: u32 = 3;

/// After so many failures in a row an instance is killed.
pub(crate) const FAILURES_MAX: u32 = 3;

/// Half a core each, so that rounding is of no account.
pub(crate) const CPUS: Scalar = Scalar::from_thousandths(500);

pub(crate) fn app_id(rng: &mut Rng) -> AppId {
    let id = rng.choice(APPS).unwrap_or(APPS[0]);
    AppId::parse(id).expect("a valid id")
}

/// Some configuration of an app.
pub(crate) fn definition(id: &AppId, rng: &mut Rng) -> AppDefinition {
    let grace = rng.choice([None, Some(Duration::from_secs(1)), Some(Duration::from_secs(20))]).flatten();
    AppDefinition {
        id: id.clone(),
        version: Timestamp::default(),
        version_info: VersionInfo {
            last_config_change_at: Timestamp::default(),
            last_scaling_at: Timestamp::default(),
        },
        cmd: Some(format!("sleep {}", rng.u32(1..1_000_000))),
        args: Vec::new(),
        user: None,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        instances: rng.u32(..=INSTANCES_MAX),
        cpus: CPUS,
        mem: Scalar::from_units(64),
        disk: Scalar::ZERO,
        gpus: Scalar::ZERO,
        constraints: Vec::new(),
        accepted_resource_roles: None,
        role: None,
        container: None,
        networks: vec![Network { mode: NetworkMode::Host, name: None, labels: BTreeMap::new() }],
        port_definitions: ports(id, rng),
        require_ports: false,
        health_checks: if rng.u32(..3) == 0 { vec![health_check()] } else { Vec::new() },
        readiness_checks: if rng.u32(..3) == 0 { vec![json!({ "portName": "http" })] } else { Vec::new() },
        upgrade_strategy: UpgradeStrategy {
            minimum_health_capacity: rng.choice([0.0, 0.5, 1.0]).unwrap_or(1.0),
            maximum_over_capacity: rng.choice([0.0, 0.5, 1.0]).unwrap_or(1.0),
        },
        kill_selection: KillSelection::default(),
        unreachable_strategy: UnreachableStrategy::default(),
        backoff: Backoff { initial: Duration::from_secs(1), factor: 2.0, max: Duration::from_secs(30) },
        kill_grace: grace,
        dependencies: BTreeSet::new(),
        passthrough: BTreeMap::new(),
    }
}

fn health_check() -> Value {
    json!({ "protocol": "TCP", "maxConsecutiveFailures": FAILURES_MAX })
}

/// The first port belongs to the app's own VIP, or to one that the apps share; the second one, if there is one, to none.
fn ports(id: &AppId, rng: &mut Rng) -> Vec<PortDefinition> {
    let vip = match rng.u32(..10) {
        0 => "/shared:80".to_owned(),
        1 => format!("/{}:81", id.task_name()),
        2 => "1.2.3.4:80".to_owned(),
        _ => format!("/{}:80", id.task_name()),
    };
    let port = |name: &str, labels| PortDefinition {
        port: 0,
        protocols: vec![Protocol::Tcp],
        name: Some(name.to_owned()),
        labels,
    };
    let mut ports = vec![port("http", BTreeMap::from([("VIP_0".to_owned(), vip)]))];
    if rng.u32(..4) == 0 {
        ports.push(port("admin", BTreeMap::new()));
    }
    ports
}
