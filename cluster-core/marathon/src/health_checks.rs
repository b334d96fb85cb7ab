//! From an app's health and readiness checks, as the API has them, to those of a task (spec/client-surface.md §6.1, §6.4).

use std::time::Duration;

use mesonet_model::{AppDefinition, HealthCheck, HealthProbe, IpProtocol, ReadinessCheck};
use serde_json::Value;

/// No check is made more often, and none has less time.
const SECONDS_MIN: u64 = 1;

/// What the agent of an instance with these host ports checks: one for each of the app's checks, in their order.
pub(crate) fn health_checks(definition: &AppDefinition, host_ports: &[Option<u16>]) -> Vec<HealthCheck> {
    definition.health_checks.iter().map(|check| health_check(check, definition, host_ports)).collect()
}

/// What the agent of an instance with these host ports checks until the instance is ready, if the app says so.
pub(crate) fn readiness_check(
    definition: &AppDefinition,
    host_ports: &[Option<u16>],
) -> Option<ReadinessCheck> {
    let check = definition.readiness_checks.first()?;
    let seconds = |key, default| {
        let number = check.get(key).and_then(Value::as_u64).unwrap_or(default);
        Duration::from_secs(number.max(SECONDS_MIN))
    };
    let text = |key| check.get(key).and_then(Value::as_str);
    let statuses = check.get("httpStatusCodesForReady").and_then(Value::as_array);
    let statuses = statuses.map(|statuses| {
        let number = |status: &Value| u16::try_from(status.as_u64()?).ok();
        statuses.iter().filter_map(number).collect()
    });
    let name = text("portName").unwrap_or("http-api");
    let index = definition.ports().iter().position(|port| port.name == Some(name));
    Some(ReadinessCheck {
        port: index.map_or(0, |index| port_at(index, definition, host_ports)),
        path: text("path").unwrap_or("/").to_owned(),
        tls: text("protocol") == Some("HTTPS"),
        interval: seconds("intervalSeconds", 30),
        timeout: seconds("timeoutSeconds", 10),
        ready_statuses: statuses.unwrap_or_else(|| vec![200]),
        keeps_response: check.get("preserveLastResponse").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn health_check(check: &Value, definition: &AppDefinition, host_ports: &[Option<u16>]) -> HealthCheck {
    let number = |key, default| check.get(key).and_then(Value::as_u64).unwrap_or(default);
    let text = |key| check.get(key).and_then(Value::as_str);
    let flag = |key| check.get(key).and_then(Value::as_bool).unwrap_or(false);
    let port = || port(check, definition, host_ports);
    let protocol = text("protocol").unwrap_or("HTTP");
    let probe = match protocol.strip_prefix("MESOS_").unwrap_or(protocol) {
        "TCP" => HealthProbe::Tcp { port: port() },
        "COMMAND" => {
            let line = check.get("command").and_then(|command| command.get("value")?.as_str());
            HealthProbe::Command { shell: line.unwrap_or_default().to_owned() }
        }
        kind => HealthProbe::Http {
            port: port(),
            path: text("path").unwrap_or("/").to_owned(),
            tls: kind == "HTTPS",
            ignore_informational: flag("ignoreHttp1xx"),
        },
    };
    // Marathon knows the delay of its own checks but does not keep it.
    let has_delay = protocol.starts_with("MESOS_") || protocol == "COMMAND";
    HealthCheck {
        probe,
        delay: Duration::from_secs(if has_delay { number("delaySeconds", 15) } else { 0 }),
        grace: Duration::from_secs(number("gracePeriodSeconds", 300)),
        interval: Duration::from_secs(number("intervalSeconds", 60).max(SECONDS_MIN)),
        timeout: Duration::from_secs(number("timeoutSeconds", 20).max(SECONDS_MIN)),
        failures_max: u32::try_from(number("maxConsecutiveFailures", 3)).unwrap_or(u32::MAX),
        ip_protocol: match text("ipProtocol") {
            Some("IPv4") => Some(IpProtocol::V4),
            Some("IPv6") => Some(IpProtocol::V6),
            Some(_) | None => None,
        },
    }
}

/// The port that a health check asks.
fn port(check: &Value, definition: &AppDefinition, host_ports: &[Option<u16>]) -> u16 {
    let number = |key| check.get(key).and_then(Value::as_u64);
    if let Some(port) = number("port") {
        return u16::try_from(port).unwrap_or(0);
    }
    let index = usize::try_from(number("portIndex").unwrap_or(0)).unwrap_or(usize::MAX);
    port_at(index, definition, host_ports)
}

/// The port at the task's own address, or at its node's with host networking. 0, where nobody answers, if the app has
/// no such port.
fn port_at(index: usize, definition: &AppDefinition, host_ports: &[Option<u16>]) -> u16 {
    let host_port = host_ports.get(index).copied().flatten();
    let own = definition.ports().get(index).and_then(|port| port.container_port);
    own.filter(|port| *port != 0).or(host_port).unwrap_or(0)
}
