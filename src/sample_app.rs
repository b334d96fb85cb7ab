//! An app as measurements and tests post it.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_marathon::{AppBase, AppPut, Command};
use mesonet_model::{
    AppDefinition, AppId, Backoff, KillSelection, Network, NetworkMode, PortDefinition, Protocol, Scalar,
    Timestamp, UnreachableStrategy, UpgradeStrategy, VersionInfo,
};

/// The command that creates it.
pub fn put(id: &AppId, instances: u32) -> Command {
    let put = AppPut { definition: sample_app(id, instances), base: AppBase::Absent };
    Command::Put { apps: vec![put], force: false }
}

/// A small app with one dynamic port behind a named VIP `/<name>:80`.
fn sample_app(id: &AppId, instances: u32) -> AppDefinition {
    let vip = format!("/{}:80", id.task_name());
    AppDefinition {
        id: id.clone(),
        version: Timestamp::default(),
        version_info: VersionInfo {
            last_config_change_at: Timestamp::default(),
            last_scaling_at: Timestamp::default(),
        },
        cmd: Some("sleep 1000".to_owned()),
        args: Vec::new(),
        user: None,
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        instances,
        cpus: Scalar::from_f64(0.01),
        mem: Scalar::from_units(1),
        disk: Scalar::ZERO,
        gpus: Scalar::ZERO,
        constraints: Vec::new(),
        accepted_resource_roles: None,
        role: None,
        container: None,
        networks: vec![Network { mode: NetworkMode::Host, name: None, labels: BTreeMap::new() }],
        port_definitions: vec![PortDefinition {
            port: 0,
            protocols: vec![Protocol::Tcp],
            name: Some("http".to_owned()),
            labels: BTreeMap::from([("VIP_0".to_owned(), vip)]),
        }],
        require_ports: false,
        health_checks: Vec::new(),
        readiness_checks: Vec::new(),
        upgrade_strategy: UpgradeStrategy::default(),
        kill_selection: KillSelection::default(),
        unreachable_strategy: UnreachableStrategy::default(),
        backoff: Backoff::default(),
        kill_grace: None,
        dependencies: BTreeSet::new(),
        passthrough: BTreeMap::new(),
    }
}
